import math
import statistics
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.sketches import merge_sketches

from benchmarks.oracle import replayed
from headwater import folds

finite = st.floats(min_value=-9e9, max_value=9e9, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=20))
def test_fixed_point_rounds_half_away_from_zero(values):
    expected = [int(Decimal(repr(v * 1e6)).quantize(Decimal(1), ROUND_HALF_UP)) for v in values]
    assert folds.to_fixed(np.array(values)).tolist() == expected


@given(st.lists(st.integers(-(10**12), 10**12), min_size=2, max_size=30))
def test_the_deviation_comes_from_exact_sums(values):
    got = folds.sample_stddev(len(values), sum(values), sum(v * v for v in values), "int")
    assert math.isclose(got, statistics.stdev(values), rel_tol=1e-12, abs_tol=1e-9)


@given(st.integers(0, 2**120))
def test_wide_integers_survive_two_words(value):
    assert folds.join_words(*folds.split_words(value)) == value


@given(st.lists(st.sets(st.text(max_size=8), max_size=50), max_size=6))
def test_sketches_merge_to_the_sketch_of_the_union(parts):
    merged = merge_sketches(folds.sketch(part) for part in parts)
    assert merged == folds.sketch(set().union(*parts))


def test_few_distinct_values_are_counted_exactly_and_many_within_two_percent():
    assert folds.estimate(folds.sketch(map(str, range(40)))) == 40
    assert folds.estimate(b"") == 0
    assert abs(folds.estimate(folds.sketch(map(str, range(100_000)))) / 100_000 - 1) < 0.04


told = [f"{verb}:{value}" for verb in ("add", "remove") for value in "abcde"]
operations = st.sampled_from(["clear", "add:", "remove:", "add", *told])
entries = st.lists(st.tuples(st.integers(0, 5), operations), max_size=25).map(
    lambda drawn: [(time, f"e{at:02}", text) for at, (time, text) in enumerate(drawn)]
)


@given(entries, st.lists(st.integers(0, 3), min_size=25, max_size=25), st.integers(1, 4))
def test_tiles_cut_anyhow_merge_to_the_set_and_the_list_of_the_whole(entries, parts, n):
    """Each part keeps a bounded few of its entries, and the whole is still the replay of all."""
    ordered = [text for _, _, text in sorted(entries)]
    members, latest = (
        [
            entry
            for part in range(4)
            for entry in keep([e for e, p in zip(entries, parts, strict=False) if p == part], n)
        ]
        for keep in (folds.newest_operations, folds.newest_distinct)
    )
    assert len(members) <= 4 * (n + 1)
    assert folds.members(members, n) == replayed(ordered, n)
    newest = [text for _, _, text in folds.newest_distinct(latest, n)[::-1]]
    assert newest == list(dict.fromkeys(reversed(ordered)))[:n]
