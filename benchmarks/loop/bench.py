"""The loop in a simulated world: does what was shown teach the next model, and what does exploration give and cost?

One history and one first bundle, and from there two platforms side by side: for each seed, five generations with
exploration on the one and five without on the other. All figures are simulated: shoppers' tastes come
from the data, and what a list is worth to them is known exactly (docs/simulation.md).
"""

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.loop.estimates import Foretold
from benchmarks.loop.exposure import Exposure, exposures
from benchmarks.loop.page import write_page
from benchmarks.loop.run import Generation, apart, audited, play, prepare
from benchmarks.parts import settings_in
from headwater.bench import Measure
from headwater.cli.output import err
from headwater.errors import ConfigError
from headwater.settings import Settings
from models.evaluation.metrics import Floats, Interval, paired_bootstrap
from simulation.config import WorldConfig, load_world_config

GENERATIONS, DAYS, SEEDS = 5, 4, 3
SESSIONS_A_DAY = 0.55
PREPARED, EXPLORE, EXPLOIT, MOST_SEEDS = "prepared", "explore", "exploit", 9
"""Folders of what is prepared and, with the seed behind, of its copies: names as long, as databases hold paths."""
MOST_COST = 0.05
HOME = "sources = { buy_it_again = 120, two_tower = 100, popular = 40, trending = 20 }"
EXPLORING = (
    "sources = {{ buy_it_again = 120, two_tower = 100, popular = 40, trending = 20, new_items = 20, "
    "exploration = 10 }}\n"
    "explore = {{ share = {share}, temperature = 0.1, epsilon = {epsilon}, slot = 8, "
    'among = ["new_items"] }}'
)
SHARE, EPSILON, KEPT, LEAST = 0.25, 0.3, 0.6, 0.36
"""Of the first generation; each keeps so much of the one before's, as there is more and more to learn from, down to the
least of the first's: with an eighth of it the last showed fewer products than without, in one of two runs."""
DEADLINE_MS = 2_000
"""Of a list, on cores that two platforms and their retrainings share: what is learned from is no list that was late."""
RULES = {"popular": "what everyone buys", "own": "what the shopper bought most"}
BOOTSTRAP_SEED = 20171126
Loop = Sequence[Generation]


@dataclass(frozen=True)
class Gain:
    """Means over shoppers, and their difference with its interval."""

    ours: float
    theirs: float
    difference: Interval
    shoppers: int

    @classmethod
    def of(cls, pairs: Floats) -> "Gain":
        """Of pairs (n_shoppers, 2), ours first."""
        ours, theirs = pairs.T
        return cls(float(ours.mean()), float(theirs.mean()), paired_bootstrap(ours, theirs, BOOTSTRAP_SEED), len(pairs))


def measure(size: float, *, seeds: int = SEEDS, generations: int = GENERATIONS, page: str = "") -> Sequence[Measure]:
    """Worth of generations beside the first and beside fixed rules, and what exploration gives and costs.

    Parameters
    ----------
    size
        Share of the sessions.
    page
        File to write the loops' page to.

    Raises
    ------
    ConfigError
        There would be nothing to compare.
    """
    if not 1 <= seeds <= MOST_SEEDS or generations < 2:
        raise ConfigError(
            f"bench loop: {seeds} seeds of {generations} generations. Ask for 1 to {MOST_SEEDS} seeds of at least 2."
        )
    with tempfile.TemporaryDirectory(prefix="headwater-loop-") as name, ThreadPoolExecutor(2) as pool:
        prepared = Path(name) / PREPARED
        prepared.mkdir()
        prepare(_settings(prepared), partial(_say, "both"))
        (on, ours), (off, theirs) = pool.map(
            lambda which: apart(
                _loops, prepared, which,
                [surfaces_of(which == EXPLORE, number) for number in range(generations)], seeds, size,
            ),
            (EXPLORE, EXPLOIT),
        )  # fmt: skip
    measures = [*found(on, off), exactness([ours, theirs])]
    if page:
        write_page(Path(page), on, off, measures)
    return measures


def _settings(folder: Path) -> Settings:
    """Of a platform that shares two cores with another: more partitions would only be more tasks, and more threads."""
    return settings_in(folder, partitions=1)


