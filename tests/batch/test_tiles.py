"""Backfilled tiles against tiles made one event at a time."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel import USERS, as_events, streams
from support.tiles import tile_columns
from support.views import every_function

from batch.tiles import emptied, event_hashes, fold_tiles
from benchmarks.oracle import Row
from headwater.events import event_hash
from headwater.online import codec


@settings(max_examples=60, deadline=None)
@given(stream=streams)
def test_backfilled_tiles_equal_the_naive_ones(stream: list[Row]) -> None:
    """Head, partials and payloads, for every kind of table; only tiles out of a reader's reach are left out."""
    events = as_events(stream).sorted()
    for table in every_function().tables:
        made = fold_tiles(table, events)
        keys = [(USERS[code],) for code in made.group]
        records = _records(table, keys, made.columns, made.payloads)
        expected = _records(table, *tile_columns(table, stream, codec.BASE)) if stream else {}
        newest = {key: max(tile for owner, tile in expected if owner == key) for key, _ in expected}
        assert records == {
            (key, tile): record for (key, tile), record in expected.items() if tile >= newest[key] - table.keep
        }


@settings(max_examples=40, deadline=None)
@given(stream=streams, split=streams)
def test_what_is_withdrawn_leaves_tiles_that_hold_nothing(stream: list[Row], split: list[Row]) -> None:
    """One for each place that was written and is not any more, of every kind of table, from no events on."""
    theirs, ours = as_events(stream).sorted(), as_events(split).sorted()
    for table in every_function().tables:
        gone, kept = (fold_tiles(table, events) for events in (theirs, ours))
        empty = emptied(table, gone, kept)
        places = [list(zip(one.group, one.columns["tile"], strict=True)) for one in (gone, kept, empty)]
        assert set(places[2]) == set(places[0]) - set(places[1])
        assert not empty.columns["count"].any()
        for partial in table.partials:
            if partial.kind != "sumsq":
                assert set(empty.columns[partial.name].tolist()) <= {codec.neutral(partial)}
        assert empty.payloads is None or set(empty.payloads) <= {b""}
        if len(empty):
            codec.pack_blobs(table, [(USERS[code],) for code in empty.group], empty.columns, empty.payloads)


def test_hashes_are_those_of_the_stream() -> None:
    names = ["", "cj-1", "Käse", "x" * 300, *("y" * length for length in range(50, 70))]
    assert event_hashes(pa.array(names)).tolist() == [event_hash(name) for name in names]
    assert event_hashes(pa.array(names).slice(1, 7)).tolist() == [event_hash(name) for name in names[1:8]]
    assert event_hashes(pa.array([], pa.string())).dtype == np.uint64


@given(names=st.lists(st.text(max_size=70), max_size=30))
def test_hashes_of_many_texts_are_those_of_each(names: list[str]) -> None:
    assert event_hashes(pa.array(names, pa.string())).tolist() == [event_hash(name) for name in names]


def _records(table, keys, columns, payloads):
    def blob(row):
        one = {name: values[row : row + 1] for name, values in columns.items()}
        return codec.pack_blobs(table, [keys[row]], one, None if payloads is None else [payloads[row]])[1]

    return {(key, int(columns["tile"][row])): blob(row) for row, key in enumerate(keys)}
