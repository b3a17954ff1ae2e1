"""Tables spread over files by a number of each row, so that what is larger than memory is read a part at a time."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.evaluation.metrics import Ints


class Spool:
    """A folder of Arrow files; rows of a part come back in the order in which they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, pieces: Iterable[tuple[pa.Table, Ints]]) -> "Spool":
        """Write tables, each with the part (n_rows,) that a row belongs to; what was there is gone."""
        self.folder.mkdir(parents=True)
        with ExitStack() as stack:
            writers: dict[int, pa.RecordBatchStreamWriter] = {}
            for table, part in pieces:
                if not len(part):
                    continue
                order = np.argsort(part, kind="stable")
                numbers, starts = np.unique(part[order], return_index=True)
                for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
                    if number not in writers:
                        file = self.folder / f"{number:05}.arrow"
                        writers[number] = stack.enter_context(pa.ipc.new_stream(str(file), table.schema))
                    writers[number].write_table(table.take(pa.array(rows)))
        return self

    @property
    def files(self) -> list[Path]:
        """Files of the parts that have rows, in order."""
        return sorted(self.folder.glob("*.arrow"))

    def drained(self) -> Iterator[pa.Table]:
        """Each part once; its file is gone when the next is asked for."""
        for file in self.files:
            yield read(file)
            file.unlink()


def read(file: Path) -> pa.Table:
    """A part, in one piece."""
    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
        return stream.read_all().combine_chunks()
