"""A catalogue's strings as bytes, against the same as Python's own."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headwater.online.names import Names
from models.catalogue import Catalogue, Column, blobs, map_items, texts, write_items

words = st.sampled_from(["", "milk", "Milk", "ünïcode", "a\0b", "\0", "x" * 300]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=4
)
rows = st.lists(words | st.none(), max_size=30)


def chunked(first, second):
    """Arrow's strings in two pieces, of which the first is cut out of a longer one."""
    longer = pa.array(["before", *first, None, "after"], pa.string())
    pieces = [longer[1 : 1 + len(first)], pa.array(second, pa.string())]
    return pa.chunked_array(pieces, pa.string())


@given(rows, rows)
def test_strings_are_those_that_arrow_reads_and_nulls_are_empty(first, second):
    told, given = [text or "" for text in [*first, *second]], chunked(first, second)
    column = Column.of(given)
    assert column.tolist() == [*Names.of(blobs(given))] == texts(given).tolist() == told
    assert column.take(np.arange(len(told))[::-1]) == told[::-1]
    assert [column[row] for row in range(len(told))] == told
    assert sorted(column.values) == sorted(set(told))


@given(rows, st.lists(words, max_size=5))
def test_rows_that_have_one_of_some_values_are_found_as_by_comparing(given, wanted):
    column = Column.of(pa.array(given, pa.string()))
    assert column.among(wanted).tolist() == [(text or "") in wanted for text in given]
    for value in wanted:
        assert column.having(value).tolist() == [(text or "") == value for text in given]


@given(st.lists(words.filter(lambda text: "\0" not in text), max_size=30))
def test_groups_are_the_values_in_order_and_empty_is_none(given):
    told = sorted(set(given) - {""})
    assert Column.of(given).groups().tolist() == [told.index(text) if text else -1 for text in given]


@given(st.lists(st.tuples(words, st.none() | words), max_size=30, unique_by=lambda row: row[0]))
def test_what_is_mapped_is_what_was_written(tmp_path_factory, rows):
    """Nulls are empty; a table in pieces is written whole."""
    path = tmp_path_factory.mktemp("items") / "items.arrow"
    ids, names = ([row[at] for row in rows] for at in (0, 1))
    table = pa.table({"item_id": pa.array(ids, pa.string()), "name": pa.array(names, pa.string())})
    write_items(pa.concat_tables([table.slice(0, 3), table.slice(3)]), path)
    mapped = map_items(path)
    assert [*Names.of(blobs(mapped["item_id"]))] == ids
    assert Column.of(mapped["name"]).tolist() == [name or "" for name in names]


@given(st.lists(words, max_size=10), st.lists(words, max_size=10))
def test_further_rows_follow(given, more):
    found = Column.of(given).plus(more)
    assert found.tolist() == [*given, *more]
    assert sorted(found.values) == sorted({*given, *more})


@given(st.lists(words, unique=True, max_size=10), st.lists(words, unique=True, max_size=10))
def test_ids_are_numbered_as_in_a_dict_and_on(given, more):
    more = [text for text in more if text not in given]
    items = Catalogue(Names.of(blobs(pa.array(given, pa.string()))).plus(more), np.empty((0, 1), np.float32), {})
    places = {text: at for at, text in enumerate([*given, *more])}
    assert [*items.ids] == list(places)
    assert items.dense([*places, "nobody else"]).tolist() == [*places.values(), -1]
