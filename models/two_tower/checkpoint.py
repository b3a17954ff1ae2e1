"""Where a training stands, on disk: whole or not there at all, so that it may be killed at any instant."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from models.tower_config import TowerConfig
from models.trip_log import TripLog


def training_id(config: TowerConfig, log: TripLog) -> str:
    """What makes two trainings the same: settings, purchases, and how these lie in blocks."""
    return sha256(f"{config!r} {log.digest} {len(log.blocks)}".encode()).hexdigest()


def save(path: Path, training: str, state: dict[str, Any]) -> None:
    """Replace what is at ``path``."""
    partial = path.with_suffix(".partial")
    torch.save({"training": training, "state": state}, partial)
    partial.replace(path)


def load(path: Path, training: str, device: str) -> dict[str, Any] | None:
    """What was saved of this very training; ``None`` where there is nothing of it."""
    if not path.exists():
        return None
    held = torch.load(path, map_location=device, weights_only=True)
    state: dict[str, Any] | None = held.get("state") if held.get("training") == training else None
    return state
