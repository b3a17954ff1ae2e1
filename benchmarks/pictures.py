"""Draw the pictures of docs/point-in-time.md from the definition itself: what they show is what the oracle folds.

``python -m benchmarks.pictures docs/pictures`` writes them again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.oracle import Row, fold, tail
from headwater.plan import HOUR_MS, Aggregate, View, parse_function

COUNT = Aggregate(
    feature="purchases_3h", function=parse_function("count", "purchases_3h"), column=None, kind="int", table="",
    window_ms=3 * HOUR_MS, hop_ms=HOUR_MS,
)  # fmt: skip
VIEW = View(
    name="purchases", join_keys=("user_id",), source="events", projection="", columns={}, ttl_ms=0,
    aggregates=(COUNT,), tables=(),
)  # fmt: skip
HAPPENED = (1.3, 2.2, 2.6, 4.1, 4.8, 5.5)
ARRIVED = {2.6: 5.2}
"""Hours; all others arrive as they happen."""
SPAN, STEPS_PER_HOUR = 9, 60
INK, SOFT, LOUD, PALE = "#1f3a5f", "#7f97b2", "#c8553d", "#e3eaf2"


def write(folder: Path) -> list[Path]:
    """Write both pictures, the same bytes each time, and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    return [saved(_sawtooth(), folder / "sawtooth.svg"), saved(_clocks(), folder / "two-clocks.svg")]


def purchases() -> list[Row]:
    """One household's purchases, one of which arrives hours after it happened."""
    return [
        Row(f"e{at}", int(hour * HOUR_MS), int(ARRIVED.get(hour, hour) * HOUR_MS), ("ann",), {})
        for at, hour in enumerate(HAPPENED)
    ]


def values(known: bool) -> tuple[Sequence[float], Sequence[int]]:
    """Hours, and the count of the last three hours at each, as known then or as of then."""
    hours = [at / STEPS_PER_HOUR for at in range(SPAN * STEPS_PER_HOUR)]
    rows = purchases()
    return hours, [int(fold(VIEW, rows, ("ann",), int(hour * HOUR_MS), known)[1][COUNT.feature] or 0) for hour in hours]


def _sawtooth() -> Any:
    figure, (windows, width) = _panels((3.0, 1.6))
    for hour in range(SPAN + 1):
        windows.axvline(hour, color=PALE, zorder=0)
    windows.plot(HAPPENED, [0.0] * len(HAPPENED), "|", color=INK, markersize=14, markeredgewidth=2)
    for at, instant in enumerate((4.0, 4.5, 4.95, 6.4), 1):
        first = tail(COUNT, int(instant * HOUR_MS)) / HOUR_MS
        _, held = fold(VIEW, purchases(), ("ann",), int(instant * HOUR_MS), known=False)
        windows.barh(at, instant - first, left=first, height=0.42, color=SOFT)
        windows.plot([instant], [at], ">", color=LOUD, markersize=5)
        windows.text(instant + 0.15, at, f"t = {instant:g} h: {held[COUNT.feature]:g}", va="center", color=INK)
    windows.set(yticks=[0], yticklabels=["events"], ylim=(-0.6, 4.7))
    windows.set_title("W = 3 h, h = 1 h: tail cut at a hop, head exact", loc="left", color=INK)
    hours = np.arange(3 * STEPS_PER_HOUR, SPAN * STEPS_PER_HOUR) / STEPS_PER_HOUR
    widths = [hour - tail(COUNT, round(hour * HOUR_MS)) / HOUR_MS for hour in hours]
    width.plot(hours, widths, color=LOUD)
    width.set(ylabel="t − tail, h", ylim=(2.8, 4.2), yticks=[3, 4], xlabel="hours")
    return figure


def _clocks() -> Any:
    figure, (events, counts) = _panels((1.3, 2.2))
    for row in purchases():
        happened, arrived = row.event_time / HOUR_MS, row.ingest_time / HOUR_MS
        late = arrived > happened
        events.plot([happened], [0], "|", color=LOUD if late else INK, markersize=14, markeredgewidth=2)
        if late:
            events.annotate("", (arrived, 0), (happened, 0), arrowprops={"arrowstyle": "->", "color": LOUD})
            events.text((happened + arrived) / 2, 0.35, "arrives late", ha="center", color=LOUD)
    events.set(yticks=[], ylim=(-0.5, 0.8))
    events.set_title("purchases when they happened", loc="left", color=INK)
    hours, as_known = values(known=True)
    _, as_of = values(known=False)
    leak = np.asarray(as_of) > np.asarray(as_known)
    counts.fill_between(hours, as_known, as_of, where=leak, step="post", color=LOUD, alpha=0.2, linewidth=0)
    counts.step(hours, as_of, where="post", color=LOUD, linestyle="--", label="as of t")
    counts.step(hours, as_known, where="post", color=INK, label="as known at t (training, serving)")
    counts.text(0.4, 3.9, "shaded: what a join on event time\nalone would leak", color=LOUD)
    counts.set(ylabel=COUNT.feature, ylim=(-0.2, 6.4), xlabel="hours")
    counts.legend(loc="upper right", frameon=False)
    return figure


def pyplot() -> Any:
    """Matplotlib in the documents' style: SVG whose text is text."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {
        "svg.hashsalt": "headwater", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    from matplotlib import pyplot as plotting

    return plotting


def _panels(heights: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = pyplot().subplots(
        2,
        1,
        sharex=True,
        figsize=(7.2, sum(heights) + 0.9),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    axes[1].set(xlim=(0, SPAN), xticks=range(SPAN + 1))
    return figure, axes


def saved(figure: Any, path: Path) -> Path:
    """Write a figure, the same bytes each time, and return where it is."""
    figure.savefig(path, metadata={"Date": None})
    pyplot().close(figure)
    return path


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
