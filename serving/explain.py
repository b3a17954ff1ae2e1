"""Why an item is in a list, or why not: one line a stage, with the features that moved it."""

from collections.abc import Sequence

import numpy as np

from serving.contracts import Explanation, Moved
from serving.ports import Bundle
from serving.run import Run
from serving.surfaces import Surface

TOLD = 5
"""Features that are named: those that moved the score most."""


def explain(run: Run, bundle: Bundle, surface: Surface, item: int) -> Explanation:
    """Follow one item through the stages of a run."""
    item_id = bundle.catalogue.ids[item]
    lines = [_proposed(run, surface, item)]
    rows = np.flatnonzero(run.eligible.items == item)
    if not len(rows):
        stage, told = _dropped(run, bundle, item)
        return Explanation(item_id, stage, 0, (*lines, told))
    row = int(rows[0])
    if not (run.candidates.items == item).any():
        lines.append("filter: it fills up a list that would be too short")
    else:
        lines.append("filter: nothing removes it")
    moved = _moved(run, bundle, row)
    lines.append(_ranked(run, row, moved))
    place = np.flatnonzero(run.shown.rows == row)
    if not len(place):
        return Explanation(item_id, "rerank", 0, (*lines, _not_shown(run, surface)), moved)
    position = int(place[0]) + 1
    lines.append(f"rerank: place {position} of {len(run.shown.rows)}{_how(run, position)}")
    return Explanation(item_id, "shown", position, tuple(lines), moved)


def _proposed(run: Run, surface: Surface, item: int) -> str:
    places = {name: np.flatnonzero(items == item) for name, items in run.proposals.items()}
    by = [f"{name} (its place {int(found[0]) + 1})" for name, found in places.items() if len(found)]
    if by:
        return f"sources: proposed by {', '.join(by)}"
    if run.request.include:
        return "sources: it is not among the items that were asked for"
    asked = ", ".join(f"{name} {n}" for name, n in surface.quotas(not len(run.user.own)).items())
    return f"sources: none of those of {run.request.surface} proposes it ({asked})"


def _dropped(run: Run, bundle: Bundle, item: int) -> tuple[str, str]:
    """Stage and line of an item that did not come as far as the ranker."""
    found = np.flatnonzero(run.candidates.items == item)
    if len(found):
        return "filter", f"filter: {run.filters.names()[run.removed[found[0]]]} removes it"
    number = int(run.filters.removed_by(np.array([item], np.int32))[0])
    if number >= 0:
        return "sources", f"filter: {run.filters.names()[number]} would remove it"
    return "sources", "filter: nothing would remove it"


def _moved(run: Run, bundle: Bundle, row: int) -> tuple[Moved, ...]:
    """All features, most moving first; none where the list was made without the ranker."""
    if run.features is None or "rank" in run.ranked.degraded:
        return ()
    values = np.ascontiguousarray(run.features.values[row : row + 1])
    shares = bundle.ranker.contributions(values)[0, :-1]
    order = np.argsort(-np.abs(shares), kind="stable").tolist()
    return tuple(Moved(run.features.names[at], float(values[0, at]), float(shares[at])) for at in order)


def _ranked(run: Run, row: int, moved: Sequence[Moved]) -> str:
    place = int((run.scores > run.scores[row]).sum()) + 1
    if run.features is None or "rank" in run.ranked.degraded:
        return f"rank: the ranker did not answer; by the sources' places it is {place} of {len(run.scores)}"
    told = f"rank: score {run.scores[row]:.3f}, place {place} of {len(run.scores)}"
    by = ", ".join(f"{one.name} = {one.value:g} ({one.contribution:+.3f})" for one in moved[:TOLD])
    return f"{told}; moved by {by}" if by else told


def _not_shown(run: Run, surface: Surface) -> str:
    last = float(run.scores[run.shown.rows].min()) if len(run.shown.rows) else float("nan")
    caps = ", ".join(f"{most} of one {name}" for name, most in surface.caps.items())
    told = f"rerank: not among the {len(run.shown.rows)} shown, whose lowest score is {last:.3f}"
    return f"{told}; difference weighs {surface.diversity:g}" + (f", at most {caps}" if caps else "")


def _how(run: Run, position: int) -> str:
    chance = float(run.shown.propensity[position - 1])
    return "" if chance == 1.0 else f", which it gets with a chance of {chance:.3f} ({run.shown.policy})"
