"""Sources of what a list is about, for newcomers and of what is new: each against the slow way, then in the funnel."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from headwater.errors import ConfigError, DataError
from headwater.plan import DAY_MS
from models.catalogue import Column
from models.evaluation.metrics import PAD
from models.item_texts import ItemTexts
from models.neighbour_table import NeighbourTable
from models.segments import Segment, Segments
from models.side_tables import SideTables
from serving.availability import withdraw
from serving.bundled import LATER, sources_of, tell_idle
from serving.coldstart import Exploration, InSegment, NewItems, little_shown
from serving.impressions import document
from serving.nearby import DECAY, LAST, Content, ItemToItem, RecentNeighbours
from serving.ports import UserState
from serving.sources import TwoTower, blend, drawing_chances
from serving.surfaces import SourceSettings, Surface, Surfaces, load_surfaces
from serving.told import MAX_TOLD

N, NOW = 60, 400 * DAY_MS
GONE = redis.Redis(port=1)
some_items = st.lists(st.integers(0, N - 1), unique=True, max_size=8)


def ints(*numbers) -> np.ndarray:
    return np.array(numbers, np.int32)


def user_of(recent=(), about=(), **others) -> UserState:
    ages = np.arange(1, len(recent) + 1, dtype=np.int64) * DAY_MS
    return UserState("u1", 0, ints(*recent), ints(*recent), ages, ints(*about), **others)


@pytest.fixture(scope="module")
def table() -> NeighbourTable:
    rng = np.random.default_rng(2)
    items = np.array([rng.permutation(np.delete(np.arange(N), item))[:8] for item in range(N)], np.int32)
    items[::7, 5:] = PAD
    return NeighbourTable(
        items, np.where(items == PAD, 0, -np.sort(-rng.random(items.shape), axis=1)).astype(np.float32)
    )


@pytest.fixture(scope="module")
def texts() -> ItemTexts:
    """Items 0 and 1 have one text, 2 and 3 the next, and so on; the last ten have none."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(25, 5)).astype(np.float32)
    of_item = np.where(np.arange(N) < 50, np.arange(N) // 2, PAD).astype(np.int32)
    return ItemTexts(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), of_item, np.arange(N, dtype=np.float32))


class TestNearby:
    @given(some_items, some_items, st.integers(0, 30))
    @tries(deadline=None)
    def test_item_to_item_is_about_the_basket_or_else_about_what_was_had_the_newest_counting_most(
        self, table, recent, about, n
    ):
        weight = dict.fromkeys(about, 1.0) or {item: DECAY**place for place, item in enumerate(recent)}
        worth: Counter[int] = Counter()
        for item, counts in weight.items():
            for other, score in zip(table.items[item].tolist(), table.scores[item].tolist(), strict=True):
                if other != PAD and other not in weight:
                    worth[other] += counts * score
        found = ItemToItem(table).propose(user_of(recent, about), n).tolist()
        assert [worth[item] for item in found] == pytest.approx(sorted(worth.values(), reverse=True)[:n], rel=1e-5)
        assert len(set(found)) == len(found) == min(n, len(worth))

    @given(some_items, some_items, st.integers(0, 30))
    @tries(deadline=None)
    def test_recent_neighbours_take_turns(self, bundle, recent, about, n):
        last, vectors = (about or recent)[:LAST], bundle.catalogue.vectors
        nearest = [np.argsort(-(vectors @ vectors[item]), kind="stable").tolist() for item in last]
        turns = [each[place] for place in range(N) for each in nearest]
        expected = [item for item in dict.fromkeys(turns) if item not in last][:n]
        found = RecentNeighbours(vectors, bundle.index).propose(user_of(recent, about), n).tolist()
        assert found == expected

    def test_content_reaches_items_that_nobody_has_had(self, texts):
        found = Content(texts).propose(user_of([20]), 3).tolist()
        assert found[0] == 21
        assert Content(texts).propose(user_of([55]), 3).tolist() == []

    def test_the_user_s_vector_is_that_of_somebody_who_has_just_had_the_basket(self, bundle):
        seen = {}

        class Encoder:
            def encode(self, users, recent, age_ms):
                seen["recent"], seen["age"] = recent[0].tolist(), age_ms[0].tolist()
                return bundle.catalogue.vectors[:1]

        TwoTower(Encoder(), bundle.index).propose(user_of([3, 5], about=[5, 9]), 4)
        assert seen == {"recent": [5, 9, 3], "age": [0, 0, DAY_MS]}


