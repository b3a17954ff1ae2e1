"""Drawn event streams, and their rows laid out as the kernel reads them."""

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from support.views import MINUTE_MS, stepped

from benchmarks.oracle import Row
from headwater.plan import HOUR_MS
from headwater.timeline import Column, Events, Queries

USERS = ("ann", "bob", "cy")
STEP = 5 * MINUTE_MS
"""Times fall on a coarse grid, so that ties and cuts at hops are common."""

instants = st.integers(0, 72).map(lambda step: step * STEP)
rows = st.builds(
    lambda user, time, late, kind, amount, quantity: (
        (user,),
        time,
        time + late,
        stepped({"kind": kind, "amount": amount, "quantity": quantity}),
    ),
    st.sampled_from(USERS),
    st.one_of(instants, st.integers(0, 6 * HOUR_MS)),
    st.one_of(st.just(0), st.integers(0, 24).map(lambda step: step * STEP)),
    st.none() | st.sampled_from("xxxyyzw"),
    st.none() | st.integers(-(10**12), 10**12),
    st.none() | st.integers(-3, 3),
)
streams = st.lists(rows, max_size=40).map(
    lambda drawn: [Row(f"e{at:02}", time, ingest, key, values) for at, (key, time, ingest, values) in enumerate(drawn)]
)
moments = st.one_of(instants, st.integers(0, 9 * HOUR_MS))
asked = st.lists(st.tuples(st.sampled_from((*USERS, "nobody")), moments), max_size=12)


def as_events(stream: list[Row]) -> Events:
    """Lay rows out as the kernel reads them."""
    columns = {
        "kind": _text([row.values["kind"] for row in stream]),
        "amount": _number([row.values["amount"] for row in stream]),
        "quantity": _number([row.values["quantity"] for row in stream]),
        "step": _text([row.values["step"] for row in stream]),
    }
    return Events(
        np.array([USERS.index(row.key[0]) for row in stream], np.int64),
        np.array([row.event_time for row in stream], np.int64),
        np.array([row.ingest_time for row in stream], np.int64),
        pa.array([row.event_id for row in stream], pa.string()),
        columns,
    )


def as_queries(queries: list[tuple[str, int]]) -> Queries:
    codes = [USERS.index(user) if user in USERS else -1 for user, _ in queries]
    return Queries(np.array(codes, np.int64), np.array([t for _, t in queries], np.int64))


def _text(values: list[str | None]) -> Column:
    return Column(pa.array(values, pa.string()), np.array([value is not None for value in values], np.bool_))


def _number(values: list[int | None]) -> Column:
    filled = [0 if value is None else value for value in values]
    return Column(np.array(filled, np.int64), np.array([value is not None for value in values], np.bool_))
