"""The one crossing from Flink into Python: folded tiles, an Arrow batch at a time, into the online store."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from headwater import folds
from headwater.clock import StoredClock
from headwater.errors import UnavailableError
from headwater.forgotten import StoredTombstones, Tombstone
from headwater.log import get_logger
from headwater.online import codec
from headwater.online.connect import connect
from headwater.online.erase import erase_fields
from headwater.online.writer import OnlineWriter, Tiles
from streaming.health import beats_key
from streaming.sql import Program, Target, split_entry

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
DELAY_BUCKETS_MS = (50, 100, 150, 200, 300, 400, 600, 1_000, 2_000, 5_000, 15_000, 60_000, 300_000, 3_600_000)
"""Upper bounds of the delay's histogram; what took longer is in a last one without a bound."""
BEATS_KEPT_S = 3_600
_COUNT = """
local newest = redis.call('HGET', KEYS[1], 'newest_event_ms')
if not newest or tonumber(newest) < tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'newest_event_ms', ARGV[1]) end
for at = 2, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1]) end
"""
Columns = Mapping[str, Sequence[Any] | NDArray[Any]]


def stats_key(project: str) -> str:
    """Redis hash of what the stream has written.

    ``online_writes`` tiles, ``newest_event_ms`` the newest event time in them, ``delay_ms`` the sum of their delays and
    ``delay_<bucket>`` how many had which: from the newest ingest time of a tile to its write, on the platform's clock.
    """
    return f"hw1:stats:{project}"


class Barred:
    """Entities that are not written: forgotten since the job's state began, so that it still holds what they did.

    Parameters
    ----------
    known, honoured
        Tombstones to begin with, and those whose records the job never read.
    """

    def __init__(self, stored: StoredTombstones, known: Sequence[Tombstone], honoured: Sequence[Tombstone]) -> None:
        self._stored, self._known, self._honoured = stored, known, honoured
        self._version = -1
        self._values: dict[str, set[str]] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Look whether others were forgotten since; True if so."""
        version = self._stored.version()
        if version == self._version:
            return False
        self._version, self._values = version, {}
        for tombstone in (*self._known, *self._stored.read()):
            if tombstone not in self._honoured:
                self._values.setdefault(tombstone.join_key, set()).add(tombstone.value)
        return True

    def concerns(self, join_keys: Sequence[str]) -> bool:
        """Whether anybody is barred by one of these keys; mostly nobody is."""
        return any(name in self._values for name in join_keys)

    def of(self, join_keys: Sequence[str], keys: Sequence[tuple[str, ...]]) -> NDArray[np.bool_]:
        """Which of the keys are a forgotten entity's, bool (n,)."""
        held = [(at, values) for at, name in enumerate(join_keys) if (values := self._values.get(name))]
        return np.array([any(key[at] in values for at, values in held) for key in keys], np.bool_)


