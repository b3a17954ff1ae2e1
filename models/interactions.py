"""Purchases and the catalogue as arrays: strings outside, dense int32 inside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from headwater.archive_files import live_files
from headwater.errors import DataError

UNKNOWN = -1
TEXT_COLUMNS = ("department", "category", "brand", "name")
READ = ("event_id", "user_id", "item_id", "event_time", "ingest_time", "partition", "offset", "value")


class Ids:
    """Strings in ascending order; an id's place is its dense number."""

    def __init__(self, values: npt.ArrayLike) -> None:
        self.values = np.unique(np.asarray(values, object).astype(str)).astype(object)
        self._index = pd.Index(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def dense(self, ids: Sequence[str] | npt.NDArray[np.object_]) -> npt.NDArray[np.int32]:
        """Numbers of ``ids``, ``UNKNOWN`` for those never seen."""
        return np.asarray(self._index.get_indexer(np.asarray(ids, object)), np.int32)


@dataclass(frozen=True)
class Items:
    """The catalogue, row i is dense item i; products bought but never listed are rows of empty text.

    Attributes
    ----------
    numbers
        Numeric columns (n_items,), NaN where missing; what the towers learn from, not part of :meth:`table`.
    """

    ids: Ids
    text: dict[str, npt.NDArray[np.object_]]
    numbers: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def codes(self) -> dict[str, npt.NDArray[np.int32]]:
        """Each text column as numbers from 0 (n_items,), in order of the sorted texts."""
        return {
            name: np.unique(column.astype(str), return_inverse=True)[1].astype(np.int32)
            for name, column in self.text.items()
        }

    def table(self) -> pa.Table:
        return pa.table(
            {"item_id": pa.array(self.ids.values, pa.string())}
            | {name: pa.array(column, pa.string()) for name, column in self.text.items()}
        )

    @classmethod
    def from_table(cls, table: pa.Table, also: Sequence[str] = ()) -> "Items":
        """Read the text and numeric columns that ``table`` has; ``also`` names ids that must have a row."""
        listed = np.asarray(table["item_id"].to_pylist(), object)
        ids = Ids(np.union1d(listed.astype(str), np.asarray(also, str)))
        rows = ids.dense(listed)
        text = {}
        for name in TEXT_COLUMNS:
            text[name] = np.full(len(ids), "", object)
            if name in table.column_names:
                text[name][rows] = [value or "" for value in table[name].to_pylist()]
        numbers = {}
        for column in table.schema:
            if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                numbers[column.name] = np.full(len(ids), np.nan)
                numbers[column.name][rows] = table[column.name].to_pandas().astype(np.float64)
        return cls(ids, text, numbers)


@dataclass(frozen=True)
class Users:
    """Who can be served by number, and what is known of them: ``traits`` (n_users, n_traits), 0 is unknown."""

    ids: Ids
    traits: npt.NDArray[np.int32]
    trait_names: tuple[str, ...]

    @classmethod
    def from_table(cls, table: pa.Table | None, buyers: Sequence[str]) -> "Users":
        """Number the buyers; every column but ``user_id`` is a trait, its distinct values numbered from 1."""
        ids = Ids(buyers)
        if table is None:
            return cls(ids, np.zeros((len(ids), 0), np.int32), ())
        names = tuple(sorted(set(table.column_names) - {"user_id"}))
        rows = ids.dense(table["user_id"].to_pylist())
        traits = np.zeros((len(ids), len(names)), np.int32)
        for column, name in enumerate(names):
            values = pd.Series(table[name].to_pylist(), dtype=object)
            known = sorted(values.dropna().astype(str).unique())
            numbers = values.astype(str).map({value: n + 1 for n, value in enumerate(known)}).fillna(0)
            traits[rows[rows >= 0], column] = numbers.to_numpy(np.int32)[rows >= 0]
        return cls(ids, traits, names)


@dataclass(frozen=True)
class Interactions:
    """Purchases in order of (time, user, item); arrays (n,), times epoch ms."""

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    at_ms: npt.NDArray[np.int64]
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.user)

    def between(self, start_ms: int, end_ms: int) -> "Interactions":
        """Those with ``start_ms <= at < end_ms``."""
        low, high = np.searchsorted(self.at_ms, [start_ms, end_ms])
        return Interactions(self.user[low:high], self.item[low:high], self.at_ms[low:high], self.n_users, self.n_items)

    def before(self, at_ms: int) -> "Interactions":
        return self.between(np.iinfo(np.int64).min, at_ms)


