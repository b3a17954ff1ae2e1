"""The baseline of the stream's benchmarks: one process that polls Kafka, folds in dictionaries, writes the same tiles.

``python -m benchmarks.python_loop`` reads the topic's partitions from offset 0 until it is ended. It has no checkpoint:
after a kill it would begin anew.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import redis
from confluent_kafka import Consumer, TopicPartition

from headwater import folds, topics
from headwater.events import event_hash
from headwater.online import codec
from headwater.online.writer import OnlineWriter
from headwater.plan import FeaturePlan, Table, View
from headwater.registry.manifest import load_plan
from headwater.settings import Settings, addresses, get_settings
from streaming.sink import stats_key

BATCH, WAIT_S = 20_000, 0.1
Event = Mapping[str, Any]
COLUMNS: Mapping[str, Callable[[Event], Any]] = {"category": lambda event: (event.get("context") or {}).get("category")}
"""Projected columns that are not fields of the event."""


class Tile:
    """What has been folded of one tile: marks, sums and extremes by column, or entries."""

    __slots__ = ("count", "entries", "hash", "ingest", "newest", "values")

    def __init__(self) -> None:
        self.count = self.hash = 0
        self.newest = self.ingest = 0
        self.values: dict[str, list[int]] = {}
        self.entries: list[tuple[int, str, str]] = []


class Loop:
    """State of all tables of a plan; every projection is of purchases."""

    def __init__(self, plan: FeaturePlan, client: "redis.Redis") -> None:
        self._plan, self._client = plan, client
        self._writer = OnlineWriter(client, plan.project)
        self._tables = [(view, table) for view in plan.views for table in view.tables]
        self._tiles: list[dict[tuple[tuple[str, ...], int], Tile]] = [{} for _ in self._tables]
        self._seen: set[str] = set()

    def fold(self, records: list[tuple[bytes, int]]) -> None:
        """Fold a batch of (value, ingest ms) and write the tiles that it touched."""
        touched: list[set[tuple[tuple[str, ...], int]]] = [set() for _ in self._tables]
        for raw, ingest in records:
            event = json.loads(raw)
            if event["event_id"] in self._seen:
                continue
            self._seen.add(event["event_id"])
            if event["event_type"] == "purchase":
                self._fold(event, ingest, touched)
        for (view, table), tiles, places in zip(self._tables, self._tiles, touched, strict=True):
            if places:
                self._write(view, table, [(place, tiles[place]) for place in places])
        self._client.hincrby(stats_key(self._plan.project), "online_writes", sum(map(len, touched)))

    def _fold(self, event: Event, ingest: int, touched: list[set[tuple[tuple[str, ...], int]]]) -> None:
        when, mark = event["event_time"], event_hash(event["event_id"])
        for at, (view, table) in enumerate(self._tables):
            key = tuple(_column(event, name) for name in view.join_keys)
            if None in key:
                continue
            place = (key, 0 if table.hop_ms is None else when // table.hop_ms)
            tile = self._tiles[at].setdefault(place, Tile())
            touched[at].add(place)
            tile.count += 1
            tile.hash += mark
            tile.newest, tile.ingest = max(tile.newest, when), max(tile.ingest, ingest)
            if table.kind != "fixed" and table.column is not None:
                tile.entries.append((when, event["event_id"], str(_column(event, table.column))))
            for partial in table.partials:
                value = _column(event, partial.column or "")
                if value is not None:
                    kind = view.columns[partial.column or ""]
                    number = 1 if kind == "string" else round(value * 1e6) if kind == "fixed" else value
                    _add(tile.values, partial.name, partial.kind, number)

    def _write(self, view: View, table: Table, tiles: list[tuple[tuple[tuple[str, ...], int], Tile]]) -> None:
        held = [tile for _, tile in tiles]
        columns: dict[str, Any] = {
            "tile": np.array([place[1] for place, _ in tiles]), "slot": np.full(len(tiles), codec.LIVE, np.uint8),
            "count": np.array([tile.count for tile in held]), "newest": np.array([tile.newest for tile in held]),
            "ingest": np.array([tile.ingest for tile in held]),
            "hash": np.array([tile.hash for tile in held], np.uint64),
        }  # fmt: skip
        for partial in table.partials:
            empty = codec.neutral(partial)
            values = [tile.values.get(partial.name, [empty])[0] for tile in held]
            if partial.kind == "sumsq":
                words = [folds.split_words(value) for value in values]
                columns[partial.name + "_hi"] = np.array([high for high, _ in words], np.int64)
                columns[partial.name + "_lo"] = np.array([low for _, low in words], np.uint64)
            else:
                columns[partial.name] = np.array(values, np.int64)
        payloads = None if table.kind == "fixed" else [_payload(table, tile) for tile in held]
        self._writer.write_tiles(table, view.join_keys, [place[0] for place, _ in tiles], columns, payloads)


def _column(event: Event, name: str) -> Any:
    return COLUMNS[name](event) if name in COLUMNS else event.get(name)


def _add(values: dict[str, list[int]], name: str, kind: str, number: int) -> None:
    held = values.get(name)
    if held is None:
        values[name] = [1 if kind == "count" else number * number if kind == "sumsq" else number]
    elif kind in ("min", "max"):
        held[0] = min(held[0], number) if kind == "min" else max(held[0], number)
    else:
        held[0] += 1 if kind == "count" else number * number if kind == "sumsq" else number


def _payload(table: Table, tile: Tile) -> bytes:
    if table.kind == "distinct":
        return folds.sketch({text for *_, text in tile.entries})
    return codec.pack_entries(sorted(tile.entries)[-(table.n or 0) :])


def run(settings: Settings) -> None:
    """Read all partitions of the events from their first record, for ever; say how far on stdout."""
    consumer = Consumer({
        "bootstrap.servers": addresses(settings).kafka, "group.id": "python-loop", "enable.auto.commit": False,
        "log_level": 0, "fetch.wait.max.ms": 20,
    })  # fmt: skip
    numbers = consumer.list_topics(topics.EVENTS, timeout=10).topics[topics.EVENTS].partitions
    consumer.assign([TopicPartition(topics.EVENTS, number, 0) for number in numbers])
    loop, done = Loop(load_plan(settings.repo), redis.Redis.from_url(addresses(settings).redis)), 0
    while True:
        messages = [message for message in consumer.consume(BATCH, timeout=WAIT_S) if message.error() is None]
        if messages:
            loop.fold([(message.value(), message.timestamp()[1]) for message in messages])
            done += len(messages)
            print(done, flush=True)


if __name__ == "__main__":
    run(get_settings())
