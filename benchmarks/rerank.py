"""Twenty diverse places from five hundred candidates: the loops of the re-ranker beside the formulas in numpy."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headwater.bench import Measure, Sample, interleaved
from serving.rerank import dpp, mmr

CANDIDATES, DIM, LIMIT, LISTS = 500, 64, 20, 50
DIVERSITY, CENTRES, SPREAD = 0.3, 12, 0.6
POOL = CANDIDATES // LIMIT
MOST_MS = 0.5
AT_LEAST_MS = 50.0
Floats = NDArray[np.float32]


def measure(size: float) -> Sequence[Measure]:
    """CPU time of a list, at most half a millisecond, and how many lists differ from the formulas'."""
    rng = np.random.default_rng(2)
    cases = [_case(rng) for _ in range(max(3, int(LISTS * size)))]
    found: list[Measure] = []
    for name, fast, slow in (("MMR", mmr, naive_mmr), ("DPP", dpp, naive_dpp)):
        figures = interleaved(
            {"ours": partial(_every, cases, partial(fast, pool=POOL)), "formula": partial(_every, cases, slow)},
            at_least_ms=AT_LEAST_MS,
        )
        ours, formula = (figures[one].per(len(cases)) for one in ("ours", "formula"))
        found.append(_quick(f"{name}, {CANDIDATES} candidates × {DIM} to {LIMIT} places", ours, formula))
        differ = sum(
            fast(*case, LIMIT, DIVERSITY, pool=POOL).tolist() != slow(*case, LIMIT, DIVERSITY).tolist()
            for case in cases
        )  # fmt: skip
        found.append(Measure(f"{name}, lists that differ", differ, "lists", "lists", len(cases), None, 0, differ == 0))
    return found


def naive_mmr(scores: Floats, vectors: Floats, limit: int, diversity: float) -> NDArray[np.intp]:
    """Each place looks at all items and all places above it (Carbonell and Goldstein, SIGIR 1998)."""
    gain, chosen = (1 - diversity) * _relevance(scores), [int(scores.argmax())]
    while len(chosen) < limit:
        worth = gain - diversity * (vectors @ vectors[chosen].T).max(1)
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return np.array(chosen, np.intp)


def naive_dpp(scores: Floats, vectors: Floats, limit: int, diversity: float) -> NDArray[np.intp]:
    """Each place looks at the determinant of every set that it could make (Chen and others, NeurIPS 2018)."""
    likeness = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    gain, chosen = _relevance(scores) * ((1 - diversity) / diversity), list[int]()
    while len(chosen) < limit:
        among = likeness[np.ix_(chosen, chosen)]
        aside = likeness[:, chosen]
        left = likeness.diagonal() - np.einsum("ij,ji->i", aside, np.linalg.solve(among, aside.T))
        worth = gain + np.log(np.maximum(left, 1e-12))
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return np.array(chosen, np.intp)


def _case(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Scores, and vectors around a few points, as those of a user's candidates are."""
    centres = rng.standard_normal((CENTRES, DIM))
    vectors = centres[rng.integers(0, CENTRES, CANDIDATES)] + SPREAD * rng.standard_normal((CANDIDATES, DIM))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rng.standard_normal(CANDIDATES).astype(np.float32), units.astype(np.float32)


def _every(cases: list[tuple[Floats, Floats]], rerank: Callable[..., NDArray[np.intp]]) -> None:
    for scores, vectors in cases:
        rerank(scores, vectors, LIMIT, DIVERSITY)


def _relevance(scores: Floats) -> NDArray[np.float64]:
    return np.asarray((scores - scores.min()) / (scores.max() - scores.min()), np.float64)


def _quick(name: str, ours: Sample, formula: Sample) -> Measure:
    held = ours.median <= MOST_MS
    return Measure(
        f"{name}, at most {MOST_MS}", round(ours.median, 4), "CPU ms", "the formula in numpy", round(formula.median, 3),
        round(formula.median / ours.median, 2), None, held, ours.spread,
    )  # fmt: skip
