"""Candidates for many past instants against one request at a time, written slowly."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import candidates
from models.candidates import SOURCES, draw, habits
from models.encoder import UserEncoder, unit
from models.evaluation.metrics import PAD
from models.interactions import Dataset, assemble
from models.retriever import Retriever, assemble_retriever
from models.trends import DAY_MS, popularity, trending
from models.trips import recent_items

N_ITEMS, N_USERS, DIM = 400, 6, 8


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = np.random.default_rng(0)
    n = 3_000
    frame = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user in generator.integers(0, N_USERS, n)],
            "item_id": [f"i{item:03}" for item in (N_ITEMS * generator.random(n) ** 2).astype(int)],
            "event_time": generator.integers(0, 60 * DAY_MS, n),
        }
    )
    return assemble(frame, pa.table({"item_id": [f"i{item:03}" for item in range(N_ITEMS)]}), None)


@pytest.fixture(scope="module")
def retriever(data) -> Retriever:
    generator = np.random.default_rng(1)

    def rows(*shape):
        return generator.normal(size=shape).astype(np.float32)

    encoder = UserEncoder(
        items=unit(rows(N_ITEMS, DIM)),
        user=rows(N_USERS + 1, DIM),
        traits=np.zeros((N_USERS + 1, 0), np.int32),
        trait=rows(1, DIM),
        hidden=rows(3 * DIM, 4),
        hidden_bias=rows(4),
        out=rows(4, DIM),
        out_bias=rows(DIM),
    )
    return assemble_retriever(data, encoder, 60 * DAY_MS, n_recent=5, examples=0)


def slow_sources(retriever, data, user, now):
    """One request: every source's items."""
    bought = data.bought
    past = [
        (at, item) for u, item, at in zip(bought.user, bought.item, bought.at_ms, strict=True) if u == user and at < now
    ]
    strength: dict[int, float] = {}
    for at, item in past:
        strength[item] = strength.get(item, 0) + 0.5 ** ((now // DAY_MS - at // DAY_MS) / 90)
    recent = recent_items(bought, np.array([user], np.int32), now, 5)
    vector = retriever.encoder.encode(np.array([user], np.int32), recent)
    popular, rising = popularity(bought, now), trending(bought, now)

    def best(scores, n):
        return {item for item in sorted(range(N_ITEMS), key=lambda item: (-scores[item], item))[:n] if scores[item] > 0}

    return {
        "buy_it_again": set(sorted(strength, key=lambda item: (-strength[item], item))[: SOURCES["buy_it_again"]]),
        "two_tower": set(np.argsort(-(vector @ retriever.encoder.items.T)[0])[: SOURCES["two_tower"]].tolist()),
        "popular": best(popular, SOURCES["popular"]),
        "trending": best(rising, SOURCES["trending"]),
    }, vector[0]


def test_many_at_once_equal_one_at_a_time(retriever, data, monkeypatch):
    monkeypatch.setattr(candidates, "CHUNK", 3)
    users = np.array([0, 3, 0, 5, 1], np.int32)
    at_ms = np.array([40 * DAY_MS + 5, 12 * DAY_MS, 7, 59 * DAY_MS, 30 * DAY_MS + 77], np.int64)
    drawn = draw(retriever, data.bought, users, at_ms)
    for query, (user, now) in enumerate(zip(users, at_ms.tolist(), strict=True)):
        expected, vector = slow_sources(retriever, data, user, now)
        rows = drawn.query == query
        assert set(drawn.item[rows].tolist()) == set().union(*expected.values())
        assert len(set(drawn.item[rows].tolist())) == rows.sum()
        for column, name in enumerate(SOURCES):
            assert set(drawn.item[rows & drawn.proposed[:, column]].tolist()) == expected[name]
        assert np.allclose(drawn.score[rows], retriever.encoder.items[drawn.item[rows]] @ vector, atol=1e-6)


def test_what_comes_later_changes_no_candidate(retriever, data):
    users, at_ms = np.array([2, 4], np.int32), np.array([25 * DAY_MS, 31 * DAY_MS + 9], np.int64)
    all_known, only_before = draw(retriever, data.bought, users, at_ms), None
    for query in range(2):
        only_before = draw(retriever, data.bought.before(int(at_ms[query])), users[[query]], at_ms[[query]])
        rows = all_known.query == query
        assert np.array_equal(all_known.item[rows], only_before.item)
        assert np.array_equal(all_known.proposed[rows], only_before.proposed)


def test_an_unknown_user_gets_what_everyone_gets(retriever, data):
    drawn = draw(retriever, data.bought, np.array([-1], np.int32), np.array([50 * DAY_MS], np.int64))
    again = list(SOURCES).index("buy_it_again")
    assert not drawn.proposed[:, again].any()
    assert drawn.proposed[:, list(SOURCES).index("popular")].sum() == SOURCES["popular"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400 * DAY_MS)), max_size=20))
@settings(max_examples=50)
def test_habits_are_by_decayed_count_then_id(lines):
    now = 400 * DAY_MS
    items, at = (np.array([line[n] for line in lines], np.int64) for n in range(2))
    strength = {item: 0.0 for item, _ in lines}
    for item, when in lines:
        days = now // DAY_MS - when // DAY_MS
        strength[item] += 0.5 ** (days / 90) if days <= 360 else 0.0
    ordered = habits(items.astype(np.int32), at, now).tolist()
    assert sorted(ordered) == sorted(strength)
    values = [round(strength[item], 9) for item in ordered]
    assert values == sorted(values, reverse=True)


def test_a_retriever_read_back_is_the_same(retriever, data, tmp_path):
    retriever.save(tmp_path / "retriever")
    retriever.save(tmp_path / "retriever")  # replaced, whole
    again = Retriever.load(tmp_path / "retriever")
    users, at_ms = np.array([2], np.int32), np.array([25 * DAY_MS], np.int64)
    first, second = draw(retriever, data.bought, users, at_ms), draw(again, data.bought, users, at_ms)
    assert np.array_equal(first.item, second.item)
    assert np.array_equal(first.score, second.score)
    assert again.provenance == retriever.provenance
    assert PAD not in second.item
