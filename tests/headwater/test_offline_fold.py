"""The numpy kernel against the words of the design, bit for bit."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel import USERS, as_events, as_queries, asked, streams
from support.views import every_function, stepped

from benchmarks.oracle import Row, fold
from headwater import folds, offline_fold, timeline
from headwater.offline_fold import fold_at
from headwater.plan import HOUR_MS


@pytest.mark.parametrize("ttl_ms", [0, 4 * HOUR_MS], ids=["for ever", "ttl of 4 hours"])
@pytest.mark.parametrize("known", [True, False], ids=["as known", "as of"])
@settings(max_examples=150, deadline=None)
@given(stream=streams, queries=asked)
def test_the_kernel_equals_the_naive_window(stream: list[Row], queries: list[Any], known: bool, ttl_ms: int) -> None:
    """Late events, ties, nulls, hop cuts and unknown entities, for every function over every kind of window."""
    view = every_function(ttl_ms)
    folded = fold_at(view, as_events(stream), as_queries(queries), known)
    for at, (user, t) in enumerate(queries):
        found, values = fold(view, stream, (user,), t, known)
        assert bool(folded.found[at]) is found
        assert {name: _plain(column[at]) for name, column in folded.values.items()} == values


def test_chunks_do_not_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    times, delays = rng.integers(0, 6 * HOUR_MS, 300).tolist(), rng.integers(0, HOUR_MS, 300).tolist()
    stream = [
        Row(
            f"e{at}",
            time,
            time + delay,
            (USERS[at % 3],),
            stepped({"kind": "xyzw"[at % 4], "amount": at % 11, "quantity": at % 7}),
        )
        for at, (time, delay) in enumerate(zip(times, delays, strict=True))
    ]
    queries = [(USERS[at % 3], int(t)) for at, t in enumerate(rng.integers(0, 8 * HOUR_MS, 100))]
    whole = fold_at(every_function(), as_events(stream), as_queries(queries))
    monkeypatch.setattr(timeline, "PAIRS", 17)
    monkeypatch.setattr(offline_fold, "SKETCHES", 3)
    cut = fold_at(every_function(), as_events(stream), as_queries(queries))
    for name, values in whole.values.items():
        assert list(map(_plain, cut.values[name])) == list(map(_plain, values)), name


def test_only_the_features_asked_for_are_computed() -> None:
    folded = fold_at(every_function(), as_events([]), as_queries([("ann", 5)]), features={"n_1h"})
    assert list(folded.values) == ["n_1h"]
    assert np.isnan(folded.values["n_1h"]).all()


@given(st.lists(st.lists(st.integers(0, 10_000), max_size=300), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_dense_sketches_estimate_as_sparse_ones(sets: list[list[int]]) -> None:
    payloads = [folds.sketch(map(str, values)) for values in sets]
    registers = np.zeros((len(sets), 1 << folds.SKETCH_BITS), np.uint8)
    for row, payload in enumerate(payloads):
        for at in range(0, len(payload), 3):
            registers[row, int.from_bytes(payload[at : at + 2], "little")] = payload[at + 2]
    assert folds.estimate_registers(registers).tolist() == [folds.estimate(payload) for payload in payloads]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value
    return None if math.isnan(value) else float(value)
