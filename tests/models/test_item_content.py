"""What the item tower reads of the catalogue, and that a product nobody bought stands where its content puts it."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.metrics import PAD
from models.interactions import Items, assemble
from models.tower_config import TowerConfig
from models.two_tower import Trainer
from models.two_tower.content import content_of, hashed, standardised, words

texts = st.lists(st.text("ab c,C", max_size=12), min_size=1, max_size=8)


@given(texts, st.integers(1, 4))
def test_words_are_those_that_another_text_has_too(held, n_words):
    found, n = words(np.array(held, object), n_words)
    split = [[word for word in re.split(r"[ ,]+", text.lower()) if word] for text in held]
    shared = sorted({word for each in split for word in each if sum(word in other for other in split) > 1})
    assert n == len(shared)
    for row, each in zip(found, split, strict=True):
        expected = []
        for word in each:
            if word in shared and word not in expected and len(expected) < n_words:
                expected.append(word)
        assert [shared[number] for number in row if number != PAD] == expected


columns = st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=1, max_size=10)


@given(columns)
def test_numbers_are_standardised_over_those_that_are_there(held):
    values = np.array([np.nan if value is None else value for value in held])
    found = standardised({"price": values}, len(held))
    present = [value for value in held if value is not None]
    for row, value in zip(found, held, strict=True):
        deviation = np.std(present) if present and np.std(present) > 0 else 1
        expected = 0 if value is None else (value - np.mean(present)) / deviation
        assert row[0] == pytest.approx(expected, abs=1e-3)
        assert row[1] == (value is not None)


def test_hashed_ids_are_two_rows_that_depend_on_the_id_alone():
    ids = np.array([f"i{n}" for n in range(2_000)], object)
    rows = hashed(ids, 512)
    assert np.array_equal(hashed(ids[::-1].copy(), 512), rows[::-1])
    assert rows.min() >= 0
    assert rows.max() == 511
    assert len(np.unique(rows[:, 0])) > 480
    assert len(np.unique(rows, axis=0)) > 1_980  # 2,000 draws of 262,144 pairs collide some eight times


def test_the_rows_of_each_input_are_its_own():
    items = Items.from_table(
        pa.table({"item_id": ["a", "b"], "category": ["x", "y"], "name": ["red tea", "red"], "price": [1.0, None]})
    )
    config = TowerConfig(item_inputs=("own", "sides", "hashed", "words", "numbers"), hash_rows=7, words=3)
    content = content_of(items, config)
    sides, ids, told = content.rows[:, :3], content.rows[:, 3:5], content.rows[:, 5:]
    assert sides.tolist() == [[0, 1, 3], [0, 2, 3]]
    assert ids.min() >= 4
    assert ids.max() < 11
    assert told.tolist() == [[11, PAD, PAD], [11, PAD, PAD]]
    assert (content.n_rows, content.n_averaged) == (12, 3)
    assert content.numbers[:, 1].tolist() == [1, 0]


@pytest.mark.parametrize(("told_by", "name", "price"), [("words", "apple juice", None), ("numbers", "drink", 9.0)])
def test_a_product_nobody_bought_lands_among_those_with_its_content(told_by, name, price):
    """Ten dear juices, bought by even households, ten cheap breads, by odd ones, and one that is new."""
    generator = np.random.default_rng(1)
    rows = [
        (f"u{user:02}", f"i{10 * (user % 2) + item:02}", 1_000 * day + user)
        for day in range(30) for user in range(20) for item in generator.choice(10, 3, replace=False)
    ]  # fmt: skip
    listed = pa.table(
        {
            "item_id": [f"i{n:02}" for n in range(20)] + ["new"],
            "name": [f"apple juice {n}" for n in range(10)] + [f"rye bread {n}" for n in range(10)] + [name],
            "price": [9.0 + n / 10 for n in range(10)] + [2.0 + n / 10 for n in range(10)] + [price],
        }
    )
    data = assemble(pd.DataFrame(rows, columns=["user_id", "item_id", "event_time"]), listed, None)
    config = TowerConfig(
        dim=16, hidden=16, n_recent=4, trips_per_batch=32, negatives=40, passes=7, least_steps=0, seed=3,
        item_inputs=("own", "sides", told_by),
    )  # fmt: skip
    vectors = Trainer(data, config, "cpu").fit().export().items
    new, others = vectors[20], vectors[:20]
    nearest = np.argsort(-(others @ new))[:5]
    assert (nearest < 10).all()
