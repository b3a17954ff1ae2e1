"""Which versions serve: ``bundles/aliases.json``, which ``models.registry`` writes and servers follow."""

import json
from typing import Any

from headwater.settings import Settings
from models.variants import CHALLENGER, CHAMPION

SHADOW = "shadow"


def champion(settings: Settings) -> str | None:
    """Version that the alias names, ``None`` where none has been promoted."""
    return _version(read(settings), CHAMPION)


def read(settings: Settings) -> dict[str, Any]:
    """Versions by alias, and ``history``; empty where nothing has been promoted."""
    try:
        found: dict[str, Any] = json.loads((settings.bundles_dir / "aliases.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def versions(settings: Settings) -> tuple[str | None, str | None, str | None]:
    """Versions of champion, challenger and shadow."""
    held = read(settings)
    return _version(held, CHAMPION), _version(held, CHALLENGER), _version(held, SHADOW)


def former_champions(settings: Settings) -> list[str]:
    """Versions that were champions before, the last first."""
    return [str(version) for version in reversed(read(settings).get("history", []))]


def _version(aliases: dict[str, Any], alias: str) -> str | None:
    version = aliases.get(alias)
    return None if version is None else str(version)
