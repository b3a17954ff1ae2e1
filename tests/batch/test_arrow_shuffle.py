"""Packed parts against the rows that went in, and codes against a loop."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.arrow_shuffle import codes_among, key_hashes, pack, unpacked

texts = st.lists(st.text(max_size=20), max_size=30)
numbers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30)


@settings(max_examples=100, deadline=None)
@given(names=texts, buckets=st.integers(1, 9))
def test_every_row_lies_once_in_the_bucket_of_its_keys(names: list[str], buckets: int) -> None:
    """And rows of equal keys lie in one bucket, in the order in which they came."""
    rows = pa.table({"name": pa.array(names, pa.string()), "place": pa.array(range(len(names)), pa.int64())})
    held = {
        part["_bucket"][0].as_py(): unpacked(iter(part["_packed"]), rows.schema)
        for part in pack(rows, ["name"], 0, buckets)
    }
    found = [(row["place"], row["name"]) for table in held.values() for row in table.to_pylist()]
    assert sorted(found) == list(enumerate(names))
    for name in names:
        assert sum(name in table["name"].to_pylist() for table in held.values()) == 1
    for table in held.values():
        assert table["place"].to_pylist() == sorted(table["place"].to_pylist())


@pytest.mark.parametrize("offset", [0, 3])
def test_a_hash_does_not_depend_on_where_its_key_lies(offset: int) -> None:
    names = ["", "a", "abcdefgh", "abcdefghi", "Käse", "x" * 40]
    shifted = pa.chunked_array([pa.array(["out"] * offset + names).slice(offset)])
    assert key_hashes([shifted]).tolist() == key_hashes([pa.chunked_array([names])]).tolist()
    assert len(set(key_hashes([shifted]).tolist())) == len(names)
    pairs = [pa.chunked_array([["1", "11"]]), pa.chunked_array([["11", "1"]])]
    assert len(set(key_hashes(pairs).tolist())) == 2


def test_keys_that_differ_in_the_middle_are_spread() -> None:
    names = pa.chunked_array([[f"https://shop.example/item/{number}/view/of/the/day" for number in range(10_000)]])
    counts = np.bincount((key_hashes([names]) % np.uint64(10)).astype(np.int64))
    assert counts.min() > 800
    assert (
        np.bincount((key_hashes([pa.chunked_array([np.arange(10_000)])]) % np.uint64(10)).astype(np.int64)).min() > 800
    )


keys = st.lists(st.tuples(st.sampled_from(["1", "11", None]), st.sampled_from([1, 11, None])), max_size=12)


@settings(max_examples=100, deadline=None)
@given(asked=keys, rows=keys)
def test_codes_are_equal_where_the_keys_are(asked: list[tuple[str, int]], rows: list[tuple[str, int]]) -> None:
    """A row whose keys nobody asks for is -1, as is one with a null."""
    left, right = codes_among(_columns(asked), _columns(rows))
    for one, code in zip(asked, left.tolist(), strict=True):
        assert (code == -1) == (None in one)
        for other, found in zip(rows, right.tolist(), strict=True):
            assert (code == found >= 0) == (one == other and None not in one)
    assert all(code in {-1, *left.tolist()} for code in right.tolist())


def _columns(keys: list[tuple[str, int]]) -> list[pa.ChunkedArray]:
    names, numbers = [key[0] for key in keys], [key[1] for key in keys]
    return [pa.chunked_array([pa.array(names, pa.string())]), pa.chunked_array([pa.array(numbers, pa.int64())])]
