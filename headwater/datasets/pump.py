"""Records into Kafka, in an order that can be taken up again after a stop."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from headwater.files import write_whole
from headwater.kafka_io import Record, Sender

SETTLE_EVERY = 10_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How many rows of an input a broker has acknowledged, for one identity of input and broker."""

    path: Path

    @classmethod
    def of(cls, state_dir: Path, *identity: object) -> "Checkpoint":
        """Where the progress of this input is kept; any change of its identity starts anew."""
        digest = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
        return cls(state_dir / "ingest" / f"{digest}.json")

    def rows(self) -> int:
        return int(json.loads(self.path.read_text())["rows"]) if self.path.exists() else 0

    def save(self, rows: int) -> None:
        write_whole(self.path, json.dumps({"rows": rows}))

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


def file_identity(path: Path) -> tuple[str, int, int]:
    """Tell a file from a later one at the same place: path, size and time of change."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def pump(
    records: Iterable[Record],
    sender: Sender,
    checkpoint: Checkpoint,
    start: int,
    settled: Callable[[int, Record], None] | None = None,
) -> int:
    """Send the records that follow row ``start``; every so often wait for the broker and note how far it got.

    A stop between the broker's answer and the note sends up to ``SETTLE_EVERY`` records twice, with the ids they had.

    Parameters
    ----------
    settled
        Called with (rows acknowledged, last record) at each note.

    Returns
    -------
    Rows acknowledged, ``start`` included.
    """
    row, record = start, None
    for row, record in enumerate(records, start + 1):
        sender.send(record)
        if (row - start) % SETTLE_EVERY == 0:
            _settle(sender, checkpoint, row, record, settled)
    if record is not None:
        _settle(sender, checkpoint, row, record, settled)
    return row


def _settle(
    sender: Sender, checkpoint: Checkpoint, row: int, record: Record, settled: Callable[[int, Record], None] | None
) -> None:
    sender.settle()
    checkpoint.save(row)
    if settled is not None:
        settled(row, record)
