"""What an entity read at once answers, against a read field by field; names found by their bytes, against a dict."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiles import write_all
from support.views import every_function

from benchmarks.oracle import Row
from headwater.clock import ManualClock
from headwater.online import codec, names
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import HOUR_MS, FeaturePlan

START = 1_500_000_000_000
KEYS = (("user_id",), ("user_id", "item_id"), ("user_id", "item_id", "session_id"), ("item_id",))
VIEWS = tuple(every_function(name="_by_".join(keys), keys=keys) for keys in KEYS)
PLAN = FeaturePlan(
    project="shop", registry_sha256="", repo=".", sources=(), views=VIEWS, batch_views=(), on_demand=(), services=()
)
texts = st.sampled_from(["ann", "", "a\0b", "\0", "naïve", "x" * 300]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)


@st.composite
def histories(draw):
    """Events of two users with some items in some sessions."""
    items = draw(st.lists(texts, min_size=1, max_size=5))
    rows = []
    for number in range(draw(st.integers(1, 10))):
        time = START + draw(st.integers(0, 6 * HOUR_MS))
        key = (draw(st.sampled_from(["ann", "bob"])), draw(st.sampled_from(items)), draw(st.sampled_from(["", "s"])))
        values = {"kind": draw(st.sampled_from("xy")), "amount": draw(st.none() | st.integers(-9, 9)), "quantity": 1}
        rows.append(Row(f"e{number}", time, time, key, {**values, "step": "clear"}))
    return rows


@pytest.mark.integration
@pytest.mark.parametrize("server", ["valkey_client", "valkey_cluster"])
@given(rows=histories(), others=st.lists(texts, max_size=2))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_entity_read_at_once_answers_as_its_fields_read_one_by_one(request, server, rows, others):
    store = request.getfixturevalue(server)
    store.flushall()
    had = {view.name: set() for view in VIEWS}
    for view in VIEWS:
        places = [("user_id", "item_id", "session_id").index(key) for key in view.join_keys]
        own = [Row(r.event_id, r.event_time, r.ingest_time, tuple(r.key[at] for at in places), r.values) for r in rows]
        write_all(OnlineWriter(store, "shop"), view, own, codec.LIVE)
        had[view.name] |= {row.key for row in own}
    reader = OnlineReader(store, PLAN, ManualClock(START + 7 * HOUR_MS))
    held = reader.read_entity("user_id", "ann")
    unseen = [("ann", other, "s") for other in others]
    keys = {
        view.name: sorted(
            {key for key in had[view.name] if key[0] == "ann"} | {key[: len(view.join_keys)] for key in unseen}
        )
        for view in VIEWS
        if view.join_keys[0] == "user_id"
    } | {"item_id": sorted(had["item_id"])}
    together, apart = reader.read_views(keys, held=held), reader.read_views(keys)
    for name, read in apart.items():
        if name.startswith("user_id_by"):
            assert set(reader.partners(name, held)) == {key for key in had[name] if key[0] == "ann"}
        np.testing.assert_array_equal(together[name].found, read.found)
        np.testing.assert_array_equal(together[name].newest, read.newest)
        for feature, values in read.values.items():
            np.testing.assert_equal(together[name].values[feature], values, feature)
        for table, marks in read.marks.items():
            assert [each.tolist() for each in vars_of(together[name].marks[table])] == [
                each.tolist() for each in vars_of(marks)
            ]


def vars_of(marks):
    return marks.count, marks.ingest, marks.hash


def test_an_entity_that_is_not_there_has_nothing(valkey_client):
    reader = OnlineReader(valkey_client, PLAN, ManualClock(START))
    held = reader.read_entity("user_id", "nobody")
    assert len(reader.partners("user_id_by_item_id", held)) == 0
    assert not reader.read_views({"user_id": [("nobody",)]}, held=held)["user_id"].found.any()


@given(st.lists(texts, unique=True, max_size=40), st.lists(texts, max_size=40))
@settings(deadline=None)
def test_names_are_found_as_in_a_dict(known, wanted):
    found = names.Names.of(names.packed(known)).find(names.packed([*wanted, *known]))
    assert found.tolist() == [{text: at for at, text in enumerate(known)}.get(text, -1) for text in [*wanted, *known]]


def test_ids_that_count_up_lie_apart():
    slots = names.Names.of(names.packed([f"p{at}" for at in range(130_000)])).slots
    longest = np.diff(np.flatnonzero(slots < 0)).max()
    assert longest < 100  # taken slots in a row: some 40 by chance, whatever the seed
