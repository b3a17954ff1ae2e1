"""The index: against sorting every inner product."""

import numpy as np
import pytest

from models.index import build

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
    loaded = type(index).load(tmp_path / "index.faiss")
    assert len(loaded) == N_ITEMS
    assert all(np.array_equal(a, b) for a, b in zip(loaded.nearest(users, K), index.nearest(users, K), strict=True))
