"""Tiles written in any order, read at one instant, against the semantics word for word."""

import math
import time

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiles import tile_columns, write_all
from support.views import every_function, stepped

from benchmarks.oracle import Row, fold
from headwater.clock import ManualClock
from headwater.errors import DataError, NotAnswerableError, UnavailableError
from headwater.events import event_hash
from headwater.online import codec
from headwater.online.connect import UnreadyError, connect, within
from headwater.online.erase import Erased, erase_entity
from headwater.online.keys import encoded, entity_key, project_prefix, rest_of_key, rests_of_keys
from headwater.online.reader import OnlineReader
from headwater.online.replies import Blobs
from headwater.online.writer import OnlineWriter
from headwater.plan import HOUR_MS, BatchView, Column, FeaturePlan, Partial, Service, ServiceFeature, Table

pytestmark = pytest.mark.integration
START = 1_500_000_000_000
VIEW = every_function(ttl_ms=4 * HOUR_MS)


@pytest.fixture(params=["server", "cluster"])
def store(request):
    """Client of one server, and of a cluster of three."""
    return request.getfixturevalue("valkey_client" if request.param == "server" else "valkey_cluster")


def plan(*services, project="shop", batch=()):
    return FeaturePlan(
        project=project,
        registry_sha256="",
        repo=".",
        sources=(),
        views=(VIEW,),
        batch_views=batch,
        on_demand=(),
        services=services,
    )


@st.composite
def histories(draw):
    """Events of a few users within six hours, each maybe with nulls."""
    kinds = st.none() | st.sampled_from("xxyyza")
    rows = []
    for number in range(draw(st.integers(1, 25))):
        time = START + draw(st.integers(0, 6 * HOUR_MS))
        amount = st.none() | st.integers(-(10**9), 10**9)
        rows.append(
            Row(
                f"e{number}",
                time,
                time,
                (draw(st.sampled_from(["ann", "bob"])),),
                stepped({"kind": draw(kinds), "amount": draw(amount), "quantity": draw(amount | st.integers(0, 3))}),
            )
        )
    return rows


