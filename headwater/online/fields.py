"""Loops over texts as they were received: the fields of an entity's hash, found and looked up without an object each.

A field is a table's or view's id, eight bytes, and the rest of the key, as :mod:`headwater.online.keys` has it.
"""

from typing import Any

import numpy as np
from numba import int64, types, uint64
from numpy.typing import NDArray

from headwater.loops import compiled
from headwater.online.codec import Ints
from headwater.online.kernels import _DOLLAR, _STAR, _UNENDED, _UNLIKE, FOREIGN, MORE, Bytes, _copied, _line, _word

ID = 8
"""Bytes of a table's or view's id."""
OTHER = _UNLIKE
"""For the number of an array's values: it is no array."""
Slots = NDArray[np.int32]
_FREE = -1
_bytes, _ints = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.int64, 1, "C")
_slots = types.Array(types.int32, 1, "C")


@compiled(types.UniTuple(int64, 2)(_bytes, int64, int64))
def head(raw: Bytes, at: int, end: int) -> tuple[int, int]:
    """How many values an array has that begins here, and where they begin; ``OTHER`` for another kind of reply, and
    otherwise negative where that is not known yet."""
    number, place = _line(raw, at, end, _STAR)
    return number, place


@compiled(types.UniTuple(int64, 3)(_bytes, int64, int64, _ints, _ints, int64))
def strings(raw: Bytes, at: int, end: int, starts: Ints, sizes: Ints, done: int) -> tuple[int, int, int]:
    """Find the bulk strings of one array between two places, as ``kernels.scan`` finds those of many.

    Returns
    -------
    Where the first string begins that is not whole, how many are known, and ``MORE`` or ``FOREIGN``.
    """
    while done < len(starts):
        number, place = _line(raw, at, end, _DOLLAR)
        if number == _UNLIKE:
            return at, done, FOREIGN
        if number == _UNENDED or (number >= 0 and place + number + 2 > end):
            return at, done, MORE
        starts[done], sizes[done] = place, number
        at, done = place + (number + 2 if number >= 0 else 0), done + 1
    return at, done, MORE


@compiled()
def _mixed(seed: int, raw: Bytes, at: int, end: int) -> Any:
    """A hash of some bytes, a word at a time."""
    mixed = uint64(seed)
    while at + 8 <= end:
        mixed = (mixed ^ _word(raw, at)) * uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> uint64(29)
        at += 8
    tail, place = uint64(end - at), uint64(8)
    while at < end:
        tail |= uint64(raw[at]) << place
        at, place = at + 1, place + uint64(8)
    mixed = (mixed ^ tail) * uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> uint64(32)) * uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> uint64(29)


@compiled(_slots(_bytes, _ints, _ints, uint64))
def index(raw: Bytes, starts: Ints, sizes: Ints, seed: int) -> Slots:
    """An open-addressed table of n distinct texts, int32, of a power of two slots, at most half of them taken.

    A slot has a text's place among the n, or -1.
    """
    size = 2
    while size < 2 * len(starts):
        size *= 2
    slots = np.full(size, _FREE, np.int32)
    for place in range(len(starts)):
        slot = int64(_mixed(seed, raw, starts[place], starts[place] + sizes[place]) & uint64(size - 1))
        while slots[slot] != _FREE:
            slot = (slot + 1) & (size - 1)
        slots[slot] = place
    return slots


@compiled()
def _equal(raw: Bytes, at: int, other: Bytes, begin: int, end: int) -> Any:
    for place in range(begin, end):  # noqa: SIM110, a generator is not compiled
        if raw[at + place - begin] != other[place]:
            return False
    return True


@compiled()
def _place(
    raw: Bytes, starts: Ints, sizes: Ints, slots: Slots, seed: int, wanted: Bytes, begin: int, end: int
) -> Any:  # fmt: skip
    """The place of one text among the indexed ones, or -1."""
    last = len(slots) - 1
    slot = int64(_mixed(seed, wanted, begin, end) & uint64(last))
    while slots[slot] != _FREE:
        place = slots[slot]
        if sizes[place] == end - begin and _equal(raw, starts[place], wanted, begin, end):
            return int64(place)
        slot = (slot + 1) & last
    return int64(_FREE)


