"""Sha256 of files that the processes of a server load one after the other: one reads them, the rest take its word."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.files import write_whole
from models.bundle import sha256_of

KEPT_S = 60.0
"""How long a word is taken: as long as a swap lasts, and not so long that a start would not see a disk that decays."""
FILE = "sha256.json"


@dataclass(frozen=True)
class SharedDigests:
    """Asked for a file's digest, as :func:`models.bundle.sha256_of` is.

    ``folder`` is the processes' own. A file that was written since, or is another of the same name, is read again; what
    two of them write at once costs no more than reading a file twice.
    """

    folder: Path
    now_s: Callable[[], float] = time.time

    def __call__(self, path: Path) -> str:
        now_s, stamp = self.now_s(), _stamp(path)
        told = {name: word for name, word in self._told().items() if 0 <= now_s - word["at"] < KEPT_S}
        word = told.get(str(path))
        if word is None or word["stamp"] != stamp:
            word = told[str(path)] = {"stamp": stamp, "sha256": sha256_of(path), "at": now_s}
            write_whole(self.folder / FILE, json.dumps(told))
        return str(word["sha256"])

    def _told(self) -> dict[str, dict[str, Any]]:
        told: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError):
            told = json.loads((self.folder / FILE).read_text())
        return told


def _stamp(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
