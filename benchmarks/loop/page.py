"""A loop's page: one HTML file, whose plots are within it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loop.estimates import Foretold
from benchmarks.loop.exposure import exposures
from benchmarks.loop.run import Generation
from headwater.bench import Measure
from headwater.files import write_whole
from models.evaluation.metrics import Floats
from models.evaluation.plots import INK, LOUD, SOFT, drawn, set_into

JUDGED_BY = {"dr": INK, "snips_by_place": SOFT}
"""Estimators that are drawn; the bench counts all of them."""
TEMPLATE = Path(__file__).with_name("page.html")
HEIGHT = 2.8
Loop = Sequence[Generation]


def write_page(path: Path, on: Sequence[Loop], off: Sequence[Loop], measures: Sequence[Measure]) -> None:
    """Write what loops with exploration and without came to, of the same seeds in the same order."""
    shown = {name: [exposures(loop) for loop in loops] for name, loops in (("on", on), ("off", off))}

    def worth(loops: Sequence[Loop], of: str) -> Floats:
        return _means(loops, lambda one: float(one.lists[of].mean()))

    lines = {"with exploration": worth(on, "value"), "without": worth(off, "value")}
    others = {"best": "best", "own frequency": "own", "popular": "popular"}
    regret = {"with exploration": 1 - worth(on, "share"), "without": 1 - worth(off, "share")}
    plots = {
        "Worth of a list": _lines(
            lines | {name: worth(on, of) for name, of in others.items()}, "expected purchases"
        ),
        "Regret": _lines(regret, "share of the best list's worth"),
        "Products shown": _lines(_both(shown, lambda one: one.shown), "products"),
        "Unevenness of what was shown": _lines(_both(shown, lambda one: one.gini), "Gini"),
        "Average popularity of what was shown": _lines(
            _both(shown, lambda one: one.popularity), "shoppers who had bought it"
        ),
        "New products that were clicked": _lines(_both(shown, lambda one: one.discovered), "products so far"),
        "Time to discover a new product": _lines(
            _both(shown, lambda one: one.undiscovered), "days to its first click, or so far"
        ),
        "Scores as probabilities of a click": _lines(
            _both(shown, lambda one: one.calibration_error), "calibration error"
        ),
    }  # fmt: skip
    for places in sorted({told.places for loop in on for one in loop for told in one.foretold}):
        first = "the first place" if places == 1 else f"the first {places} places"
        plots[f"Estimate against truth, clicks of {first}"] = _against_truth(on, places)
    told = [_told(seed, name, number, one) for name, loops in (("on", on), ("off", off))
            for seed, loop in enumerate(loops, 1) for number, one in enumerate(loop)]  # fmt: skip
    text = set_into(TEMPLATE, plots, seeds=len(on), measures=measures, generations=told)
    write_whole(path, text)


def _told(seed: int, exploration: str, number: int, one: Generation) -> dict[str, Any]:
    decision = f"{one.verdict['decision']}: {one.verdict['reason']}" if one.verdict else "none was trained"
    if came := one.verdict.get("rollout"):
        decision += f"; {came}"
    worth, best = float(one.lists["value"].mean()), float(one.lists["best"].mean())
    return {
        "seed": seed, "exploration": exploration, "number": number, "lists": len(one.lists), "worth": worth,
        "best": best, "decision": decision, "foretold": "; ".join(map(_said, one.foretold)),
    }  # fmt: skip


def _said(foretold: Foretold) -> str:
    estimates = {name: foretold.estimates[name] for name in JUDGED_BY if name in foretold.estimates}
    told = [f"{name} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in estimates.items()]
    said = ", ".join(told) or f"refused: {foretold.refused}"
    places = "1 place" if foretold.places == 1 else f"{foretold.places} places"
    return f"{places}: truth {foretold.truth:.3f}, by {foretold.lists} lists {said}"


def _against_truth(loops: Sequence[Loop], places: int) -> str:
    """Each seed's estimates with their intervals beside the truth; a cross where they were refused."""
    told = [
        (seed, number, one)
        for seed, loop in enumerate(loops)
        for number, generation in enumerate(loop)
        for one in generation.foretold
        if one.places == places
    ]
    wide = 0.8 / len(loops)

    def draw(axes: Any) -> None:
        for seed, number, one in told:
            left = number - 0.4 + seed * wide
            axes.plot([left, left + 0.9 * wide], [one.truth, one.truth], color=LOUD, label="truth")
            if not one.estimates:
                axes.plot([left + 0.45 * wide], [one.truth], "x", color=LOUD, label="refused")
                continue
            for at, (name, colour) in enumerate(JUDGED_BY.items()):
                found, place = one.estimates[name], left + 0.9 * wide * (at + 0.5) / len(JUDGED_BY)
                axes.plot([place, place], [found.low, found.high], color=colour)
                axes.plot([place], [found.value], "o", color=colour, markersize=4, label=name)
        handles, names = axes.get_legend_handles_labels()
        once = dict(zip(names, handles, strict=True))
        axes.legend(once.values(), once.keys(), frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        numbers = sorted({number for _, number, _ in told})
        axes.set(xlabel="generation that the bundle learned from", ylabel="clicks a list", xticks=numbers)

    return drawn(draw, HEIGHT)


def _means(loops: Sequence[Sequence[Any]], of: Callable[[Any], float]) -> Floats:
    """Of each generation, over the seeds (n_generations,)."""
    found: Floats = np.array([[of(one) for one in loop] for loop in loops]).mean(0)
    return found


def _both(shown: Mapping[str, Sequence[Sequence[Any]]], of: Callable[[Any], float]) -> dict[str, Floats]:
    return {"with exploration": _means(shown["on"], of), "without": _means(shown["off"], of)}


def _lines(told: Mapping[str, Floats], label: str) -> str:
    styles = {"with exploration": {"color": INK, "marker": "o"}, "without": {"color": LOUD, "marker": "o"}}

    def draw(axes: Any) -> None:
        for at, (name, values) in enumerate(told.items()):
            style = styles.get(name, {"color": SOFT, "linestyle": ("-", "--", ":", "-.")[at % 4]})
            axes.plot(range(len(values)), values, label=name, markersize=4, **style)
        axes.set(xlabel="generation", ylabel=label, xticks=range(len(next(iter(told.values())))))
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return drawn(draw, HEIGHT)
