"""Search: what matches, who may see it, in which order, and what is left of it when parts are gone."""

from dataclasses import replace

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, example, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater.errors import DataError
from headwater.online.reader import Matrix
from headwater.text import words
from models.bm25 import index_words
from models.catalogue import Catalogue, Column
from models.item_texts import ItemTexts
from serving.availability import withdraw
from serving.impressions import document
from serving.ports import UserState
from serving.rulebook import Ruled
from serving.rules import Rules
from serving.search import FEEDBACK, Search
from serving.sources import RRF
from serving.surfaces import load_surfaces

GONE = redis.Redis(port=1)
N = 60
KINDS = ("whole milk", "oat milk", "milk chocolate", "bread", "whole grain bread", "apples")
AUDIENCES = ("public", "staff", "")
of_function = [HealthCheck.function_scoped_fixture]
queries = st.lists(st.sampled_from([*" ".join(KINDS).split(), "unheard"]), min_size=1, max_size=4).map(" ".join)


class Recorder:
    """Keeps impressions."""

    def __init__(self):
        self.kept = []

    def log(self, impression):
        self.kept.append(impression)


class Broken:
    """Whatever is asked of it fails."""

    def __getattr__(self, name):
        raise RuntimeError(f"{name} is broken")


class Unread:
    """The state of users that nobody may read."""

    def unknown(self, user_id):
        return UserState(user_id, -1)


class Of:
    """A rule book that says one thing."""

    def __init__(self, *rules, **policy):
        self.told = Rules.model_validate({"rules": rules, "policy": policy})
        self.on = None

    def now(self):
        return Ruled.on(self.told, self.on)