@given(
    rows=histories(),
    cut=st.integers(0, 25),
    stale=st.integers(0, 25),
    after=st.integers(1, 4 * HOUR_MS),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_reader_agrees_with_the_naive_window(store, rows, cut, stale, after, order):
    """Base and live slots, replays of older tiles and any order of writes change nothing."""
    store.flushall()
    base, live = rows[:cut], rows[cut:]
    writes = [(base, codec.BASE), (live, codec.LIVE), (live[:stale], codec.LIVE), (base, codec.BASE)]
    order.shuffle(writes)
    writer = OnlineWriter(store, "shop")
    for part, slot in writes:
        write_all(writer, VIEW, part, slot)

    at = max(row.event_time for row in rows) + after
    users = [("ann",), ("bob",), ("nobody",)]
    read = OnlineReader(store, plan(), ManualClock(at)).read_views({VIEW.name: users})[VIEW.name]
    for place, user in enumerate(users):
        found, values = fold(VIEW, rows, user, at, known=False)
        assert read.found[place] == found
        for feature, expected in values.items():
            got = read.values[feature][place]
            if expected is None:
                assert got is None or math.isnan(got), feature
            else:
                assert got == expected, feature
        for table in VIEW.tables:
            assert marks_of(read.marks[table.id], place) == marked(table, rows, user, at), table


def marks_of(marks, place):
    """What the reader tells of one entity."""
    return int(marks.count[place]), int(marks.ingest[place]), int(marks.hash[place])


def marked(table, rows, user, at):
    """Count, newest ingest time and hash sum of the events that some window of the table can read at an instant."""
    oldest = None if table.hop_ms is None else (at // table.hop_ms - table.keep) * table.hop_ms
    held = [row for row in rows if row.key == user and (oldest is None or row.event_time >= oldest)]
    total = sum(event_hash(row.event_id) for row in held) % 2**64
    return len(held), max((row.ingest_time for row in held), default=-1), total


def test_a_hash_sum_wraps_at_64_bits(valkey_client):
    """Tiles of 2^63 each, in a table of numbers and in one of lists."""
    for table in [next(t for t in VIEW.tables if t.kind == kind and t.hop_ms == HOUR_MS) for kind in ("fixed", "last")]:
        for number in range(3):
            keys, columns, payloads = tile_columns(table, [event(f"e{number}", START - number * HOUR_MS)], codec.LIVE)
            columns["hash"] = np.array([2**63 + number], np.uint64)
            OnlineWriter(valkey_client, "shop").write_tiles(table, VIEW.join_keys, keys, columns, payloads)
        reader = OnlineReader(valkey_client, plan(), ManualClock(START + 1))
        marks = reader.read_views({VIEW.name: [("ann",)]})[VIEW.name].marks[table.id]
        assert marks.hash.tolist() == [2**63 + 3]


def test_the_past_is_refused_naming_the_newest_event(valkey_client):
    write_all(OnlineWriter(valkey_client, "shop"), VIEW, [event("e", START)], codec.LIVE)
    reader = OnlineReader(valkey_client, plan(), ManualClock(START - 5))
    with pytest.raises(NotAnswerableError, match=str(START)):
        reader.read_views({VIEW.name: [("ann",)]}, at=START)
    assert reader.read_views({VIEW.name: [("ann",)]}, at=START + 1)[VIEW.name].found.all()
    assert reader.read_views({VIEW.name: [("ann",)]})[VIEW.name].at.tolist() == [START + 1]


def test_a_window_empties_as_time_passes_with_no_new_event(valkey_client):
    write_all(OnlineWriter(valkey_client, "shop"), VIEW, [event("e", START)], codec.LIVE)
    clock = ManualClock(START + 1)
    reader = OnlineReader(valkey_client, plan(), clock)
    counts = []
    for _ in range(3):
        read = reader.read_views({VIEW.name: [("ann",)]})[VIEW.name]
        counts.append((read.values["n_1h"][0], bool(read.found[0])))
        clock.advance(2 * HOUR_MS)
    assert counts[:2] == [(1.0, True), (0.0, True)]
    clock.advance(2 * HOUR_MS)
    assert not reader.read_views({VIEW.name: [("ann",)]})[VIEW.name].found[0]


def test_tiles_no_window_can_reach_are_dropped_as_new_ones_come(valkey_client):
    writer = OnlineWriter(valkey_client, "shop")
    for number in range(50):
        write_all(writer, VIEW, [event(f"e{number}", START + number * HOUR_MS)], codec.LIVE)
    table = next(t for t in VIEW.tables if t.kind == "fixed" and t.hop_ms == HOUR_MS)
    blob = valkey_client.hget(entity_key(project_prefix("shop"), "user_id", "ann"), table.field)
    assert (len(blob) - codec.HEADER.size) // codec.record_dtype(table).itemsize == table.keep + 1


def test_forgetting_or_tearing_down_one_project_leaves_others_alone(valkey_client):
    for project in ("shop", "sho", "shop2"):
        write_all(OnlineWriter(valkey_client, project), VIEW, [event("e", START)], codec.LIVE)
    assert erase_entity(valkey_client, plan(), "user_id", "ann") == Erased(keys=1, fields=len(VIEW.tables))
    assert erase_entity(valkey_client, plan(), "user_id", "ann") == Erased()
    OnlineWriter(valkey_client, "sho").drop([table.field for table in VIEW.tables])
    assert len(valkey_client.keys()) == 1


def test_composite_keys_never_run_together():
    assert len({rest_of_key(values) for values in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ())}) == 5


PROFILE = BatchView(
    name="profile",
    join_keys=("user_id",),
    path="",
    timestamp_field="event_timestamp",
    created_field="created",
    ttl_ms=HOUR_MS,
    id="00" * 8,
    columns=(
        Column(name="age", dtype="int64", default=-1.0),
        Column(name="score", dtype="float32"),
        Column(name="town", dtype="string"),
    ),
)


def test_of_ready_made_rows_the_newer_event_then_created_time_wins(store):
    writer = OnlineWriter(store, "shop")
    for event_ms, later, age in ((START, 5, 40), (START, 4, 39), (START, 0, 36), (START - 1, 9, 38), (START, 5, 41)):
        row = codec.encode_row(PROFILE, event_ms, event_ms + later, (age, None, "Bern"))
        writer.write_rows(PROFILE, [("ann",)], [row])
    reader = OnlineReader(store, plan(batch=(PROFILE,)), ManualClock(START + 10))
    read = reader.read_views({"profile": [("ann",), ("bob",)]})["profile"]
    assert read.values["age"][0] == 41
    assert math.isnan(read.values["score"][0])
    assert read.values["town"] == [[b"Bern"], None]
    assert read.found.tolist() == [True, False]


def test_a_ready_made_row_ends_with_its_ttl(valkey_client):
    row = codec.encode_row(PROFILE, START, 0, (1, 2.0, None))
    OnlineWriter(valkey_client, "shop").write_rows(PROFILE, [("ann",)], [row])
    reader = OnlineReader(valkey_client, plan(batch=(PROFILE,)), ManualClock(START + HOUR_MS + 1))
    assert not reader.read_views({"profile": [("ann",)]})["profile"].found[0]


def test_a_matrix_puts_each_rows_entity_in_its_row_and_defaults_in_gaps(valkey_client):
    service = Service(
        name="s",
        features=(
            ServiceFeature(view="profile", feature="age"),
            ServiceFeature(view=VIEW.name, feature="n_1h"),
        ),
    )
    write_all(OnlineWriter(valkey_client, "shop"), VIEW, [event("e", START)], codec.LIVE)
    OnlineWriter(valkey_client, "shop").write_rows(
        PROFILE, [("bob",)], [codec.encode_row(PROFILE, START, 0, (7, None, None))]
    )
    reader = OnlineReader(valkey_client, plan(service, batch=(PROFILE,)), ManualClock(START + 1))
    matrix = reader.read_matrix("s", {"user_id": ["bob", "ann", "bob"]})
    assert matrix.values.dtype == np.float32
    np.testing.assert_array_equal(matrix.values, [[7, np.nan], [-1, 1], [7, np.nan]])
    with pytest.raises(DataError, match="user_id"):
        reader.read_matrix("s", {"item_id": ["1"]})


def test_an_unreachable_store_is_named():
    client = redis.Redis(port=1, socket_timeout=1)
    with pytest.raises(UnavailableError, match="headwater up"):
        OnlineReader(client, plan(), ManualClock(0)).read_views({VIEW.name: [("ann",)]})


class TestWithinATime:
    @pytest.fixture
    def reader(self, valkey):
        with connect(valkey, socket_timeout=20) as client:
            yield OnlineReader(client, plan(), ManualClock(0))

    def test_a_store_that_does_not_answer_keeps_nobody_longer(self, reader, valkey_client):
        reader.read_entity("user_id", "ann")
        with within(0.2):
            assert not len(reader.read_entity("user_id", "ann").fields)
        valkey_client.client_pause(1_000, all=True)
        began = time.monotonic()
        with within(0.2), pytest.raises(UnavailableError, match="timed out"):
            reader.read_entity("user_id", "ann")
        assert 0.1 < time.monotonic() - began < 0.9
        assert not len(reader.read_entity("user_id", "ann").fields)  # whose timeout is the client's again

    def test_where_a_connection_has_to_be_opened_nothing_is_asked(self, reader):
        for _ in range(2):  # whether it is a cluster is not known, then it is
            with within(5), pytest.raises(UnreadyError):
                reader.read_entity("user_id", "ann")
            assert reader._wire.cluster is None

    def test_of_a_cluster_nothing_is_asked(self, valkey_cluster_url):
        with connect(valkey_cluster_url) as client:
            reader = OnlineReader(client, plan(), ManualClock(0))
            reader.read_entity("user_id", "ann")
            with within(5), pytest.raises(UnreadyError):
                reader.read_entity("user_id", "ann")


TASTE = PROFILE.model_copy(update={"name": "taste", "join_keys": ("user_id", "shop", "item_id"), "id": "55" * 8})
RETIRED = PROFILE.model_copy(update={"name": "retired", "join_keys": ("user_id", "item_id"), "id": "66" * 8})


def test_a_forgotten_entity_is_gone_under_its_own_key_and_under_others(store):
    """What is left are the others' rows, value for value."""
    writer, now = OnlineWriter(store, "shop"), plan(batch=(TASTE,))
    keys = [(user, shop, item) for user in ("ann", "b*b") for shop in ("7", "8") for item in ("7", "77", "8")]
    writer.write_rows(TASTE, keys, [codec.encode_row(TASTE, START, START, (at, None, None)) for at in range(len(keys))])
    writer.write_rows(RETIRED, [("ann", "7")], [codec.encode_row(RETIRED, START, START, (1, None, None))])
    own = PROFILE.model_copy(update={"join_keys": ("item_id",)})
    writer.write_rows(own, [("7",), ("77",)], [codec.encode_row(own, START, START, (1, None, None))] * 2)
    assert erase_entity(store, now, "item_id", "7") == Erased(keys=1, fields=1 + 4, unknown=1)
    read = OnlineReader(store, now, ManualClock(START + 1)).read_views({"taste": keys})["taste"]
    assert read.found.tolist() == [item != "7" for *_, item in keys]
    assert read.values["age"][read.found].tolist() == [at for at, key in enumerate(keys) if key[2] != "7"]
    assert erase_entity(store, now, "user_id", "b*b") == Erased(keys=1, fields=4)
    assert len(list(store.scan_iter(project_prefix("shop") + b"*"))) == 2


def event(event_id, time):
    return Row(event_id, time, time, ("ann",), stepped({"kind": "a", "amount": 5, "quantity": 1}))


NUMBERS = PROFILE.model_copy(update={"columns": PROFILE.columns[:2], "id": "11" * 8})


@given(
    st.lists(
        st.tuples(st.integers(0, 2**50), st.none() | st.floats(width=32, allow_nan=False), st.sampled_from([0, 1, 2])),
        min_size=1,
    )
)
def test_rows_packed_together_are_the_rows_packed_one_by_one(rows):
    """Rows with a created time of their own and rows without, alone and mixed."""
    one_by_one = [codec.encode_row(NUMBERS, START, START + later, (age, score)) for age, score, later in rows]
    together = codec.encode_rows(
        NUMBERS,
        np.full(len(rows), START),
        START + np.array([later for *_, later in rows]),
        {
            "age": np.array([age for age, *_ in rows]),
            "score": np.array([np.nan if score is None else score for _, score, _ in rows], np.float32),
        },
    )
    assert [bytes(row) for row in together] == one_by_one
    event, values = codec.decode_rows(NUMBERS, Blobs.of([*one_by_one, None]))
    decoded = [codec.decode_row(NUMBERS, blob) for blob in one_by_one]
    assert [row[:2] for row in decoded] == [(START, START + later) for *_, later in rows]
    assert event.tolist() == [START] * len(rows) + [-1]
    for column, name in enumerate(("age", "score")):
        expected = [math.nan if row[2][column] is None else row[2][column] for row in decoded] + [math.nan]
        np.testing.assert_array_equal(values[name], expected)


@pytest.mark.parametrize("later", [(0,), (7,), (0, 7)], ids=["plain", "dated", "mixed"])
def test_rows_with_and_without_a_created_time_of_their_own_are_read_alike(store, later):
    """Enough of them for the reply to be read as an array where all have one length."""
    keys = [(f"user{at}",) for at in range(100)]
    rows = [codec.encode_row(NUMBERS, START, START + later[at % len(later)], (at, at / 4)) for at in range(100)]
    assert {len(row) for row in rows} == {22 + 8 * bool(delay) for delay in later}
    OnlineWriter(store, "shop").write_rows(NUMBERS, keys, rows)
    reader = OnlineReader(store, plan(batch=(NUMBERS,)), ManualClock(START + 10))
    read = reader.read_views({NUMBERS.name: keys})[NUMBERS.name]
    np.testing.assert_array_equal(read.values["age"], np.arange(100))
    np.testing.assert_array_equal(read.values["score"], np.arange(100) / 4)
    assert read.newest.tolist() == [START] * 100


TILES = Table(id="22" * 8, kind="fixed", hop_ms=HOUR_MS, keep=5, partials=(Partial(kind="sum", column="amount"),))
LISTS = TILES.model_copy(update={"kind": "last", "partials": (), "n": 3, "id": "33" * 8})


def tiles_of(table, records):
    """One blob of (tile, slot, count, value) records."""
    columns = {name: np.array([record[at] for record in records]) for at, name in enumerate(("tile", "slot", "count"))}
    columns["newest"] = columns["ingest"] = columns["hash"] = columns["count"]
    columns["sum_amount"] = np.array([record[3] for record in records])
    payloads = None if table.kind == "fixed" else [b"x" * (record[3] % 40) for record in records]
    return [("ann",)] * len(records), columns, payloads


def merged_slowly(table, held, records):
    """What an entity holds after a write, from the words of the contract."""
    for record in records:
        place = record[:2]
        if place not in held or record[2] >= held[place][2]:
            held[place] = record
    newest = max(tile for tile, _ in held)
    return {place: record for place, record in held.items() if place[0] >= newest - table.keep}


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(-3, 12), st.integers(0, 1), st.integers(1, 3), st.integers(0, 99)),
            min_size=1, max_size=8, unique_by=lambda record: record[:2],
        ),
        min_size=1, max_size=5,
    ),
    st.sampled_from([TILES, LISTS]),
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiles_merged_in_the_store_are_the_tiles_merged_one_by_one(store, writes, table):
    """The store's bytes after any writes are one blob of what the contract leaves, newest first."""
    store.flushall()
    writer, held, newest = OnlineWriter(store, "shop"), {}, -1
    for records in writes:
        writer.write_tiles(table, ("user_id",), *tiles_of(table, records))
        within = max(record[0] for record in records) - table.keep
        records = [record for record in records if record[0] >= within]
        held = merged_slowly(table, held, records)
        newest = max(newest, *(record[2] for record in records))
    _, blobs = codec.pack_blobs(table, *tiles_of(table, list(held.values())))
    blob = store.hget(entity_key(project_prefix("shop"), "user_id", "ann"), table.field)
    assert codec.HEADER.unpack_from(blob) == (codec.VERSION, newest)
    assert blob[codec.HEADER.size :] == bytes(blobs[0])[codec.HEADER.size :]


