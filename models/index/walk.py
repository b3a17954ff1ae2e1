"""A graph of items, walked by a compiled loop: FAISS builds and stores it, but takes twice as long to walk it.

The walk is that of Malkov and Yashunin (TPAMI 2020, algorithms 2 and 5): down the levels to the nearest item within
reach, then on from the best item that is left, until none may be among the nearest. Most of its time was waiting for
memory: so an item's neighbours are asked for while those of the item before are judged, and the bytes of all of them
before the first is multiplied. Products are sums of integers: bytes, times what the query is in 16 bits.
"""

import threading
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from headwater.loops import compiled

faiss: Any = typed_faiss  # its stubs know the C++ signatures, not what its Python layer accepts

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LINE = 64
"""Bytes that memory gives at once."""
STEPS = 255
"""Into which a dimension's range is divided, by FAISS's scalar quantizer of 8 bits."""
MARKS = 255
"""Walks until what was seen is wiped: marks are bytes, and 0 is nobody's."""
_ALL = np.zeros(0, np.bool_)
_ITEM = int64(2**32 - 1)


def graph_in(inner: Any) -> Any:
    """The graph of an index that has one, whose items lie in another order than they are numbered in; else ``None``."""
    return faiss.downcast_index(inner.index) if isinstance(inner, faiss.IndexIDMap) else None


class _Scratch(threading.local):
    """What a walk writes to, of each thread: who was seen carries the walk's mark, so that nothing is wiped between."""

    def __init__(self, n_items: int) -> None:
        self.seen, self.mark = np.zeros(n_items, np.uint8), 0
        self.candidates = np.empty(n_items, np.int64)

    def begin(self) -> int:
        self.mark += 1
        if self.mark > MARKS:
            self.seen[:] = 0
            self.mark = 1
        return self.mark


@dataclass(frozen=True)
class Walk:
    """A graph's arrays, where FAISS holds them, mapped perhaps.

    Attributes
    ----------
    inner
        FAISS's index, whose memory the arrays are.
    order : (n_items,)
        Numbers of the items, as they lie in the graph.
    codes : (n_items * dim,)
    low, step : (dim,)
        A byte b of a dimension stands for low + step * b.
    links
        Neighbours of each item, level by level, padded with -1; those of item i begin at ``begins[i]``.
    levels
        Where a level's neighbours begin among an item's.
    """

    inner: Any
    order: Ints
    codes: Bytes
    low: Float32s
    step: Float32s
    links: Ints
    begins: Longs
    levels: Longs
    scratch: _Scratch

    @classmethod
    def of(cls, inner: Any) -> "Walk":
        """Read an ``IDMap,HNSW,SQ8`` index of FAISS."""
        graph, n = graph_in(inner), int(inner.ntotal)
        stored = faiss.downcast_index(graph.storage)
        low, width = np.split(faiss.vector_to_array(stored.sq.trained), 2)
        begins = faiss.rev_swig_ptr(graph.hnsw.offsets.data(), n + 1).view(np.int64)
        return cls(
            inner, faiss.vector_to_array(inner.id_map).astype(np.int32),
            faiss.rev_swig_ptr(stored.codes.data(), n * graph.d), low + width / (2 * STEPS), width / STEPS,
            faiss.rev_swig_ptr(graph.hnsw.neighbors.data(), int(begins[-1])), begins,
            faiss.vector_to_array(graph.hnsw.cum_nneighbor_per_level).astype(np.int64), _Scratch(n),
        )  # fmt: skip

    def nearest(self, queries: Float32s, k: int, breadth: int, allowed: Bools | None = None) -> tuple[Ints, Float32s]:
        """Items with the largest products, as :meth:`models.index.ItemIndex.nearest` has them.

        Parameters
        ----------
        breadth
            How many of the nearest, of those that are allowed, are kept while walking.
        """
        items, scores = np.full((len(queries), k), -1, np.int32), np.full((len(queries), k), -np.inf, np.float32)
        hnsw, breadth = graph_in(self.inner).hnsw, min(max(breadth, k), len(self.order))
        for at, query in enumerate(queries):
            weights, scale = _whole(query * self.step)
            found = np.empty(breadth, np.int64)
            n = _walk(
                weights, self.codes, self.links, self.begins, self.levels, self.order,
                _ALL if allowed is None else allowed, int(hnsw.entry_point), int(hnsw.max_level),
                self.scratch.seen, self.scratch.begin(), self.scratch.candidates, found,
            )  # fmt: skip
            best = -np.sort(found[:n])[:k]
            items[at, : len(best)] = self.order[best & _ITEM]
            scores[at, : len(best)] = (best >> 32) / scale + query @ self.low
        return items, scores


