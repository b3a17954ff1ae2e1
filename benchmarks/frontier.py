"""Accuracy against diversity: the demo's own lists with more and more difference in them, by both methods.

Asks the funnel that serves, with the champion, store and held-out purchases that ``headwater demo`` left; start the
servers with ``headwater up``. One list per household at the platform's present instant, as the demo judges them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.pictures import INK, LOUD, pyplot, saved
from headwater.bench import Measure
from headwater.settings import get_settings
from models.evaluation.metrics import mean, ndcg
from serving.build import build_recommender
from serving.evaluation import dense_lists, held_out, served_lists
from serving.surfaces import DEFAULT
from serving.tuning import read_tuning

PLACES, FEWEST = 10, 50
MMR = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
DPP = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
COLOUR = {"mmr": INK, "dpp": LOUD}


@dataclass(frozen=True, slots=True)
class Point:
    """What lists of ten are like at one weight of diversity.

    Attributes
    ----------
    categories
        Different categories in a list, the mean.
    shown
        Different products in all lists.
    """

    method: str
    diversity: float
    ndcg: float
    categories: float
    shown: int


def measure(size: float, *, picture: str = "") -> Sequence[Measure]:
    """NDCG@10 at each weight beside that of lists in order of their scores.

    Parameters
    ----------
    picture
        File that the frontier is drawn to, SVG.
    """
    settings = get_settings()
    funnel = build_recommender(settings)
    data, wanted = held_out(settings)
    judged = wanted.users[: max(FEWEST, int(len(wanted.users) * size))]
    names = [str(name) for name in data.users.ids.values[judged]]
    category = data.items.codes["category"]
    control = read_tuning(settings.repo).control
    points = []
    for method, weights in (("mmr", MMR), ("dpp", DPP)):
        for diversity in weights:
            surface = control.surfaces.surfaces[DEFAULT].model_copy(update={"method": method, "diversity": diversity})
            surfaces = control.surfaces.model_copy(update={"surfaces": {**control.surfaces.surfaces, DEFAULT: surface}})
            served = served_lists(funnel.tuned(replace(control, surfaces=surfaces)), names, PLACES)
            found = dense_lists(served, data.items.ids, PLACES)
            score = mean(ndcg(wanted.hits(judged, found), wanted.sizes[judged], PLACES))
            different = np.mean([len(set(category[row[row >= 0]])) for row in found])
            points.append(Point(method, diversity, score, float(different), len(np.unique(found[found >= 0]))))
    if picture:
        draw(points, Path(picture))
    return [_told(point, points[0]) for point in points]


def _told(point: Point, plain: Point) -> Measure:
    note = f"{point.categories:.2f} categories in ten places, {point.shown} products in all lists"
    return Measure(
        f"{point.method.upper()}, diversity {point.diversity:g}: NDCG@10", round(point.ndcg, 4), "", "by score alone",
        round(plain.ndcg, 4), round(point.ndcg / plain.ndcg, 3), None, None, note=note,
    )  # fmt: skip


def draw(points: Sequence[Point], path: Path) -> None:
    """Categories in a list to the right, NDCG@10 upwards; each point with its weight."""
    figure, axes = pyplot().subplots(figsize=(7.2, 3.8), layout="constrained")
    for method, colour in COLOUR.items():
        of = [point for point in points if point.method == method]
        axes.plot([one.categories for one in of], [one.ndcg for one in of], "o-", color=colour, label=method.upper())
        for one in of:
            axes.annotate(
                f"{one.diversity:g}", (one.categories, one.ndcg), xytext=(4, 4), textcoords="offset points",
                color=colour, fontsize=8,
            )  # fmt: skip
    axes.set(xlabel="different categories in ten places", ylabel="NDCG@10")
    axes.legend(frameon=False)
    saved(figure, path)