@pytest.fixture(scope="session")
def grocery(shop):
    """The shop's items with names of six kinds, for three audiences in turn."""
    text = {
        "name": Column.of([f"{KINDS[n % 6]} {n}" for n in range(N)]),
        "category": Column.of([f"c{n % 6}" for n in range(N)]),
        "audience": Column.of([AUDIENCES[n // 6 % 3] for n in range(N)]),
    }
    return Catalogue(shop.ids, shop.vectors, text)


@pytest.fixture
def seek(funnel, bundle, grocery):
    """``seek(store)`` is a funnel whose items can be searched; keyword arguments replace its parts."""
    popularity = np.arange(N, 0, -1).astype(np.float32)
    search = Search(grocery, index_words(N, grocery.text), bundle.index, popularity)
    held = replace(bundle, catalogue=grocery, search=search)

    def make(store=GONE, rules=None, **parts):
        if rules is not None:
            rules.on, parts["rules"] = grocery, rules
        return funnel(store, bundle=held, **parts)

    return make


def shown(ranked):
    return [int(item.item_id[1:]) for item in ranked.items]


def expected(grocery, query, allowed):
    """Fused ranks by the formulas: three orders of what is allowed, reciprocal ranks added."""
    found = index_words(N, grocery.text).match(query)
    score = {item: value for item, value in zip(found.items.tolist(), found.scores, strict=True) if item in allowed}
    said = {item: len(set(words(query)) & set(words(f"{text} c{item % 6}")))
            for item, text in enumerate(grocery.text["name"])}  # fmt: skip
    by_score = sorted(score, key=lambda item: (-score[item], item))  # the more popular has the lower number
    by_popularity = sorted(score, key=lambda item: (-said[item], item))
    best = by_score[:FEEDBACK]
    mean = sum(score[item] * grocery.vectors[item].astype(np.float64) for item in best)
    by_likeness = sorted(allowed, key=lambda item: -(grocery.vectors[item] @ mean)) if best else []
    fused: dict[int, float] = {}
    for ranks, n in ((by_score, 200), (by_popularity, 100), (by_likeness, 50)):
        for place, item in enumerate(ranks[:n], start=1):
            fused[item] = fused.get(item, 0.0) + 1 / (RRF + place)
    return fused


@given(query=queries, audience=st.sampled_from([None, "public", "staff", "nobody"]))
@tries(max_examples=50, deadline=None, suppress_health_check=of_function)
def test_without_the_store_the_order_is_that_of_the_fused_ranks(seek, grocery, query, audience):
    require = {} if audience is None else {"audience": audience}
    allowed = {n for n in range(N) if audience in (None, grocery.text["audience"][n])}
    fused = expected(grocery, query, allowed)
    ranked = seek().search("u1", query, 60, require=require)
    if fused:
        assert ranked.degraded == ("hydrate",)
        assert set(shown(ranked)) == set(fused)
        assert [fused[item] for item in shown(ranked)] == pytest.approx(sorted(fused.values(), reverse=True), abs=1e-7)
    else:
        assert ranked.degraded == ("search.no_match", *(["hydrate"] if allowed else []))
        assert shown(ranked) == sorted(allowed)


@given(
    query=queries, audience=st.sampled_from([*AUDIENCES, "nobody"]), pin=st.integers(0, N - 1), limit=st.integers(1, N),
    exclude=st.sets(st.integers(0, N - 1)),
)  # fmt: skip
@tries(max_examples=60, deadline=None, suppress_health_check=of_function)
def test_nothing_that_is_not_required_is_scored_or_shown(seek, grocery, query, audience, pin, limit, exclude):
    """Whoever proposes it: a source, a pin or what fills up; an empty value is nobody's."""
    kept = Recorder()
    pinned = Of({"name": "p", "do": "pin", "items": [f"i{pin}"]}, words=["chocolate"])
    whole = seek(rules=pinned, impressions=kept)
    ranked = whole.search("u1", query, limit, [f"i{n}" for n in exclude], {"audience": audience})
    told = kept.kept[0]
    scored = [int(item[1:]) for item in told.item_ids]
    assert {grocery.text["audience"][item] for item in scored} <= ({audience} - {""})
    assert not set(scored) & exclude
    assert not any("chocolate" in grocery.text["name"][item] for item in scored)
    assert set(shown(ranked)) <= set(scored)
    assert len(shown(ranked)) == len(set(shown(ranked))) <= limit
    sought = whole.bundle.search.sought(query, {"audience": audience})
    for source in sought.sources.values():
        assert {grocery.text["audience"][item] for item in source.propose(None, N).tolist()} <= ({audience} - {""})


@given(st.text(max_size=600))
@example("x" * 10_000)
@example("milk\0bread")
@example("half \ud800 of a letter")
@example("🥛")
@example("ﬁ ２ Ⅷ ß İ")
@tries(max_examples=200, deadline=None, suppress_health_check=of_function)
def test_any_text_gets_a_list_or_a_refusal_that_names_the_query(seek, query):
    if len(query) > 512 or not words(query):
        with pytest.raises(DataError, match=r"^query"):
            seek().search("u1", query)
        return
    found = shown(seek().search("u1", query))
    assert 0 < len(found) == len(set(found)) <= 10


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"query": ""}, "query"),
        ({"query": " ,;-"}, "query"),
        ({"query": "m" * 513}, "query"),
        ({"limit": 1001}, "limit"),
        ({"limit": -1}, "limit"),
        ({"user_id": ""}, "user_id"),
        ({"exclude": ["i1"] * 10_001}, "exclude_item_ids"),
        ({"require": {"audiense": "public"}}, "require: the catalogue has no attribute 'audiense'"),
    ],
)
def test_a_field_out_of_bounds_is_named(seek, fields, named):
    with pytest.raises(DataError, match=f"^{named}"):
        seek().search(**{"user_id": "u1", "query": "milk", **fields})


def test_a_list_is_not_a_search(seek):
    with pytest.raises(DataError, match=r"^surface: search answers a query"):
        seek().request("u1", "search")


def test_a_repository_whose_file_has_no_such_surface_gets_the_packaged_one(surfaces, tmp_path):
    assert surfaces.surfaces["search"] == load_surfaces(tmp_path).surfaces["search"]


def test_what_matches_more_of_the_words_comes_first(seek):
    names = [item.attributes["name"] for item in seek(features=Ranker()).search("u1", "whole milk", 60).items]
    places = {kind: [at for at, name in enumerate(names) if name.startswith(kind)] for kind in KINDS}
    assert max(places["whole milk"]) < min(places["oat milk"] + places["milk chocolate"] + places["whole grain bread"])
    some = places["oat milk"] + places["milk chocolate"] + places["whole grain bread"]
    assert max(some) < min(places["bread"] + places["apples"])


class Ranker:
    """Features of a store without one: an item's number is what the user bought of it."""

    def read_matrix(self, service, entities, *, items, held=None):
        self.asked = getattr(self, "asked", 0) + 1
        values = np.zeros((len(entities["item_id"]), 4), np.float32)
        values[:, 2] = [int(item[1:]) for item in entities["item_id"]]
        return Matrix(values, ("user", "item", "user_item", "user_category"), 0, {}, {})


