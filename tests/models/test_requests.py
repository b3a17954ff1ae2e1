"""The ranker's examples: what was asked, what was bought, against loops."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import DataError
from models.candidates import SOURCES
from models.encoder import UserEncoder, unit
from models.interactions import Interactions, assemble
from models.requests import Sampling, bought_within, draw_requests, number, sample_trips, spent_within
from models.retriever import Retriever, assemble_retriever
from models.trends import DAY_MS

N_USERS, N_ITEMS, DIM = 30, 300, 8
SAMPLING = Sampling(horizon=timedelta(days=10), span=timedelta(days=20), requests=40)
END = 60 * DAY_MS


@pytest.fixture(scope="module")
def purchases() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    trips = [(user, day * DAY_MS + user) for user in range(N_USERS) for day in range(1, 60, 3)]
    return pd.DataFrame(
        [
            (f"u{user:02}", f"i{item:03}", at)
            for user, at in trips
            for item in np.unique((N_ITEMS * generator.random(6) ** 2).astype(int))
        ],
        columns=["user_id", "item_id", "event_time"],
    )


@pytest.fixture(scope="module")
def retriever(purchases) -> Retriever:
    known = purchases[purchases["event_time"] < SAMPLING.start_ms(END)]
    items = pa.table(
        {"item_id": [f"i{n:03}" for n in range(N_ITEMS)], "category": [f"c{n % 7}" for n in range(N_ITEMS)]}
    )
    data = assemble(known, items, None)
    generator = np.random.default_rng(1)
    sizes = {
        "user": (N_USERS + 1, DIM), "trait": (1, DIM), "hidden": (3 * DIM, 4), "hidden_bias": (4,), "out": (4, DIM),
        "out_bias": (DIM,),
    }  # fmt: skip
    arrays = {name: generator.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    vectors = unit(generator.normal(size=(N_ITEMS, DIM)).astype(np.float32))
    encoder = UserEncoder(vectors, traits=np.zeros((N_USERS + 1, 0), np.int32), **arrays)
    return assemble_retriever(data, encoder, SAMPLING.start_ms(END), n_recent=5, examples=0)


lines = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 50))


@given(st.lists(lines, min_size=1, max_size=25), st.lists(lines, min_size=1, max_size=10), st.integers(1, 30))
@settings(max_examples=100)
def test_bought_within_is_a_search_through_the_purchases(bought, asked, span):
    user, item, at = (np.array(column, np.int64) for column in zip(*sorted(bought, key=lambda b: b[2]), strict=True))
    history = Interactions(user.astype(np.int32), item.astype(np.int32), at, 3, 4)
    users, items, instants = (np.array(column, np.int64) for column in zip(*asked, strict=True))
    found = bought_within(history, users.astype(np.int32), items.astype(np.int32), instants, span)
    expected = [any((u, i) == (a, b) and now <= t < now + span for u, i, t in bought) for a, b, now in asked]
    assert found.tolist() == expected


@given(
    st.lists(st.tuples(lines, st.integers(0, 400)), min_size=1, max_size=25),
    st.lists(lines, min_size=1, max_size=10), st.integers(1, 30),
)  # fmt: skip
@settings(max_examples=100)
def test_spent_within_is_a_sum_through_the_purchases(bought, asked, span):
    bought = sorted(bought, key=lambda line: line[0][2])
    user, item, at = (np.array(column, np.int64) for column in zip(*(line for line, _ in bought), strict=True))
    cents = np.array([amount for _, amount in bought]) / 100
    history = Interactions(user.astype(np.int32), item.astype(np.int32), at, 3, 4)
    users, items, instants = (np.array(column, np.int64) for column in zip(*asked, strict=True))
    found = spent_within(history, cents, users.astype(np.int32), items.astype(np.int32), instants, span)
    expected = [
        sum(amount for (u, i, t), amount in bought if (u, i) == (a, b) and now <= t < now + span) / 100
        for a, b, now in asked
    ]
    assert found.tolist() == expected


def test_what_was_spent_within_the_label_s_horizon_is_told_where_it_is_known(retriever, purchases):
    assert "value" not in draw_requests(retriever, purchases, END, SAMPLING).column_names
    priced = purchases.assign(value=np.arange(len(purchases)) % 7 + 0.25)
    priced.loc[::9, "value"] = np.nan
    rows = draw_requests(retriever, priced, END, SAMPLING).to_pylist()
    for row in rows[::11]:
        theirs = priced[(priced["user_id"] == row["user_id"]) & (priced["item_id"] == row["item_id"])]
        now = row["request_time"]
        within = theirs[(theirs["event_time"] >= now) & (theirs["event_time"] < now + 10 * DAY_MS)]
        assert row["value"] == within["value"].fillna(0).sum()
        assert row["label"] or not row["value"]
    assert sum(row["value"] > 0 for row in rows) > 50


def test_users_are_drawn_alike_and_their_trips_lie_in_the_window(retriever, purchases):
    bought = number(purchases, retriever.users, retriever.items)
    users, at_ms = sample_trips(bought, 20 * DAY_MS, 40 * DAY_MS, replace(SAMPLING, requests=10**6))
    assert np.bincount(users, minlength=N_USERS).tolist() == [2] * N_USERS
    assert ((at_ms >= 20 * DAY_MS) & (at_ms < 40 * DAY_MS)).all()
    assert (np.diff(at_ms) >= 0).all()
    trips = set(zip(bought.user.tolist(), bought.at_ms.tolist(), strict=True))
    assert trips >= set(zip(users.tolist(), at_ms.tolist(), strict=True))


def test_an_empty_window_is_refused(retriever, purchases):
    with pytest.raises(DataError, match="nobody"):
        sample_trips(number(purchases, retriever.users, retriever.items), 90 * DAY_MS, 95 * DAY_MS, SAMPLING)


def test_labels_are_what_was_bought_afterwards(retriever, purchases):
    table = draw_requests(retriever, purchases, END, SAMPLING)
    facts = set(zip(purchases["user_id"], purchases["item_id"], purchases["event_time"], strict=True))
    rows = table.to_pylist()
    assert {row["request_time"] for row in rows} == {round(row["event_timestamp"].timestamp() * 1000) for row in rows}
    for row in rows[::7]:
        now = row["request_time"]
        inside = any((row["user_id"], row["item_id"], at) in facts for at in _trips_of(purchases, row, now))
        assert row["label"] == inside
        assert row["label_next"] == ((row["user_id"], row["item_id"], now) in facts)
        assert row["label"] >= row["label_next"]
        assert any(row[f"from_{name}"] for name in SOURCES)
        assert row["category"] == f"c{int(row['item_id'][1:]) % 7}"


def _trips_of(purchases, row, now):
    own = purchases[purchases["user_id"] == row["user_id"]]["event_time"]
    return own[(own >= now) & (own < now + 10 * DAY_MS)].unique()


def test_no_request_reaches_past_what_is_known(retriever, purchases):
    times = draw_requests(retriever, purchases, END, SAMPLING)["request_time"].to_numpy()
    assert times.min() >= SAMPLING.start_ms(END)
    assert times.max() < SAMPLING.end_ms(END) <= END - 10 * DAY_MS


def test_left_out_negatives_are_made_up_for_by_weight(retriever, purchases):
    some = draw_requests(retriever, purchases, END, SAMPLING)
    every = draw_requests(retriever, purchases, END, replace(SAMPLING, negatives_kept=1.0))
    assert set(every["weight"].to_pylist()) == {1.0}
    assert sum(some["label"].to_pylist()) == sum(every["label"].to_pylist())
    assert sum(some["weight"].to_pylist()) == pytest.approx(every.num_rows, rel=0.05)


def test_the_same_seed_asks_the_same(retriever, purchases):
    first, second = (draw_requests(retriever, purchases, END, SAMPLING) for _ in range(2))
    assert first.equals(second)


def test_requests_are_whole_and_named_after_user_and_instant(retriever, purchases):
    table = draw_requests(retriever, purchases, END, SAMPLING)
    pairs = set(zip(table["request_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert len(pairs) == table.num_rows
    row = table.slice(0, 1).to_pylist()[0]
    assert row["request_id"] == f"{row['user_id']}@{row['request_time']}"
