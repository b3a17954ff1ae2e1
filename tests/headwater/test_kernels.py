"""Compiled loops, against the words of their docstrings in plain Python."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.sketches import merge_sketches

from headwater import folds
from headwater.online import codec, kernels
from headwater.online.replies import Blobs
from headwater.online.wire import pack
from headwater.plan import HOUR_MS, Aggregate, Function, Partial, Table

TABLE = Table(
    id="11" * 8, kind="fixed", hop_ms=HOUR_MS, keep=50,
    partials=tuple(Partial(kind=kind, column="amount") for kind in ("count", "sum", "sumsq", "min", "max")),
)  # fmt: skip
COLUMNS = {
    "count": kernels.COUNT, "ingest": kernels.MAX, "hash": kernels.SUM, "sum_amount": kernels.SUM,
    "min_amount": kernels.MIN, "max_amount": kernels.MAX, "sumsq_amount_hi": kernels.WIDE,
}  # fmt: skip
LAYOUT = codec.record_dtype(TABLE)


@st.composite
def entities(draw):
    """Records newest first of a few entities, some without a blob."""
    held = []
    for _ in range(draw(st.integers(1, 4))):
        tiles = draw(st.lists(st.tuples(st.integers(-30, 30), st.integers(0, 1)), unique=True, max_size=6))
        size = len(tiles) * LAYOUT.itemsize
        records = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), LAYOUT).copy()
        if tiles:
            records["tile"], records["slot"] = zip(*sorted(tiles, reverse=True), strict=True)
        held.append(records if draw(st.booleans()) or len(records) else None)
    return held


def blobs_of(held):
    return Blobs.of([None if one is None else codec.HEADER.pack(1, 0) + one.tobytes() for one in held])


def wrapped(number, bits=64):
    """As a signed integer of so many bits."""
    return (number + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def folded_slowly(records, column, kind):
    values = [int(value) for value in records[column]]
    if kind == kernels.MIN:
        return min(values, default=codec.EMPTY_MIN), 0
    if kind == kernels.MAX:
        return max(values, default=codec.EMPTY_MAX), 0
    if kind == kernels.WIDE:
        lows = [int(low) for low in records[column.replace("_hi", "_lo")]]
        total = wrapped(sum((high << 64) + low for high, low in zip(values, lows, strict=True)), 128)
        return total >> 64, wrapped(total)
    return wrapped(sum(values)), 0


@given(entities(), st.lists(st.tuples(st.sampled_from(list(COLUMNS)), st.integers(-70, 70)), max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_windows_are_folds_over_the_records_young_enough(held, wanted, data):
    now = [data.draw(st.integers(-40, 40)) for _ in held]
    wanted = sorted(wanted, key=lambda one: one[1])
    columns = list(dict.fromkeys(column for column, _ in wanted))
    blobs = blobs_of(held)
    high, low = kernels.windows(
        blobs.raw, blobs.starts, blobs.sizes, LAYOUT.itemsize, np.array(now, np.int64),
        np.array([codec.offset_of(LAYOUT, column) for column in columns], np.int64),
        np.array([COLUMNS[column] for column in columns], np.int64),
        np.array([columns.index(column) for column, _ in wanted], np.int64),
        np.array([age for _, age in wanted], np.int64),
    )  # fmt: skip
    for window, (column, age) in enumerate(wanted):
        for owner, records in enumerate(held):
            records = np.zeros(0, LAYOUT) if records is None else records
            young = records[now[owner] - records["tile"].astype(int) <= age]
            expected = folded_slowly(young, column, COLUMNS[column])
            assert (high[window, owner], low[window, owner]) == expected, (column, age, owner)


@given(entities(), st.sampled_from(["count", "sum_amount"]), st.integers(-5, 70), st.data())
@settings(max_examples=200, deadline=None)
def test_tiles_are_totals_of_both_slots_oldest_first(held, column, oldest, data):
    now = [data.draw(st.integers(-40, 40)) for _ in held]
    expected = []
    for owner, records in enumerate(held):
        totals = {}
        for record in () if records is None else records[::-1]:
            age = now[owner] - int(record["tile"])
            if age <= oldest:
                totals[age] = wrapped(totals.get(age, 0) + int(record[column]))
        expected += [(owner, age, total) for age, total in totals.items()]
    blobs = blobs_of(held)
    found = kernels.tiles(
        blobs.raw, blobs.starts, blobs.sizes, LAYOUT.itemsize, np.array(now, np.int64), oldest,
        codec.offset_of(LAYOUT, column), COLUMNS[column],
    )  # fmt: skip
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@given(entities(), st.integers(-5, 70), st.data())
@settings(max_examples=200, deadline=None)
def test_marks_are_sums_over_the_records_young_enough(held, oldest, data):
    now = [data.draw(st.integers(-40, 40)) for _ in held]
    expected = []
    for owner, records in enumerate(held):
        records = np.zeros(0, LAYOUT) if records is None else records
        young = records[now[owner] - records["tile"].astype(int) <= oldest]
        count = int(young["count"].astype(np.int64).sum())
        hashes = wrapped(sum(int(one) for one in young["hash"]))
        expected.append((count, int(young["ingest"].max()) if count else -1, hashes))
    blobs = blobs_of(held)
    found = kernels.marks(
        blobs.raw, blobs.starts, blobs.sizes, LAYOUT.itemsize, np.array(now, np.int64), oldest
    )  # fmt: skip
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


def registers():
    """A sketch of anything: few registers, ranks as they come and as they hardly ever do."""
    ranks = st.one_of(st.integers(1, 12), st.integers(1, 53))
    few = st.dictionaries(st.one_of(st.integers(0, 9), st.integers(0, 4095)), ranks, max_size=12)
    return few.map(lambda held: b"".join(at.to_bytes(2, "little") + bytes([held[at]]) for at in sorted(held)))


@st.composite
def sketched(draw):
    """Tiles of sketches, newest first, of a few entities, some without a blob."""
    tile = st.tuples(
        st.integers(-30, 30), registers(), st.integers(1, 9), st.integers(0, 99), st.integers(0, 2**64 - 1)
    )
    return draw(st.lists(st.none() | st.lists(tile, max_size=5).map(lambda one: sorted(one, key=lambda t: -t[0])),
                         min_size=1, max_size=4))  # fmt: skip


def blobs_of_lists(held):
    def packed(tile, payload, count, ingest, digest):
        head = np.array([(tile, codec.LIVE, count, ingest, ingest, digest)], codec.HEAD)
        return head.tobytes() + len(payload).to_bytes(4, "little") + payload

    return Blobs.of([None if one is None else codec.HEADER.pack(1, 0) + b"".join(packed(*t) for t in one)
                     for one in held])  # fmt: skip


@given(sketched(), st.lists(st.integers(-70, 70), max_size=4), st.data())
@settings(max_examples=300, deadline=None)
def test_sketches_estimate_as_those_merged_one_by_one(held, ages, data):
    now, ages = [data.draw(st.integers(-40, 40)) for _ in held], sorted(ages)
    blobs = blobs_of_lists(held)
    taken, powers = kernels.sketches(
        blobs.raw, blobs.starts, blobs.sizes, np.array(now, np.int64), np.array(ages, np.int64), folds.POWERS
    )
    for window, age in enumerate(ages):
        young = [[tile[1] for tile in one or () if at - tile[0] <= age] for at, one in zip(now, held, strict=True)]
        expected = [folds.estimate(merge_sketches(payloads)) for payloads in young]
        assert folds.estimates(taken[window], powers[window]).tolist() == expected, age


@given(sketched(), st.integers(-70, 70), st.data())
@settings(max_examples=200, deadline=None)
def test_marks_of_lists_are_sums_over_the_tiles_young_enough(held, oldest, data):
    now = [data.draw(st.integers(-40, 40)) for _ in held]
    blobs = blobs_of_lists(held)
    found = kernels.marks(blobs.raw, blobs.starts, blobs.sizes, 0, np.array(now, np.int64), oldest)
    young = [[tile for tile in one or () if at - tile[0] <= oldest] for at, one in zip(now, held, strict=True)]
    assert found[0].tolist() == [sum(tile[2] for tile in one) for one in young]
    assert found[1].tolist() == [max((tile[3] for tile in one), default=-1) for one in young]
    assert found[2].tolist() == [wrapped(sum(tile[4] for tile in one)) for one in young]


NUMBERS = st.one_of(st.sampled_from([0, 1, codec.EMPTY_MIN, codec.EMPTY_MAX]), st.integers(-(2**63), 2**63 - 1))


@given(
    st.sampled_from(["count", "sum", "min", "max", "mean"]), st.sampled_from(["fixed", "int"]),
    st.lists(st.tuples(NUMBERS, st.integers(0, 2**40), st.booleans()), max_size=6),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_values_are_finished_as_everywhere(name, kind, rows):
    first, counts, found = (np.array(column, np.int64) for column in zip(*rows, strict=True)) if rows else ([],) * 3
    first, counts, found = np.array(first, np.int64), np.array(counts, np.int64), np.array(found, bool)
    aggregate = Aggregate(
        feature="one", function=Function(name=name), column="amount", kind=kind, window_ms=HOUR_MS, hop_ms=HOUR_MS,
        table=TABLE.id,
    )  # fmt: skip
    merged = {"mean": {"sum": first, "count": counts}}.get(name, {name: first})
    expected = np.where(found, folds.finish(aggregate, merged), np.nan)
    made = kernels.finished(
        np.stack([first, counts]), found,
        np.array([{"min": kernels.MIN, "max": kernels.MAX, "mean": kernels.MEAN}.get(name, kernels.SUM)]),
        np.array([0]), np.array([1]), np.array([1e6 if kind == "fixed" and name != "count" else 1.0]),
    )  # fmt: skip
    assert np.array_equal(made[0], expected, equal_nan=True)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1), st.binary())
@example(["", "9" * 10, "x" * 99_999], b"")
@settings(max_examples=200, deadline=None)
def test_commands_are_the_commands_packed_one_by_one(texts, base):
    parts = "\0".join(texts).encode(), b"*2\r\n$3\r\nGET\r\n", base, b"\r\n"
    found = kernels.commands(len(texts), *(np.frombuffer(part, np.uint8) for part in parts))
    assert found.tobytes() == b"".join(pack((b"GET", base + text.encode())) for text in texts)


def test_texts_that_cannot_be_told_apart_are_refused():
    parts = [np.frombuffer(part, np.uint8) for part in (b"a\0b", b"", b"", b"")]
    for n in (1, 3):
        with pytest.raises(ValueError, match="zero byte"):
            kernels.commands(n, *parts)


@pytest.mark.parametrize("size", [0, 1, 17, 19, 25, 27])
def test_a_row_of_another_length_is_refused(size):
    raw = np.full(64, codec.PLAIN, np.uint8)
    places = np.array([10], np.int64), np.array([codec.FLOAT64], np.int64)
    with pytest.raises(ValueError, match="another length"):
        kernels.rows(raw, np.array([0]), np.array([size]), 18, 9, *places)