def _whole(weights: Float32s) -> tuple[npt.NDArray[np.int16], float]:
    """Integers in proportion to the weights (dim,), as large as sums of products with bytes allow, and the factor."""
    largest, sum_ = float(np.abs(weights).max()), float(np.abs(weights).sum())
    if not largest:
        return weights.astype(np.int16), 1.0
    scale = min((2**15 - 1) / largest, ((2**31 - 1) / STEPS - len(weights)) / sum_)
    return np.rint(weights * scale).astype(np.int16), scale


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _ask_for(typing_context: Any, array: Any, at: Any) -> Any:
    """Have memory bring a line of an array to the cache, and do not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        to_read, to_stay, is_data = number(0), number(3), number(1)
        asked = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(asked, [place, to_read, to_stay, is_data])
        return context.get_dummy_value()

    return types.void(array, at), generate


@compiled()
def _product(weights: Any, row: Bytes) -> Any:
    total = np.int32(0)
    for at in range(len(row)):
        total += np.int32(weights[at]) * np.int32(row[at])
    return total


@compiled()
def _rise(heap: Longs, n: int, key: int) -> None:
    """Add a key to a heap of n, the largest first."""
    at = n
    while at > 0 and heap[(at - 1) >> 1] < key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = key


@compiled()
def _sink(heap: Longs, n: int, key: int) -> None:
    """Put a key in the place of the largest of a heap of n."""
    at, below = 0, 1
    while below < n:
        if below + 1 < n and heap[below + 1] > heap[below]:
            below += 1
        if heap[below] <= key:
            break
        heap[at] = heap[below]
        at, below = below, 2 * below + 1
    heap[at] = key


@compiled()
def _walk(
    weights: Any, codes: Bytes, links: Ints, begins: Longs, levels: Longs, order: Ints, allowed: Bools,
    entry: int, top: int, seen: Bytes, mark: int, candidates: Longs, found: Longs,
) -> int:  # fmt: skip
    """Fill ``found`` with the nearest that were met, and return how many these are.

    A key is the product and, in its lower half, the item. ``candidates`` is a heap of those whose neighbours were not
    looked at, ``found`` one of keys with the other sign, so that the least of the nearest comes first.
    """
    dim, all_allowed, marked = len(weights), len(allowed) == 0, np.uint8(mark)
    rows = codes.reshape((len(order), dim))
    at, best = int64(entry), _product(weights, rows[entry])
    for level in range(top, 0, -1):
        came = int64(-1)
        while came != at:
            came = at
            for place in range(begins[came] + levels[level], begins[came] + levels[level + 1]):
                other = int64(links[place])
                if other < 0:
                    break
                product = _product(weights, rows[other])
                if product > best:
                    at, best = other, product
    key = int64(best) << 32 | at
    candidates[0], n_candidates, n_found = key, 1, 0
    seen[at] = marked
    if all_allowed or allowed[order[at]]:
        found[0], n_found = -key, 1
    others = np.empty(levels[1], np.int64)
    while n_candidates > 0:
        key = candidates[0]
        if n_found == len(found) and key < -found[0]:
            break
        n_candidates -= 1
        if n_candidates > 0:
            _sink(candidates, n_candidates, candidates[n_candidates])
            _ask_for(begins, candidates[0] & _ITEM)
        begin, n_others = begins[key & _ITEM], 0
        for place in range(begin, begin + levels[1]):
            other = int64(links[place])
            if other < 0:
                break
            if seen[other] != marked:
                seen[other] = marked
                for line in range(other * dim, (other + 1) * dim, LINE):
                    _ask_for(codes, line)
                _ask_for(codes, (other + 1) * dim - 1)
                others[n_others] = other
                n_others += 1
        if n_candidates > 0:
            following = begins[candidates[0] & _ITEM]
            for line in range(following, following + levels[1], LINE // 4):
                _ask_for(links, line)
        for place in range(n_others):
            other = others[place]
            key = int64(_product(weights, rows[other])) << 32 | other
            if n_found == len(found) and key <= -found[0]:
                continue
            _rise(candidates, n_candidates, key)
            n_candidates += 1
            if all_allowed or allowed[order[other]]:
                if n_found == len(found):
                    _sink(found, n_found, -key)
                else:
                    _rise(found, n_found, -key)
                    n_found += 1
    return n_found
