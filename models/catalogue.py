"""A bundle's numbering: strings at the edge, int32 inside.

Strings stay the bytes that Arrow read. A million items as Python objects take seconds to make, during which a server's
requests wait for the interpreter, and most of its memory; a request shows some tens of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.online.names import Names, packed
from headwater.online.replies import Blobs

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.object_]
ITEM_ID = "item_id"
Strings: TypeAlias = pa.ChunkedArray | pa.Array


@dataclass
class Numbering:
    """``ids`` (n,): an id's place is its dense number."""

    ids: Names

    def __len__(self) -> int:
        return len(self.ids)

    def dense(self, ids: Sequence[str]) -> Ints:
        """Numbers of ids (len(ids),), -1 for unknown ones."""
        if not len(ids):
            return np.empty(0, np.int32)
        return self.ids.find(packed(ids)).astype(np.int32)


@dataclass(frozen=True)
class Column:
    """A text a row, each distinct one held once: row i has ``values[numbers[i]]``."""

    values: Names
    numbers: Ints

    @classmethod
    def of(cls, texts: Strings | Sequence[str]) -> "Column":
        """The rows of Arrow's strings, a null being empty, or of any; encoded ones are taken as they are."""
        held = texts if isinstance(texts, pa.ChunkedArray | pa.Array) else pa.array(texts, pa.string())
        encoded = held if pa.types.is_dictionary(held.type) else _whole(held).dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        return cls(Names.of(blobs(encoded.dictionary)), encoded.indices.to_numpy())

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> str:
        return self.values[self.numbers[row]]

    def take(self, rows: npt.NDArray[Any]) -> list[str]:
        """The texts of some rows."""
        return self.values.take(self.numbers[rows])

    def tolist(self) -> list[str]:
        """The text of each row."""
        return self.values.take(self.numbers)

    def having(self, text: str) -> Bools:
        """Rows with this text (n,)."""
        return np.asarray(self.numbers == self.values.find(packed([text]))[0])

    def among(self, texts: Sequence[str]) -> Bools:
        """Rows whose text is one of these (n,)."""
        found, wanted = self.values.find(packed(texts)), np.zeros(len(self.values), bool)
        wanted[found[found >= 0]] = True
        return wanted[self.numbers]

    def groups(self) -> Ints:
        """Each row's text as its place among all in order (n,), from 0, -1 where it is empty."""
        values, places = np.unique(np.array([*self.values], str), return_inverse=True)
        begin = int(len(values) > 0 and values[0] == "")
        return np.asarray((places - begin)[self.numbers], np.int32)

    def plus(self, texts: Sequence[str]) -> "Column":
        """The column with further rows."""
        found = self.values.find(packed(texts))
        new = list(dict.fromkeys(text for text, number in zip(texts, found.tolist(), strict=True) if number < 0))
        values = self.values.plus(new)
        return Column(values, np.concatenate([self.numbers, values.find(packed(texts)).astype(np.int32)]))


@dataclass
class Catalogue(Numbering):
    """Items in dense order: ``vectors`` (n, dim) of length one, ``text`` the attributes by name, each (n,)."""

    vectors: npt.NDArray[np.float32]
    text: Mapping[str, Column]

    def attributes(self, items: Ints) -> list[Mapping[str, str]]:
        """What is known of some items: name, category, ..."""
        if not self.text:
            return [{} for _ in items]
        told = zip(*(column.take(items) for column in self.text.values()), strict=True)
        return [dict(zip(self.text, one, strict=True)) for one in told]

    def column(self, name: str) -> Column:
        """One attribute of all items (n,)."""
        return self.text[name]

    def groups(self, name: str) -> Ints:
        """Which items have one value of an attribute in common: its number (n,), -1 where it is empty."""
        if name not in self._groups:
            self._groups[name] = self.text[name].groups()
        return self._groups[name]

    @cached_property
    def _groups(self) -> dict[str, Ints]:
        return {}


def write_items(table: pa.Table, path: Path) -> None:
    """Write ``item_id`` and text columns as :func:`map_items` has them: each distinct text of an attribute once."""
    columns = {name: _whole(table[name]) for name in table.column_names}
    encoded = {name: held if name == ITEM_ID else held.dictionary_encode() for name, held in columns.items()}
    whole = pa.record_batch(encoded)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_batch(whole)  # one piece, also where there is no row


def map_items(path: Path) -> pa.Table:
    """What :func:`write_items` wrote, mapped: nothing is read or decoded before it is looked at."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def blobs(column: Strings) -> Blobs:
    """Strings where Arrow has them; a null is empty."""
    held = _whole(column)
    _, offsets, raw = held.buffers()
    ends = np.frombuffer(offsets or bytes(8), np.int64)[held.offset : held.offset + len(held) + 1]
    return Blobs(np.frombuffer(raw or b"", np.uint8), ends[:-1].copy(), np.diff(ends))


def texts(column: Strings) -> Texts:
    """Strings as objects; a null is empty."""
    return np.asarray(_whole(column).to_numpy(zero_copy_only=False), object)


def _whole(column: Strings) -> pa.LargeStringArray:
    """In one piece, of which no offset is too large."""
    held = column.cast(pa.large_string())
    held = held.fill_null("") if held.null_count else held
    return held.combine_chunks() if isinstance(held, pa.ChunkedArray) else held
