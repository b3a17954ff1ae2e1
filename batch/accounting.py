"""What became of every impression and outcome that was read: counted, and refused where the totals do not add up."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from batch.impressions import STATUSES, USED
from batch.objectives import Labelling
from batch.outcomes import FATES
from headwater.errors import DataError

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, slots=True)
class Impressions:
    """``read`` records are ``used, too_young, copy`` or ``unreadable``.

    Of those used, some lie ``in_gap`` between the splits; the others have some outcome, or none.
    """

    read: int
    used: int
    too_young: int
    copy: int
    unreadable: int
    in_gap: int
    with_outcome: int
    without_outcome: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """``read`` records are ``copies``, ``retractions`` or ``distinct``; each distinct one has a fate an objective."""

    read: int
    copies: int
    retractions: int
    retractions_without_outcome: int
    distinct: Mapping[str, int]
    fates: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows are ``shown`` or ``not_shown``, and lie in one split."""

    shown: int
    not_shown: int
    train: int
    validation: int
    logged: int
    recomputed: int


@dataclass(frozen=True, slots=True)
class Accounting:
    """All of it, as ``_meta.json`` and ``--json`` have it."""

    impressions: Impressions
    outcomes: Outcomes
    rows: Rows

    def told(self) -> dict[str, Any]:
        return asdict(self)


def count_outcomes(read: int, outcomes: Any, retractions: Any, placed: Any, labelling: Labelling) -> Outcomes:
    """Count fates, and see that every distinct outcome has one for each objective it counts for.

    Parameters
    ----------
    outcomes, retractions, placed
        DataFrames as :mod:`batch.outcomes` makes them.
    """
    by_type = counts(outcomes, "event_type")
    distinct = {kind: by_type.get(kind, 0) for kind in labelling.outcomes}
    fates = {name: dict.fromkeys(FATES, 0) for name in labelling.objectives}
    names = [f"fate_{name}" for name in fates]
    for row in placed.groupBy(*names).count().collect():
        for name in fates:
            if row[f"fate_{name}"] is not None:
                fates[name][row[f"fate_{name}"]] += row["count"]
    for name, objective in labelling.objectives.items():
        there = sum(distinct[kind] for kind in objective.events)
        _same(f"objective {name}: outcomes", there, sum(fates[name].values()))
    retracting = sum(by_type.get(kind, 0) for kind in labelling.retractions)
    without = retracting - retractions.where("outcome IS NOT NULL").count()
    return Outcomes(read, read - sum(by_type.values()), retracting, without, distinct, fates)


def account(impressions: Any, split: str, written: ds.Dataset, outcomes: Outcomes, labelling: Labelling) -> Accounting:
    """Count impressions and rows, and see that each item of a used impression outside the gap became one row.

    Parameters
    ----------
    impressions
        DataFrame with ``status``, one row a record.
    split
        SQL of a request's split, null in the gap.
    """
    by_status = counts(impressions, "status")
    status = {name: by_status.get(name, 0) for name in STATUSES}
    used = impressions.where(f"status = '{USED}'").selectExpr(f"{split} AS split", "size(items.item_id) AS items")
    by_split = {row["split"]: (row["count"], row["items"]) for row in used.groupBy("split").agg(*_sums()).collect()}
    in_gap, _ = by_split.pop(None, (0, 0))
    columns = ["request_id", "shown", "split", "features_from", *labelling.objectives]
    rows = written.to_table(columns=columns)
    _same("rows", sum(items for _, items in by_split.values()), rows.num_rows)
    some = pc.greater(rows["shown"].cast("int8"), 1)
    for name in labelling.objectives:
        some = pc.or_(some, pc.not_equal(rows[name].cast("float64"), 0))
    with_outcome = len(pc.unique(rows.filter(some)["request_id"]))
    labelled = sum(requests for requests, _ in by_split.values())
    counted = Impressions(
        sum(status.values()), **status, in_gap=in_gap, with_outcome=with_outcome,
        without_outcome=labelled - with_outcome,
    )  # fmt: skip
    shown = _true(rows["shown"])
    train = _true(pc.equal(rows["split"], TRAIN))
    logged = _true(pc.equal(rows["features_from"], "logged"))
    n = rows.num_rows
    return Accounting(counted, outcomes, Rows(shown, n - shown, train, n - train, logged, n - logged))


def counts(rows: Any, column: str) -> dict[str, int]:
    """Rows of a DataFrame by the values of a column."""
    return {row[column]: row["count"] for row in rows.groupBy(column).count().collect()}


def _sums() -> tuple[Any, Any]:
    from pyspark.sql.functions import expr

    return expr("count(1) AS count"), expr("COALESCE(SUM(items), 0) AS items")


def _true(flags: Any) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _same(what: str, there: int, ended: int) -> None:
    if there != ended:
        raise DataError(
            f"{what}: {there} were read and {ended} accounted for, so nothing was put in place. Run it again."
        )
