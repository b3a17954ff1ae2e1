"""The funnel: its laws, its stages, and what is left of it when parts are gone."""

import json
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater.errors import ConfigError, DataError
from headwater.plan import DAY_MS
from serving.availability import restore, withdraw
from serving.impressions import ImpressionLog, document, sample
from serving.ports import UserState
from serving.reasons import Reasons
from serving.sources import BuyItAgain, Fixed, TwoTower, blend
from serving.surfaces import Explore, Reason, load_surfaces
from serving.telemetry import Telemetry

NOW = 400 * DAY_MS
GONE = redis.Redis(port=1)
ids = st.lists(st.integers(0, 70).map(lambda n: f"i{n}"), max_size=30)


class Recorder:
    """Keeps impressions."""

    def __init__(self):
        self.kept = []

    def log(self, impression):
        self.kept.append(impression)


@pytest.fixture
def stocked(valkey_client, put):
    """A user u1 who had i5 twice, i7 once and i40 lately."""
    put(valkey_client, "user_activity", {("u1",): 4})
    bought = {("u1", "i5"): 2, ("u1", "i7"): 1, ("u1", "i40"): 1}
    put(valkey_client, "user_item", bought, [NOW - 3 * DAY_MS, NOW - 2 * DAY_MS, NOW - DAY_MS])
    put(valkey_client, "item_activity", {(f"i{n}",): 60 - n for n in range(60)})
    return valkey_client


