"""Rows of eight-byte words in a file that processes map: one writes, the others read, and none waits for another.

A sequence number guards all rows (a seqlock: Lameter, "Effective synchronization on Linux/NUMA systems", 2005). The
writer makes it odd, writes, makes it even again; what was read between two equal even numbers was written as a whole.
A writer that is killed meanwhile leaves it odd, so that nothing of the file is read any more.

    word 0 sequence | 1 instant, epoch ms | 2 current at, ms of CLOCK_MONOTONIC | 3…7 free | rows, n × width
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import int64, types
from numpy.typing import NDArray

from headwater.loops import compiled, fence

Words = NDArray[np.int64]
HEAD = 8
_TRIES = 50
_words, _rows = types.Array(types.int64, 1, "C"), types.Array(types.int64, 2, "C")
_mapped = types.Array(types.int64, 1, "C", readonly=True)


def monotonic_ms() -> int:
    """A time that all processes of the machine share."""
    return time.monotonic_ns() // 1_000_000


@compiled(types.void(_words, _words, _rows, int64, int64))
def publish(words: Words, places: Words, rows: NDArray[np.int64], instant: int, current: int) -> None:
    """Replace the rows (m, width) at ``places`` (m,), and the head."""
    words[0] += 1
    fence()
    width = rows.shape[1]
    for row in range(len(places)):
        at = HEAD + places[row] * width
        for column in range(width):
            words[at + column] = rows[row, column]
    words[1], words[2] = instant, current
    fence()
    words[0] += 1


@compiled(types.UniTuple(int64, 2)(_mapped, _words, _rows))
def gather(words: Words, places: Words, out: NDArray[np.int64]) -> tuple[int, int]:
    """Copy the rows at ``places`` (m,) into ``out`` (width, m); instant and when they were current, -1 where torn."""
    before = words[0]
    fence()
    if before % 2 != 0:
        return -1, -1
    instant, current, width = words[1], words[2], out.shape[0]
    for row in range(len(places)):
        at = HEAD + places[row] * width
        for column in range(width):
            out[column, row] = words[at + column]
    fence()
    return (instant, current) if words[0] == before else (-1, -1)


@dataclass(frozen=True)
class Draft:
    """A file that is being filled; it is nobody's until it is put in its place, whole."""

    path: Path
    words: Words

    @classmethod
    def of(cls, path: Path, n: int, width: int) -> "Draft":
        """A file for n rows, in the folder where it is to lie.

        Raises
        ------
        OSError
            The disk has no room for it.
        """
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        size = 8 * (HEAD + n * width)
        with scratch.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a mapped page without room would end the process
            words: Any = np.memmap(file, np.int64, "r+", shape=(size // 8,))
        return cls(path, np.asarray(words))

    def put_in_place(self) -> None:
        """Let readers find it."""
        os.replace(self.path.with_name(f"{self.path.name}.{os.getpid()}"), self.path)


class Mapped:
    """The reading side of a file that may not be there yet, or be replaced by another."""

    def __init__(self, path: Path, n: int, width: int) -> None:
        self._path, self._n, self._width = path, n, width
        self._words: Words | None = None
        self._file = (0, 0)

    def read(self, places: NDArray[Any], fresh_ms: int) -> tuple[Words, int] | None:
        """Rows (width, m) as they were at one instant, and it, epoch ms.

        ``None`` where there are none that were current within ``fresh_ms`` of now.
        """
        wanted = np.ascontiguousarray(places, np.int64)
        found = self._taken(wanted, fresh_ms)
        return found if found is not None or not self._reopened() else self._taken(wanted, fresh_ms)

    def _taken(self, places: Words, fresh_ms: int) -> tuple[Words, int] | None:
        words = self._words
        if words is None:
            return None
        out = np.empty((self._width, len(places)), np.int64)
        for _ in range(_TRIES):
            instant, current = gather(words, places, out)
            if current >= 0:
                return (out, instant) if 0 <= monotonic_ms() - current <= fresh_ms else None
        return None

    def _reopened(self) -> bool:
        """Whether there is another file than the one that is mapped."""
        try:
            with self._path.open("rb") as file:
                told = os.fstat(file.fileno())
                known, self._file = self._file, (told.st_dev, told.st_ino)
                size = HEAD + self._n * self._width
                if known == self._file or told.st_size != 8 * size:
                    return False
                words: Any = np.memmap(file, np.int64, "r", shape=(size,))
        except OSError:
            return False
        self._words = np.asarray(words)
        return True
