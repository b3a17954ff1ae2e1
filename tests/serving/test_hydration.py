"""Lists whose items' features lie in shared memory, against lists that ask the store for them."""

import gc
import signal
import subprocess
import sys
import time
from dataclasses import replace
from weakref import WeakValueDictionary

import numpy as np
import pytest

from headwater.clock import SystemClock
from headwater.online.names import Names, packed
from headwater.online.reader import OnlineReader
from serving.hydration import Hydration, mirrored
from serving.impressions import document

pytestmark = pytest.mark.integration
ITEMS, IDS = np.arange(3, dtype=np.int32), ["i0", "i1", "i2"]


@pytest.fixture
def mirror(valkey_client, plan, shop, clock, tmp_path):
    found = mirrored(valkey_client, plan, clock, "recommend", "item_id", shop.ids, tmp_path, {})
    assert found is not None
    return found


def test_a_bundle_of_the_same_items_reads_what_is_there_and_one_of_others_does_not(
    valkey_client, plan, shop, clock, tmp_path
):
    known = WeakValueDictionary()
    first, same, others = (
        mirrored(valkey_client, plan, clock, "recommend", "item_id", ids, tmp_path, known)
        for ids in (shop.ids, Names.of(packed([*shop.ids])), Names.of(packed([*shop.ids][1:])))
    )
    assert first is same
    assert others is not same
    assert len(known) == 2
    del first, same
    gc.collect()
    assert list(known.values()) == [others]


class Kept:
    """The last impression."""

    def log(self, impression):
        self.last = impression


def test_a_list_is_the_same_and_says_what_it_was_made_of(valkey_client, funnel, put, mirror, until):
    put(valkey_client, "item_activity", {(f"i{at}",): at + 1 for at in range(40)})
    put(valkey_client, "user_item", {("u1", "i7"): 3, ("u1", "i50"): 1})
    put(valkey_client, "user_category", {("u1", "c1"): 5})
    asking, sink = funnel(valkey_client), Kept()
    reader = asking.features.reader
    until(lambda: mirror.read(ITEMS, IDS) and mirror.read(ITEMS, IDS)["item_activity"].found.all(), "the items")
    mirroring = replace(asking, features=Hydration(reader, mirror), impressions=sink)
    plain, shared = asking.recommend(asking.request("u1")), mirroring.recommend(mirroring.request("u1"))
    assert shared.items == plain.items
    assert not shared.degraded
    run = asking.run(asking.request("u1"))
    assert sink.last.features.values.tobytes() == run.features.values.tobytes()
    told = document(sink.last)["views"]["item_activity"]
    asked = run.features.views["item_activity"]
    place = {key: at for at, key in enumerate(asked.keys)}
    for at, (item,) in enumerate(told["keys"]):
        expected = asked.marks_of(np.array([place[item,]]))["0000000000000002"]
        assert told["newest"][at] == asked.newest[place[item,]]
        assert told["marks"]["0000000000000002"]["count"][at] == expected.count[0]
        assert told["marks"]["0000000000000002"]["hash"][at] == f"{expected.hash[0]:016x}"


def test_a_change_is_in_the_next_list_within_a_second(valkey_client, put, mirror, until):
    until(lambda: mirror.read(ITEMS, IDS), "the items")
    put(valkey_client, "item_activity", {("i1",): 9})
    written = time.monotonic()
    while (read := mirror.read(ITEMS, IDS)) and read["item_activity"].values["item_purchases"][1] != 9:
        time.sleep(0.01)
    took = time.monotonic() - written  # or what was read is out of date, which is not served
    assert took < 1.5 or not read


def test_without_what_is_kept_the_store_is_asked(valkey_client, plan, clock, put, mirror, monkeypatch, until):
    put(valkey_client, "item_activity", {("i1",): 9})
    until(lambda: mirror.read(ITEMS, IDS), "the items")
    monkeypatch.setattr("headwater.online.shared.monotonic_ms", lambda: 2**60)
    entities = {"user_id": ["u1"], "item_id": ["i1"], "category": ["c1"]}
    reader = OnlineReader(valkey_client, plan, clock)
    found = Hydration(reader, mirror).read_matrix("recommend", entities, items=ITEMS[1:2])
    np.testing.assert_array_equal(found.values, [[0, 9, 0, 0]])


def test_what_is_mirrored_is_kept_for_as_long_as_someone_reads_it(valkey_client, plan, shop, tmp_path, until):
    held = [mirrored(valkey_client, plan, SystemClock(), "recommend", "item_id", shop.ids, tmp_path, {})]
    until(lambda: held[0].read(ITEMS, IDS), "the items")
    before = _tracking(valkey_client)
    assert before
    held.clear()
    until(lambda: len(_tracking(valkey_client)) < len(before), "its thread to end")


KEEP = """
import sys, time
from pathlib import Path
from headwater.clock import SystemClock
from headwater.online.connect import connect
from headwater.online.names import Names, packed
from headwater.plan import FeaturePlan
from serving.hydration import mirrored
url, plan, folder, ids = sys.argv[1:]
found = mirrored(
    connect(url), FeaturePlan.read(Path(plan)), SystemClock(), "recommend", "item_id", Names.of(packed(ids.split())),
    Path(folder), {},
)
time.sleep(600)
"""


def test_a_keeper_that_is_killed_is_replaced(valkey, valkey_client, plan, shop, tmp_path, put, until):
    plan.save(tmp_path / "plan.json")
    told = [valkey, str(tmp_path / "plan.json"), str(tmp_path), " ".join(shop.ids)]
    with subprocess.Popen([sys.executable, "-c", KEEP, *told]) as other:
        until(lambda: list(tmp_path.glob("*.rows")), "the other process", 60)
        ours = mirrored(valkey_client, plan, SystemClock(), "recommend", "item_id", shop.ids, tmp_path, {})
        until(lambda: ours.read(ITEMS, IDS), "the other's rows")
        before = next(tmp_path.glob("*.rows")).stat().st_ino
        other.send_signal(signal.SIGKILL)
        other.wait()
        put(valkey_client, "item_activity", {("i1",): 9})
        until(lambda: ours.read(ITEMS, IDS) and ours.read(ITEMS, IDS)["item_activity"].found[1], "rows of our own")
        assert next(tmp_path.glob("*.rows")).stat().st_ino != before


def test_the_store_may_go_and_come_back(valkey_client, mirror, until, put):
    until(lambda: mirror.read(ITEMS, IDS), "the items")
    valkey_client.client_kill_filter(skipme=True, _type="normal")
    put(valkey_client, "item_activity", {("i2",): 4})
    until(lambda: (read := mirror.read(ITEMS, IDS)) and read["item_activity"].found[2], "the items again")


def _tracking(client):
    return [one for one in client.client_list() if "t" in one["flags"] or "B" in one["flags"]]
