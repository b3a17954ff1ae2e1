"""A catalogue's strings, made some at a time."""

import numpy as np
import pyarrow as pa
import pytest

from models import catalogue
from models.catalogue import texts


@pytest.mark.parametrize("at_once", [1, 3, 1_000])
def test_texts_are_the_columns_own_with_equal_ones_shared_and_nulls_empty(monkeypatch, at_once):
    monkeypatch.setattr(catalogue, "AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    values = [None if number == 0 else f"ü{number}" for number in rng.integers(0, 20, 200).tolist()]
    found = texts(pa.chunked_array([values[:70], values[70:]], pa.string()))
    assert found.tolist() == ["" if value is None else value for value in values]
    assert len({id(text) for text in found}) == len(set(values))


@pytest.mark.parametrize("values", [[], [None, None]])
def test_a_column_of_nothing_has_no_text(values):
    assert texts(pa.chunked_array([values], pa.string())).tolist() == [""] * len(values)
