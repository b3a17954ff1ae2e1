"""When a newly trained bundle may challenge: ``promotion.toml``, beside the definitions.

    [objective]
    business = "households find what they buy within four weeks"   # what it is for, in words
    metric = "ndcg@10"                     # what a bundle is compared by, on requests newer than its training

    [gates]                                # a bundle that fails one is refused; one that is left out judges nothing
    least_gain = 0.0                       # mean gain of the metric over the champion: above
    worst_gain = -0.01                     # lower end of the gain's 95 % interval: at least
    calibration_error = 0.02               # at most
    coverage = 0.01                        # share of the catalogue in the first ten of the judged requests: at least
    score_ms = 20                          # CPU milliseconds for 500 rows, one thread: at most
    size_mb = 500                          # of the bundle's files: at most

    [promotion]
    automatic = false                      # let what passes serve, without anybody's act

    [rollout]                              # without it, what may serve is champion at once
    shadow = "1d"                          # its scores are logged beside the champion's, shown to nobody, for so long
    ramp = [10, 50]                        # then so many percent of the users see it, one after the other,
    each = "1d"                            # for so long each; then it is champion (batch/rollout.py)
    least_lists = 1_000                    # a step lasts until it has made so many lists
    most_failed = 0.01                     # share of its lists that fail, beyond the champion's: more ends the rollout
    outcomes = ["click"]                   # surely fewer of these a shopper than under the champion end it too

    [retraining]
    learns_from = "requests"               # made of past purchases; or "impressions", as shown and labelled
    judged = "14d"                         # newest stretch, not trained on, by which a bundle is compared
    new_purchases = 100_000                # with final labels, since the champion's training; without: on schedule only
    shifted_features = 5                   # served unlike the training rows (headwater skew): more start a retraining

A bundle that was trained on other definitions is refused wherever it is named (:mod:`models.registry`).
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from headwater.declared import read_declared
from headwater.spans import Span
from models.bundle import Bundle
from models.evaluation.metrics import coverage, top_k_grouped
from models.ranking import DEPTH, Rows
from models.registry import CHALLENGER, SHADOW

FILE = "promotion.toml"
SCORED_ROWS, SCORED_TIMES = 500, 20
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(gt=0, lt=100)]
Lasting = Annotated[Span, Field(gt=timedelta(0))]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Strict):
    """What a bundle is for, and what it is compared by."""

    business: str = ""
    metric: Literal["ndcg@10"] = "ndcg@10"


class Gates(_Strict):
    """Limits, as the module tells them."""

    least_gain: Number | None = 0.0
    worst_gain: Number | None = None
    calibration_error: Share | None = None
    coverage: Share | None = None
    score_ms: Positive | None = None
    size_mb: Positive | None = None


class Promotion(_Strict):
    """Whose act it is."""

    automatic: bool = False


class Step(NamedTuple):
    """Part of a rollout: percent of the users who see the bundle, ``None`` for nobody, and how long it lasts."""

    share: float | None
    length: timedelta

    @property
    def alias(self) -> str:
        """What the bundle is called meanwhile."""
        return SHADOW if self.share is None else CHALLENGER

    def __str__(self) -> str:
        return self.alias if self.share is None else f"{self.share:g} % of the users"


class Rollout(_Strict):
    """How what has passed comes to serve."""

    shadow: Lasting | None = None
    ramp: tuple[Percent, ...] = ()
    each: Lasting = timedelta(days=1)
    least_lists: Annotated[int, Field(gt=0)] = 100
    most_failed: Share = 0.01
    outcomes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if list(self.ramp) != sorted(set(self.ramp)):
            raise ValueError(f"ramp {list(self.ramp)}: each share is above the one before")
        if not self.steps:
            raise ValueError("it has no step; give shadow or ramp, or leave the table out")
        return self

    @property
    def steps(self) -> tuple[Step, ...]:
        """In order; behind the last the bundle is champion."""
        first = () if self.shadow is None else (Step(None, self.shadow),)
        return (*first, *(Step(share, self.each) for share in self.ramp))


class Retraining(_Strict):
    """What it learns from, and when there is one before its time."""

    learns_from: Literal["requests", "impressions"] = "requests"
    judged: Lasting = timedelta(days=14)
    new_purchases: Annotated[int, Field(gt=0)] | None = None
    shifted_features: Annotated[int, Field(ge=0)] | None = None


class Rules(_Strict):
    """All of the file."""

    objective: Objective = Objective()
    gates: Gates = Gates()
    promotion: Promotion = Promotion()
    rollout: Rollout | None = None
    retraining: Retraining = Retraining()


DEFAULT_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Gate:
    """One limit and what was measured; ``value`` is ``None`` where nothing was, as a gain without a champion."""

    name: str
    value: float | None
    limit: float
    holds: bool

    def __str__(self) -> str:
        told = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{self.name} {told}, {_BOUNDS[self.name]} {self.limit:g}"


def load_rules(repo: Path) -> Rules:
    """Read a repository's file; where there is none, a bundle must gain over the champion, and nothing else.

    Raises
    ------
    ConfigError
        The file is not TOML, or a field is unknown or out of range.
    """
    try:
        return read_declared(repo / FILE, Rules)
    except FileNotFoundError:
        return Rules()


def judged(gates: Gates, measured: Mapping[str, float], has_champion: bool) -> Iterator[Gate]:
    """Hold what was measured to the limits; what cannot be measured without a champion is passed without one."""
    for name, limit in gates.model_dump(exclude_none=True).items():
        value = measured.get(name)
        if value is None or np.isnan(value):
            yield Gate(name, None, limit, not has_champion and name in _AGAINST_CHAMPION)
            continue
        bound = _BOUNDS[name]
        holds = value > limit if bound == "above" else value >= limit if bound == "at least" else value <= limit
        yield Gate(name, round(float(value), 6), limit, bool(holds))


def measure(bundle: Bundle, files: Path, rows: Rows | None) -> dict[str, float]:
    """What the gates ask of a bundle by itself.

    Parameters
    ----------
    files
        The bundle's folder.
    rows
        Judged requests; without them neither its coverage nor its speed is told.
    """
    found = {
        "calibration_error": bundle.meta.metrics.get("calibration_error", float("nan")),
        "size_mb": sum(file.stat().st_size for file in files.iterdir()) / 2**20,
    }
    if rows is not None:
        scores = bundle.ranker.score(rows.features)
        lists = top_k_grouped(rows.group, rows.item, scores, len(rows.at_ms), DEPTH)
        found |= {"coverage": coverage(lists, len(bundle.items), DEPTH), "score_ms": _score_ms(bundle, rows)}
    return found


_BOUNDS = {
    "least_gain": "above", "worst_gain": "at least", "coverage": "at least",
    "calibration_error": "at most", "score_ms": "at most", "size_mb": "at most",
}  # fmt: skip
_AGAINST_CHAMPION = ("least_gain", "worst_gain", "coverage", "score_ms")


def _score_ms(bundle: Bundle, rows: Rows) -> float:
    features: Any = np.resize(rows.features, (SCORED_ROWS, rows.features.shape[1]))
    bundle.ranker.score(features)
    times = []
    for _ in range(SCORED_TIMES):
        began = time.process_time()
        bundle.ranker.score(features)
        times.append((time.process_time() - began) * 1_000)
    return float(np.median(times))
