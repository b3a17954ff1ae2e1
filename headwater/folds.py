"""What a window's merged partials mean; the reader and the offline engine end in these same functions.

Bit-equality rests here: partials are integers, so merging them in any order gives the same bits, and every float is
computed from them once, by one expression.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce
from operator import add

import numpy as np
import xxhash
from numpy.typing import NDArray

from headwater.online.codec import EMPTY_MAX, EMPTY_MIN, Entry
from headwater.plan import FIXED_SCALE, Aggregate, ColumnKind, Table

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SKETCH_BITS = 12
REGISTERS = 1 << SKETCH_BITS
EXACT_RANK = 40
"""Sums of the powers of no higher ranks are exact, in any order."""
CLEARS, ADDS, REMOVES = 0, 1, 2
_VERBS = {"add": ADDS, "remove": REMOVES}


def to_fixed(values: Floats) -> Ints:
    """Millionths, half away from zero, as ``CAST(ROUND(x * 1E6) AS BIGINT)`` gives in Flink and Spark.

    The product is one IEEE multiplication in every engine; its fraction is taken exactly, since below 2**52 the
    subtraction of the integer part rounds nothing.
    """
    scaled = np.abs(values * float(FIXED_SCALE))
    whole = np.trunc(scaled)
    return np.copysign(whole + (scaled - whole >= 0.5), values).astype(np.int64)


def from_fixed(values: Ints, kind: ColumnKind) -> Floats:
    """Back to the column's unit, float64."""
    return values / float(FIXED_SCALE) if kind == "fixed" else values.astype(np.float64)


def finish(aggregate: Aggregate, merged: Mapping[str, Ints]) -> Floats:
    """Value of a feature from its window's merged partials; NaN where the function has no value of nothing.

    Parameters
    ----------
    merged : each (n,)
        Partial kind (``count, sum, min, max, sumsq_hi, sumsq_lo``) to its merged integer.
    """
    name, kind = aggregate.function.name, aggregate.kind
    if name == "count":
        return merged["count"].astype(np.float64)
    if name == "sum":
        return from_fixed(merged["sum"], kind)
    if name == "min":
        return np.where(merged["min"] == EMPTY_MIN, np.nan, from_fixed(merged["min"], kind))
    if name == "max":
        return np.where(merged["max"] == EMPTY_MAX, np.nan, from_fixed(merged["max"], kind))
    count = merged["count"]
    if name == "mean":
        return np.divide(from_fixed(merged["sum"], kind), count, out=np.full(len(count), np.nan), where=count > 0)
    return np.array(
        [
            sample_stddev(int(n), int(total), join_words(int(hi), int(lo)), kind)
            for n, total, hi, lo in zip(count, merged["sum"], merged["sumsq_hi"], merged["sumsq_lo"], strict=True)
        ],
        np.float64,
    )


def sample_stddev(n: int, total: int, squares: int, kind: ColumnKind) -> float:
    """Sample standard deviation from exact integer sums; NaN for fewer than two values."""
    if n < 2:
        return math.nan
    variance = (n * squares - total * total) / (n * (n - 1))
    return math.sqrt(variance) / (FIXED_SCALE if kind == "fixed" else 1)


def split_words(value: int) -> tuple[int, int]:
    """A wide integer as a signed high and an unsigned low word of 64 bits."""
    return value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF


def join_words(high: int, low: int) -> int:
    """Inverse of :func:`split_words`."""
    return (high << 64) | low


@lru_cache(maxsize=256)
def _weights(half_life_ms: int, hop_ms: int, tiles: int) -> Floats:
    table = np.array([math.pow(2.0, -(age * hop_ms) / half_life_ms) for age in range(tiles + 1)])
    table.setflags(write=False)
    return table


def decay_weights(aggregate: Aggregate) -> Floats:
    """Weight of a tile by its age in whole hops, float64 (tiles + 1,)."""
    half_life, hop = aggregate.function.half_life_ms, aggregate.hop_ms
    if half_life is None or hop is None:
        raise ValueError(f"{aggregate.feature} does not decay")
    return _weights(half_life, hop, aggregate.tiles)


def decayed(aggregate: Aggregate, owner: Ints, age: Ints, amount: Ints, n: int) -> Floats:
    """Weighted sum of tile values, accumulated one by one, oldest tile first.

    Parameters
    ----------
    owner, age, amount : (m,)
        One row per (owner, tile), oldest first within each owner: whose tile, its age in hops, its merged integer.
    n
        Number of owners.
    """
    weighted = decay_weights(aggregate)[age] * amount.astype(np.float64)
    total = np.bincount(owner, weights=weighted, minlength=n)  # adds in row order, one at a time
    fixed = aggregate.kind == "fixed" and aggregate.function.name == "decayed_sum"
    return np.asarray(total / FIXED_SCALE if fixed else total, np.float64)