@compiled(_ints(_bytes, _ints, _ints, _slots, uint64, _bytes, _ints, _ints))
def find(
    raw: Bytes, starts: Ints, sizes: Ints, slots: Slots, seed: int, wanted: Bytes, begins: Ints, lengths: Ints
) -> Ints:
    """Places among n distinct texts of m wanted ones, int64 (m,), -1 where there is none.

    Parameters
    ----------
    raw, starts, sizes, slots, seed
        The texts and their :func:`index`.
    begins, lengths : (m,)
        Where each lies in ``wanted``.
    """
    found = np.empty(len(begins), np.int64)
    for at in range(len(begins)):
        found[at] = _place(raw, starts, sizes, slots, seed, wanted, begins[at], begins[at] + lengths[at])
    return found


@compiled(types.Array(types.uint8, 1, "C")(_bytes, _ints, _ints))
def joined(raw: Bytes, starts: Ints, sizes: Ints) -> Bytes:
    """n texts end to end, a zero byte between two."""
    out, at = np.zeros(max(0, sizes.sum() + len(sizes) - 1), np.uint8), 0
    for text in range(len(sizes)):
        at = _copied(out, at, raw, starts[text], starts[text] + sizes[text]) + 1
    return out


@compiled(types.Tuple((int64, _ints, _ints))(_bytes, int64))
def parted(raw: Bytes, n: int) -> tuple[int, Ints, Ints]:
    """How many texts there are, a zero byte between two, and of the first n where each lies, int64 (n,) twice."""
    starts, sizes, found, begin = np.zeros(n, np.int64), np.zeros(n, np.int64), 0, 0
    for end in range(len(raw) + 1):
        if end == len(raw) or raw[end] == 0:
            if found < n:
                starts[found], sizes[found] = begin, end - begin
            found, begin = found + 1, end + 1
    return found, starts, sizes


@compiled(types.UniTuple(_ints, 2)(_bytes, _ints, _ints, _slots, uint64, _ints, _ints, _bytes, _bytes, int64))
def values(
    raw: Bytes, starts: Ints, sizes: Ints, slots: Slots, seed: int, begins: Ints, lengths: Ints, of: Bytes,
    texts: Bytes, n: int,
) -> tuple[Ints, Ints]:  # fmt: skip
    """Where the values of keys of two lie: those of the fields of the id ``of``, a text's length, and the text.

    Parameters
    ----------
    raw, starts, sizes, slots, seed
        The fields and their :func:`index`.
    begins, lengths : (n_fields,)
        Where the value of each lies.
    texts
        n of them, separated by a zero byte, which none contains.

    Returns
    -------
    int64 (n,) where each value begins, int64 (n,) its bytes, -1 where there is none.
    """
    places, found = np.zeros(n, np.int64), np.full(n, -1, np.int64)
    field = np.empty(ID + 2 + len(texts), np.uint8)
    _copied(field, 0, of, 0, ID)
    begin = 0
    for text in range(n):
        end = begin
        while end < len(texts) and texts[end] != 0:
            end += 1
        field[ID], field[ID + 1] = (end - begin) & 255, (end - begin) >> 8
        size = _copied(field, ID + 2, texts, begin, end)
        place = _place(raw, starts, sizes, slots, seed, field, 0, size)
        if place != _FREE:
            places[text], found[text] = begins[place], lengths[place]
        begin = end + 1
    return places, found


@compiled(types.Tuple((_ints, types.Array(types.uint8, 1, "C")))(_bytes, _ints, _ints, _bytes))
def partners(raw: Bytes, starts: Ints, sizes: Ints, of: Bytes) -> tuple[Ints, Bytes]:
    """Places of the fields that have the id ``of``, int64 (m,), and the texts after it, a zero byte between two.

    The texts are those of keys of two: what follows the length.
    """
    places, total = np.empty(len(starts), np.int64), 0
    m = 0
    for field in range(len(starts)):
        if sizes[field] >= ID + 2 and _equal(raw, starts[field], of, 0, ID):
            places[m], total, m = field, total + sizes[field] - ID - 1, m + 1
    texts, at = np.zeros(max(0, total - 1), np.uint8), 0
    for field in places[:m]:
        for place in range(starts[field] + ID + 2, starts[field] + sizes[field]):
            texts[at] = raw[place]
            at += 1
        at += 1
    return places[:m], texts
