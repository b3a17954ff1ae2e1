"""From vectors to an index that finds what was asked for: of the kind that suits, looking as far as it must."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.log import get_logger
from models.index.item_index import ItemIndex
from models.index.kinds import EXACT_BELOW, FLAT, HNSW, IVF_SQ8, KINDS, Kind, fits, n_lists, suitable
from models.index.walk import Bools, Float32s, Ints, faiss, graph_in

RECALL = 0.97
"""Share of the truly nearest that a search finds, by default."""
DEPTH = 500
"""Nearest items of which that share is measured: what a ranker is given."""
ASKED = 200
"""Queries that tune an index."""
TRAINED_PER_LIST = 64
ADDED_AT_A_TIME = 100_000
BUILT_BREADTH = 300
"""Candidates while a graph is built. With fewer, an item in a crowd is linked to that crowd alone, and who seeks many
has to look at three times as many until the next crowd comes (docs/performance.md)."""


def build(
    vectors: Float32s,
    exact_below: int = EXACT_BELOW,
    *,
    kind: str | None = None,
    queries: Float32s | None = None,
    recall: float = RECALL,
    depth: int = DEPTH,
    memory_bytes: float | None = None,
    threads: int = 1,
) -> ItemIndex:
    """Index vectors (n_items, dim); the same ones give the same index, with one thread.

    Parameters
    ----------
    kind
        A name of :data:`models.index.kinds.KINDS`; what suits the catalogue's size and the memory where there is none.
    queries : (n, dim)
        Such as users' vectors, by which the recall is measured; where there are none, items moved as far aside as they
        are long, since users do not lie where items do.
    recall
        Share of the ``depth`` nearest to find. Where what suits cannot reach it, however far it looks, all items are
        searched one by one, if the memory is there; where a kind is named, or there is no memory, a warning is logged.
    """
    faiss.omp_set_num_threads(threads)
    n, dim = vectors.shape
    chosen = KINDS[kind] if kind else suitable(n, dim, memory_bytes, exact_below)
    index = _built(chosen, vectors)
    if chosen is FLAT:
        return index
    reached = tune(index, chosen, _aside(_sample(vectors)) if queries is None else queries, recall, depth)
    if reached >= recall or kind or not fits(FLAT, n, dim, memory_bytes):
        return index
    return _built(FLAT, vectors)


def parts(vectors: Float32s) -> Iterator[Float32s]:
    """Rows a few at a time, so that what is mapped need not be in memory."""
    for begin in range(0, len(vectors), ADDED_AT_A_TIME):
        yield np.ascontiguousarray(vectors[begin : begin + ADDED_AT_A_TIME], np.float32)


def tune(index: ItemIndex, kind: Kind, queries: Float32s, recall: float, depth: int = DEPTH) -> float:
    """Let the index look as far as it must for a recall, by :data:`ASKED` of the queries; the recall that it has then.

    How far is part of the index, and stored with it.
    """
    asked = np.ascontiguousarray(queries[np.random.default_rng(1).permutation(len(queries))[:ASKED]], np.float32)
    k = min(depth, max(1, len(index) // 10))
    wanted = exact(index.vectors, asked, k)
    ladder = _ladder(index, kind, k)
    low, high = 0, len(ladder) - 1
    while low < high:  # the recall grows along the ladder
        middle = (low + high) // 2
        _look(index, kind, ladder[middle])
        low, high = (low, middle) if found_share(index, asked, wanted) >= recall else (middle + 1, high)
    _look(index, kind, ladder[low])
    reached = found_share(index, asked, wanted)
    told = get_logger("models")
    (told.info if reached >= recall else told.warning)(
        "index_tuned", kind=kind.name, items=len(index), looks=ladder[low], recall=round(reached, 4), wanted=recall
    )
    return reached


def exact(vectors: Float32s, queries: Float32s, k: int) -> Ints:
    """The k items with the largest inner products of each query (n, k), in no order."""
    best, items = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    done = 0
    for part in parts(vectors):
        scores = np.hstack([best, queries @ part.T])
        numbers = np.hstack([items, np.broadcast_to(np.arange(done, done + len(part)), (len(queries), len(part)))])
        kept = np.argpartition(-scores, k - 1, 1)[:, :k]
        best, items = np.take_along_axis(scores, kept, 1), np.take_along_axis(numbers, kept, 1)
        done += len(part)
    return items.astype(np.int32)


def found_share(index: ItemIndex, queries: Float32s, wanted: Ints, allowed: Bools | None = None) -> float:
    """Share of the wanted items (n, k) that the index finds among its k nearest."""
    found = index.search(queries, wanted.shape[1], allowed)
    return float(np.mean([np.isin(one, among) for one, among in zip(wanted, found, strict=True)]))


def gpus() -> int:
    """GPUs that FAISS sees: none where the extra ``cpu`` is installed."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def _built(kind: Kind, vectors: Float32s) -> ItemIndex:
    inner = _trained(kind, vectors)
    _add(inner, vectors)
    return ItemIndex(inner, vectors)


def _trained(kind: Kind, vectors: Float32s) -> Any:
    """An index without items."""
    n, dim = vectors.shape
    inner = faiss.index_factory(dim, kind.spec(dim, n_lists(n)), faiss.METRIC_INNER_PRODUCT)
    _train(inner, kind, vectors)
    return inner


def _train(inner: Any, kind: Kind, vectors: Float32s) -> None:
    if kind is FLAT:
        return
    some = _sample(vectors, TRAINED_PER_LIST * n_lists(len(vectors)))
    if kind.has_lists:
        inner.cp.min_points_per_centroid = 1  # said on stderr otherwise; the lists are short by choice
        if hasattr(inner, "pq"):
            inner.pq.cp.min_points_per_centroid = 1
        if gpus():
            inner.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(inner.d))
    inner.train(some)


def _add(inner: Any, vectors: Float32s) -> None:
    graph = graph_in(inner)
    if graph is None:
        for part in parts(vectors):
            inner.add(part)
        return
    graph.hnsw.efConstruction = BUILT_BREADTH
    for part in parts(vectors):
        graph.add(part)
    order = _neighbours_together(vectors)
    graph.permute_entries(order)
    faiss.copy_array_to_vector(order, inner.id_map)
    inner.ntotal = graph.ntotal


def _neighbours_together(vectors: Float32s) -> npt.NDArray[np.int64]:
    """Items in an order (n_items,) by which those that a walk looks at, one after the other, share pages of memory."""
    lists = _trained(IVF_SQ8, vectors)
    held = np.concatenate([lists.quantizer.assign(part, 1)[:, 0] for part in parts(vectors)])
    return np.argsort(held, kind="stable")


def _sample(vectors: Float32s, n: int = 10 * ASKED) -> Float32s:
    rows = np.sort(np.random.default_rng(2).permutation(len(vectors))[:n])
    return np.ascontiguousarray(vectors[rows], np.float32)


def _aside(vectors: Float32s) -> Float32s:
    drawn = np.random.default_rng(3).standard_normal(vectors.shape, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors + drawn * lengths / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def _ladder(index: ItemIndex, kind: Kind, k: int) -> list[int]:
    """Candidates or lists to look at, more at each step."""
    if kind is HNSW:
        return [round(k * grown) for grown in (1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16)]
    return sorted({min(index.inner.nlist, round(1.25**step)) for step in range(60)})


def _look(index: ItemIndex, kind: Kind, at: int) -> None:
    if kind is HNSW:
        graph_in(index.inner).hnsw.efSearch = at
    else:
        index.inner.nprobe = at
