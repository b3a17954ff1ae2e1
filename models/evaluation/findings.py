"""What a version's page tells, as figures: quality by segment, calibration, exposure.

All methods put the same candidates in order: the version, the one it is compared with, and two rules that learn
nothing. Lists are the first ten.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration import expected_calibration_error
from models.evaluation.exposure import diversity, gini, novelty, popularity_shown
from models.evaluation.metrics import (
    PAD,
    Bools,
    Floats,
    Interval,
    Ints,
    coverage,
    mean,
    paired_bootstrap,
    top_k_grouped,
)
from models.evaluation.past import Past
from models.ranking import DEPTH, Rows

SEED = 20171126
NEW = timedelta(days=28)
"""How lately a new user or item was first seen."""
BINS = 15


@dataclass(frozen=True, slots=True)
class Segment:
    """Mean NDCG@10 with its 95 % interval, and the gain over each other method; None with fewer than two requests."""

    name: str
    requests: int
    ndcg: Interval | None
    gains: Mapping[str, Interval | None]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of about as many rows: mean probability, share of positives and weight (n_bins,), and the error over all."""

    told: Floats
    found: Floats
    weight: Floats
    error: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a method's lists show; ``diversity`` None where items have no category."""

    coverage: float
    novelty_bits: float
    popularity: float
    gini: float
    diversity: float | None


def rules_of(past: Past) -> dict[str, Floats]:
    """Scores (n,) of the rules, ties of the second by the first."""
    popular = past.item_count.astype(np.float64)
    place = np.empty(len(popular))
    place[np.lexsort((popular, past.habit))] = np.arange(len(popular))
    return {"popularity": popular, "own frequency": place}


def segments(rows: Rows, scores: Mapping[str, npt.NDArray[Any]], past: Past) -> list[Segment]:
    """Judge the first method of ``scores`` against the others, over all and in parts.

    Requests are parted by their user; repeats, first purchases and new items count what is relevant only there.
    """
    first = np.searchsorted(rows.group, np.arange(len(rows.at_ms)))  # a request's first row
    new_ms = NEW // timedelta(milliseconds=1)
    is_new = (past.user_age_ms <= new_ms)[first]
    usual = np.median(past.user_count[first][~is_new]) if not is_new.all() else 0
    heavy = (past.user_count[first] >= usual) & ~is_new
    everyone, everything = np.ones(len(rows.at_ms), bool), np.ones(len(rows), bool)
    parts: dict[str, tuple[Bools, Bools]] = {
        "all": (everyone, everything),
        "repeats": (everyone, past.pair_count > 0),
        "first purchases": (everyone, past.pair_count == 0),
        "new users": (is_new, everything),
        "light users": (~is_new & ~heavy, everything),
        "heavy users": (heavy, everything),
        "new items": (everyone, past.item_age_ms <= new_ms),
    }
    return [_segment(name, rows, scores, *part) for name, part in parts.items()]


def _segment(
    name: str, rows: Rows, scores: Mapping[str, npt.NDArray[Any]], requests: Bools, relevant: Bools
) -> Segment:
    some = replace(rows, label=(rows.label * relevant).astype(np.int8))
    values = {method: some.ndcg(found)[requests] for method, found in scores.items()}
    own, *others = values
    told = int(np.isfinite(values[own]).sum())
    if told < 2:
        return Segment(name, told, None, dict.fromkeys(others))
    return Segment(
        name, told, paired_bootstrap(values[own], np.zeros(len(values[own])), SEED),
        {other: paired_bootstrap(values[own], values[other], SEED) for other in others},
    )  # fmt: skip


def reliability(probabilities: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike) -> Reliability:
    """Hold probabilities (n,) to labels (n,); bins and error as :func:`expected_calibration_error` has them."""
    p, y, w = (np.asarray(each, np.float64) for each in (probabilities, label, weight))
    edges = np.unique(np.quantile(p, np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="right")
    heavy = np.asarray(np.bincount(place, w), np.float64)
    held = heavy > 0
    told, found = (np.bincount(place, w * each)[held] / heavy[held] for each in (p, y))
    return Reliability(told, found, heavy[held], expected_calibration_error(p, y, BINS, w))


def top(rows: Rows, item: Ints, scores: npt.NDArray[Any]) -> Ints:
    """The first ten of each request as items (n_groups, 10), -1 where there are fewer; ``item`` numbers each row's."""
    places = top_k_grouped(rows.group, np.arange(len(rows), dtype=np.int32), scores, len(rows.at_ms), DEPTH)
    return np.where(places == PAD, PAD, item[np.maximum(places, 0)]).astype(np.int32)


def exposure(lists: Ints, buyers: Ints, n_users: int, kinds: Ints | None) -> Exposure:
    """Judge what lists (n_requests, 10) show; ``buyers`` and ``kinds`` are by item (n_items,)."""
    varied = None if kinds is None else mean(diversity(lists, kinds))
    return Exposure(
        coverage(lists, len(buyers), DEPTH), novelty(lists, buyers, n_users), popularity_shown(lists, buyers),
        gini(lists, len(buyers)), varied,
    )  # fmt: skip