@pytest.mark.integration
class TestList:
    """On a real store."""

    def test_what_the_user_has_the_habit_of_comes_first_with_its_reason(self, funnel, stocked):
        ranked = funnel(stocked).recommend(funnel(stocked).request("u1"))
        assert [item.item_id for item in ranked.items[:3]] == ["i5", "i7", "i40"]
        first = ranked.items[0]
        assert first.reasons == ("bought 2 times",)
        assert "buy_it_again" in first.sources
        assert first.attributes == {"name": "Item 5", "category": "c5"}
        assert [item.position for item in ranked.items] == list(range(1, 11))
        assert ranked.degraded == ()
        assert 0.5 < first.score < 1  # calibrated

    @given(exclude=ids, include=ids, limit=st.integers(1, 70), surface=st.sampled_from(["home", "discover"]))
    @tries(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_laws_of_every_list(self, funnel, stocked, exclude, include, limit, surface):
        """At most limit, nothing twice, nothing excluded, only what was included, nothing seen where seen is hidden."""
        whole = funnel(stocked)
        ranked = whole.recommend(whole.request("u1", surface, limit, exclude, include))
        shown = [item.item_id for item in ranked.items]
        allowed = set(include or whole.bundle.catalogue.ids) & set(whole.bundle.catalogue.ids) - set(exclude)
        allowed -= {"i5", "i7", "i40"} if surface == "discover" else set()
        assert len(shown) == len(set(shown)) == min(limit, len(allowed))
        assert set(shown) <= allowed
        assert ranked.degraded == ()

    def test_a_withdrawn_item_is_not_shown_until_it_is_back(self, funnel, stocked):
        whole = funnel(stocked)
        withdraw(stocked, "shop", ["i5", "unheard of"])
        assert "i5" not in [item.item_id for item in whole.recommend(whole.request("u1", limit=60)).items]
        restore(stocked, "shop", ["i5"])
        again = funnel(stocked)
        assert "i5" in [item.item_id for item in again.recommend(again.request("u1", limit=60)).items]

    def test_an_unknown_user_gets_what_is_popular(self, funnel, stocked):
        ranked = funnel(stocked).recommend(funnel(stocked).request("nobody"))
        assert len(ranked.items) == 10
        assert ranked.items[0].item_id == "i0"
        assert ranked.items[0].reasons == ("popular with everyone",)

    def test_a_purchase_changes_the_next_list(self, funnel, stocked, put):
        whole = funnel(stocked)
        before = whole.recommend(whole.request("u1")).items[0].item_id
        put(stocked, "user_item", {("u1", "i33"): 9})
        after = whole.recommend(whole.request("u1")).items[0].item_id
        assert (before, after) == ("i5", "i33")

    def test_everyone_is_ranked_as_one_is(self, funnel, stocked):
        whole = funnel(stocked)
        lists = whole.rank_all(["u1", "nobody"], limit=20)
        alone = whole.recommend(whole.request("u1", limit=20))
        assert lists["u1"].items == alone.items
        assert set(lists) == {"u1", "nobody"}

    def test_the_impression_holds_the_vectors_the_scores_came_from(self, funnel, stocked):
        seen = Recorder()
        whole = funnel(stocked, impressions=seen)
        ranked = whole.recommend(whole.request("u1", context={"page": "2"}))
        told = json.loads(json.dumps(document(seen.kept[0]), allow_nan=False))
        assert [row["item_id"] for row in told["items"]] == [item.item_id for item in ranked.items]
        assert told["items"][0]["features"] == [4.0, 55.0, 2.0, 0.0]
        assert told["feature_names"][2] == "user_item_purchases"
        assert {row["probability"] for row in told["others"]} == {10 / (told["candidates"] - 10)}
        assert not {row["item_id"] for row in told["others"]} & {row["item_id"] for row in told["items"]}
        assert told["views"].keys() == {"user_activity", "item_activity", "user_item", "user_category"}
        users, items = told["views"]["user_activity"], told["views"]["item_activity"]
        assert users["keys"] == [["u1"]]
        assert (users["rows"], users["marks"]["0000000000000001"]["count"]) == ([0] * 20, [4])
        shown = [row["item_id"] for row in told["items"] + told["others"]]
        assert [items["keys"][place] for place in items["rows"]] == [[item_id] for item_id in shown]
        seen_by = items["marks"]["0000000000000002"]
        at = items["keys"].index(["i5"])
        assert (seen_by["count"][at], seen_by["ingest"][at]) == (55, items["newest"][at])
        assert seen_by["hash"][at] == f"{5:016x}"
        assert told["time"] == whole.clock.now_ms()
        assert (told["bundle_version"], told["context"]) == ("v1", {"page": "2"})

    def test_no_more_of_one_category_than_the_surface_allows_while_there_are_others(self, funnel, stocked, surfaces):
        capped = surfaces.surfaces["home"].model_copy(update={"caps": {"category": 2}, "limit": 12})
        whole = funnel(stocked, surfaces={"home": capped})
        shown = [item.attributes["category"] for item in whole.recommend(whole.request("u1")).items]
        assert len(shown) == 12
        assert {category: shown.count(category) for category in shown} == dict.fromkeys(shown, 2)
        assert len(whole.recommend(whole.request("u1", limit=60)).items) > 12

    def test_what_was_drawn_is_told_with_its_chance(self, funnel, stocked, surfaces):
        explore = Explore(share=1.0, temperature=0.5)
        seen = Recorder()
        drawn = surfaces.surfaces["home"].model_copy(update={"explore": explore})
        whole = funnel(stocked, surfaces={"home": drawn}, impressions=seen)
        lists = {tuple(item.item_id for item in whole.recommend(whole.request("u1")).items) for _ in range(5)}
        assert len(lists) > 1
        told = document(seen.kept[0])
        assert told["policy"] == "plackett_luce"
        assert told["propensity"] == pytest.approx(np.prod([row["propensity"] for row in told["items"]]))
        assert 0 < told["propensity"] < 1


@pytest.mark.integration
class TestState:
    def test_habits_by_strength_and_recent_items_by_time_ties_by_number(self, funnel, stocked, put):
        put(stocked, "user_item", {("u1", "i30"): 1, ("u1", "not in the bundle"): 9}, NOW - DAY_MS)
        user = funnel(stocked).state.read("u1")
        assert user.own.tolist() == [5, 7, 30, 40]
        assert user.recent.tolist() == [30, 40, 7, 5]
        assert user.user == 0

    def test_an_unknown_user_has_none(self, funnel, stocked):
        user = funnel(stocked).state.read("nobody")
        assert (user.user, user.own.tolist(), user.recent.tolist()) == (-1, [], [])


class Broken:
    """Whatever is asked of it fails."""

    def __getattr__(self, name):
        def fail(*_, **__):
            raise RuntimeError(f"{name} is broken")

        return fail


class TestDegraded:
    """A worse list, never an error."""

    def test_without_the_store_the_models_still_answer(self, funnel):
        ranked = funnel(GONE).recommend(funnel(GONE).request("u1"))
        assert len(ranked.items) == 10
        assert ranked.degraded == ("user_state", "hydrate")
        assert ranked.items[0].reasons

    @pytest.mark.integration
    def test_without_the_ranker_the_sources_places_decide(self, funnel, stocked, bundle):
        whole = funnel(stocked, bundle=replace(bundle, ranker=Broken()))
        ranked = whole.recommend(whole.request("u1"))
        assert ranked.degraded == ("rank",)
        assert len(ranked.items) == 10

    @pytest.mark.integration
    def test_without_the_index_the_other_sources_are_enough(self, funnel, stocked, bundle):
        sources = {**bundle.sources, "two_tower": TwoTower(Broken(), Broken())}
        whole = funnel(stocked, bundle=replace(bundle, sources=sources))
        ranked = whole.recommend(whole.request("u1"))
        assert ranked.degraded == ("source.two_tower",)
        assert ranked.items[0].item_id == "i5"

    @pytest.mark.integration
    def test_without_calibration_the_raw_scores_are_shown(self, funnel, stocked, bundle):
        def fails(scores):
            raise RuntimeError("no table")

        whole = funnel(stocked, bundle=replace(bundle, calibrate=fails))
        ranked = whole.recommend(whole.request("u1"))
        assert ranked.degraded == ("calibrate",)
        assert ranked.items[0].score > 1

    @pytest.mark.integration
    def test_a_surface_of_several_objectives_is_ordered_by_its_own_scorer_and_needs_no_calibration(
        self, funnel, stocked, bundle
    ):
        class Backwards:
            def score(self, features):
                return -bundle.ranker.score(features)

        whole = funnel(stocked, bundle=replace(bundle, weighed={"discover": Backwards()}))
        first, usual = (whole.recommend(whole.request("u1", surface)).items[0] for surface in ("discover", "home"))
        assert usual.item_id == "i5"
        assert 0.5 < usual.score < 1  # calibrated
        assert first.item_id not in {"i5", "i7", "i40"}
        assert first.score <= 0
        assert funnel(stocked).recommend(whole.request("u1")).items == whole.recommend(whole.request("u1")).items

    def test_without_anything_what_is_popular_is_shown(self, funnel, bundle):
        sources = dict.fromkeys(bundle.sources, Broken())
        broken = replace(bundle, sources=sources, ranker=Broken(), calibrate=Broken().calibrate)
        whole = funnel(GONE, bundle=broken, state=funnel(GONE).state, reasons=Broken())
        ranked = whole.recommend(whole.request("u1", exclude=["i0"]))
        assert [item.item_id for item in ranked.items] == [f"i{n}" for n in range(1, 11)]
        assert set(ranked.degraded) >= {"user_state", "source.two_tower", "source.popular", "hydrate", "reasons"}

    def test_a_degraded_stage_is_counted(self, funnel):
        whole = funnel(GONE)
        whole.recommend(whole.request("u1"))
        assert (
            whole.telemetry.registry.get_sample_value(
                "headwater_degraded_total", {"stage": "hydrate", "reason": "down"}
            )
            == 1
        )


class TestRequest:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"user_id": ""}, "user_id"),
            ({"user_id": "u" * 10_000}, "user_id"),
            ({"surface": "nowhere"}, "surface"),
            ({"limit": 1001}, "limit"),
            ({"include": ["i1"] * 1001}, "include_item_ids"),
        ],
    )
    def test_a_field_out_of_bounds_is_named(self, funnel, fields, named):
        with pytest.raises(DataError, match=f"^{named}"):
            funnel(GONE).request(**{"user_id": "u1", **fields})

    def test_what_is_empty_takes_the_surface_s_default(self, funnel):
        asked = funnel(GONE).request("u1", "discover")
        assert (asked.surface, asked.limit) == ("discover", 5)
        assert funnel(GONE).request("u1").surface == "home"


