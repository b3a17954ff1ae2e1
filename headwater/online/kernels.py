"""Loops over received bytes that numpy would need a pass and a copy each for, compiled by numba.

Integers only, so that an order of folding changes no bit. What is compiled is kept beside this file, or in the user's
cache folder, for the next process on such a machine.
"""

from typing import Any

import numpy as np
from numba import int64, types, uint64
from numpy.typing import NDArray

from headwater.folds import EXACT_RANK, REGISTERS
from headwater.loops import compiled
from headwater.online.codec import (
    DATED,
    EMPTY_MAX,
    EMPTY_MIN,
    EVENT,
    FLOAT32,
    FLOAT64,
    HEAD,
    HEAD_SIZE,
    HEADER,
    INT32,
    INT64,
    Ints,
    offset_of,
)  # fmt: skip

Bytes = NDArray[np.uint8]

SUM, MIN, MAX, WIDE, COUNT = 0, 1, 2, 3, 4
"""How a column is folded: int64; the lesser; the greater; int64 high and uint64 low word of a sum; a sum of uint32."""
MEAN = 5
"""How a value is made: of a sum and a count; otherwise of the fold of that kind."""
MORE, FOREIGN = 0, 1
_RECORDS = HEADER.size
_HEAD_COUNT, _HEAD_INGEST, _HEAD_HASH = (offset_of(np.dtype(HEAD), name) for name in ("count", "ingest", "hash"))
_STAR, _DOLLAR, _MINUS, _ZERO, _NINE, _CR, _LF = b"*$-09\r\n"
_UNENDED, _UNLIKE = -2, -3

_bytes, _ints = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.int64, 1, "C")


@compiled()
def _word(raw: Bytes, at: int) -> Any:
    """Eight bytes, which need not be aligned; one load once compiled."""
    word = uint64(0)
    for place in range(8):
        word |= uint64(raw[at + place]) << uint64(8 * place)
    return word


@compiled()
def _half(raw: Bytes, at: int) -> Any:
    """Four bytes, not negative."""
    return int64(raw[at]) | int64(raw[at + 1]) << 8 | int64(raw[at + 2]) << 16 | int64(raw[at + 3]) << 24


@compiled()
def _signed_half(raw: Bytes, at: int) -> Any:
    """Four bytes, signed."""
    half = _half(raw, at)
    return half - (half >> 31 << 32)


@compiled()
def _copied(out: Bytes, at: int, source: Bytes, begin: int, end: int) -> Any:
    target, wanted = out[at : at + end - begin], source[begin:end]
    for place in range(len(target)):  # from 0, so that no index is negative and many bytes are copied at once
        target[place] = wanted[place]
    return at + end - begin


@compiled()
def _numbered(out: Bytes, at: int, length: int) -> Any:
    """The line before an argument of so many bytes."""
    unit = 1
    while unit * 10 <= length:
        unit *= 10
    out[at], at = _DOLLAR, at + 1
    while unit > 0:
        out[at], at = _ZERO + length // unit % 10, at + 1
        unit //= 10
    out[at], out[at + 1] = _CR, _LF
    return at + 2


@compiled()
def _line(raw: Bytes, at: int, end: int, mark: int) -> Any:
    """A number after its mark, -1 for ``-1``, and where its line ends."""
    if at >= end:
        return _UNENDED, at
    if raw[at] != mark:
        return _UNLIKE, at
    at += 1
    if at + 1 < end and raw[at] == _MINUS:
        number, at = -1, at + 2
    else:
        number = 0
        while at < end and _ZERO <= raw[at] <= _NINE:
            number, at = number * 10 + int64(raw[at]) - _ZERO, at + 1
    if at + 2 > end:
        return _UNENDED, at
    if raw[at] != _CR or raw[at + 1] != _LF:
        return _UNLIKE, at
    return number, at + 2