def _copied(prepared: Path, folder: Path) -> Settings:
    """A platform that goes on from where another ended, in a folder of its own, which its files name.

    The example's data stay where they were: feature definitions name them, and models are of these definitions.
    """
    assert len(str(prepared)) == len(str(folder))
    named, name = re.compile(re.escape(os.fsencode(prepared)) + rb"(?!/state/data/)"), os.fsencode(folder)

    def copy(source: str, target: str) -> None:
        Path(target).write_bytes(named.sub(name, Path(source).read_bytes()))
        shutil.copystat(source, target)

    shutil.copytree(prepared, folder, symlinks=True, copy_function=copy)
    return _settings(folder)


def _loops(
    prepared: Path, which: str, surfaces: Sequence[str], seeds: int, size: float
) -> tuple[list[Loop], Mapping[str, Any]]:
    """A loop of each seed, from the same beginning, and what an audit says of the first, in one warm process."""
    loops: list[Loop] = []
    audit: Mapping[str, Any] = {}
    for seed in range(1, seeds + 1):
        folder = prepared.with_name(f"{which}{seed}")
        settings, say = _copied(prepared, folder), partial(_say, folder.name)
        say("begins")
        loops.append(play(settings, world_config(seed, size), surfaces, DAYS, folder / "world", say))
        if not audit:
            say("every vector that was served is computed again")
            audit = audited(settings)
    return loops, audit


def surfaces_of(explores: bool, number: int) -> str:
    """The shipped surfaces with the loop's deadline, and where it explores, the home page of a generation, from 0."""
    shipped = (files("serving") / "surfaces.toml").read_text()
    assert HOME in shipped
    kept = max(KEPT**number, LEAST)
    home = EXPLORING.format(share=SHARE * kept, epsilon=EPSILON * kept) if explores else HOME
    return shipped.replace(HOME, f"deadline_ms = {DEADLINE_MS}\n{home}")


def found(on: Sequence[Loop], off: Sequence[Loop]) -> list[Measure]:
    """Figures of loops with exploration and without, of the same seeds in the same order."""
    last = [loop[-1].lists for loop in on]
    best = max(RULES, key=lambda rule: float(np.mean([lists[rule].mean() for lists in last])))
    shown, without = [exposures(loop) for loop in on], [exposures(loop) for loop in off]
    return [
        _above("the last generation", "the first", over_the_first(on)),
        _above("the last generation", "the first", over_the_first(on, "share"), "share of the best list's worth"),
        _above("the last generation", RULES[best], over_a_rule(on, best)),
        _above("the last without exploration", "the first", over_the_first(off)),
        _cost(_worth(on, 0), _worth(off, 0)),
        _more("products shown by the last generation", shown, without, lambda one: one.shown),
        _more("new products clicked by its end", shown, without, lambda one: one.discovered),
        _more(
            "days that a new product waits for its first click", shown, without, lambda one: one.undiscovered,
            target=None,
        ),
        _more("unevenness (Gini) of what it showed", shown, without, lambda one: one.gini, target=None),
        _more("shoppers who had bought what it showed", shown, without, lambda one: one.popularity, target=None),
        _more(
            "calibration error of its scores, as probabilities of a click", shown, without,
            lambda one: one.calibration_error, target=None,
        ),
        _held([told for loop in on for one in loop for told in one.foretold]),
    ]  # fmt: skip


def _held(foretold: Sequence[Foretold]) -> Measure:
    """Share of the estimates of policies like new bundles' whose interval holds the truth."""
    made, held, refused = Counter[str](), Counter[str](), Counter[int]()
    for one in foretold:
        made.update(one.estimates.keys())
        held.update(name for name, holds in one.held.items() if holds)
        refused[one.places] += not one.estimates
    share = held.total() / made.total() if made else 0.0
    told = [f"{name} {held[name]} of {count}" for name, count in sorted(made.items())]
    asked = Counter(one.places for one in foretold)
    told += [f"first {places}: {refused[places]} of {count} refused" for places, count in sorted(asked.items())]
    return Measure(
        "estimates of a new bundle's clicks whose interval holds the truth", round(share, 3), "of them",
        "estimates", made.total(), None, None, None, note=", ".join([*told, "simulated"]),
    )  # fmt: skip


