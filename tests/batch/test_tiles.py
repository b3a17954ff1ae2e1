"""Backfilled tiles against tiles made one event at a time."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from support.kernel import USERS, as_events, streams
from support.tiles import tile_columns
from support.views import every_function

from batch.tiles import event_hashes, fold_tiles
from benchmarks.oracle import Row
from headwater.events import event_hash
from headwater.online import codec


@settings(max_examples=60, deadline=None)
@given(stream=streams)
def test_backfilled_tiles_equal_the_naive_ones(stream: list[Row]) -> None:
    """Head, partials and payloads, for every kind of table; only tiles out of a reader's reach are left out."""
    events = as_events(stream).sorted()
    for table in every_function().tables:
        made = fold_tiles(table, events, event_hashes(events.event_id))
        keys = [(USERS[code],) for code in made.group]
        records = _records(table, keys, made.columns, made.payloads)
        expected = _records(table, *tile_columns(table, stream, codec.BASE)) if stream else {}
        newest = {key: max(tile for owner, tile in expected if owner == key) for key, _ in expected}
        assert records == {
            (key, tile): record for (key, tile), record in expected.items() if tile >= newest[key] - table.keep
        }


def test_hashes_are_those_of_the_stream() -> None:
    names = ["", "cj-1", "Käse", "x" * 300]
    assert event_hashes(pa.array(names)).tolist() == [event_hash(name) for name in names]
    assert event_hashes(pa.array([], pa.string())).dtype == np.uint64


def _records(table, keys, columns, payloads):
    def blob(row):
        one = {name: values[row : row + 1] for name, values in columns.items()}
        return codec.pack_blobs(table, [keys[row]], one, None if payloads is None else [payloads[row]])[1]

    return {(key, int(columns["tile"][row])): blob(row) for row, key in enumerate(keys)}