@compiled(types.Array(types.uint8, 1, "C")(int64, _bytes, _bytes, _bytes, _bytes))
def commands(n: int, texts: Bytes, head: Bytes, base: Bytes, tail: Bytes) -> Bytes:
    """Pack n RESP commands end to end: each ``head``, an argument of ``base`` and a text, and ``tail``.

    Parameters
    ----------
    texts
        Separated by a zero byte, which none of them contains.

    Raises
    ------
    ValueError
        There are not n.
    """
    out = np.empty(len(texts) + n * (len(head) + len(base) + len(tail) + 14), np.uint8)
    at = begin = size = place = 0
    before = -1
    for text in range(n):
        end = begin
        while end < len(texts) and texts[end] != 0:
            end += 1
        if (end == len(texts)) != (text == n - 1):
            raise ValueError("a text contains a zero byte")
        if end - begin == before:  # as the last one but for the text
            _copied(out, at, out, at - size, at)
            _copied(out, at + place, texts, begin, end)
            at += size
        else:
            first = at
            at = _copied(out, at, head, 0, len(head))
            at = _numbered(out, at, len(base) + end - begin)
            at = _copied(out, at, base, 0, len(base))
            place = at - first
            at = _copied(out, at, texts, begin, end)
            at = _copied(out, at, tail, 0, len(tail))
            size, before = at - first, end - begin
        begin = end + 1
    return out[:at]


@compiled(types.Tuple((_ints, types.Array(types.float64, 2, "C")))(_bytes, _ints, _ints, int64, int64, _ints, _ints))
def rows(
    raw: Bytes, starts: Ints, sizes: Ints, plain: int, nulls: int, offsets: Ints, kinds: Ints
) -> tuple[Ints, NDArray[np.float64]]:
    """Decode n ready-made rows.

    Parameters
    ----------
    plain, nulls
        Bytes of a row without a created time, and where its null bitmap lies.
    offsets, kinds : (n_columns,)
        Where each value lies in such a row, and its type.

    Returns
    -------
    int64 (n,) event times, -1 where there is no row; float64 (n_columns, n) values, NaN where there is none.

    Raises
    ------
    ValueError
        A row is of another length.
    """
    event, values = np.full(len(starts), -1, np.int64), np.full((len(offsets), len(starts)), np.nan)
    begins = np.empty(len(starts), np.int64)  # of a plain row with the same values
    for owner in range(len(starts)):
        if sizes[owner] < 0:
            continue
        dated = 8 if sizes[owner] > 0 and raw[starts[owner]] == DATED else 0
        if sizes[owner] != plain + dated:
            raise ValueError("a row has another length than its view's rows")
        event[owner] = int64(_word(raw, starts[owner] + EVENT))
        begins[owner] = starts[owner] + dated
    for column in range(len(offsets)):
        kind, offset, null, bit = kinds[column], offsets[column], nulls + column // 8, column % 8
        for owner in range(len(starts)):
            at = begins[owner] + offset
            if sizes[owner] < 0 or raw[begins[owner] + null] >> bit & 1:
                continue
            if kind == FLOAT32:
                values[column, owner] = np.uint32(_half(raw, at)).view(np.float32)
            elif kind == FLOAT64:
                values[column, owner] = np.uint64(_word(raw, at)).view(np.float64)
            elif kind == INT64:
                values[column, owner] = int64(_word(raw, at))
            elif kind == INT32:
                values[column, owner] = _signed_half(raw, at)
            else:
                values[column, owner] = raw[at]
    return event, values


@compiled(types.UniTuple(int64, 3)(_bytes, int64, int64, _ints, _ints, int64, int64))
def scan(raw: Bytes, at: int, end: int, starts: Ints, sizes: Ints, done: int, width: int) -> tuple[int, int, int]:
    """Find the values of whole RESP replies, arrays of ``width`` bulk strings, between two places.

    Parameters
    ----------
    starts, sizes : (n * width,)
        Filled from value ``done`` on; a value that is absent has size -1.

    Returns
    -------
    Where the first reply begins that is not whole, or is another kind; how many values are known; and ``MORE`` or,
    for another kind of reply, ``FOREIGN``.
    """
    while done < len(starts):
        number, place = _line(raw, at, end, _STAR)
        if number == _UNENDED:
            return at, done, MORE
        if number != width:
            return at, done, FOREIGN
        for value in range(done, done + width):
            number, place = _line(raw, place, end, _DOLLAR)
            if number == _UNLIKE:
                return at, done, FOREIGN
            if number == _UNENDED or (number >= 0 and place + number + 2 > end):
                return at, done, MORE
            starts[value], sizes[value] = place, number
            if number >= 0:
                place += number + 2
        at, done = place, done + width
    return at, done, MORE


@compiled(types.void(_bytes, _ints, _ints, _ints))
def newer(raw: Bytes, starts: Ints, sizes: Ints, found: Ints) -> None:
    """Put the newest event of each of n tile blobs in ``found`` (n,) where it is newer than what is there."""
    for owner in range(len(starts)):
        if sizes[owner] >= _RECORDS:
            found[owner] = max(found[owner], int64(_word(raw, starts[owner] + _RECORDS - 8)))


