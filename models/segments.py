"""What users of one kind buy: popular and trending items by an attribute of the users, such as their age band."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.plan import DAY_MS
from models.catalogue import Column, texts
from models.evaluation.metrics import Ints
from models.interactions import Ids, Interactions
from models.trends import POPULAR_DAYS, best_first, popularity, trending

DEPTH = 200
"""Items kept of each list."""
LEAST_BUYERS = 20
"""A segment of fewer has no lists: what a handful of users bought says little of the others."""
LISTS, USERS = "segments.parquet", "segments.users.parquet"
FILES = (LISTS, USERS)
_NAMES, _ITEMS = ("attribute", "value"), ("popular", "trending")

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Segment:
    """Items, best first, that users with one value of one attribute buy."""

    attribute: str
    value: str
    popular: Ints = field(repr=False)
    trending: Ints = field(repr=False)


@dataclass(frozen=True)
class Segments:
    """``users`` has each attribute's value of every user (n_users,), empty where it is not known."""

    segments: Sequence[Segment]
    users: Mapping[str, Column] = field(repr=False)

    def of(self, attribute: str) -> Mapping[str, Segment]:
        """The segments of one attribute by its value."""
        return {one.value: one for one in self.segments if one.attribute == attribute}

    def save(self, folder: Path) -> None:
        """Write ``FILES``."""
        names = {name: pa.array([getattr(one, name) for one in self.segments], pa.string()) for name in _NAMES}
        lists = {
            name: pa.array([getattr(one, name).tolist() for one in self.segments], pa.list_(pa.int32()))
            for name in _ITEMS
        }
        users = {name: pa.array(held.tolist(), pa.string()) for name, held in self.users.items()}
        pq.write_table(pa.table(names | lists), folder / LISTS)
        pq.write_table(pa.table(users), folder / USERS)

    @classmethod
    def load(cls, folder: Path) -> "Segments":
        """Read what ``save`` wrote."""
        rows, users = pq.read_table(folder / LISTS).to_pylist(), pq.read_table(folder / USERS)
        segments = (
            Segment(row["attribute"], row["value"], *(np.array(row[name], np.int32) for name in _ITEMS)) for row in rows
        )
        return cls(tuple(segments), {name: Column.of(users[name]) for name in users.column_names})


def find_segments(
    bought: Interactions, users: Ids, told: pa.Table, at_ms: int, least_buyers: int = LEAST_BUYERS
) -> Segments:
    """Popular and trending items, as of the last midnight, of every value of every column that is told of users.

    Parameters
    ----------
    told
        ``user_id`` and the attributes, one row a user.
    least_buyers
        Distinct buyers in the last 30 days without whom a segment has no lists.
    """
    names = [name for name in told.column_names if name != "user_id"]
    rows = users.dense(told["user_id"].to_pylist())
    values = {name: np.full(len(users), "", object) for name in names}
    for name in names:
        values[name][rows[rows >= 0]] = texts(told[name].cast(pa.string()))[rows >= 0]
    found = []
    for name in names:
        for value in sorted(set(values[name]) - {""}):
            among = _of(bought, values[name] == value)
            if len(np.unique(among.between(at_ms - POPULAR_DAYS * DAY_MS, at_ms).user)) >= least_buyers:
                lists = (best_first(scores(among, at_ms))[:DEPTH] for scores in (popularity, trending))
                found.append(Segment(name, value, *lists))
    return Segments(tuple(found), {name: Column.of(held) for name, held in values.items()})


def _of(bought: Interactions, members: Bools) -> Interactions:
    """Purchases of some users (n_users,)."""
    kept = np.append(members, False)[bought.user]  # a user without a number, -1, is none of them
    return Interactions(bought.user[kept], bought.item[kept], bought.at_ms[kept], bought.n_users, bought.n_items)
