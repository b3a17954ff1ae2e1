"""Rows in shared memory, against reading every entity anew; files that processes share, against being cut short."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiles import write_all
from support.views import MINUTE_MS, every_function, stepped

from benchmarks.oracle import Row
from headwater.clock import ManualClock
from headwater.errors import UnavailableError
from headwater.online import codec, shared
from headwater.online.changes import Changes
from headwater.online.keeper import Keeper
from headwater.online.keys import entity_key, project_prefix
from headwater.online.mirror import Layout, Mirror
from headwater.online.names import Names, packed
from headwater.online.reader import OnlineReader
from headwater.online.shared import Draft, Mapped, monotonic_ms, publish
from headwater.online.writer import OnlineWriter
from headwater.plan import HOUR_MS, BatchView, Column, FeaturePlan, Service, ServiceFeature

START = 1_500_000_000_000
IDS = [f"i{at}" for at in range(6)]
WINDOWS = every_function(ttl_ms=4 * HOUR_MS, name="windows", keys=("item_id",))
WINDOWS = WINDOWS.model_copy(update={"aggregates": tuple(one for one in WINDOWS.aggregates if not one.is_list)})
PRICE = BatchView(
    name="price", join_keys=("item_id",), path="", timestamp_field="t", created_field=None, ttl_ms=HOUR_MS,
    id="ab" * 8, columns=(Column(name="price", dtype="float64"), Column(name="stock", dtype="int64", default=-1.0)),
)  # fmt: skip
PAIRS = every_function(name="pairs", keys=("user_id", "item_id"))
PLAN = FeaturePlan(
    project="shop", registry_sha256="", repo=".", sources=(), on_demand=(),
    views=(WINDOWS, PAIRS), batch_views=(PRICE,), services=(
        Service(
            name="all",
            features=(
                *(ServiceFeature(view=one.name, feature=name) for one in (WINDOWS, PRICE) for name in one.features),
                ServiceFeature(view="pairs", feature="n_1h"),
            ),
        ),
    ),
)  # fmt: skip
LAYOUT = Layout.of(PLAN, "all", "item_id")
ITEMS = np.arange(len(IDS), dtype=np.int32)
N_MIRRORED = 4


@pytest.fixture
def kept(valkey_client, tmp_path):
    """A clock, a keeper with its changes and file, and the mirror that reads it; the last items came later."""
    clock = ManualClock(START)
    names = Names.of(packed(IDS[:N_MIRRORED]))
    path = LAYOUT.file(tmp_path, names)
    keeper = Keeper(valkey_client, PLAN, clock, LAYOUT, names, path)
    with keeper.changes() as changes:
        draft = keeper.fill()
        keeper.turn(changes, draft.words)
        draft.put_in_place()
        yield clock, lambda: keeper.turn(changes, draft.words), Mirror(LAYOUT, len(names), path)


@pytest.fixture
def reader(valkey_client, kept):
    """Asks the store for what the mirror has not."""
    return OnlineReader(valkey_client, PLAN, kept[0])


def agrees_with_reading_anew(reader, turn, mirror):
    read = {}
    while not read:  # a machine that stood still for a second has out of date rows, and says so
        turn()
        read = mirror.read(ITEMS, IDS, reader)
    keys = {view.name: [(item,) for item in IDS] for view in (WINDOWS, PRICE)}
    anew = reader.read_views(keys)
    for name, expected in anew.items():
        for feature in LAYOUT.features[name]:
            assert read[name].values[feature].tobytes() == expected.values[feature].tobytes(), feature
        for part in ("found", "at", "newest"):
            np.testing.assert_array_equal(getattr(read[name], part), getattr(expected, part), part)
        for table, marks in expected.marks.items():
            told = read[name].marks_of(np.arange(len(IDS)))[table]
            assert [told.count.tolist(), told.ingest.tolist(), told.hash.tolist()] == [
                marks.count.tolist(), marks.ingest.tolist(), marks.hash.tolist(),
            ]  # fmt: skip


def event(number, item, time):
    values = stepped({"kind": "xyz"[number % 3], "amount": number * 10**6, "quantity": number % 4})
    return Row(f"e{number}", time, time, (item,), values)


moves = st.one_of(
    st.tuples(st.just("move"), st.sampled_from([1, MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, -MINUTE_MS, -2 * HOUR_MS])
              | st.integers(-HOUR_MS, 5 * HOUR_MS)),
    st.tuples(st.just("buy"), st.sampled_from([*IDS, "unknown"])),
    st.tuples(st.just("price"), st.sampled_from(IDS)),
    st.tuples(st.just("forget"), st.sampled_from(IDS)),
    st.tuples(st.just("flush"), st.none()),
)  # fmt: skip


@pytest.mark.integration
@given(st.lists(moves, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_writes_and_moves_of_the_clock_rows_are_those_read_anew(valkey_client, kept, reader, steps):
    clock, turn, mirror = kept
    valkey_client.flushall()
    clock.set(START)
    writer = OnlineWriter(valkey_client, "shop")
    events = []
    for number, (kind, value) in enumerate(steps):
        if kind == "move":
            clock.advance(value)
        elif kind == "buy":
            events.append(event(number, value, clock.now_ms() - number % 3 * 7 * MINUTE_MS + 1))
            write_all(writer, WINDOWS, [one for one in events if one.key == (value,)], codec.LIVE)
        elif kind == "price":
            writer.write_rows(PRICE, [(value,)], [codec.encode_row(PRICE, clock.now_ms(), 0, (number / 3, None))])
        elif kind == "forget":
            valkey_client.delete(entity_key(project_prefix("shop"), "item_id", value))
            events = [one for one in events if one.key != (value,)]
        else:
            valkey_client.flushall()
            events = []
        if number % 2:
            agrees_with_reading_anew(reader, turn, mirror)
    agrees_with_reading_anew(reader, turn, mirror)


@pytest.mark.integration
def test_only_what_changed_is_read_again_and_a_window_empties_by_itself(valkey_client, kept, reader):
    clock, turn, mirror = kept
    write_all(OnlineWriter(valkey_client, "shop"), WINDOWS, [event(1, "i2", START - 1)], codec.LIVE)
    assert turn() == 1
    assert mirror.read(ITEMS, IDS, reader)["windows"].values["n_1h"][2] == 1
    clock.advance(1)
    assert turn() == 0
    clock.advance(2 * HOUR_MS)
    assert turn() == 1
    assert mirror.read(ITEMS, IDS, reader)["windows"].values["n_1h"][2] == 0
    valkey_client.set("another", "key")
    assert turn() == 0


def test_lists_and_views_of_others_have_no_place_in_a_mirror():
    assert [view.name for view in LAYOUT.views] == ["windows", "price"]
    lists = every_function(name="lists", keys=("item_id",))
    service = Service(name="all", features=(ServiceFeature(view="lists", feature="last_kinds_1h"),))
    plan = PLAN.model_copy(update={"views": (lists,), "services": (service,)})
    assert Layout.of(plan, "all", "item_id").views == ()


def test_another_order_of_items_or_another_definition_is_another_file(tmp_path):
    ids, joined = Names.of(packed(IDS)), Names.of(packed(["".join(IDS[:2]), *IDS[2:]]))
    names = {
        LAYOUT.file(tmp_path, ids).name,
        LAYOUT.file(tmp_path, joined).name,
        LAYOUT.file(tmp_path, Names.of(packed(IDS[::-1]))).name,
        LAYOUT.file(tmp_path, ids, "another store").name,
        replace(LAYOUT, views=LAYOUT.views[:1]).file(tmp_path, ids).name,
    }
    assert len(names) == 5
    assert LAYOUT.file(tmp_path, Names.of(packed(IDS[:2])).plus(IDS[2:])).name in names


@pytest.mark.integration
def test_a_connection_that_breaks_is_an_error_and_not_silence(valkey_client):
    def listen_until_it_breaks():
        with Changes.of(valkey_client, b"hw1:") as changes:
            assert changes.take() == set()
            valkey_client.set("hw1:a", 1)
            assert changes.take() == {b"hw1:a"}
            valkey_client.client_kill_filter(skipme=True, _type="normal")
            changes.take()

    with pytest.raises(UnavailableError, match="headwater up"):
        listen_until_it_breaks()


@pytest.mark.integration
def test_a_cluster_is_not_listened_to(valkey_cluster):
    with pytest.raises(UnavailableError, match="cluster"), Changes.of(valkey_cluster, b"hw1:"):
        pass


WRITE_ALIKE = """
import sys, numpy as np
from pathlib import Path
from headwater.online.shared import Draft, monotonic_ms, publish
draft, number = Draft.of(Path(sys.argv[1]), 50, 40), 0
draft.put_in_place()
while True:
    number += 1
    publish(draft.words, np.arange(50), np.full((50, 40), number), number, monotonic_ms())