@compiled(types.UniTuple(types.Array(types.int64, 2, "C"), 2)(_bytes, _ints, _ints, int64, _ints, *(_ints,) * 4))
def windows(
    raw: Bytes, starts: Ints, sizes: Ints, record: int, now: Ints, offsets: Ints, kinds: Ints, columns: Ints, ages: Ints
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fold columns of n blobs of a fixed table over several windows in one pass.

    Parameters
    ----------
    starts, sizes, now : (n,)
        Where each blob lies, and the instant in hops.
    record
        Bytes of a record. Records lie newest first.
    offsets, kinds : (n_columns,)
        Where a column lies in its record, and how it is folded.
    columns, ages : (n_windows,)
        Of each window its column and the greatest age that it reads, in hops; ages ascend.

    Returns
    -------
    int64 (n_windows, n) the fold, of ``WIDE`` its high words, and of those the low words.
    """
    high, low = np.zeros((len(ages), len(starts)), np.int64), np.zeros((len(ages), len(starts)), np.int64)
    held, lower = np.empty(len(offsets), np.int64), np.zeros(len(offsets), np.uint64)
    for owner in range(len(starts)):
        for column in range(len(offsets)):
            kind = kinds[column]
            held[column] = EMPTY_MIN if kind == MIN else EMPTY_MAX if kind == MAX else 0
            lower[column] = 0
        window, at = 0, starts[owner] + _RECORDS
        end = starts[owner] + sizes[owner]
        while at + record <= end:
            age = now[owner] - _signed_half(raw, at)
            while window < len(ages) and age > ages[window]:
                high[window, owner], low[window, owner] = held[columns[window]], int64(lower[columns[window]])
                window += 1
            if window == len(ages):
                break
            for column in range(len(offsets)):
                kind, place = kinds[column], at + offsets[column]
                if kind == COUNT:
                    held[column] += _half(raw, place)
                    continue
                value = int64(_word(raw, place))
                if kind == SUM:
                    held[column] += value
                elif kind == MIN:
                    held[column] = min(held[column], value)
                elif kind == MAX:
                    held[column] = max(held[column], value)
                else:
                    word = _word(raw, place + 8)
                    lower[column] += word
                    held[column] += value + (1 if lower[column] < word else 0)
            at += record
        for rest in range(window, len(ages)):
            high[rest, owner], low[rest, owner] = held[columns[rest]], int64(lower[columns[rest]])
    return high, low


@compiled(types.Tuple((_ints, _ints, _ints))(_bytes, _ints, _ints, int64, _ints, int64, int64, int64))
def tiles(
    raw: Bytes, starts: Ints, sizes: Ints, record: int, now: Ints, oldest: int, offset: int, kind: int
) -> tuple[Ints, Ints, Ints]:
    """A column's total of each tile that is at most ``oldest`` hops old, oldest first within each blob, slots added up.

    Returns
    -------
    int64 (m,) each: whose blob, the tile's age in hops, the total.
    """
    most = 0
    for owner in range(len(starts)):
        most += max(0, sizes[owner] - _RECORDS) // record
    owners, ages, totals = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    m = 0
    for owner in range(len(starts)):
        first, fresh = starts[owner] + _RECORDS, True
        at = first + (sizes[owner] - _RECORDS) // record * record - record
        while at >= first:
            age = now[owner] - _signed_half(raw, at)
            if age <= oldest:
                value = _half(raw, at + offset) if kind == COUNT else int64(_word(raw, at + offset))
                if fresh or ages[m - 1] != age:
                    owners[m], ages[m], totals[m] = owner, age, value
                    m, fresh = m + 1, False
                else:
                    totals[m - 1] += value
            at -= record
    return owners[:m], ages[:m], totals[:m]


_table, _flags = types.Array(types.int64, 2, "C"), types.Array(types.boolean, 1, "A", readonly=True)
_floats = types.Array(types.float64, 1, "C", readonly=True)


@compiled(types.Array(types.float64, 2, "C")(_table, _flags, _ints, _ints, _ints, _floats))
def finished(
    folded: NDArray[np.int64], found: NDArray[np.bool_], kinds: Ints, firsts: Ints, seconds: Ints,
    scales: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """Values of n_features functions from what was folded, float64 (n_features, n), as ``folds.finish`` makes them.

    Parameters
    ----------
    folded : (n_windows, n)
        By :func:`windows`.
    found : (n,)
        Where not, there is no value: NaN.
    kinds, firsts, seconds, scales : (n_features,)
        ``SUM``, ``MIN``, ``MAX`` or ``MEAN``; the fold that a value is made of; of a mean, the fold that counts; and
        what is divided by.
    """
    out = np.full((len(kinds), folded.shape[1]), np.nan)
    for feature in range(len(kinds)):
        kind, first, second, scale = kinds[feature], firsts[feature], seconds[feature], scales[feature]
        for at in range(folded.shape[1]):
            value = folded[first, at]
            if not found[at] or (kind == MIN and value == EMPTY_MIN) or (kind == MAX and value == EMPTY_MAX):
                continue
            if kind != MEAN:
                out[feature, at] = value / scale
            elif folded[second, at] > 0:
                out[feature, at] = value / scale / folded[second, at]
    return out


@compiled()
def _ends(raw: Bytes, at: int, record: int, end: int) -> Any:
    """Where the record at a place ends, that of a list where ``record`` is 0; -1 where it is not whole."""
    size = int64(record)
    if record == 0:
        if at + HEAD_SIZE + 4 > end:
            return int64(-1)
        size = HEAD_SIZE + 4 + _half(raw, at + HEAD_SIZE)
    return at + size if at + size <= end else int64(-1)


@compiled(types.UniTuple(_ints, 3)(_bytes, _ints, _ints, int64, _ints, int64))
def marks(raw: Bytes, starts: Ints, sizes: Ints, record: int, now: Ints, oldest: int) -> tuple[Ints, Ints, Ints]:
    """What was folded into the records of n blobs that are at most ``oldest`` hops old.

    Parameters
    ----------
    record
        Bytes of a fixed table's record, 0 for a list table.

    Returns
    -------
    int64 (n,) each: events, their newest ingest time or -1, the sum of their hashes, which wraps.
    """
    counts, hashes = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    ingests = np.full(len(starts), EMPTY_MAX, np.int64)
    for owner in range(len(starts)):
        at, end = starts[owner] + _RECORDS, starts[owner] + sizes[owner]
        while at < end:
            after = _ends(raw, at, record, end)
            if after < 0 or now[owner] - _signed_half(raw, at) > oldest:
                break
            counts[owner] += _half(raw, at + _HEAD_COUNT)
            ingests[owner] = max(ingests[owner], int64(_word(raw, at + _HEAD_INGEST)))
            hashes[owner] += int64(_word(raw, at + _HEAD_HASH))
            at = after
        if counts[owner] == 0:
            ingests[owner] = -1
    return counts, ingests, hashes


@compiled(types.Tuple((_table, types.Array(types.float64, 2, "C")))(_bytes, _ints, _ints, _ints, _ints, _floats))
def sketches(
    raw: Bytes, starts: Ints, sizes: Ints, now: Ints, ages: Ints, powers: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Merge the sketches of n blobs of a ``distinct`` table over several windows in one pass, the highest rank each.

    Parameters
    ----------
    ages : (n_windows,)
        The greatest age that each window reads, in hops, ascending. Records lie newest first.
    powers
        2 to the power of minus a rank, by rank.

    Returns
    -------
    (n_windows, n) each: registers that are not empty, and the sum of their ranks' powers.
    """
    taken, sums = np.zeros((len(ages), len(starts)), np.int64), np.zeros((len(ages), len(starts)))
    registers = np.zeros(REGISTERS, np.uint8)
    for owner in range(len(starts)):
        registers[:] = 0
        held, total, exact, window = 0, 0.0, True, 0
        at, end = starts[owner] + _RECORDS, starts[owner] + sizes[owner]
        while window < len(ages):
            after = _ends(raw, at, 0, end) if at < end else int64(-1)
            age = now[owner] - _signed_half(raw, at) if after >= 0 else 0
            while window < len(ages) and (after < 0 or age > ages[window]):
                if not exact:  # in the order of the registers, as `folds.estimate` adds
                    total = 0.0
                    for rank in registers:
                        if rank > 0:
                            total += powers[rank]
                taken[window, owner], sums[window, owner] = held, total
                window += 1
            if window == len(ages):
                break
            for place in range(at + HEAD_SIZE + 4, after - 2, 3):
                register, rank = (int64(raw[place]) | int64(raw[place + 1]) << 8) & (REGISTERS - 1), raw[place + 2]
                before = registers[register]
                if rank > before:
                    held += 1 if before == 0 else 0
                    total += powers[rank] - (powers[before] if before > 0 else 0.0)
                    exact = exact and rank <= EXACT_RANK
                    registers[register] = rank
            at = after
    return taken, sums
