"""The index: against sorting every inner product."""

import numpy as np
import pytest

from headwater.errors import ModelError
from models.index import build, building
from models.index.kinds import suitable
from models.index.walk import faiss

N_ITEMS, DIM, K = 400, 8, 10


def units(n, seed):
    drawn = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def best(items, users, k, allowed=None):
    scores = users @ items.T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


items, users = units(N_ITEMS, 1), units(20, 2)
exact, lists = build(items), build(items, exact_below=1)
both = pytest.mark.parametrize("index", [exact, lists], ids=["exact", "lists"])


def test_a_small_catalogue_is_searched_exactly():
    found, scores = exact.nearest(users, K)
    assert np.array_equal(found, best(items, users, K))
    assert np.allclose(scores, np.take_along_axis(users @ items.T, found, 1), atol=1e-6)
    assert found.dtype == np.int32
    assert scores.dtype == np.float32


def test_a_filtered_search_finds_the_best_that_are_allowed():
    allowed = np.random.default_rng(3).random(N_ITEMS) < 0.3
    assert np.array_equal(exact.search(users, K, allowed), best(items, users, K, allowed))


def test_lists_find_most_of_what_an_exact_search_finds():
    clustered = np.repeat(units(20, 4), 20, axis=0) + 0.05 * units(N_ITEMS, 5)
    clustered /= np.linalg.norm(clustered, axis=1, keepdims=True)
    found, wanted = build(clustered, exact_below=1).search(users, K), best(clustered, users, K)
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]
    assert np.mean(shared) / K > 0.7


def test_lists_look_everywhere_when_few_items_are_allowed():
    allowed = np.zeros(N_ITEMS, bool)
    allowed[[3, 77, 200]] = True
    assert np.array_equal(lists.search(users, 3, allowed), best(items, users, 3, allowed))


@both
def test_what_is_missing_is_padded(index):
    allowed = np.arange(N_ITEMS) == 5
    found, scores = index.nearest(users[:2], 3, allowed)
    assert found.tolist() == [[5, -1, -1]] * 2
    assert np.isneginf(scores[:, 1:]).all()


@both
def test_a_stored_index_answers_alike(index, tmp_path):
    index.save(tmp_path / "index.faiss")
    loaded = type(index).load(tmp_path / "index.faiss", items)
    assert len(loaded) == N_ITEMS
    assert all(np.array_equal(a, b) for a, b in zip(loaded.nearest(users, K), index.nearest(users, K), strict=True))


kinds = pytest.mark.parametrize("kind", ["ivf_pq", "ivf_sq8", "hnsw_sq8"])


def shared(found, wanted):
    return (
        np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]) / wanted.shape[1]
    )


@kinds
def test_every_kind_is_tuned_to_the_recall_that_is_asked_for(kind):
    items, users = units(5_000, 1), units(100, 2)
    index = build(items, kind=kind, queries=units(300, 3), recall=0.9)
    assert 0.85 < shared(index.search(users, 500), best(items, users, 500)) < 1