class TestSources:
    def test_each_item_is_kept_once_with_all_who_proposed_it(self):
        mixed = blend({"a": np.array([3, 1], np.int32), "b": np.array([1, 9], np.int32)})
        assert mixed.items.tolist() == [3, 1, 9]
        assert mixed.of(np.arange(3)) == [("a",), ("a", "b"), ("b",)]
        assert mixed.fused.tolist() == pytest.approx([1 / 61, 1 / 62 + 1 / 61, 1 / 62])

    def test_nothing_proposed_is_an_empty_list(self):
        assert len(blend({})) == len(blend({"a": np.empty(0, np.int32)})) == 0

    @given(st.integers(0, 59), st.integers(0, 80))
    def test_every_source_proposes_distinct_items_and_at_most_as_many_as_asked(self, bundle, item, n):
        user = UserState("u1", 0, np.array([item], np.int32), np.array([item, (item + 1) % 60], np.int32))
        for source in [*bundle.sources.values(), BuyItAgain(), Fixed(np.arange(5, dtype=np.int32))]:
            proposal = source.propose(user, n)
            assert len(proposal) == len(set(proposal.tolist())) <= n
            assert (proposal >= 0).all()

    def test_the_nearest_of_an_item_are_similar(self, funnel):
        whole = funnel(GONE)
        ranked = whole.similar("i3", 5, exclude=["i4"])
        vectors = whole.bundle.catalogue.vectors
        order = [n for n in np.argsort(-(vectors @ vectors[3])) if n not in (3, 4)][:5]
        assert [item.item_id for item in ranked.items] == [f"i{n}" for n in order]
        with pytest.raises(DataError, match="item_id"):
            whole.similar("unheard of")


