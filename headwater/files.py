"""Small files that other processes read: there is the old one or the new one, never half of one."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file through a scratch file beside it, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(text)
    os.replace(scratch, path)
