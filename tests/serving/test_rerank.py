"""MMR against the formula, written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.rerank import mmr


def naive(scores, vectors, limit, diversity):
    """Carbonell and Goldstein's greedy choice, one place and one item at a time."""
    pool = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[: 5 * limit]
    low, high = min(scores[row] for row in pool), max(scores[row] for row in pool)
    relevance = {row: (scores[row] - low) / (high - low) if high > low else np.float32(0) for row in pool}
    chosen = []
    while pool and len(chosen) < limit:

        def worth(row):
            likest = max((vectors[row] @ vectors[other] for other in chosen), default=np.float32(0))
            return np.float32(1 - diversity) * relevance[row] - np.float32(diversity) * likest

        best = max(pool, key=lambda row: (worth(row), -pool.index(row)))
        chosen.append(best)
        pool.remove(best)
    return chosen


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_equal_to_the_formula(n, limit, diversity, seed):
    """Scores and vectors are whole eighths, so that sums in any order are exact."""
    rng = np.random.default_rng(seed)
    scores = (rng.permutation(n) / 8).astype(np.float32)
    vectors = (rng.integers(-8, 9, (n, 4)) / 8).astype(np.float32)
    chosen = mmr(scores, vectors, limit, diversity).tolist()
    assert len(chosen) == min(n, limit)
    expected = naive(scores, vectors, limit, diversity)
    if diversity:
        assert chosen[0] == expected[0]
    assert chosen == expected


def test_without_diversity_it_is_the_order_of_the_scores():
    scores = np.array([0.1, 0.9, 0.5, 0.9], np.float32)
    assert mmr(scores, np.eye(4, dtype=np.float32), 3, 0.0).tolist() == [1, 3, 2]


def test_a_twin_of_the_best_gives_way_to_something_else():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([1.0, 0.9, 0.8], np.float32)
    assert mmr(scores, vectors, 2, 0.5).tolist() == [0, 2]
