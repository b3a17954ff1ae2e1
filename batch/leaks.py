"""A feature that knows the label: found before a training set is put in place.

================  ======================================================================================================
kind              evidence
================  ======================================================================================================
tells_the_label   the feature alone orders the rows by the label (nearly) perfectly
changed_later     its value is not what an archive cut at the row's instant gives
newer_than_row    that, and what it was folded from lies at or after the row's instant, or was created after it; or the
                  log says that the view served had folded an event of the instant it was read at, or a later one
================  ======================================================================================================

What is looked at is bounded by :class:`LeakLimits`: enough to find a feature that leaks, not every row that did.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from batch.cut import Cut, recompute
from batch.labels import Labels
from headwater.errors import DataError
from headwater.plan import BatchView, FeaturePlan, OnDemandView
from headwater.settings import Settings

TELLS, CHANGED, NEWER = "tells_the_label", "changed_later", "newer_than_row"
LABEL_ROW = "label_row"


@dataclass(frozen=True, slots=True)
class LeakLimits:
    """What is looked at, and from where on it counts.

    Attributes
    ----------
    auc
        A single feature's area under the ROC curve, in either direction. Honest features of recommendations lie far
        below: the example's best, of 59, has .81.
    least_rows, least_of_each
        With fewer rows, or rows of one of the two labels, an AUC this high comes by chance.
    auc_rows
        At most so many rows, evenly spaced, are ranked.
    recomputed
        So many rows, evenly spaced, are computed again.
    """

    auc: float = 0.98
    least_rows: int = 500
    least_of_each: int = 20
    auc_rows: int = 100_000
    recomputed: int = 64


DEFAULT_LIMITS = LeakLimits()


@dataclass(frozen=True, slots=True)
class Leak:
    """One feature, how it leaks and what shows it."""

    kind: str
    feature: str
    evidence: str


class LeakError(DataError):
    """A training set in which features know the label; nothing was put in place."""

    def __init__(self, out: Path, leaks: Sequence[Leak]) -> None:
        first = leaks[0]
        others = f" So do {len(leaks) - 1} more: {', '.join(leak.feature for leak in leaks[1:6])}." if leaks[1:] else ""
        super().__init__(
            f"{first.feature}: {first.evidence}, so it knows what the label tells ({first.kind}). {_REMEDY[first.kind]}"
            f"{others} {out} was not written; --allow-leaks writes it all the same."
        )
        self.leaks = tuple(leaks)


_REMEDY = {
    TELLS: "Check that event_timestamp lies before the outcome, and take the feature out if it is made of the outcome.",
    CHANGED: "Build with --as-known, which leaves out what arrived after the label.",
    NEWER: "Build with --as-known, and give the view's source a created column if it is written after the fact.",
}


def auc(values: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Chance that a positive row has the greater value; ties count half, and no value (NaN) is one above all others.

    References
    ----------
    Mann, Whitney, "On a test of whether one of two random variables is stochastically larger than the other", 1947.
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # the mean of the ranks that equal values share; halves are exact
    n = int(positive.sum())
    return float((rank[place][positive].sum() - n * (n + 1) / 2) / (n * (len(values) - n)))


def find_telling(
    rows: ds.Dataset, features: Collection[str], labels: Collection[str], limits: LeakLimits = DEFAULT_LIMITS
) -> list[Leak]:
    """Features whose value alone tells one of the label columns; of rows that were shown, where the set says so."""
    shown = pc.field("shown") if "shown" in rows.schema.names else None
    step = -(-rows.count_rows(filter=shown) // limits.auc_rows) or 1
    table = _every(rows, [*features, *labels], shown, step)
    found: dict[str, Leak] = {}
    for label in labels:
        positive = pc.greater(table[label].cast(pa.float64()), 0).fill_null(False).to_numpy()
        fewest = min(positive.sum(), (~positive).sum())
        if len(positive) < limits.least_rows or fewest < limits.least_of_each:
            continue
        for name in features:
            area = auc(table[name].to_numpy(), positive)
            if max(area, 1 - area) >= limits.auc and name not in found:
                told = f"alone it has an AUC of {area:.4f} for {label} on {len(positive):,} rows"
                found[name] = Leak(TELLS, name, f"{told}, and {limits.auc} is where a leak is suspected")
    return list(found.values())


def find_changed(
    spark: Any, settings: Settings, plan: FeaturePlan, service: str, labels: Labels, rows: ds.Dataset,
    limits: LeakLimits = DEFAULT_LIMITS,
) -> list[Leak]:  # fmt: skip
    """Features that differ, with ``==``, from what an archive cut at the instants of some rows gives."""
    if not labels.rows:
        return []
    sample = np.unique(np.linspace(0, labels.rows - 1, limits.recomputed).astype(np.int64))
    cut = recompute(spark, settings, plan, service, labels, sample)
    names = plan.service(service).names
    held = rows.to_table(columns=[LABEL_ROW, *names], filter=pc.field(LABEL_ROW).isin(sample)).sort_by(LABEL_ROW)
    found = []
    for at, name in enumerate(names):
        ours, theirs = held[name].to_numpy(), cut.values[:, at]
        differs = np.flatnonzero((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs)))
        if len(differs):
            found.append(_changed(plan, service, at, cut, ours, differs))
    return found


def find_newer(rows: Any, plan: FeaturePlan, service: str) -> list[Leak]:
    """Features served from views that had folded what was not yet, by what the log says of each row.

    Parameters
    ----------
    rows
        DataFrame with ``newer``: the views of which a row says so.
    """
    from pyspark.sql.functions import explode

    counted = rows.select(explode("newer").alias("view")).groupBy("view").count().collect()
    seen = {row["view"]: row["count"] for row in counted}
    found = []
    for at, name in enumerate(plan.service(service).names):
        view = next((view for view in _stored(plan, service, at) if view in seen), None)
        if view is not None:
            told = f"{view} had folded an event of the instant it was read at, or later, in {seen[view]:,} rows"
            found.append(Leak(NEWER, name, told))
    return found


def _changed(plan: FeaturePlan, service: str, at: int, cut: Cut, ours: NDArray[Any], differs: NDArray[np.intp]) -> Leak:
    name, row = plan.service(service).names[at], int(differs[0])
    views = _stored(plan, service, at)
    late = sum(int(cut.late[view][row]) for view in views)
    ahead = sum(int(cut.ahead[view][row]) for view in views)
    created_later = any(isinstance(plan.view(view), BatchView) and cut.late[view][row] > 0 for view in views)
    newer = created_later or (late == 0 and ahead > 0)
    evidence = (
        f"{len(differs)} of {len(ours)} rows differ from an archive cut at their instant, row {int(cut.rows[row])} of "
        f"{_instant(int(cut.at[row]))} has {ours[row]} and not {cut.values[row, at]} "
        f"({late} records of its entity came in after it, {ahead} are of that instant or later)"
    )
    return Leak(NEWER if newer else CHANGED, name, evidence)


def _stored(plan: FeaturePlan, service: str, at: int) -> list[str]:
    """Stored views that a service's column is read from."""
    view = plan.view(plan.service(service).features[at].view)
    return list(dict.fromkeys(name for name, _ in view.inputs)) if isinstance(view, OnDemandView) else [view.name]


def _every(rows: ds.Dataset, columns: list[str], condition: Any, step: int) -> pa.Table:
    """Every ``step``-th row."""
    parts, seen = [], 0
    for batch in rows.to_batches(columns=columns, filter=condition):
        parts.append(batch.take(pa.array(range(-seen % step, batch.num_rows, step), pa.int64())))
        seen += batch.num_rows
    schema = pa.schema([rows.schema.field(name) for name in columns])
    return pa.Table.from_batches(parts, schema)


def _instant(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds")