def test_of_what_matches_alike_the_user_s_own_comes_first_and_the_user_is_read_once(seek):
    features = Ranker()
    ranked = seek(features=features, state=Unread()).search("u1", "apple", 10)
    assert shown(ranked) == [59, 53, 47, 41, 35, 29, 23, 17, 11, 5]
    assert ranked.degraded == ()
    assert features.asked == 1


def test_a_search_that_finds_little_is_not_filled_up(seek, surfaces):
    assert len(seek().search("u1", "milk", 60, require={"audience": "nobody"}).items) == 0
    words_only = {"search": surfaces.surfaces["search"].model_copy(update={"sources": {"bm25": 200}})}
    few = seek(surfaces=words_only).search("u1", "apples", 60)
    assert sorted(shown(few)) == list(range(5, 60, 6))
    assert "search.no_match" not in few.degraded


@pytest.mark.integration
def test_what_is_withdrawn_or_barred_is_not_found(seek, valkey_client):
    withdraw(valkey_client, "shop", ["i5", "i11"])
    hidden = Of({"name": "h", "do": "hide", "items": ["i17"]})
    ranked = seek(valkey_client, hidden).search("u1", "apples", 60)
    assert ranked.degraded == ()
    assert {n for n in shown(ranked) if n % 6 == 5} == set(range(5, 60, 6)) - {5, 11, 17}


def test_what_matches_nothing_gets_what_is_popular_and_says_so(seek):
    ranked = seek(rules=Of({"name": "h", "do": "hide", "items": ["i1"]})).search("u1", "zzz", 5)
    assert shown(ranked) == [0, 2, 3, 4, 5]
    assert ranked.degraded[0] == "search.no_match"
    assert {source for item in ranked.items for source in item.sources} == {"fill"}


@pytest.fixture
def told(seek, grocery, monkeypatch):
    """A funnel whose items are told by six texts: of their kinds the nth means what the query ``n`` does."""
    texts = np.arange(N, dtype=np.int32) % 6
    same = np.eye(6, dtype=np.float32)
    described = ItemTexts(same, texts, np.arange(N, 0, -1).astype(np.float32), same)
    meaning = {"tipple": [0, 0.9, 0, 0, 0.5, 0], "zzz": [0.4] * 6}
    monkeypatch.setattr("serving.search.query_vector", lambda query: np.array(meaning.get(query, [0] * 6), np.float32))
    whole = seek(features=Ranker())
    found = replace(whole.bundle.search, texts=described)
    return replace(whole, bundle=replace(whole.bundle, search=found))


def test_what_is_meant_is_found_though_nothing_is_called_so_the_likest_first(told):
    ranked = told.search("u1", "tipple", 10)
    assert sorted(shown(ranked)) == [1, 4, 7, 10, 13, 16]
    assert [item % 6 for item in shown(ranked)] == [1] * 3 + [4] * 3
    assert ranked.degraded == ()
    assert {source for item in ranked.items for source in item.sources} == {"meant"}
    public = told.search("u1", "tipple", 10, require={"audience": AUDIENCES[0]})
    assert all(AUDIENCES[item // 6 % 3] == AUDIENCES[0] for item in shown(public))
    assert {item % 6 for item in shown(public)} == {1, 4}


def test_what_nothing_is_like_enough_matches_nothing(told):
    assert told.search("u1", "zzz", 5).degraded[0] == "search.no_match"


def test_what_is_called_so_comes_before_what_is_meant(told):
    assert {item % 6 for item in shown(told.search("u1", "apples", 10))} == {5}


def test_an_impression_has_the_surface_and_the_query(seek):
    kept = Recorder()
    seek(impressions=kept).search("u1", "Whole MILK", context={"page": "2", "query": "another"})
    told = document(kept.kept[0])
    assert told["surface"] == "search"
    assert told["context"] == {"page": "2", "query": "Whole MILK"}
    assert set(told["items"][0]["sources"]) == {"bm25", "popular", "dense"}


def test_without_the_vectors_the_words_are_enough_and_without_the_words_something_is_shown(seek, bundle):
    whole = seek()
    search = replace(whole.bundle.search, index=Broken())
    found = replace(whole, bundle=replace(whole.bundle, search=search)).search("u1", "apples", 60)
    assert "source.dense" in found.degraded
    assert sorted(shown(found)) == list(range(5, 60, 6))
    search = replace(whole.bundle.search, words=Broken())
    lost = replace(whole, features=Ranker(), bundle=replace(whole.bundle, search=search)).search("u1", "apples", 5)
    assert set(lost.degraded) >= {"source.bm25", "source.popular", "source.dense", "search.no_match", "search.order"}
    assert len(lost.items) == 5