@given(st.lists(st.lists(st.text(max_size=3), min_size=2, max_size=3).map(tuple), max_size=20))
def test_keys_encoded_together_are_the_keys_encoded_one_by_one(keys):
    assert encoded([key[0] for key in keys]) == [key[0].encode() for key in keys]
    assert rests_of_keys(keys) == [rest_of_key(key[1:]) for key in keys]


MANY = [(f"user{at}", f"item{at % 7}" + "x" * (at % 3)) for at in range(700)]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("texts", [False, True], ids=["fixed", "texts"])
def test_many_entities_written_in_few_calls_are_read_by_one(valkey_client, width, texts):
    """Whatever the packing, each entity has its own row; older rows of other calls change nothing."""
    columns = PROFILE.columns if texts else PROFILE.columns[:2]
    view = PROFILE.model_copy(update={"id": "44" * 8, "columns": columns, "join_keys": ("user_id", "item_id")[:width]})
    keys = [key[:width] for key in MANY]
    writer = OnlineWriter(valkey_client, "shop")
    for event_ms, factor in ((START, 1), (START - 1, 2)):
        rows = [
            codec.encode_row(view, event_ms, 0, (at * factor, None, f"town {at}")[: len(columns)])
            for at in range(len(keys))
        ]
        assert writer.write_rows(view, keys, rows) < 20
    read = OnlineReader(valkey_client, plan(batch=(view,)), ManualClock(START + 1)).read_views(
        {"profile": [*keys, ("nobody", "nothing")[:width]]}
    )["profile"]
    np.testing.assert_array_equal(read.values["age"], [*range(len(keys)), np.nan])
    assert read.found.tolist() == [True] * len(keys) + [False]