@dataclass
class TileSink:
    """Writes rows of ``Program.sink_columns`` to the online store's live slot; made where the rows are.

    Every row is absolute, so a row written twice, after a retry or a restart, changes nothing.
    """

    program: Program
    redis_url: str = field(repr=False)
    sleep: Callable[[float], None] = time.sleep
    _client: redis.Redis | None = field(default=None, repr=False)
    _writer: OnlineWriter | None = field(default=None, repr=False)
    _clock: StoredClock | None = field(default=None, repr=False)
    _barred: Barred | None = field(default=None, repr=False)

    def write(self, columns: Columns) -> int:
        """Write a batch, waiting for as long as the store does not answer; return the tiles written."""
        return self._until_answered(lambda: self._write(columns))

    def beat(self, group: str) -> int:
        """Leave a sign of life of this worker, which has then loaded all that it needs to write."""
        return self._until_answered(lambda: self._beat(group))

    def _until_answered(self, work: Callable[[], int]) -> int:
        wait = FIRST_WAIT_S
        while True:
            try:
                return work()
            except (UnavailableError, redis.RedisError, OSError) as error:
                get_logger("streaming").warning("online_store_unavailable", reason=str(error), retry_in_s=wait)
                self.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT_S)

    def _connected(self) -> tuple[redis.Redis, OnlineWriter, StoredClock, Barred]:
        if self._client is None or self._writer is None or self._clock is None or self._barred is None:
            project = self.program.plan.project
            self._client = connect(self.redis_url, socket_timeout=30, socket_connect_timeout=5)
            self._writer = OnlineWriter(self._client, project)
            self._clock = StoredClock(self._client)
            self._barred = Barred(StoredTombstones(self._client, project), self.program.barred, self.program.forgotten)
        return self._client, self._writer, self._clock, self._barred

    def _beat(self, group: str) -> int:
        client, *_ = self._connected()
        client.hset(beats_key(group), str(os.getpid()), f"{time.time():.1f}")
        client.expire(beats_key(group), BEATS_KEPT_S)
        return 1

    def _write(self, columns: Columns) -> int:
        client, writer, clock, barred = self._connected()
        table_of_row = np.asarray(columns["tbl"])
        tables = [
            (self.program.by_number[int(place)], np.flatnonzero(table_of_row == place))
            for place in np.unique(table_of_row)
        ]
        written = [(target, self._not_barred(barred, target, columns, rows)) for target, rows in tables]
        writer.write_tables([tiles_of(target, columns, rows) for target, rows in written if len(rows)])
        if barred.refresh():  # who was forgotten meanwhile may have been deleted before this was written
            for target, rows in tables:
                self._not_barred(barred, target, columns, rows)
        counts = tally(np.asarray(columns["newest"]), np.asarray(columns["ingest"]), clock.now_ms())
        client.eval(_COUNT, 1, stats_key(self.program.plan.project), *map(str, counts))
        return len(table_of_row)

    def _not_barred(self, barred: Barred, target: Target, columns: Columns, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The rows to write; of entities that are forgotten what may have been written is deleted."""
        join_keys = target.view.join_keys
        if not barred.concerns(join_keys):
            return rows
        keys = keys_of(target, columns, rows)
        mask = barred.of(join_keys, keys)
        if not mask.any():
            return rows
        assert self._client is not None
        gone = [key for key, forgotten in zip(keys, mask, strict=True) if forgotten]
        erase_fields(self._client, self.program.plan.project, join_keys, target.table.field, gone)
        return rows[~mask]


def tiles_of(target: Target, columns: Columns, rows: NDArray[np.intp]) -> Tiles:
    """One table's rows as the online writer takes them."""
    payloads = None
    if target.table.kind != "fixed":
        payloads = [pack_list(target, entries) for entries in np.asarray(columns["entries"], object)[rows]]
    keys = keys_of(target, columns, rows)
    return Tiles(target.table, target.view.join_keys, keys, tile_columns(target, columns, rows), payloads)


def keys_of(target: Target, columns: Columns, rows: NDArray[np.intp]) -> list[tuple[str, ...]]:
    """Values of the view's join keys of each row."""
    return list(
        zip(*(np.asarray(columns[f"k{at}"], object)[rows] for at in range(len(target.view.join_keys))), strict=True)
    )


def tally(newest: NDArray[Any], ingest: NDArray[Any], now_ms: int) -> list[int | str]:
    """What a batch adds to the counters: the newest event time, then names and increments.

    Parameters
    ----------
    newest, ingest : (n,)
        Newest event time and newest ingest time of each tile written, epoch ms.
    """
    delays = np.maximum(now_ms - ingest.astype(np.int64), 0)
    buckets, counts = np.unique(np.searchsorted(DELAY_BUCKETS_MS, delays), return_counts=True)
    told: list[int | str] = [int(newest.max()), "online_writes", len(delays), "delay_ms", int(delays.sum())]
    for bucket, count in zip(buckets, counts, strict=True):
        told += [f"delay_{bucket}", int(count)]
    return told


def tile_columns(target: Target, columns: Columns, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """Marks and partials of one table's rows, each (n,), as the online writer takes them."""

    def take(name: str) -> NDArray[Any]:
        return np.asarray(columns[name])[rows]

    tiles: dict[str, NDArray[Any]] = {
        "tile": take("tile"), "slot": np.full(len(rows), codec.LIVE, np.uint8), "count": take("cnt"),
        "newest": take("newest"), "ingest": take("ingest"), "hash": take("hash").astype(np.int64).view(np.uint64),
    }  # fmt: skip
    for partial in target.table.partials:
        values = take(target.name_of(partial))
        if partial.kind == "sumsq":
            words = [folds.split_words(int(value)) for value in values]
            tiles[partial.name + "_hi"] = np.array([high for high, _ in words], np.int64)
            tiles[partial.name + "_lo"] = np.array([low for _, low in words], np.uint64)
        else:
            tiles[partial.name] = values
    return tiles


def pack_list(target: Target, entries: Sequence[str] | None) -> bytes:
    """Payload of a list tile: what it keeps of its entries, or a sketch of the distinct texts."""
    texts = [] if entries is None else list(entries)
    if target.table.kind == "distinct":
        return folds.sketch(texts)
    return codec.pack_entries(folds.kept_entries(target.table, map(split_entry, texts)))