class TestColdStart:
    def test_a_segment_is_the_request_s_else_the_user_s_else_everyone(self):
        source = InSegment({"young": ints(1, 2), "old": ints(3)}, ints(9, 8), Column.of(["old", ""]))
        assert source.propose(user_of(segment="young"), 5).tolist() == [1, 2]
        assert source.propose(user_of(), 5).tolist() == [3]
        assert source.propose(replace(user_of(), user=1), 5).tolist() == [9, 8]
        assert source.propose(replace(user_of(), user=-1, segment="unheard of"), 1).tolist() == [9]

    @given(st.lists(st.tuples(st.integers(-1, 40), st.integers(0, 3)), min_size=1, max_size=20), st.integers(0, 25))
    @tries(deadline=None)
    def test_new_items_came_within_the_days_the_newest_first(self, rows, n):
        first_seen = np.array([day * DAY_MS if day >= 0 else -1 for day, _ in rows], np.int64)
        popular = np.array([count for _, count in rows], np.float32)
        expected = [
            item
            for _, _, item in sorted((-day, -count, item) for item, (day, count) in enumerate(rows) if 3 < day <= 10)
        ]
        source = NewItems(first_seen, popular, days=7)
        assert source.propose(replace(user_of(), now_ms=10 * DAY_MS), n).tolist() == expected[:n]

    def test_each_item_of_the_pool_is_drawn_as_often_as_the_chance_says(self):
        source, times = Exploration(np.arange(100, 140, dtype=np.int32)), 4_000
        drawn = Counter(item for seed in range(times) for item in source.propose(user_of(seed=seed), 10).tolist())
        chance = source.chance(10)
        assert chance == 0.25
        assert drawn.keys() == set(range(100, 140))
        deviation = np.sqrt(chance * (1 - chance) / times)
        assert max(abs(count / times - chance) for count in drawn.values()) < 5 * deviation

    def test_a_draw_follows_from_the_seed_and_an_empty_pool_gives_nothing(self):
        source = Exploration(np.arange(40, dtype=np.int32))
        assert source.propose(user_of(seed=7), 5).tolist() == source.propose(user_of(seed=7), 5).tolist()
        assert len(source.propose(user_of(seed=7), 99)) == 40
        assert source.chance(99) == 1.0
        assert len(Exploration(ints()).propose(user_of(), 5)) == 0

    def test_the_pool_is_what_sells_seldom_or_came_lately(self):
        popular = np.array([0, 1, 2, 9, 0, 50], np.float32)
        assert little_shown(popular, np.array([-1, 5, 5, 5, 90, 95]), since_ms=80).tolist() == [1, 2, 4, 5]
        assert little_shown(np.zeros(2, np.float32), np.array([-1, 3]), since_ms=2).tolist() == [1]


class TestBlend:
    def test_a_source_s_weight_multiplies_its_places(self):
        mixed = blend({"a": ints(3, 1), "b": ints(1, 9)}, {"b": 0.5})
        assert mixed.fused.tolist() == pytest.approx([1 / 61, 1 / 62 + 0.5 / 61, 0.5 / 62])

    @given(
        st.lists(st.lists(st.integers(0, 12), unique=True, max_size=9), max_size=3),
        st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3),
    )
    def test_every_item_once_as_said(self, lists, weights):
        proposals = {f"s{at}": ints(*held) for at, held in enumerate(lists)}
        given = dict(zip(proposals, weights, strict=False))
        mixed = blend(proposals, given)
        fused: dict[int, float] = {}
        for name, held in proposals.items():
            for place, item in enumerate(held.tolist(), start=1):
                fused[item] = fused.get(item, 0.0) + given[name] / (60 + place)
        assert mixed.items.tolist() == [*fused]
        assert mixed.fused.tolist() == pytest.approx([*fused.values()])
        assert mixed.of(np.arange(len(mixed))) == [
            tuple(name for name, held in proposals.items() if item in held) for item in fused
        ]

    def test_a_source_that_names_an_item_twice_is_not_believed(self):
        assert blend({"a": ints(3, 1, 3)}).items.tolist() == [3, 1]

    def test_an_item_was_a_candidate_for_sure_unless_only_a_draw_proposed_it(self):
        pool = Exploration(np.arange(10, dtype=np.int32))
        chances = drawing_chances({"draw": pool, "b": pool}, {"draw": 4})
        mixed = blend({"draw": ints(3, 1), "popular": ints(1, 9)}, chances=chances)
        assert mixed.drawn(np.arange(3)) == pytest.approx([0.4, 1.0, 1.0])
        assert mixed.take(np.array([0])).drawn(np.arange(1)) == pytest.approx([0.4])

    def test_a_weight_of_no_source_is_refused(self):
        with pytest.raises(ValidationError, match="weights: popular is no source"):
            Surface(limit=1, diversity=0, seen="keep", sources={"trending": 5}, weights={"popular": 2.0})
        with pytest.raises(ValidationError, match=r"explore\.among: new_items is no source"):
            Surface(limit=1, diversity=0, seen="keep", sources={"trending": 5}, explore={"among": ["new_items"]})


