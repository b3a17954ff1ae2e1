"""Which events a mark names, against every subset there is."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from batch.folded import subset
from headwater.events import event_hash


def hashes_of(n: int) -> np.ndarray:
    return np.array([event_hash(f"e{number}") for number in range(n)], np.uint64)


def total_of(hashes: np.ndarray) -> int:
    return sum(int(digest) for digest in hashes) % 2**64


def by_trying_all(hashes: np.ndarray, count: int, total: int) -> set[tuple[int, ...]]:
    """Every subset of so many whose hashes sum to the total."""
    places = range(len(hashes))
    return {held for held in combinations(places, count) if total_of(hashes[list(held)]) == total}


@given(drawn=st.lists(st.booleans(), max_size=12))
@tries(deadline=None)
def test_any_subset_of_a_few_events_is_found(drawn):
    hashes, kept = hashes_of(len(drawn)), np.array(drawn, bool)
    found = subset(hashes, int(kept.sum()), total_of(hashes[kept]))
    assert found is not None
    assert tuple(np.flatnonzero(found)) in by_trying_all(hashes, int(kept.sum()), total_of(hashes[kept]))


@given(drawn=st.lists(st.booleans(), max_size=10), count=st.integers(-1, 12), total=st.integers(0, 2**64 - 1))
@tries(deadline=None)
def test_marks_that_no_subset_has_are_not_explained(drawn, count, total):
    hashes = hashes_of(len(drawn))
    found = subset(hashes, count, total)
    assert (found is not None) == bool(count >= 0 and by_trying_all(hashes, count, total))


@given(st.data())
@tries(deadline=None, max_examples=30)
def test_of_many_events_those_missing_among_the_latest_to_arrive_are_found(data):
    n = data.draw(st.integers(40, 3_000))
    missing = data.draw(st.sets(st.integers(n - 30, n - 1), max_size=20))
    kept = ~np.isin(np.arange(n), list(missing))
    hashes = hashes_of(n)
    assert subset(hashes, int(kept.sum()), total_of(hashes[kept])).tolist() == kept.tolist()


@pytest.mark.parametrize("gone", [0, 7, 4_999])
def test_one_event_missing_is_found_wherever_it_is(gone):
    hashes = hashes_of(5_000)
    found = subset(hashes, 4_999, total_of(np.delete(hashes, gone)))
    assert np.flatnonzero(~found).tolist() == [gone]


def test_a_backlog_of_any_length_is_found():
    """A stream that stood still folded the first so many."""
    hashes = hashes_of(5_000)
    assert subset(hashes, 17, total_of(hashes[:17])).sum() == 17
