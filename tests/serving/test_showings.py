"""What is shown again and again and left lying is left out, by whichever process it was shown."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater.online.erase import erase_entity
from headwater.online.keys import entity_key, project_prefix, showings_key
from headwater.plan import DAY_MS
from serving.guard import Guard
from serving.ports import UserState
from serving.showings import MOST_REPLIES, StoredShowings, left_lying
from serving.surfaces import Served

NOW, MINUTE = 400 * DAY_MS, 60_000
GONE = redis.Redis(port=1)
TWICE = Served(times=2, minutes=30)


class AtOnce(Guard):
    """Does the work before the reply, so that none of it is left for the next test's store."""

    def start(self, work):
        return work()


def showings(store) -> StoredShowings:
    return StoredShowings(store, "shop", "user_id", AtOnce("online store"))


@pytest.fixture
def impatient(surfaces):
    """Home leaves out what was shown twice within half an hour; discover does not."""
    home = surfaces.surfaces["home"].model_copy(update={"served": TWICE, "limit": 5})
    return {**surfaces.surfaces, "home": home}


def ids_of(ranked) -> list[str]:
    return [item.item_id for item in ranked.items]


def noted(store, user: str, n: int):
    """Whether so many replies have been noted, behind the replies themselves."""
    return lambda: len(showings(store).since(user, 0)) and store.zcard(key(user)) == n


def key(user: str) -> bytes:
    return showings_key(project_prefix("shop"), "user_id", user)


replies = st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 5), unique=True, max_size=4)), max_size=12)


@pytest.mark.integration
class TestStored:
    @given(replies, st.integers(0, 45), st.dictionaries(st.integers(0, 5), st.integers(0, 45)))
    @tries(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_left_lying_is_what_counting_every_reply_finds(self, valkey_client, shop, rows, now, had):
        """``rows`` are the minute of each reply and its items, ``had`` the minute each item was had last."""
        valkey_client.flushdb()
        store = showings(valkey_client)
        for number, (minute, items) in enumerate(rows):
            member = json.dumps([f"r{number}", *(f"i{item}" for item in items)])
            store._write("u1", member, minute * MINUTE, DAY_MS)
        had = {item: minute for item, minute in had.items() if minute <= now}
        recent, ages = np.array(list(had), np.int32), (now - np.array(list(had.values()), np.int64)) * MINUTE
        user = UserState("u1", 0, recent, recent_age_ms=ages, now_ms=now * MINUTE)
        served = Served(times=2, minutes=20)
        shown_at = defaultdict(list)
        for minute, items in rows:
            for item in items:
                if minute > now - 20:
                    shown_at[item].append(minute)
        expected = {
            item for item, minutes in shown_at.items() if len(minutes) >= 2 and had.get(item, -1) < min(minutes)
        }
        found = left_lying(store.since("u1", user.now_ms - served.window_ms), served, user, shop)
        assert set(found.tolist()) == expected

    def test_it_lies_beside_the_user_s_values_expires_and_is_bounded(self, valkey_client):
        store = showings(valkey_client)
        for number in range(3):
            store._write("u1", f'["r{number}", "i1"]', NOW + number, 30 * MINUTE)
        slot = valkey_client.execute_command("CLUSTER KEYSLOT", key("u1"))
        assert slot == valkey_client.execute_command(
            "CLUSTER KEYSLOT", entity_key(project_prefix("shop"), "user_id", "u1")
        )
        assert valkey_client.pttl(key("u1")) > 30 * MINUTE
        valkey_client.zadd(key("u1"), {f'["old {n}"]': NOW - n for n in range(MOST_REPLIES + 5)})
        store._write("u1", '["last", "i2"]', NOW + 9, 30 * MINUTE)
        assert valkey_client.zcard(key("u1")) == MOST_REPLIES
        store._write("u1", '["later", "i2"]', NOW + 31 * MINUTE, 30 * MINUTE)
        assert store.since("u1", 0) == {"i2": (1, NOW + 31 * MINUTE)}

    def test_forgetting_a_user_forgets_what_they_were_shown(self, valkey_client, plan):
        showings(valkey_client)._write("u1", '["r", "i1"]', NOW, DAY_MS)
        assert erase_entity(valkey_client, plan, "user_id", "u1").keys == 1
        assert not valkey_client.exists(key("u1"))


@pytest.mark.integration
class TestFunnel:
    @pytest.fixture
    def stocked(self, valkey_client, put):
        put(valkey_client, "user_item", {("u1", "i5"): 9, ("u1", "i7"): 8})
        put(valkey_client, "item_activity", {(f"i{n}",): 60 - n for n in range(60)})
        return valkey_client

    def test_what_was_shown_twice_makes_room_in_every_process_until_the_time_is_over(
        self, funnel, stocked, impatient, clock, until
    ):
        processes = [funnel(stocked, surfaces=impatient, showings=showings(stocked)) for _ in range(2)]
        request = processes[0].request("u1")
        first = ids_of(processes[0].recommend(request))
        until(noted(stocked, "u1", 1), "the first reply")
        assert ids_of(processes[1].recommend(request)) == first
        until(noted(stocked, "u1", 2), "the second")
        third = processes[0].recommend(request)
        assert not set(ids_of(third)) & set(first)
        assert third.degraded == ()
        assert processes[0].telemetry.registry.get_sample_value("headwater_removed_total", {"filter": "served"}) > 0
        assert "served removes it" in processes[1].explain(request, first[0]).lines[1]
        elsewhere = processes[0].recommend(processes[0].request("u1", "discover"))
        assert set(ids_of(elsewhere)) & set(first)
        clock.set(NOW + 31 * MINUTE)
        assert ids_of(processes[1].recommend(request)) == first

    def test_an_item_that_was_had_since_is_shown_on(self, funnel, stocked, impatient, put, clock, until):
        whole = funnel(stocked, surfaces=impatient, showings=showings(stocked))
        request = whole.request("u1")
        for number in (1, 2):
            whole.recommend(request)
            until(noted(stocked, "u1", number), "the reply")
        clock.set(NOW + 2 * MINUTE)
        put(stocked, "user_item", {("u1", "i7"): 9}, NOW + MINUTE)
        shown = ids_of(whole.recommend(request))
        assert "i7" in shown
        assert "i5" not in shown

    def test_lists_that_nobody_sees_are_not_counted(self, funnel, stocked, impatient):
        class NoCalls:
            def start(self, work):
                raise AssertionError("it is written")

        unseen = replace(showings(stocked), records=False, guard=NoCalls())
        whole = funnel(stocked, surfaces=impatient, showings=unseen)
        whole.recommend(whole.request("u1"))
        whole.run(whole.request("u1"))
        assert not stocked.exists(key("u1"))

    def test_without_the_store_the_filter_is_missing_by_name(self, funnel, impatient):
        whole = funnel(GONE, surfaces=impatient, showings=showings(GONE))
        ranked = whole.recommend(whole.request("u1"))
        assert ranked.degraded == ("user_state", "served", "hydrate")
        assert len(ranked.items) == 5