@pytest.fixture
def full(bundle, table, texts):
    """The bundle with every source."""
    popular = np.arange(N, dtype=np.int32)
    others = {
        "item_to_item": ItemToItem(table), "content": Content(texts),
        "recent_neighbours": RecentNeighbours(bundle.catalogue.vectors, bundle.index),
        "popular_in_segment": InSegment({"young": popular[::-3]}, popular, Column.of(["young"])),
        "new_items": NewItems(np.where(np.arange(N) > 50, NOW - DAY_MS, 0), popular.astype(np.float32), 7),
        "exploration": Exploration(popular[20:]),
    }  # fmt: skip
    return replace(bundle, sources={**bundle.sources, **others})


@pytest.fixture
def everywhere(surfaces: Surfaces) -> dict[str, Surface]:
    """A surface that asks every source."""
    sources = dict.fromkeys(("buy_it_again", "two_tower", "item_to_item", "content", "recent_neighbours"), 8)
    others = {"new_items": 5, "exploration": 6, "popular_in_segment": 8}
    home = surfaces.surfaces["home"].model_copy(update={"sources": sources | others})
    return {"home": home, "discover": home.model_copy(update={"seen": "hide"})}


ids = st.lists(st.integers(0, 70).map(lambda n: f"i{n}"), max_size=20)