class TestReasons:
    RULES = (
        Reason(feature="bought", at_least=2, text="bought {value:.0f} times"),
        Reason(feature="bought", at_least=1, text="bought once"),
        Reason(feature="age", at_least=0, at_most=1, text="{name} is new"),
        Reason(feature="not there", at_least=0, text="never"),
    )

    def test_the_first_rule_that_holds_speaks_for_its_feature(self):
        reasons = Reasons(self.RULES, {"a": "said a"}, {"age": 0, "bought": 1})
        rows = np.array([[9, 3], [9, 1], [1, 0], [1, np.nan], [1, 2], [np.nan, 1]], np.float32)
        told = reasons.of(rows, [("a",)] * 6, [{"name": "Milk"}] * 6)
        assert told == [
            ("bought 3 times",), ("bought once",), ("Milk is new",), ("Milk is new",),
            ("bought 2 times", "Milk is new"), ("bought once",),
        ]  # fmt: skip
        assert reasons.of(rows[:0], [], []) == []

    def test_where_no_rule_holds_or_there_are_no_features_the_sources_speak(self):
        reasons = Reasons(self.RULES, {"a": "said a", "c": "said c", "d": "said d"}, {"bought": 0})
        sources = [("b", "a"), ("b",), ("a", "c", "d")]
        for features in (None, np.zeros((3, 1), np.float32)):
            assert reasons.of(features, sources, [{}] * 3) == [("said a",), (), ("said a", "said c")]
        assert Reasons((), {}, {}).of(np.zeros((1, 1), np.float32), [("a",)], [{}]) == [()]


class Held:
    """A log that takes everything."""

    def __init__(self):
        self.records = []

    def append(self, topic, key, value, timestamp_ms):
        self.records.append((topic, key, json.loads(value), timestamp_ms))
        done = Future()
        done.set_result(None)
        return done


class TestImpressionLog:
    def test_a_sample_is_declared_and_repeats(self):
        shown = np.arange(5)
        rows, probability = sample(25, shown, "r1")
        assert probability == 10 / 20
        assert rows.tolist() == sample(25, shown, "r1")[0].tolist()
        assert not set(rows.tolist()) & set(shown.tolist())
        assert sample(5, shown, "r1")[0].tolist() == []

    def test_records_are_keyed_by_user_at_the_clock_s_time(self, funnel):
        kept, held = Recorder(), Held()
        whole = funnel(GONE, impressions=kept)
        whole.recommend(whole.request("u1"))
        log = ImpressionLog(held, Telemetry())
        log.log(kept.kept[0])
        log.close()
        ((topic, key, told, at_ms),) = held.records
        assert (topic, key, at_ms) == ("impressions", "u1", whole.clock.now_ms())
        assert told["degraded"] == ["user_state", "hydrate"]
        assert told["items"][0]["features"] is None

    def test_what_does_not_fit_is_dropped_and_counted(self, funnel, until):
        class Stuck(Held):
            def append(self, *arguments):
                until(lambda: self.free, "the test")
                return super().append(*arguments)

            free = False

        kept, stuck, telemetry = Recorder(), Stuck(), Telemetry()
        whole = funnel(GONE, impressions=kept)
        whole.recommend(whole.request("u1"))
        log = ImpressionLog(stuck, telemetry, queued=1)
        for _ in range(10):
            log.log(kept.kept[0])
        dropped = telemetry.impressions("dropped")
        stuck.free = True
        log.close()
        assert dropped >= 8
        assert len(stuck.records) == 10 - dropped


class TestSurfaces:
    def test_the_packaged_file_is_valid(self, tmp_path):
        assert "home" in load_surfaces(tmp_path).surfaces

    def test_a_repository_s_own_file_wins_and_an_unknown_key_is_named(self, tmp_path):
        (tmp_path / "surfaces.toml").write_text("[surfaces.home]\nlimt = 3\n")
        with pytest.raises(ConfigError, match=r"surfaces\.toml"):
            load_surfaces(tmp_path)
