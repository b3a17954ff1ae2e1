"""Served equals offline, or the cell is named: every logged vector computed again from the archive at its own marks.

::

    archived impressions ─► questions to each view, with marks ──┐ by hash of the keys
    archive ──projection of a view──────────────────────────────►┤ which events were folded? fold those  ─┐
    Parquet of a ready-made view ───────────────────────────────►┤ newest row created by then            ─┤
    logged vectors ◄── a service's matrix, by the code of serving ◄────────────── by number of question ──┘
                   └─► compared bit for bit, column by column

A cell is one feature of one logged vector. It is ``mismatched`` if it differs in a bit from what its events give, or if
its events are not those that the archive says were there, except for such as had arrived within the freshness bound
before the instant: then it is ``in_flight``, and has been compared with what the others give.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch.backfill import batch_rows
from batch.events import Archive, archive_of, since_of
from batch.folded import AGREES, IN_FLIGHT, LATE, UNEXPLAINED
from batch.marked import marked_values
from batch.point_in_time import column_name, floats
from batch.ready_made import batch_values
from batch.served import ROW, Layout, Served, ask_column, lay_out
from headwater import assemble
from headwater.plan import BatchView, FeaturePlan, OnDemandView, View
from headwater.settings import Settings

FRESH_S = 60
CAUSES = ("late", "definition_changed", "defect")
"""Why a cell is mismatched: an event that had arrived longer ago than the bound was not folded; the service means
something else than when it was logged; or the platform is at fault."""
_EVENTS = {
    AGREES: "those known", IN_FLIGHT: "some just arrived were missing", LATE: "some known for long were missing",
    UNEXPLAINED: "other than archived",
}  # fmt: skip
_TALLY = ", ".join(f"{name} bigint" for name in ("compared", "in_flight", *CAUSES))


@dataclass(slots=True)
class Tally:
    """Cells of one feature; ``first`` is the earliest that is mismatched."""

    compared: int = 0
    mismatched: int = 0
    in_flight: int = 0
    late: int = 0
    definition_changed: int = 0
    defect: int = 0
    first: dict[str, Any] | None = None


@dataclass(slots=True)
class Audit:
    """``unmarked``: impressions that were logged without marks and cannot be audited."""

    impressions: int = 0
    unmarked: int = 0
    vectors: int = 0
    cells: int = 0
    mismatched: int = 0
    in_flight: int = 0
    fresh_s: float = FRESH_S
    causes: dict[str, int] = field(default_factory=dict)
    by_feature: dict[str, Tally] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    fresh_s: float = FRESH_S,
    since_ms: int = 0,
    until_ms: int = 2**62,
    archived: Callable[[], object] = lambda: None,
) -> Audit:
    """Compare the vectors of the impressions with ``since_ms <= time < until_ms``, all of them.

    Parameters
    ----------
    fresh_s
        In the platform's time: how long an event may be on its way from its arrival to the value that is read.
    archived
        Called when the impressions have been read: returns once the events that came before them are archived.

    Raises
    ------
    DataError
        No impressions have been archived.
    """
    with TemporaryDirectory(prefix="headwater-audit-") as scratch:
        served = lay_out(settings, plan, Path(scratch), since_ms, until_ms)
        archived()
        found = Audit(served.impressions, served.unmarked, served.rows, fresh_s=fresh_s)
        answers = _Answers(spark, settings, plan, served, round(fresh_s * 1000))
        for layout, path in served.vectors.items():
            for row in _compared(spark, plan, layout, path, answers):
                _count(found, row)
    found.causes = {name: sum(getattr(tally, name) for tally in found.by_feature.values()) for name in CAUSES}
    return found


def _count(found: Audit, row: Mapping[str, Any]) -> None:
    tally = found.by_feature.setdefault(row["feature"], Tally())
    mismatched = sum(row[name] for name in CAUSES)
    for name in ("compared", "in_flight", *CAUSES):
        setattr(tally, name, getattr(tally, name) + row[name])
    tally.mismatched += mismatched
    found.cells += row["compared"]
    found.mismatched += mismatched
    found.in_flight += row["in_flight"]
    if row["first"] is not None:
        first = json.loads(row["first"])
        if tally.first is None or first["time"] < tally.first["time"]:
            tally.first = first


@dataclass
class _Answers:
    """Offline values of each view's questions, computed when they are first wanted."""

    spark: Any
    settings: Settings
    plan: FeaturePlan
    served: Served
    fresh_ms: int
    held: dict[str, Any] = field(default_factory=dict)
    archives: dict[str, Archive] = field(default_factory=dict)

    def of(self, name: str) -> Any:
        """DataFrame of ``_row``, the view's features and, by table, ``<id>_state`` and ``<id>_missing``."""
        if name not in self.held:
            view = self.plan.view(name)
            asked = self.spark.read.parquet(str(self.served.asked[name]))
            if isinstance(view, View):
                self.held[name] = marked_values(self._archive(view), view, asked, self.fresh_ms, self.served.rows)
            elif isinstance(view, BatchView):
                rows = batch_rows(self.spark, view).where(f"_event_time <= {self.served.last_ms}")
                self.held[name] = batch_values(rows, view, asked, view.features, known=True)
        return self.held[name]

    def _archive(self, view: View) -> Archive:
        if view.source not in self.archives:
            oldest = [since_of(one, self.served.first_ms) for one in self.plan.views if one.source == view.source]
            since = None if None in oldest else min(bound for bound in oldest if bound is not None)
            self.archives[view.source] = archive_of(
                self.spark, self.settings, self.plan, view.source, since_ms=since, until_ms=self.served.last_ms
            )
        return self.archives[view.source]


