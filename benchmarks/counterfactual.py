"""Estimates of what was not shown, where the truth is known: simulated worlds, and the Open Bandit sample beside them.

In each world one policy draws lists, people look at places less the lower they are and click on what they like, and
the value of another policy is estimated from that log alone, by the code that ``headwater evaluate --policy`` runs. The
true value is summed over all lists that there are.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import open_bandit
from benchmarks.worlds import ALL_ALIKE, NAMES, World
from headwater.bench import Measure, Sample
from headwater.errors import DataError
from models.evaluation.counterfactual import NORMAL, Estimate, estimate
from models.evaluation.policies import by_ranker, log_of
from models.objectives import DEFAULT_OBJECTIVES, Position
from models.propensity import from_randomised, from_swaps
from models.ranking import RankerConfig, fit_ranker
from models.rows import read_rows

WORLDS, LISTS, SITUATIONS, ITEMS = 1_000, 2_000, 40, 7
EXAMINED, DEEP = (1.0, 0.6, 0.35), (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5)
TEMPERATURE, STUBBORN = 0.6, 0.05
LOGGED, NEW = (0.4, 1.0, 0.3), (1.0, 0.3, 0.0)
"""What either policy orders by: the one that is logged mostly by what tells nothing of relevance."""
LEAST, MOST = 0.93, 0.97
ESTIMATORS = {
    "ips_by_place": "IPS by place", "snips_by_place": "SNIPS by place", "dr": "DR", "ips": "IPS of whole lists",
    "snips": "SNIPS of whole lists",
}  # fmt: skip
PROPENSITY_LISTS, PROPENSITY_WORLDS, MOST_OFF = 60_000, 5, 0.10
RANKER_LISTS, RANKER_WORLDS, CANDIDATES = 6_000, 10, 20
BY_HABIT = (0.2, 1.0, 0.0), 0.05
"""What the log that rankers learn from was ordered by, with little left to chance."""


@dataclass(frozen=True)
class Linear:
    """A ranker whose score is a weighted sum."""

    leaning: Sequence[float]
    feature_names: tuple[str, ...] = NAMES

    def score(self, features: Any) -> Any:
        return (features.astype(np.float64) @ np.array(self.leaning)).astype(np.float32)


def measure(size: float) -> Sequence[Measure]:
    """Coverage of the intervals, what is refused, propensities and rankers against the truth, and the real sample."""
    worlds = max(20, int(WORLDS * size))
    found = [*_coverage(worlds, max(500, int(LISTS * min(1.0, 10 * size)))), _refused(max(5, worlds // 20))]
    found += _propensities(max(5_000, int(PROPENSITY_LISTS * size)), max(2, int(PROPENSITY_WORLDS * size)))
    found.append(_ranker(max(3, int(RANKER_WORLDS * size))))
    return [*found, *open_bandit.measure()]


def _world(seed: int) -> tuple[World, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return World.drawn(rng, SITUATIONS, ITEMS, EXAMINED), rng


def judged(seed: int, n: int) -> tuple[float, dict[str, Estimate]]:
    """True value of the new policy in a world, and its estimates from ``n`` lists of the logged one."""
    world, rng = _world(seed)
    log = log_of(world.log(rng, n, world.weights(LOGGED, TEMPERATURE)), f"world {seed}")
    truth = world.value(world.weights(NEW, TEMPERATURE))
    return truth, dict(estimate(by_ranker(log, Linear(NEW), TEMPERATURE, seed)))


def _coverage(worlds: int, n: int) -> Iterator[Measure]:
    held, width, off, refused = Counter[str](), dict[str, list[float]](), dict[str, list[float]](), 0
    for seed in range(worlds):
        try:
            truth, found = judged(seed, n)
        except DataError:
            refused += 1
            continue
        for name, one in found.items():
            held[name] += one.low <= truth <= one.high
            width.setdefault(name, []).append(one.high - one.low)
            off.setdefault(name, []).append(one.value - truth)
    told = worlds - refused
    for name, shown in ESTIMATORS.items():
        share = held[name] / max(told, 1)
        note = f"mean width {np.mean(width[name]):.4f}, bias {np.mean(off[name]):+.5f}; {refused} of {worlds} refused"
        yield Measure(
            f"{shown}, 95 % intervals that hold the truth, {LEAST:.0%} to {MOST:.0%}", round(share, 4), "share",
            "worlds", told, None, None, LEAST <= share <= MOST, note=note,
        )  # fmt: skip


def _refused(worlds: int) -> Measure:
    """Ask of a log that shows each situation its one list what another list would earn."""
    kept = 0
    for seed in range(worlds):
        world, rng = _world(seed)
        log = log_of(world.log(rng, LISTS, world.weights(LOGGED, STUBBORN)), f"world {seed}")
        try:
            estimate(by_ranker(log, Linear(NEW), STUBBORN))
            kept += 1
        except DataError:
            continue
    return Measure(
        "estimates made where the log has no support", kept, "worlds", "worlds", worlds, None, 0, not kept
    )  # fmt: skip


def _propensities(n: int, worlds: int) -> Iterator[Measure]:
    """The worst place of the worst world, over the truth."""
    truth = np.array(DEEP)
    worst = {"lists in random order": 0.0, "swaps": 0.0}
    for seed in range(worlds):
        world = replace(_world(seed)[0], examined=truth)
        rng = np.random.default_rng(1_000 + seed)
        for name in worst:
            drawn = world.weights(LOGGED, ALL_ALIKE if name != "swaps" else TEMPERATURE)
            rows = world.log(rng, n, drawn)
            rows = rows.filter(rows["shown"])
            position, clicked = rows["position"].to_numpy(), rows["label"].to_numpy()
            if name == "swaps":
                pair = rows["user_id"].cast(pa.int64()).to_numpy() * ITEMS + rows["item_id"].cast(pa.int64()).to_numpy()
                value = from_swaps(position, clicked, pair).value
            else:
                value = from_randomised(position, clicked, rows["request_id"].to_numpy()).value
            worst[name] = max(worst[name], float(np.abs(value / truth - 1).max()))
    for name, off in worst.items():
        yield Measure(
            f"position propensities from {name}, furthest from the truth", round(off, 4), "share", "allowed", MOST_OFF,
            None, MOST_OFF, off <= MOST_OFF, note=f"{worlds} worlds of {n} lists, {len(DEEP)} places",
        )  # fmt: skip


def _ranker(worlds: int) -> Measure:
    """True value of the order of trees that learned with estimated propensities, and of those that did without."""
    values: dict[str, list[float]] = {"none": [], "weights": []}
    with TemporaryDirectory() as folder:
        for seed in range(worlds):
            rng = np.random.default_rng(2_000 + seed)
            world = World.drawn(rng, RANKER_LISTS, CANDIDATES, DEEP)
            drawn = world.log(rng, PROPENSITY_LISTS // 4, world.weights(LOGGED, ALL_ALIKE))
            drawn = drawn.filter(drawn["shown"])
            known = from_randomised(*(drawn[name].to_numpy() for name in ("position", "label", "request_id"))).known
            pq.write_table(world.log(rng, RANKER_LISTS, world.weights(*BY_HABIT)), Path(folder) / "part.parquet")
            rows, fresh = read_rows(Path(folder), NAMES), World.drawn(rng, 2_000, CANDIDATES, DEEP)
            for correction, found in values.items():
                place = Position.model_validate({"correction": correction, "propensities": known, "clip": 100})
                declared = DEFAULT_OBJECTIVES.model_copy(update={"position": place})
                ranker = fit_ranker(rows, NAMES, replace(RankerConfig(), declared=declared)).ranker
                scores = ranker.score(fresh.features.reshape(-1, len(NAMES)).astype(np.float32))
                found.append(fresh.best_value(scores.reshape(len(fresh.features), -1).astype(np.float64)))
    gain = np.array(values["weights"]) - np.array(values["none"])
    wide = NORMAL * gain.std(ddof=1) / np.sqrt(worlds)
    ours, theirs = (Sample(values[name]) for name in ("weights", "none"))
    return Measure(
        "true value of a list in the ranker's order", round(ours.median, 4), "clicks", "learned without propensities",
        round(theirs.median, 4), round(ours.median / theirs.median, 3), 1.0, bool(gain.mean() - wide > 0), ours.spread,
        note=f"gain {gain.mean():+.4f} [{gain.mean() - wide:+.4f}, {gain.mean() + wide:+.4f}] over {worlds} worlds",
    )  # fmt: skip