"""
"""Rows of which every word is the instant, as fast as can be."""


def test_what_is_read_while_another_process_writes_is_never_torn(tmp_path):
    path = tmp_path / "rows"
    mapped, seen = Mapped(path, 50, 40), set()
    with subprocess.Popen([sys.executable, "-c", WRITE_ALIKE, str(path)]) as writer:
        while len(seen) < 300 and writer.poll() is None:
            found = mapped.read(np.arange(50), 10_000)
            if found is not None and found[1]:
                words, instant = found
                assert (words == instant).all()
                seen.add(instant)
        writer.kill()
    assert len(seen) == 300


def test_rows_of_a_writer_that_died_while_writing_or_stopped_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    mapped = Mapped(path, 1, 1)
    assert mapped.read(np.zeros(1), 1000) is None
    draft = Draft.of(path, 1, 1)
    publish(draft.words, np.zeros(1, np.int64), np.full((1, 1), 7), START, monotonic_ms())
    assert mapped.read(np.zeros(1), 1000) is None
    draft.put_in_place()
    words, instant = mapped.read(np.zeros(1), 10_000)
    assert (words.tolist(), instant) == ([[7]], START)
    draft.words[0] += 1
    assert mapped.read(np.zeros(1), 10_000) is None
    draft.words[0] += 1
    now = monotonic_ms()
    monkeypatch.setattr(shared, "monotonic_ms", lambda: now + 60_000)
    assert mapped.read(np.zeros(1), 10_000) is None
    other = Draft.of(path, 1, 1)
    publish(other.words, np.zeros(1, np.int64), np.full((1, 1), 8), START, now + 60_000)
    other.put_in_place()
    assert mapped.read(np.zeros(1), 10_000)[0].tolist() == [[8]]