def _compared(spark: Any, plan: FeaturePlan, layout: Layout, path: Path, answers: _Answers) -> list[dict[str, Any]]:
    """Rows of counts by feature, for parts of the vectors."""
    vectors = spark.read.parquet(str(path))
    known = [service.name for service in plan.services]
    wanted = assemble.needed(plan, layout.service) if layout.service in known else {}
    for name, features in wanted.items():
        view = plan.view(name)
        kept = [f"`{feature}` AS `{column_name(name, feature)}`" for feature in features]
        for table in view.tables if isinstance(view, View) else ():
            kept += [f"`{table.id}_state`", f"`{table.id}_missing`"]
        values = answers.of(name).selectExpr(f"{ROW} AS `{ask_column(name)}`", *kept)
        vectors = vectors.join(values, ask_column(name), "left")
    schema = f"feature string, {_TALLY}, first string"
    rows: list[dict[str, Any]] = vectors.mapInArrow(_comparer(plan, layout, wanted), schema).toArrow().to_pylist()
    return rows


def _comparer(
    plan: FeaturePlan, layout: Layout, wanted: Mapping[str, list[str]]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    schema = pa.schema([
        ("feature", pa.string()), *((name, pa.int64()) for name in ("compared", "in_flight", *CAUSES)),
        ("first", pa.string()),
    ])  # fmt: skip

    def compare(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        changed = not wanted or plan.schema_hash(layout.service) != layout.schema_hash
        tables = _tables_of(plan, layout.service) if wanted else {}
        for batch in batches:
            logged = floats(batch["logged"].flatten()).reshape(batch.num_rows, -1).astype(np.float32)
            offline = _matrix(plan, layout, wanted, batch)
            rows = [
                _judged(batch, name, logged[:, at], offline.get(name), tables.get(name, ()), changed)
                for at, name in enumerate(layout.names)
            ]
            yield pa.RecordBatch.from_pylist(rows, schema)

    return compare


def _matrix(
    plan: FeaturePlan, layout: Layout, wanted: Mapping[str, list[str]], batch: pa.RecordBatch
) -> dict[str, NDArray[np.float32]]:
    """Offline values by feature, assembled as serving does it, at the logged request time."""
    if not wanted:
        return {}
    columns = {
        (view, feature): floats(batch[column_name(view, feature)])
        for view, features in wanted.items()
        for feature in features
    }
    request = {assemble.REQUEST_TIME: batch["time"].to_numpy()}
    matrix = assemble.matrix(plan, layout.service, columns, request, batch.num_rows)
    return {name: matrix[:, at] for at, name in enumerate(plan.service(layout.service).names)}


def _tables_of(plan: FeaturePlan, service: str) -> dict[str, list[str]]:
    """Ids of the tables that each feature of a service is made from."""
    tables: dict[str, list[str]] = {}
    for reference in plan.service(service).features:
        view = plan.view(reference.view)
        pairs = view.inputs if isinstance(view, OnDemandView) else ((reference.view, reference.feature),)
        views = [(plan.view(name), feature) for name, feature in pairs]
        tables[reference.name] = [
            aggregate.table
            for one, feature in views
            if isinstance(one, View)
            for aggregate in one.aggregates
            if aggregate.feature == feature
        ]
    return tables


def _judged(
    batch: pa.RecordBatch,
    feature: str,
    logged: NDArray[np.float32],
    offline: NDArray[np.float32] | None,
    tables: Collection[str],
    changed: bool,
) -> dict[str, Any]:
    """Count one feature's cells; ``first`` is told as JSON."""
    states = [batch[f"{table}_state"].fill_null(AGREES).to_numpy(zero_copy_only=False) for table in tables]
    state = np.max(states, axis=0) if states else np.zeros(len(logged), np.int8)
    same = np.zeros(len(logged), np.bool_) if offline is None else equal(logged, offline)
    wrong = ~same | (state >= LATE)
    cause = np.where(changed, "definition_changed", np.where(state == LATE, "late", "defect"))
    told = {"feature": feature, "compared": len(logged), "in_flight": int((~wrong & (state == IN_FLIGHT)).sum())}
    told |= {name: int((wrong & (cause == name)).sum()) for name in CAUSES}
    first = None
    if wrong.any():
        rows = np.flatnonzero(wrong)
        row = int(rows[np.argmin(batch["time"].to_numpy()[rows])])
        missing = [batch[f"{table}_missing"][row].as_py() for table in tables]
        first = json.dumps({
            "time": batch["time"][row].as_py(), "request_id": batch["request_id"][row].as_py(),
            "item_id": batch["item_id"][row].as_py(), "served": _number(logged[row]),
            "offline": None if offline is None else _number(offline[row]), "cause": str(cause[row]),
            "events": _EVENTS[int(state[row])], "missing_event": next((one for one in missing if one), None),
        })  # fmt: skip
    return {**told, "first": first}


def equal(served: NDArray[np.float32], offline: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Bit for bit; what is not finite was logged as null and equals nothing but its like."""
    absent = ~np.isfinite(offline)
    same: NDArray[np.bool_] = np.where(absent, np.isnan(served), served.view(np.int32) == offline.view(np.int32))
    return same


def _number(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None
