"""What a run has found so far, in a folder, so that the same run goes on where it was ended."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import ModelError
from headwater.files import write_whole
from models.retrieval.protocol import Model

DONE, TIME = "done", "time"
"""Why no more is tried of a setting: nothing is left of it, or no time for anything."""


def fingerprint(*parts: Any) -> str:
    """Tells arrays, and what ``repr`` shows whole, from others."""
    digest = sha256()
    for part in parts:
        digest.update(_bytes(part))
    return digest.hexdigest()


def _bytes(part: Any) -> bytes:
    if isinstance(part, tuple):
        return b"".join(map(_bytes, part))
    if not isinstance(part, np.ndarray):
        return repr(part).encode()
    held: bytes = repr(part.tolist()).encode() if part.dtype == object else part.tobytes()
    return repr((part.dtype, part.shape)).encode() + held


class Checkpoint:
    """Scores of the settings tried so far and the seconds that they took, in ``choice.json``; by default nowhere.

    Parameters
    ----------
    folder
        Of this very run; models keep the states of their training beside the file.

    Raises
    ------
    ModelError
        The file cannot be read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._found: dict[str, Any] = {"seconds": 0.0, "tried": {}, "over": {}}
        if folder is not None and self._file.exists():
            try:
                self._found = json.loads(self._file.read_text())
            except ValueError as error:
                raise ModelError(f"{self._file}: cannot be read, {error}. Delete {folder} to begin anew.") from None
        self.began = time.monotonic() - self._found["seconds"]

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "choice.json"

    def tried(self, setting: Model) -> Iterator[tuple[Model, float]]:
        """Variants of a setting that have been judged, in order, and their scores."""
        for values, score in self._found["tried"].get(str(setting), ()):
            yield replace(setting, **values), score  # type: ignore[type-var]  # every model is a dataclass

    def over(self, setting: Model) -> str | None:
        """``DONE`` or ``TIME`` if no more is to be tried of a setting."""
        return self._found["over"].get(str(setting))  # type: ignore[no-any-return]

    def add(self, setting: Model, model: Model, score: float) -> None:
        """Keep the score of a variant."""
        values = {one.name: getattr(model, one.name) for one in fields(model) if one.repr}  # type: ignore[arg-type]
        self._found["tried"].setdefault(str(setting), []).append([values, score])
        self._save()

    def end(self, setting: Model, why: str) -> None:
        """Keep that no more is to be tried of a setting."""
        self._found["over"][str(setting)] = why
        self._save()

    def clear(self) -> None:
        """Delete what was kept, and the folder around it if that is empty then."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)
            with suppress(OSError):
                self.folder.parent.rmdir()

    def _save(self) -> None:
        self._found["seconds"] = time.monotonic() - self.began
        if self.folder is not None:
            write_whole(self._file, json.dumps(self._found))
