"""What the sink writes, against the store's own oracle."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
from support.tiles import write_all
from support.views import every_function, stepped

from benchmarks.oracle import Row
from headwater.errors import UnavailableError
from headwater.events import event_hash
from headwater.forgotten import StoredTombstones, Tombstone
from headwater.online import codec
from headwater.online.erase import erase_entity
from headwater.online.keys import project_prefix
from headwater.online.writer import OnlineWriter
from headwater.plan import FeaturePlan, Source
from streaming import reading, sql
from streaming.sink import TileSink, stats_key

VIEW = every_function()
PLAN = FeaturePlan(
    project="sunk", registry_sha256="", repo=".", views=(VIEW,), batch_views=(), on_demand=(), services=(),
    sources=(Source(name="events", topic="events", columns=tuple(reading.ENVELOPE.items()), event_id="event_id",
                    event_time="event_time", key="user_id"),),
)  # fmt: skip
PROGRAM = sql.compile_program(PLAN, sql.KafkaOptions("", ""))
NOTHING = {"user_id": None}
ROWS = [
    Row(f"e{at}", 7_000_000 + at * 977, 7_900_000 + at, (f"u{at % 3}",), {
        **NOTHING, **stepped({
            "kind": "xyzw"[at * 7 % 4], "amount": None if at % 5 == 0 else at * 1_000_001, "quantity": at % 9,
        }),
    })
    for at in range(60)
]  # fmt: skip


def batch(rows):
    """The rows as Flink folds them: one for each table, key and tile."""
    columns = {name: [] for name in PROGRAM.sink_columns}
    for place, target in enumerate(PROGRAM.targets):
        groups = {}
        for row in rows:
            hop = target.table.hop_ms
            groups.setdefault((row.key, 0 if hop is None else row.event_time // hop), []).append(row)
        for (key, tile), group in groups.items():
            filled = {
                "tbl": place, "k0": key[0], "tile": tile, "cnt": len(group), "newest": max(r.event_time for r in group),
                "ingest": max(r.ingest_time for r in group), "hash": sum(event_hash(r.event_id) for r in group),
                "entries": entries(target, group), **partials(target, group),
            }  # fmt: skip
            for name, column in columns.items():
                column.append(filled.get(name, 0))
    return {
        name: np.array(column, object if name in ("k0", "entries") or "sumsq" in name else np.int64)
        for name, column in columns.items()
    }


def partials(target, group):
    found = {}
    for partial in target.table.partials:
        given = [r.values[partial.column] for r in group if r.values[partial.column] is not None]
        fold = {
            "count": len,
            "sum": sum,
            "sumsq": lambda values: sum(v * v for v in values),
            "min": lambda values: min(values, default=codec.EMPTY_MIN),
            "max": lambda values: max(values, default=codec.EMPTY_MAX),
        }[partial.kind]
        found[target.name_of(partial)] = fold(given)
    return found


def entries(target, group):
    column = target.table.column
    if column is None:
        return None
    given = [r for r in group if r.values[column] is not None]
    if target.table.kind == "distinct":
        return list({str(r.values[column]) for r in given})
    return [f"{r.event_time:019d}{r.event_id}{r.values[column]}{len(r.event_id):05d}" for r in given] or None


@pytest.mark.integration
def test_the_sink_writes_every_function_as_the_store_keeps_it_and_writing_twice_changes_nothing(valkey, valkey_client):
    sink = TileSink(PROGRAM, valkey)
    columns = batch(ROWS)
    assert sink.write(columns) == len(columns["tbl"])
    sink.write(columns)
    write_all(OnlineWriter(valkey_client, "oracle"), VIEW, ROWS, codec.LIVE)
    held = {
        project: {
            key.removeprefix(project_prefix(project)): valkey_client.hgetall(key)
            for key in valkey_client.scan_iter(project_prefix(project) + b"*")
        }
        for project in ("sunk", "oracle")
    }
    assert held["sunk"] == held["oracle"]
    assert len(held["oracle"]) == 3
    assert int(valkey_client.hget(stats_key("sunk"), "online_writes")) == 2 * len(columns["tbl"])


def held_by(client, project):
    return {key.rpartition(b"=")[2].decode() for key in client.scan_iter(project_prefix(project) + b"user_id=*")}


def tombstone(user, at_ms=0):
    return Tombstone("user_id", user, at_ms, {"events": {0: 5}})


@pytest.mark.integration
def test_who_is_forgotten_is_not_written_and_what_was_written_of_it_is_deleted(valkey, valkey_client):
    """Known to the store before the sink opens, while it runs, or to the job alone; and who came after stays."""
    stored = StoredTombstones(valkey_client, "sunk")
    TileSink(PROGRAM, valkey).write(batch(ROWS))
    stored.save(tombstone("u0"))
    sink = TileSink(replace(PROGRAM, barred=(tombstone("u2"),)), valkey)
    sink.write(batch(ROWS))
    assert held_by(valkey_client, "sunk") == {"u1"}
    stored.save(tombstone("u1"))
    sink.write(batch(ROWS))
    assert held_by(valkey_client, "sunk") == set()


@pytest.mark.integration
def test_a_sink_whose_state_never_held_an_entity_writes_it_until_it_is_forgotten_again(valkey, valkey_client):
    stored = StoredTombstones(valkey_client, "sunk")
    stored.save(tombstone("u1"))
    sink = TileSink(replace(PROGRAM, forgotten=(tombstone("u1"),)), valkey)
    sink.write(batch(ROWS))
    assert held_by(valkey_client, "sunk") == {"u0", "u1", "u2"}
    stored.save(tombstone("u1", at_ms=1))
    sink.write(batch(ROWS))
    assert held_by(valkey_client, "sunk") == {"u0", "u2"}


@pytest.mark.integration
def test_who_is_forgotten_in_the_middle_of_a_write_is_not_left_behind(valkey, valkey_client, monkeypatch):
    """The deletion comes before the write it does not know of; the sink then takes back what it wrote."""
    stored, write = StoredTombstones(valkey_client, "sunk"), OnlineWriter.write_tables

    def forgetting(self, *arguments, **options):
        if not stored.version():
            stored.save(tombstone("u1"))
            erase_entity(valkey_client, PLAN, "user_id", "u1")
        return write(self, *arguments, **options)

    sink = TileSink(PROGRAM, valkey)
    sink.write(batch(ROWS[:1]))
    monkeypatch.setattr(OnlineWriter, "write_tables", forgetting)
    sink.write(batch(ROWS))
    assert held_by(valkey_client, "sunk") == {"u0", "u2"}


@pytest.mark.integration
def test_the_sink_waits_while_the_store_is_away_and_then_writes(valkey, valkey_client, monkeypatch):
    waits, failures = [], iter([UnavailableError("gone"), ConnectionError("still gone")])
    write = OnlineWriter.write_tables

    def failing(*arguments, **options):
        for failure in failures:
            raise failure
        return write(*arguments, **options)

    monkeypatch.setattr(OnlineWriter, "write_tables", failing)
    monkeypatch.setattr(builtins, "print", lambda *texts, file: None)  # as Flink's Python workers have it
    TileSink(PROGRAM, valkey, sleep=waits.append).write(batch(ROWS[:1]))
    assert waits == [0.1, 0.2]
    assert valkey_client.keys(project_prefix("sunk") + b"*")
