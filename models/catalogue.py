"""A bundle's numbering: strings at the edge, int32 inside."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int32]
Texts = npt.NDArray[np.object_]
UNKNOWN = -1
AT_ONCE = 4_096
"""Objects made without a pause, in about a millisecond."""


@dataclass
class Numbering:
    """``ids`` (n,): an id's place is its dense number."""

    ids: Texts

    def __len__(self) -> int:
        return len(self.ids)

    def dense(self, ids: Sequence[str]) -> Ints:
        """Numbers of ids (len(ids),), -1 for unknown ones."""
        return np.fromiter((self._places.get(each, UNKNOWN) for each in ids), np.int32, len(ids))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {each: place for place, each in enumerate(self.ids.tolist())}


@dataclass
class Catalogue(Numbering):
    """Items in dense order: ``vectors`` (n, dim) of length one, ``text`` the attributes by name, each (n,)."""

    vectors: npt.NDArray[np.float32]
    text: Mapping[str, Texts]

    def attributes(self, item: int) -> Mapping[str, str]:
        """What is known of an item: name, category, ..."""
        return {name: column[item] for name, column in self.text.items()}

    def column(self, name: str) -> Texts:
        """One attribute of all items (n,)."""
        return self.text[name]

    def groups(self, name: str) -> Ints:
        """Which items have one value of an attribute in common: its number (n,), -1 where it is empty."""
        if name not in self._groups:
            values, numbers = np.unique(self.text[name].astype(str), return_inverse=True)
            self._groups[name] = np.asarray(numbers - (values[0] == "") if len(values) else numbers, np.int32)
        return self._groups[name]

    @cached_property
    def _groups(self) -> dict[str, Ints]:
        return {}


def texts(column: pa.ChunkedArray) -> Texts:
    """Strings as objects, equal ones shared; a null is empty.

    They are made some at a time: a server makes them beside requests, whose threads have a turn in between.
    """
    encoded = column.combine_chunks().dictionary_encode()
    distinct, numbers = encoded.dictionary, encoded.indices.fill_null(len(encoded.dictionary))
    words, found = np.empty(len(distinct) + 1, object), np.empty(len(numbers), object)
    words[-1] = ""
    for begin in range(0, len(distinct), AT_ONCE):
        held = distinct.slice(begin, AT_ONCE).to_pylist()
        words[begin : begin + len(held)] = held
        time.sleep(0)
    places = numbers.to_numpy(zero_copy_only=False)
    for begin in range(0, len(places), AT_ONCE):
        found[begin : begin + AT_ONCE] = words[places[begin : begin + AT_ONCE]]
    return found
