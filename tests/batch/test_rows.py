"""The newest ready-made row against the words: event time, then created time, then a total order."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.rows import newest_rows
from headwater.plan import BatchView, Column
from headwater.timeline import Queries

VIEW = BatchView(
    name="v", join_keys=("k",), columns=(Column(name="tie", dtype="string"),), path="", timestamp_field="t",
    created_field="c", ttl_ms=0, id="",
)  # fmt: skip
small = st.integers(0, 6)
rows = st.lists(st.tuples(st.integers(-1, 2), small, small, st.sampled_from("ab")), max_size=20)
queries = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 9)), max_size=10)


@pytest.mark.parametrize("ttl_ms", [0, 3])
@pytest.mark.parametrize("known", [True, False])
@settings(max_examples=200, deadline=None)
@given(rows=rows, queries=queries)
def test_the_newest_row_is_the_greatest_visible_one(
    rows: list[Any], queries: list[Any], known: bool, ttl_ms: int
) -> None:
    group, times, created, ties = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    numbers = {"_event_time": pa.array(times, pa.int64()), "_created": pa.array(created, pa.int64())}
    table = pa.table({**numbers, "tie": pa.array(ties, pa.string())})
    codes, instants = [code for code, _ in queries], [at for _, at in queries]
    asked = Queries(np.array(codes, np.int64), np.array(instants, np.int64))
    chosen = newest_rows(VIEW.model_copy(update={"ttl_ms": ttl_ms}), table, np.array(group, np.int64), asked, known)
    for place, (code, at) in zip(chosen.tolist(), queries, strict=True):
        own = [row[1:] for row in rows if row[0] == code >= 0]
        visible = [
            (time, made, tie)
            for time, made, tie in own
            if time <= at and (not ttl_ms or time >= at - ttl_ms) and (not known or made <= at)
        ]
        assert (rows[place][1:] if place >= 0 else None) == max(visible, default=None)