@dataclass(frozen=True)
class Dataset:
    """One consistent numbering of users, items and what was bought."""

    users: Users
    items: Items
    bought: Interactions


def read_purchases(
    events_dir: Path, cutoff_ms: int, event_type: str = "purchase", known_ms: int | None = None
) -> pd.DataFrame:
    """Purchases that happened before the cutoff: ``user_id, item_id, event_time, value``.

    ``known_ms`` also leaves out what had not arrived by then. Of copies of an event the first known counts.

    Raises
    ------
    DataError
        The archive is empty or has no such events.
    """
    archive, wanted = archived(events_dir), happened(cutoff_ms, event_type, known_ms)
    frame: pd.DataFrame = archive.to_table(columns=list(READ), filter=wanted).to_pandas()
    if frame.empty:
        raise nothing_before(events_dir, event_type, cutoff_ms)
    frame = frame.sort_values(["ingest_time", "partition", "offset"], kind="stable").drop_duplicates("event_id")
    return frame[["user_id", "item_id", "event_time", "value"]].dropna(subset=["item_id"])


def archived(events_dir: Path) -> ds.Dataset:
    """All files of the archive that count.

    Raises
    ------
    DataError
        The archive is empty.
    """
    return ds.dataset(_files(events_dir), exclude_invalid_files=False)


def happened(cutoff_ms: int, event_type: str = "purchase", known_ms: int | None = None) -> pc.Expression:
    """Filter for events before the cutoff that were known by then, if ``known_ms`` says when."""
    wanted = (pc.field("event_type") == event_type) & (pc.field("event_time") < cutoff_ms)
    return wanted if known_ms is None else wanted & (pc.field("ingest_time") < known_ms)


def nothing_before(events_dir: Path, event_type: str, cutoff_ms: int) -> DataError:
    """What is told where no event is left to learn from."""
    return DataError(f"{events_dir}: no {event_type} event lies before {cutoff_ms}. Choose a later cutoff.")


def newest_ms(events_dir: Path) -> int:
    """Event time of the newest event.

    Raises
    ------
    DataError
        The archive is empty.
    """
    times = ds.dataset(_files(events_dir)[-64:]).to_table(columns=["event_time"])["event_time"]
    return int(pc.max(times).as_py())


def _files(events_dir: Path) -> list[Path]:
    files = live_files(events_dir)
    if not files:
        raise DataError(f"{events_dir}: the archive holds no events. Load some first, such as by: headwater data load")
    return files


def assemble(purchases: pd.DataFrame, items: pa.Table, users: pa.Table | None) -> Dataset:
    """Number everything once; products and households that were never listed are included."""
    catalogue = Items.from_table(items, also=purchases["item_id"].unique().tolist())
    people = Users.from_table(users, purchases["user_id"].unique().tolist())
    user = people.ids.dense(purchases["user_id"].to_numpy(object))
    item = catalogue.ids.dense(purchases["item_id"].to_numpy(object))
    at_ms = purchases["event_time"].to_numpy(np.int64)
    order = np.lexsort((item, user, at_ms))
    bought = Interactions(user[order], item[order], at_ms[order], len(people.ids), len(catalogue))
    return Dataset(people, catalogue, bought)


def load_dataset(events_dir: Path, data_dir: Path, cutoff_ms: int, known_ms: int | None = None) -> Dataset:
    """Read the archive, ``items.parquet`` and, where there is one, ``users.parquet``."""
    purchases = read_purchases(events_dir, cutoff_ms, known_ms=known_ms)
    return assemble(purchases, *catalogue(data_dir))


def catalogue(data_dir: Path) -> tuple[pa.Table, pa.Table | None]:
    """What is told of items, ``items.parquet``, and, where there is such a table, of users."""
    return _table(data_dir / "items.parquet"), users_of(data_dir)


def users_of(data_dir: Path) -> pa.Table | None:
    """What is told of users, ``None`` where there is no ``users.parquet``."""
    path = data_dir / "users.parquet"
    return pq.read_table(path) if path.exists() else None


def _table(path: Path) -> Any:
    if not path.exists():
        raise DataError(f"{path}: there is no such table. Load the catalogue first: headwater data load")
    return pq.read_table(path)