class TestFunnel:
    @pytest.mark.integration
    @given(exclude=ids, basket=ids, gone=ids, likes=ids, user=st.sampled_from(["u1", "nobody"]))
    @tries(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_nothing_excluded_withdrawn_seen_or_in_the_basket_is_ever_shown(
        self, funnel, valkey_client, put, full, everywhere, exclude, basket, gone, likes, user
    ):
        valkey_client.flushdb()
        put(valkey_client, "user_item", {("u1", "i5"): 2, ("u1", "i7"): 1})
        withdraw(valkey_client, "shop", gone)
        whole = funnel(valkey_client, bundle=full, surfaces=everywhere)
        context = {"basket": ",".join(basket), "likes": ",".join(likes), "segment": "young"}
        ranked = whole.recommend(whole.request(user, "discover", N, exclude, context=context))
        shown = [item.item_id for item in ranked.items]
        had = ["i5", "i7"] if user == "u1" else likes
        assert ranked.degraded == ()
        assert len(set(shown)) == len(shown)
        assert set(shown) == {f"i{n}" for n in range(N)} - set(exclude) - set(gone) - set(basket) - set(had)

    def test_a_basket_of_somebody_unknown_is_answered_with_what_goes_with_it(self, funnel, full, everywhere, table):
        alone = everywhere["home"].model_copy(update={"sources": {"item_to_item": 5}})
        whole = funnel(GONE, bundle=full, surfaces={"home": alone})
        ranked = whole.recommend(whole.request("nobody", limit=5, context={"basket": "i3, i4,unheard of,i3"}))
        expected = table.about(ints(3, 4), np.ones(2, np.float32), 5).tolist()
        assert [item.item_id for item in ranked.items] == [f"i{item}" for item in expected]

    def test_likes_stand_in_for_a_past_that_is_missing_and_only_then(self, funnel, full, everywhere, table):
        alone = everywhere["home"].model_copy(update={"sources": {"item_to_item": 5}})
        whole = funnel(GONE, bundle=full, surfaces={"home": alone}, state=Known(user_of([9])))
        liked = funnel(GONE, bundle=full, surfaces={"home": alone}, state=Known(UserState("u1", -1)))
        request = whole.request("u1", limit=5, context={"likes": "i3"})
        first_of = [[item.item_id for item in each.recommend(request).items[:1]] for each in (whole, liked)]
        assert first_of == [[f"i{table.items[9][0]}"], [f"i{table.items[3][0]}"]]

    def test_only_newcomers_are_given_the_sources_for_them(self, funnel, full, everywhere):
        told = everywhere["home"].model_copy(
            update={"sources": {"popular": 3}, "newcomers": {"popular_in_segment": 4}, "limit": 7}
        )
        known, new = (funnel(GONE, bundle=full, surfaces={"home": told}, state=Known(user)) for user in
                      (user_of([9]), UserState("nobody", -1)))  # fmt: skip
        request = known.request("u1", context={"segment": "young"})
        assert {item.sources for item in known.recommend(request).items} == {("popular",), ("fill",)}
        assert {item.sources for item in new.recommend(request).items} == {("popular",), ("popular_in_segment",)}

    def test_the_impression_tells_how_likely_an_explored_item_was_to_be_a_candidate(self, funnel, full, everywhere):
        kept = []

        class Recorder:
            def log(self, impression):
                kept.append(impression)

        told = everywhere["home"].model_copy(update={"sources": {"exploration": 6, "popular": 5}, "limit": 11})
        whole = funnel(GONE, bundle=full, surfaces={"home": told}, impressions=Recorder())
        whole.recommend(whole.request("nobody"))
        rows = json.loads(json.dumps(document(kept[0])))["items"]
        assert {tuple(row["sources"]): row["drawn"] for row in rows} == {
            ("exploration",): pytest.approx(6 / 40), ("popular",): 1.0,
        }  # fmt: skip

    def test_a_search_is_not_about_the_basket(self, funnel, full):
        whole = funnel(GONE, bundle=full)
        assert whole.search("nobody", "item 7", context={"basket": "i7"}).items[0].item_id == "i7"

    def test_too_many_items_in_a_basket_are_refused_by_number(self, funnel):
        basket = ",".join(f"i{n}" for n in range(MAX_TOLD + 1))
        with pytest.raises(DataError, match=rf"^context.basket: {MAX_TOLD + 1} items"):
            funnel(GONE).request("u1", context={"basket": basket})


class Known:
    """A state that needs no store."""

    def __init__(self, user: UserState) -> None:
        self.user = user

    def read(self, user_id):
        return self.user

    def unknown(self, user_id):
        return self.user


class Loaded:
    """As much of a bundle as its sources read."""

    def __init__(self, bundle, tables: SideTables) -> None:
        self.version, self.encoder, self.index, self.tables = "v1", None, bundle.index, tables
        self.vectors, self.popularity, self.trending = bundle.catalogue.vectors, np.ones(N), np.zeros(N)
        self.popular = np.arange(N, dtype=np.int32)
        self.meta = type("Meta", (), {"training_end_ms": NOW})


class TestBundled:
    def segments(self) -> Segments:
        return Segments([Segment("age", "young", ints(4, 2), ints(2))], {"age": Column.of(["young", ""])})

    def test_every_source_that_the_packaged_surfaces_name_is_there(self, bundle, tmp_path):
        known = sources_of(Loaded(bundle, SideTables()), SourceSettings())
        for name, surface in load_surfaces(tmp_path).surfaces.items():
            assert name == "search" or surface.quotas(newcomer=True).keys() <= known.keys()

    def test_a_bundle_of_before_proposes_nothing_where_it_has_no_table(self, bundle):
        sources = sources_of(Loaded(bundle, SideTables()), SourceSettings(segment="age"))
        assert all(len(sources[name].propose(user_of([3]), 5)) == 0 for name in LATER)
        assert len(sources["popular"].propose(user_of(), 5)) == 5

    def test_idle_sources_are_told_in_one_line(self, bundle):
        sources = sources_of(Loaded(bundle, SideTables()), SourceSettings())
        with capture_logs() as lines:
            tell_idle("v1", sources, ["popular", "content", "item_to_item", "content"])
            tell_idle("v1", sources, ["popular"])
        assert [(line["event"], line["sources"]) for line in lines] == [("sources_idle", ["content", "item_to_item"])]

    def test_segments_are_by_the_declared_attribute(self, bundle):
        loaded = Loaded(bundle, SideTables(segments=self.segments()))
        source = sources_of(loaded, SourceSettings(segment="age"))["popular_in_segment"]
        assert source.propose(user_of(), 5).tolist() == [4, 2]
        assert len(sources_of(loaded, SourceSettings())["popular_in_segment"].propose(user_of(), 5)) == 0

    def test_an_attribute_that_users_do_not_have_is_refused_by_name(self, bundle):
        loaded = Loaded(bundle, SideTables(segments=self.segments()))
        with pytest.raises(ConfigError, match=r"no attribute 'shoe_size'\. Choose from age"):
            sources_of(loaded, SourceSettings(segment="shoe_size"))
