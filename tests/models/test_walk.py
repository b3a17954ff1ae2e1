"""The walk along a graph: against all products of its bytes, and against FAISS's own walk."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.index.building import BUILT_BREADTH, build
from models.index.walk import Walk, faiss, graph_in


def drawn(n, dim, seed):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def graph_of(items):
    return build(items, kind="hnsw_sq8", queries=items, depth=1).inner


def held(inner, n):
    """What the bytes stand for, in the order in which the items are numbered (n, dim)."""
    lying = faiss.downcast_index(graph_in(inner).storage).reconstruct_n(0, n)
    return lying[np.argsort(faiss.vector_to_array(inner.id_map))]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), dim=st.sampled_from([1, 3, 16, 64, 65, 200]), k=st.integers(1, 50), share=st.floats(0, 1),
    size=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 1_000),
)  # fmt: skip
def test_who_keeps_as_many_as_there_are_finds_what_all_products_find(n, dim, k, share, size, seed):
    items, queries = drawn(n, dim, seed), size * drawn(3, dim, seed + 1)
    inner = graph_of(items)
    allowed = np.random.default_rng(seed).random(n) < share
    products = queries @ held(inner, n).T
    close = 1e-4 * np.abs(queries).max() * np.abs(items).max() * dim
    for of, told in ((allowed, allowed), (np.ones(n, bool), None)):
        found, scores = Walk.of(inner).nearest(queries, k, n, told)
        many = min(k, int(of.sum()))
        assert (found[:, many:] == -1).all()
        assert np.isneginf(scores[:, many:]).all()
        found, scores = found[:, :many], scores[:, :many]
        assert of[found].all()
        assert all(len(set(row)) == many for row in found.tolist())
        assert np.allclose(scores, np.take_along_axis(products, found, 1), atol=close)
        best = -np.sort(-np.where(of, products, -np.inf), axis=1)[:, :many]
        assert np.allclose(scores, best, atol=close)
        assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("breadth", [10, 60, 300])
def test_it_goes_where_faiss_goes(breadth):
    items, queries = drawn(5_000, 24, 1), drawn(200, 24, 2)
    inner = graph_of(items)
    how = faiss.SearchParametersHNSW(efSearch=breadth, bounded_queue=False)
    scores, items = inner.search(queries, 10, params=how)
    mine, my_scores = Walk.of(inner).nearest(queries, 10, breadth)
    assert (mine == items).mean() > 0.995  # whose products are all but alike may change places
    assert np.allclose(my_scores, scores, atol=0.01)


def test_a_walk_leaves_nothing_behind_for_the_next_nor_for_another_thread():
    items, queries = drawn(2_000, 8, 1), drawn(10, 8, 2)
    walk = Walk.of(graph_of(items))
    first = walk.nearest(queries, 20, 40)[0]
    with ThreadPoolExecutor(4) as threads:  # 600 walks of each are more than there are marks
        for found in threads.map(lambda _: walk.nearest(queries, 20, 40)[0], range(240)):
            assert np.array_equal(found, first)


def test_a_query_of_nothing_finds_any():
    items = drawn(100, 8, 1)
    found, scores = Walk.of(graph_of(items)).nearest(np.zeros((1, 8), np.float32), 5, 50)
    assert len(set(found[0].tolist())) == 5
    assert (scores == 0).all()


def test_items_all_alike_are_found():
    found, _ = Walk.of(graph_of(np.ones((60, 8), np.float32))).nearest(np.ones((1, 8), np.float32), 5, BUILT_BREADTH)
    assert len(set(found[0].tolist())) == 5