def exactness(audits: Sequence[Mapping[str, Any]]) -> Measure:
    """Values that were served and are others when computed again."""
    told = {name: sum(audit[name] for audit in audits) for name in ("impressions", "vectors", "cells", "mismatched")}
    differ = Counter[str]()
    for audit in audits:
        differ.update({name: tally["mismatched"] for name, tally in audit["by_feature"].items()})
    which = "".join(f", {name} {cells:,}" for name, cells in sorted((+differ).items()))
    return Measure(
        "values served that differ from those computed again", told["mismatched"], "cells", "vectors",
        told["vectors"], None, 0, not told["mismatched"] and told["vectors"] > 0,
        note=f"{told['impressions']:,} lists, {told['cells']:,} cells, the first seed's loops{which}",
    )  # fmt: skip


def over_the_first(loops: Sequence[Loop], of: str = "value") -> Gain:
    """The last generation beside the first: mean worth of the lists of each shopper who was in both.

    With ``share``, worth as a share of the best list's: what can be had changes as tastes drift and trends pass.
    """
    pairs = [
        pd.concat([loop[at].lists.groupby("user_id")[of].mean() for at in (-1, 0)], axis=1).dropna() for loop in loops
    ]
    return Gain.of(np.concatenate([pair.to_numpy() for pair in pairs]))


def over_a_rule(loops: Sequence[Loop], rule: str) -> Gain:
    """The last generation beside a rule that was asked for the same lists: mean worth of each shopper's."""
    pairs = [loop[-1].lists.groupby("user_id")[["value", rule]].mean().to_numpy() for loop in loops]
    return Gain.of(np.concatenate(pairs))


def _above(name: str, baseline: str, gain: Gain, what: str = "expected purchases a list") -> Measure:
    by = gain.difference
    note = f"{by.mean:+.4f} [{by.low:+.4f}, {by.high:+.4f}] over {gain.shoppers} shoppers, simulated"
    ratio = round(gain.ours / gain.theirs, 3)
    return Measure(
        f"{name}, {what}", round(gain.ours, 4), "", baseline, round(gain.theirs, 4), ratio, 1.0, by.low > 0, note=note
    )


def _cost(on: float, off: float) -> Measure:
    cost = 1 - on / off
    return Measure(
        "what exploration takes from the first generation's worth", round(cost, 4), "of it", "worth without",
        round(off, 4), None, MOST_COST, cost <= MOST_COST, note="simulated",
    )  # fmt: skip


def _more(
    name: str, on: Sequence[Sequence[Exposure]], off: Sequence[Sequence[Exposure]], of: Callable[[Exposure], float],
    target: float | None = 1.0,
) -> Measure:  # fmt: skip
    """Of the last generation, means over the seeds; those of all generations in the note."""
    ours, theirs = (
        [float(np.mean([of(one) for one in row])) for row in zip(*loops, strict=True)] for loops in (on, off)
    )
    told, beside = (", ".join(f"{value:.4g}" for value in values) for values in (ours, theirs))
    ratio = round(ours[-1] / theirs[-1], 3) if theirs[-1] else float(ours[-1] > 0)
    return Measure(
        name, round(ours[-1], 3), "", "without exploration", round(theirs[-1], 3), ratio, target,
        None if target is None else ours[-1] > theirs[-1], note=f"by generation {told}; without {beside}; simulated",
    )  # fmt: skip


def _worth(loops: Sequence[Loop], at: int) -> float:
    """Mean expected purchases of a generation's lists."""
    return float(np.concatenate([loop[at].lists["value"].to_numpy() for loop in loops]).mean())


def world_config(seed: int, size: float) -> WorldConfig:
    """The shipped world with more sessions."""
    config = load_world_config().seeded(seed)
    shoppers = config.shoppers.model_copy(update={"sessions_a_day": SESSIONS_A_DAY * size})
    return config.model_copy(update={"shoppers": shoppers})


def _say(who: str, line: str) -> None:
    err.print(f"[dim]{who}: {line}[/dim]", highlight=False, soft_wrap=True)