def sketch(values: Iterable[str]) -> bytes:
    """Sparse HyperLogLog registers of xxh64(seed 0) of the values: sorted ``index u16 | rank u8``.

    References
    ----------
    Flajolet et al., "HyperLogLog: the analysis of a near-optimal cardinality estimation algorithm", AofA 2007.
    """
    registers: dict[int, int] = {}
    for value in values:
        digest = xxhash.xxh64_intdigest(value.encode())
        index, rest = digest >> (64 - SKETCH_BITS), digest & ((1 << (64 - SKETCH_BITS)) - 1)
        rank = (64 - SKETCH_BITS) - rest.bit_length() + 1
        registers[index] = max(rank, registers.get(index, 0))
    return b"".join(index.to_bytes(2, "little") + bytes([rank]) for index, rank in sorted(registers.items()))


def estimate(payload: bytes) -> float:
    """Distinct values a sketch has seen, rounded; linear counting while registers are empty."""
    ranks = payload[2::3]
    return _estimate(len(ranks), reduce(add, (2.0**-rank for rank in ranks), 0.0))  # `sum` rounds as Python's version


def estimates(taken: Ints, powers: Floats) -> Floats:
    """Estimate n sketches, as :func:`estimate` does.

    Parameters
    ----------
    taken, powers : (n,)
        How many registers of each are not empty, and the sum of 2 to the power of minus their ranks.
    """
    return np.array([_estimate(*one) for one in zip(taken.tolist(), powers.tolist(), strict=True)], np.float64)


def estimate_registers(registers: NDArray[np.uint8]) -> Floats:
    """Estimate many dense sketches, (n, 4096) ranks with 0 for an empty register, as :func:`estimate` does.

    Sums of ranks up to ``EXACT_RANK`` are exact in float64, so their order is free.
    """
    empty = np.count_nonzero(registers == 0, axis=1)
    out = estimates(REGISTERS - empty, POWERS[registers].sum(axis=1) - empty)
    for row in np.flatnonzero(registers.max(axis=1, initial=0) > EXACT_RANK):
        ranks = registers[row][registers[row] > 0].tolist()
        out[row] = estimate(b"".join(b"\0\0" + bytes([rank]) for rank in ranks))
    return out


POWERS = 2.0 ** -np.arange(256.0)
"""By rank."""


def _estimate(taken: int, powers: float) -> float:
    empty = REGISTERS - taken
    harmonic = empty + powers
    raw = 0.7213 / (1 + 1.079 / REGISTERS) * REGISTERS * REGISTERS / harmonic
    if raw <= 2.5 * REGISTERS and empty:
        raw = REGISTERS * math.log(REGISTERS / empty)
    return float(round(raw))


def kept_entries(table: Table, entries: Iterable[Entry]) -> list[Entry]:
    """What one tile of a table of entries keeps of its own, oldest first."""
    n = table.n or 0
    if table.kind == "last_distinct":
        return newest_distinct(entries, n)
    return newest_operations(entries, n) if table.kind == "members" else sorted(entries)[-n:]


def newest_distinct(entries: Iterable[Entry], n: int) -> list[Entry]:
    """The newest entry of each value, of which the newest ``n``, oldest first; what a ``last_distinct`` tile keeps.

    The newest n of a union are among the newest n of its parts, so tiles merge exactly.
    """
    newest = {entry[2]: entry for entry in sorted(entries)}
    return sorted(newest.values())[-n:]


def newest_operations(entries: Iterable[Entry], n: int) -> list[Entry]:
    """What a ``members`` tile keeps, oldest first: the newest clear, and after it each value's newest operation.

    Of those the newest ``n``; what is no operation is left out. As with :func:`newest_distinct`, tiles merge exactly.
    """
    kept: list[Entry] = []
    touched: dict[str, Entry] = {}
    for entry in sorted(entries):
        told = operation(entry[2])
        if told is None:
            continue
        if told[0] == CLEARS:
            kept, touched = [entry], {}
        else:
            touched[told[1]] = entry
    return kept + sorted(touched.values())[-n:]


def operation(text: str) -> tuple[int, str] | None:
    """Read ``add:<value>``, ``remove:<value>`` or ``clear``; ``None`` for any other text."""
    if text == "clear":
        return CLEARS, ""
    verb, colon, value = text.partition(":")
    return (_VERBS[verb], value) if colon and verb in _VERBS else None


def members(entries: Iterable[Entry], n: int) -> list[str]:
    """Sorted members of a set after its operations: of the ``n`` values last touched since the newest clear."""
    told = (operation(text) for _, _, text in newest_operations(entries, n))
    return sorted(one[1] for one in told if one is not None and one[0] == ADDS)


def as_value(text: str, kind: ColumnKind) -> str | float | int:
    """An entry's canonical text in the column's own type."""
    return text if kind == "string" else int(text) if kind == "int" else int(text) / FIXED_SCALE
