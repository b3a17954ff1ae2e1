"""The plots of a version's page, as SVG to be set into it; the same figures give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.evaluation.findings import Reliability, Segment
from models.evaluation.metrics import Bools, Interval

INK, SOFT, LOUD, PALE = "#1f3a5f", "#7f97b2", "#c8553d", "#e3eaf2"
STYLE: Any = {
    "svg.hashsalt": "headwater", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
WIDTH = 6.4
SHEET = Path(__file__).with_name("page.css")
STRONGEST = 20


def gains(found: Sequence[Segment], other: str) -> str:
    """Gain over another method in each segment, with its interval."""
    told = [(one.name, one.gains[other]) for one in found][::-1]

    def draw(axes: Any) -> None:
        axes.axvline(0, color=SOFT, linewidth=1)
        for at, (_, gain) in enumerate(told):
            if isinstance(gain, Interval):
                axes.plot([gain.low, gain.high], [at, at], color=INK)
                axes.plot([gain.mean], [at], "o", color=LOUD if gain.high < 0 else INK)
        axes.set(yticks=range(len(told)), yticklabels=[name for name, _ in told], xlabel=f"NDCG@10 over {other}")

    return drawn(draw, 0.6 + 0.28 * len(told))


def calibration(found: Reliability) -> str:
    """Share of positives against the probability told."""

    def draw(axes: Any) -> None:
        end = float(max(found.told.max(), found.found.max(), 1e-3))
        axes.plot([0, end], [0, end], color=SOFT, linewidth=1)
        axes.plot(found.told, found.found, "o-", color=INK, markersize=4)
        axes.set(xlabel="probability told", ylabel="share bought")

    return drawn(draw, 3.2)


def scores(values: Any, bought: Bools) -> str:
    """How raw scores are spread, for what was bought and what was not."""

    def draw(axes: Any) -> None:
        edges = np.histogram_bin_edges(values, 40)
        for some, colour, name in ((~bought, SOFT, "not bought"), (bought, LOUD, "bought")):
            if some.any():
                axes.hist(values[some], edges, density=True, histtype="step", color=colour, label=name)
        axes.set(xlabel="raw score", ylabel="density")
        axes.legend(frameon=False)

    return drawn(draw, 2.6)


def strongest(found: Mapping[str, float]) -> str:
    """The features that move scores most."""
    told = list(found.items())[:STRONGEST][::-1]

    def draw(axes: Any) -> None:
        axes.barh([name for name, _ in told], [size for _, size in told], color=INK, height=0.6)
        axes.set(xlabel="mean size of what it adds to a score")

    return drawn(draw, 0.7 + 0.2 * len(told))


def set_into(template: Path, plots: Mapping[str, str], **told: Any) -> str:
    """A page of HTML: plots and the pages' style stand in it as they are, what is ``told`` is escaped."""
    import jinja2
    from markupsafe import Markup

    maker = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    held = {name: Markup(svg) for name, svg in plots.items()}
    return maker.from_string(template.read_text()).render(plots=held, style=Markup(SHEET.read_text()), **told)


def drawn(draw: Any, height: float) -> str:
    """An SVG of axes that ``draw`` fills, ``height`` inches high."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, height), layout="constrained")
        draw(figure.subplots())
        held = io.StringIO()
        figure.savefig(held, format="svg", metadata={"Date": None})
    text = held.getvalue()
    return text[text.index("<svg") :]
