"""Finding near items without looking at all of them, beside an exact search; one query and one thread at a time."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ann_data import QUERIES, Case, Float32s, blocks, clusters, towers
from headwater.bench import Measure
from models.index import build
from models.index.building import exact, found_share
from models.index.walk import Bools, Ints, faiss

WARM = 20
DEPTH, LARGE_DEPTH = 500, 100


def measure(size: float, *, large: str = "yes") -> Sequence[Measure]:
    """Medians and recalls of each kind of index at a million items, and the tail of one at ten million.

    Parameters
    ----------
    large
        ``no`` leaves the ten million out, which take 10 GB of disk.
    """
    found: list[Measure] = []
    n = max(4_000, int(1_000_000 * size))
    for case in (clusters(n, 64), towers(n)):
        found += _kinds(case, DEPTH)
    if large == "no":
        return found
    with tempfile.TemporaryDirectory() as folder:
        found += _large(Path(folder) / "items.f32", max(4_000, int(10_000_000 * size)), 256)
    return found


def _kinds(case: Case, depth: int) -> Iterator[Measure]:
    flat = faiss.IndexFlatIP(case.items.shape[1])
    flat.add(case.items)
    wanted = exact(case.items, case.asked, depth)
    half, few = (np.random.default_rng(9).random(len(case.items)) < share for share in (0.5, 0.01))
    among = {share: _exact_among(case, depth, allowed) for share, allowed in (("50 %", half), ("1 %", few))}
    for kind in ("ivf_pq", "ivf_sq8", "hnsw_sq8"):
        began = time.monotonic()
        index = build(case.items, kind=kind, queries=case.tuned_by, threads=2)
        built = time.monotonic() - began
        told = f"{len(case.items):,} × {case.items.shape[1]}, {case.name}, {kind}"
        yield from _beside(told, case.asked, partial(index.nearest, k=depth), flat, depth, 20)
        share = found_share(index, case.asked, wanted)
        yield _recall(f"{told}, recall@{depth}", share, 0.97, f"built and tuned in {built:.0f} s")
        for name, allowed in (("50 %", half), ("1 %", few)):
            share = found_share(index, case.asked, among[name], allowed)
            times = _times(case.asked, partial(index.nearest, k=depth, allowed=allowed))
            told_ms = f"median {np.median(times):.2f} ms"
            yield _recall(f"{told}, recall@{depth} among {name} allowed", share, 0.97, told_ms)


def _large(path: Path, n: int, dim: int) -> Iterator[Measure]:
    """Vectors lie in a file, as those of a bundle do; what the index itself takes is told."""
    held = np.memmap(path, np.float32, "w+", shape=(n, dim))
    for begin, block in blocks(n, dim, seed=3):
        held[begin : begin + len(block)] = block
    queries = np.concatenate([block for _, block in blocks(2 * QUERIES, dim, seed=4)])
    began = time.monotonic()
    index = build(held, kind="ivf_sq8", queries=queries[QUERIES:], recall=0.955, depth=LARGE_DEPTH, threads=2)
    index.save(path.with_suffix(".faiss"))
    told = f"{n:,} × {dim}, generated clusters, ivf_sq8"
    note = f"built and tuned in {time.monotonic() - began:.0f} s; {path.with_suffix('.faiss').stat().st_size >> 20} MiB"
    asked, depth = queries[:QUERIES], LARGE_DEPTH
    times = _times(asked, partial(index.nearest, k=depth))
    p99 = float(np.quantile(times, 0.99))
    whole = _times(asked[:5], lambda one: exact(held, one, depth), warm=1)
    ratio = round(float(np.median(whole) / np.median(times)), 1)
    yield Measure(
        f"{told}, p99, at most 20", round(p99, 2), "ms", "exact search, median", round(float(np.median(whole))), ratio,
        None, p99 <= 20, note=f"median {np.median(times):.2f} ms",
    )  # fmt: skip
    yield _recall(f"{told}, recall@{depth}", found_share(index, asked, exact(held, asked, depth)), 0.95, note)


def _exact_among(case: Case, depth: int, allowed: Bools) -> Ints:
    rows = np.flatnonzero(allowed)
    return rows[exact(case.items[rows], case.asked, min(depth, len(rows)))].astype(np.int32)


def _beside(
    told: str, asked: Float32s, search: Callable[[Float32s], Any], flat: Any, depth: int, target: float
) -> Iterator[Measure]:
    faiss.omp_set_num_threads(1)
    figures = {"ours": _times(asked, search), "exact": _times(asked[:50], lambda one: flat.search(one, depth))}
    ours, whole = float(np.median(figures["ours"])), float(np.median(figures["exact"]))
    ratio = round(whole / ours, 1)
    note = f"p99 {np.quantile(figures['ours'], 0.99):.2f} ms"
    yield Measure(f"{told}, median", round(ours, 3), "ms", "exact search", round(whole, 2), ratio, target,
                  ratio >= target, note=note)  # fmt: skip


def _times(asked: Float32s, search: Callable[[Float32s], Any], warm: int = WARM) -> NDArray[np.float64]:
    """Milliseconds of each query, asked one by one."""
    times = []
    for at in (*range(min(warm, len(asked))), *range(len(asked))):
        began = time.perf_counter()
        search(asked[at : at + 1])
        times.append((time.perf_counter() - began) * 1000)
    return np.array(times[min(warm, len(asked)) :])


def _recall(name: str, share: float, target: float, note: str) -> Measure:
    return Measure(name, round(share, 4), "share", "exact search", 1.0, round(share, 4), target, share >= target,
                   note=note)  # fmt: skip
