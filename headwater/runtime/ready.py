"""How a part without a port says that it works: a small file that it writes once it does."""

import json
import os
from pathlib import Path
from typing import Any

from headwater.files import write_whole
from headwater.settings import Settings


def ready_path(settings: Settings, part: str) -> Path:
    """Where the part writes it."""
    return settings.run_dir / f"{part}.ready"


def mark_ready(settings: Settings, part: str, **facts: Any) -> None:
    """Say that this process's work has begun; ``facts`` are for people."""
    write_whole(ready_path(settings, part), json.dumps({"pid": os.getpid(), **facts}))


def is_marked(settings: Settings, part: str, pid: int) -> bool:
    """Whether this very process has said so; a file left by an earlier one does not count."""
    try:
        said = json.loads(ready_path(settings, part).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("pid") == pid
