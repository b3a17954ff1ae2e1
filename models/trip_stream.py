"""From the archive to blocks of trips on disk, with a bounded part of either in memory.

archive ─► parts by event id ─► first of each event ─► parts by user ─► trips ─► blocks

A part or block holds some hundred thousand purchases, whatever the archive holds. Ids of users and items, and what is
known of each, are in memory whole.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.evaluation.metrics import Ints
from models.interactions import READ, Interactions, Items, Users, archived, catalogue, happened, nothing_before
from models.spool import Spool, read
from models.trip_log import Corpus, TripLog
from models.trips import Trips, shopping_trips

AT_ONCE = 2**17
"""Purchases of a part or a block."""
MOST_PARTS = 256
"""Files that are written side by side; parts grow beyond ``AT_ONCE`` only where this many do not suffice."""
SCANNED_AT_ONCE = 2**16


def stream_trips(
    events_dir: Path, data_dir: Path, cutoff_ms: int, n_recent: int, folder: Path, at_once: int = AT_ONCE
) -> Corpus:
    """Write the trips before ``cutoff_ms`` to ``folder``, which is emptied first; same in, same out, bit for bit.

    Parameters
    ----------
    data_dir
        Folder with ``items.parquet`` and, where there is one, ``users.parquet``.
    at_once
        Purchases in memory at a time, about.

    Raises
    ------
    DataError
        The archive is empty, nothing in it lies before the cutoff, or there is no catalogue.
    """
    shutil.rmtree(folder, ignore_errors=True)
    listed, told = catalogue(data_dir)
    archive, wanted = archived(events_dir), happened(cutoff_ms)
    n_parts = _parts(archive.count_rows(filter=wanted), at_once)
    scanned = archive.to_batches(
        columns=list(READ), filter=wanted, batch_size=SCANNED_AT_ONCE, batch_readahead=1, fragment_readahead=1,
        use_threads=False,
    )  # fmt: skip
    tables = (pa.Table.from_batches([batch]) for batch in scanned)
    events = Spool(folder / "events").write(_by("event_id", tables, n_parts))
    known = _Known()
    found = known.noted(first_known(part) for part in events.drained())
    purchases = Spool(folder / "purchases").write(_by("user_id", found, n_parts))
    if not known.purchases:
        raise nothing_before(events_dir, "purchase", cutoff_ms)
    items, users = Items.from_table(listed, also=sorted(known.items)), Users.from_table(told, sorted(known.users))
    summary = _Summary(users, items, n_recent, _parts(known.purchases, at_once))
    blocks = Spool(folder / "blocks").write(summary.noted(purchases.drained()))
    return Corpus(users, items, summary.log(blocks))


def first_known(events: pa.Table) -> pa.Table:
    """Of copies of an event the first known, if it names an item: ``user_id``, ``item_id``, ``event_time``."""
    order = [(name, "ascending") for name in ("event_id", "ingest_time", "partition", "offset")]
    events = events.sort_by(order).combine_chunks()
    ids = events["event_id"].combine_chunks()
    first = np.ones(len(ids), bool)
    first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    found = events.filter(pa.array(first)).select(["user_id", "item_id", "event_time"])
    return found.filter(pc.is_valid(found["item_id"]))


class _Known:
    """Who and what was met in purchases, and how many there were."""

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.items: set[str] = set()
        self.purchases = 0

    def noted(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.users.update(pc.unique(table["user_id"]).to_pylist())
            self.items.update(pc.unique(table["item_id"]).to_pylist())
            self.purchases += table.num_rows
            yield table


class _Summary:
    """Turns parts of purchases, each with all of some users', into trips of drawn blocks; what is known of all."""

    def __init__(self, users: Users, items: Items, n_recent: int, n_blocks: int) -> None:
        self.users, self.items, self.n_recent, self.n_blocks = users, items, n_recent, n_blocks
        self.counts = np.zeros(len(items), np.int64)
        self.n_trips, self.first_ms, self.last_ms = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self.digest = sha256()

    def noted(self, parts: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, Ints]]:
        """Tables of trips, each trip with the block that it belongs to."""
        for number, part in enumerate(parts):
            bought = self._numbered(part)
            trips = shopping_trips(bought, self.n_recent)
            self.counts += np.bincount(bought.item, minlength=len(self.items))
            self.n_trips += len(trips)
            self.first_ms = min(self.first_ms, int(bought.at_ms[0]))
            self.last_ms = max(self.last_ms, int(bought.at_ms[-1]))
            for array in (bought.user, bought.item, bought.at_ms):
                self.digest.update(array.tobytes())
            block = np.random.default_rng(number).integers(0, self.n_blocks, len(trips), dtype=np.int32)
            yield as_table(trips), block

    def log(self, blocks: Spool) -> TripLog:
        return TripLog(
            self.n_trips, int(self.counts.sum()), self.first_ms, self.last_ms, self.counts, self.digest.hexdigest(),
            StoredTrips(blocks.files),
        )  # fmt: skip

    def _numbered(self, part: pa.Table) -> Interactions:
        user = self.users.ids.dense(part["user_id"].to_pylist())
        item = self.items.ids.dense(part["item_id"].to_pylist())
        at_ms = part["event_time"].cast(pa.int64()).to_numpy()
        order = np.lexsort((item, user, at_ms))
        return Interactions(user[order], item[order], at_ms[order], len(self.users.ids), len(self.items))


class StoredTrips(Sequence[Trips]):
    """Blocks of trips, each read from its file when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, number: int) -> Trips: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Trips]: ...
    def __getitem__(self, number: int | slice) -> Trips | Sequence[Trips]:
        return StoredTrips(self.files[number]) if isinstance(number, slice) else as_trips(read(self.files[number]))


def as_table(trips: Trips) -> pa.Table:
    """One row a trip."""
    bounds = pa.array(trips.bounds, pa.int32())
    n_recent = trips.recent.shape[1]
    return pa.table(
        {
            "user": trips.user, "at_ms": trips.at_ms,
            "items": pa.ListArray.from_arrays(bounds, pa.array(trips.items)),
            "is_first": pa.ListArray.from_arrays(bounds, pa.array(trips.is_first)),
            "recent": pa.FixedSizeListArray.from_arrays(pa.array(trips.recent.ravel()), n_recent),
            "ages": pa.FixedSizeListArray.from_arrays(pa.array(trips.ages.ravel()), n_recent),
        }
    )  # fmt: skip


def as_trips(table: pa.Table) -> Trips:
    """Read what :func:`as_table` made."""
    column: dict[str, Any] = {name: table[name].combine_chunks() for name in table.column_names}
    flat = {name: array.flatten().to_numpy(zero_copy_only=False) for name, array in column.items() if name in _LISTS}
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(column["items"]).to_numpy())]).astype(np.int64)
    n = len(table)
    return Trips(
        column["user"].to_numpy(), column["at_ms"].to_numpy(), bounds, flat["items"], flat["is_first"],
        flat["recent"].reshape(n, -1), flat["ages"].reshape(n, -1),
    )  # fmt: skip


_LISTS = ("items", "is_first", "recent", "ages")


def _by(name: str, tables: Iterable[pa.Table], n_parts: int) -> Iterator[tuple[pa.Table, Ints]]:
    """Tables, each row with a part that is the same for all of one id."""
    for table in tables:
        ids = table[name].to_numpy()
        yield table, (pd.util.hash_array(ids, categorize=False) % n_parts).astype(np.int32)


def _parts(rows: int, at_once: int) -> int:
    return int(np.clip(-(-rows // at_once), 1, MOST_PARTS))
