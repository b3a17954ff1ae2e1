"""A bounded file of records that could not be sent yet: in order, and there after a restart.

The first line says, in twenty digits, up to which byte the file has been sent; then comes a record a line: time (epoch
ms), key as JSON, value, with tabs between.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 64 << 20
_HEAD = 21


@dataclass(frozen=True, slots=True)
class Record:
    """What goes to a topic; ``value`` has no line break."""

    key: str
    value: bytes
    at_ms: int

    def line(self) -> bytes:
        return b"%d\t%b\t%b\n" % (self.at_ms, json.dumps(self.key).encode(), self.value)

    @classmethod
    def of(cls, line: bytes) -> "Record":
        at_ms, key, value = line.rstrip(b"\n").split(b"\t", 2)
        return cls(json.loads(key), value, int(at_ms))


class Spill:
    """For one thread of one process; a record that was half written when a process died is left out."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._most = most_bytes
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        held = self._file.read()
        self._end = held.rfind(b"\n") + 1
        self._sent = int(held[:_HEAD]) if self._end >= _HEAD else _HEAD
        self._ahead = self._sent
        if self._end < _HEAD:
            self._clear()
        self._file.truncate(self._end)

    def __bool__(self) -> bool:
        return self._sent < self._end

    def add(self, record: Record) -> bool:
        """Whether there was room, and the disk took it."""
        line = record.line()
        if self._end + len(line) > self._most:
            return False
        try:
            self._file.seek(self._end)
            if self._file.write(line) != len(line):
                return False
        except OSError:
            return False
        self._end += len(line)
        return True

    def head(self, n: int) -> list[Record]:
        """The oldest records, at most n."""
        self._file.seek(self._sent)
        found: list[Record] = []
        with os.fdopen(os.dup(self._file.fileno()), "rb") as reader:
            self._ahead = self._sent
            while len(found) < n and self._ahead < self._end:
                line = reader.readline()
                self._ahead += len(line)
                found.append(Record.of(line))
        return found

    def drop(self) -> None:
        """Forget what :meth:`head` last gave: it has been sent."""
        self._sent = self._ahead
        if self._sent == self._end:
            self._clear()
        else:
            self._mark()

    def take(self, other: "Spill") -> None:
        """Move another's records behind one's own, as long as there is room."""
        while (oldest := other.head(1)) and self.add(oldest[0]):
            other.drop()

    def close(self) -> None:
        self._file.close()

    def _clear(self) -> None:
        self._sent = self._ahead = self._end = _HEAD
        self._mark()
        self._file.truncate(_HEAD)

    def _mark(self) -> None:
        self._file.seek(0)
        self._file.write(b"%020d\n" % self._sent)


def spill_of(folder: Path, port: int, worker: int = 0, workers: int = 1) -> Spill:
    """The file of one worker of several; it takes over what is left of workers that there are no more."""
    own = Spill(folder / (f"impressions-{port}-{worker}.spill" if worker else f"impressions-{port}.spill"))
    for path in sorted(folder.glob(f"impressions-{port}-*.spill")):
        number = int(path.stem.rpartition("-")[2])
        if number >= workers and number % workers == worker:
            other = Spill(path)
            own.take(other)
            other.close()
            if not other:
                path.unlink()
    return own