@kinds
def test_every_kind_is_stored_and_answers_alike_with_filters_and_without(kind, tmp_path):
    items, users = units(5_000, 1), units(20, 2)
    index = build(items, kind=kind, queries=units(300, 3), recall=0.9)
    index.save(tmp_path / "index.faiss")
    loaded = type(index).load(tmp_path / "index.faiss", items)
    for allowed in (None, np.arange(len(items)) % 2 == 0):
        pairs = zip(loaded.nearest(users, K, allowed), index.nearest(users, K, allowed), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_items_of_a_graph_have_their_own_scores_though_it_lies_in_another_order():
    items, users = units(5_000, 1), units(20, 2)
    found, scores = build(items, kind="hnsw_sq8", queries=units(300, 3)).nearest(users, K)
    assert np.allclose(scores, np.take_along_axis(users @ items.T, found, 1), atol=0.02)


def test_more_lists_are_looked_into_where_more_is_to_be_found():
    items = units(5_000, 1)
    looks = [faiss.extract_index_ivf(build(items, kind="ivf_sq8", recall=recall).inner).nprobe for recall in (0.5, 0.9)]
    assert looks[0] < looks[1]


@kinds
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_a_filter_costs_no_recall(kind, share):
    items, users = units(5_000, 1), units(50, 2)
    allowed = np.random.default_rng(3).random(len(items)) < share
    index = build(items, kind=kind, queries=units(300, 3), recall=0.9)
    found = index.search(users, 40, allowed)
    assert allowed[found].all()
    assert shared(found, best(items, users, 40, allowed)) > 0.8


@both
def test_what_is_gone_is_found_no_more_and_what_is_new_is_found(index):
    first = index.search(users, K)
    gone = np.unique(first[:, 0])
    left = index.without(gone)
    assert not np.isin(left.search(users, K), gone).any()
    assert np.array_equal(index.search(users, K), first)
    more = left.plus(np.vstack([items, users[:3]]))
    assert len(more) == N_ITEMS + 3
    assert len(left) == N_ITEMS
    assert more.search(users[:3], 1).ravel().tolist() == [N_ITEMS, N_ITEMS + 1, N_ITEMS + 2]
    assert not np.isin(more.search(users, K), gone).any()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_what_came_later_is_searched_as_if_it_had_been_there(share):
    """By one more item at a time, with a filter and without, beside sorting all."""
    every = np.vstack([items, units(30, 6)])
    index = exact.plus(every[: N_ITEMS + 10]).plus(every)
    allowed = None if share == 1 else np.random.default_rng(7).random(len(every)) < share
    for k in (1, K, len(every)):
        n = k if allowed is None else min(k, int(allowed.sum()))
        found, scores = index.nearest(users, k, allowed)
        assert found.shape == (len(users), k)
        assert np.array_equal(found[:, :n], best(every, users, n, allowed))
        assert np.allclose(scores[:, :n], np.take_along_axis(users @ every.T, found[:, :n], 1), atol=1e-6)
        assert (found[:, n:] == -1).all()


def test_what_suits_a_catalogue_follows_from_its_size_and_the_memory():
    assert suitable(10_000, 64).name == "flat"
    assert suitable(1_000_000, 64).name == "ivf_sq8"
    assert suitable(1_000_000, 64, memory_bytes=50e6).name == "ivf_pq"
    with pytest.raises(ModelError, match="1000000 items of 64 dimensions need 23 MiB at least, of 19"):
        suitable(1_000_000, 64, memory_bytes=20e6)
    with pytest.raises(ModelError, match="63 dimensions need 68 MiB at least, of 48"):
        suitable(1_000_000, 63, memory_bytes=50e6)


def test_a_recall_that_bytes_cannot_reach_is_had_by_searching_all():
    items, queries = units(2_000, 1), units(300, 3)
    told = {"exact_below": 1, "queries": queries, "recall": 1.0, "depth": 200}
    assert isinstance(build(items, **told).inner, faiss.IndexFlat)
    assert isinstance(build(items, **told | {"recall": 0.9}).inner, faiss.IndexIVF)
    assert isinstance(build(items, **told, memory_bytes=2_000 * 20).inner, faiss.IndexIVF)
    assert isinstance(build(items, **told, kind="ivf_sq8").inner, faiss.IndexIVF)


def test_an_exact_search_by_parts_is_one_over_all(monkeypatch):
    wanted = best(items, users, K)
    monkeypatch.setattr(building, "ADDED_AT_A_TIME", 37)
    assert [set(row) for row in building.exact(items, users, K).tolist()] == [set(row) for row in wanted.tolist()]
    assert building.found_share(exact, users, wanted) == 1
    assert building.found_share(exact, users, wanted, allowed=~np.isin(np.arange(N_ITEMS), wanted[:, 0])) < 1


def test_the_same_vectors_give_the_same_index(tmp_path):
    items = units(2_000, 1)
    for name in ("one", "two"):
        build(items, exact_below=1).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
