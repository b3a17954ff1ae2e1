"""Cells held to the naive fold: what was compared, what differs, and the first that does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.online.keys import Key
from headwater.plan import Aggregate, View


@dataclass
class Tally:
    """What has been compared of one engine, and the first cell that differs."""

    compared: int = 0
    mismatched: int = 0
    first: str | None = None

    def count(
        self, view: View, aggregate: Aggregate, asked: Sequence[tuple[Key, int]], wrong: Any, want: Any, got: Any
    ) -> None:
        """Count a column of cells; ``wrong`` (n,) says which differ."""
        self.compared += len(asked)
        places = np.flatnonzero(wrong)
        self.mismatched += len(places)
        if len(places) and self.first is None:
            (key, at), place = asked[places[0]], places[0]
            self.first = (
                f"{view.name}:{aggregate.feature} ({aggregate.function} of {aggregate.column}, window "
                f"{aggregate.window_ms} ms by {aggregate.hop_ms}) of {key} at {at}: naive {want[place]!r}, "
                f"here {got[place]!r}"
            )


def judge(
    tally: Tally, view: View, asked: Sequence[tuple[Key, int]], naive: Sequence[tuple[bool, list[Any]]],
    values: Mapping[str, Any], found: Any,
) -> None:  # fmt: skip
    """Hold an engine's columns for what was asked to the naive answers.

    Parameters
    ----------
    values
        Feature to float64 (n,), NaN for nothing, or to a list of lists or None.
    """
    lost = np.array([seen for seen, _ in naive]) != np.asarray(found)
    for at, aggregate in enumerate(view.aggregates):
        want = [cells[at] for _, cells in naive]
        got = values[aggregate.feature]
        if aggregate.is_list:
            wrong = np.array([one != other for one, other in zip(want, got, strict=True)]) | lost
        else:
            wrong = differing(np.array([math.nan if one is None else one for one in want], np.float64), got) | lost
        tally.count(view, aggregate, asked, wrong, want, got)


def differing(want: Any, got: Any) -> Any:
    """Where two arrays of one float type differ in a bit; nothing is nothing, whatever its bits."""
    whole = np.dtype(f"i{want.dtype.itemsize}")
    return (want.view(whole) != got.view(whole)) & ~(np.isnan(want) & np.isnan(got))
