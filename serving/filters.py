"""What may not be shown, and which rule says so: the first that removes an item is the one that is counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.ports import Bools, Ints

Filter = Callable[[Ints], Bools]
"""Which of some items (n,) may not be shown (n,)."""
AT_A_TIME = 1_000


@dataclass(frozen=True)
class Filters:
    """Filters by name, in order."""

    by_name: Mapping[str, Filter]

    def removed_by(self, items: Ints) -> NDArray[np.int16]:
        """Number of the first filter that removes each item (n,), -1 where none does."""
        found = np.full(len(items), -1, np.int16)
        for number, removes in enumerate(self.by_name.values()):
            found[(found < 0) & removes(items)] = number
        return found

    def within(self, allowed: Bools | None) -> "Filters":
        """And remove what is not among the allowed (n_items,): pins and popular items do not know what is required."""
        return self if allowed is None else Filters({**self.by_name, "required": marked(~allowed)})

    def names(self) -> tuple[str, ...]:
        return tuple(self.by_name)

    def first(self, items: Ints, n: int) -> Ints:
        """The first n items that may be shown, of many."""
        kept: list[Ints] = []
        for begin in range(0, len(items), AT_A_TIME):
            part = items[begin : begin + AT_A_TIME]
            kept.append(part[self.removed_by(part) < 0])
            if sum(map(len, kept)) >= n:
                break
        return np.asarray(np.concatenate([np.empty(0, np.int32), *kept])[:n], np.int32)


def among(unwanted: Ints) -> Filter:
    """Remove what is in a list."""
    return lambda items: np.isin(items, unwanted) if len(unwanted) else np.zeros(len(items), bool)


def marked(barred: Bools) -> Filter:
    """Remove what is marked among all items (n_items,)."""
    return lambda items: np.asarray(barred[items])
