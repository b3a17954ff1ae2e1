"""Training rows of what was shown: impression + outcomes + features as served.

::

    archive/impressions ──first of each request──► impressions ─┐
    archive/events ──outcomes, retractions──────────────────────┤ attribute (batch/outcomes.py)
                                                                ▼
    one row an item shown, and one a candidate logged that was not ──┬── the vector logged, float32
                                                                     └── else recomputed at the impression's instant

Rows are parted by time alone: ``train`` before an instant, ``validation`` from a gap after it, nothing in between.
"""

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batch.accounting import TRAIN, VALIDATION, Accounting, account, count_outcomes
from batch.cut import cut_rows
from batch.drafts import draft_beside
from batch.impressions import DISTINCT, USED, read_impressions
from batch.labels import ROW, Labels, number_labels
from batch.leaks import LABEL_ROW, find_changed, find_newer, find_telling
from batch.objectives import Labelling, load_labelling
from batch.outcomes import attributed, labels_of, read_outcomes, retracted
from batch.point_in_time import service_rows
from batch.session import read_parquet
from batch.training_set import CHECK, LeakCheck, TrainingSet, data_hash, finish, join_keys
from headwater import assemble
from headwater.datasets.complete_journey import home_of
from headwater.errors import ConfigError, DataError
from headwater.plan import FeaturePlan
from headwater.settings import Settings

_BEFORE = (
    "request_id", "user_id", "item_id", "event_timestamp", "shown", "position", "propensity", "position_propensity",
    "sampling_probability", "weight", "label",
)  # fmt: skip
_AFTER = ("score", "sources", "surface", "bundle_version", "variant", "policy", "split", "features_from")
_INSIDE = (
    "time", "context", "features", "newer", "feature_schema", "feature_names", "whole", "items", "status",
    "ingest_time", "partition", "offset",
)  # fmt: skip
FEW = 500
"""Rows to recompute, which are folded one by one, each from what was there before it: nothing later can be in them, and
the archive is not folded as a whole for the one list in thousands that was served without features."""
_SQL = {"any": "TINYINT", "sum": "DECIMAL(38,6)"}


@dataclass(frozen=True, slots=True)
class Split:
    """``train`` before ``train_until_ms``, ``validation`` from ``gap`` after it; all is ``train`` where there is none.

    With a gap of the longest attribution window, the default, no training label tells of the validation period. Without
    ``keeps_train`` what lies before is left out, as the gap is, and of dates before it nothing is read or counted.
    """

    train_until_ms: int | None = None
    gap: timedelta | None = None
    keeps_train: bool = True

    def later_ms(self, labelling: Labelling) -> int | None:
        """Where ``validation`` begins."""
        if self.train_until_ms is None:
            return None
        gap = labelling.longest if self.gap is None else self.gap
        return self.train_until_ms + gap // timedelta(milliseconds=1)

    def since_ms(self, labelling: Labelling) -> int | None:
        """Before which nothing is wanted: no impression, and no outcome, which is never before its impression."""
        return None if self.keeps_train else self.later_ms(labelling)

    def sql(self, labelling: Labelling) -> str:
        """The split of a request at ``time``, null in the gap."""
        later = self.later_ms(labelling)
        if later is None:
            return f"'{TRAIN}'"
        train = f"WHEN time < {self.train_until_ms} THEN '{TRAIN}'" if self.keeps_train else ""
        return f"CASE {train} WHEN time >= {later} THEN '{VALIDATION}' END"


@dataclass(frozen=True)
class Asked:
    """Labels by ``labelling``, known before ``cutoff_ms``; ``items`` is a table of join keys that no log has."""

    labelling: Labelling
    cutoff_ms: int
    split: Split = Split()
    items: Path | None = None

    @classmethod
    def of(cls, settings: Settings, cutoff_ms: int, split: Split = Split(), items: Path | None = None) -> "Asked":
        """By the repository's ``labels.toml``, with the catalogue's table of items where none is given."""
        own = home_of(settings) / "items.parquet"
        return cls(load_labelling(settings.repo), cutoff_ms, split, items or (own if own.is_file() else None))

    @property
    def split_sql(self) -> str:
        return self.split.sql(self.labelling)

    @property
    def columns(self) -> list[str]:
        """Columns of a row before its features."""
        return [*_BEFORE, *self.labelling.objectives, *_AFTER]


def build_shown_rows(
    spark: Any, settings: Settings, plan: FeaturePlan, service: str, asked: Asked, out: Path, check: LeakCheck = CHECK
) -> TrainingSet:
    """Label archived impressions, and replace ``out`` by their rows.

    Raises
    ------
    DataError
        There are no impressions, a join key of rows to recompute is nowhere, or totals do not add up.
    LeakError
        A feature knows the label.
    """
    _check_names(plan, service, asked)
    names = plan.service(service).names
    with draft_beside(out) as draft:
        since_ms = asked.split.since_ms(asked.labelling)
        found = read_impressions(spark, settings, plan, asked.cutoff_ms, asked.labelling.final_ms, since_ms)
        impressions = _stored(spark, found, draft / "impressions")
        read, outcomes = read_outcomes(spark, settings, asked.labelling, asked.cutoff_ms, since_ms)
        outcomes = _stored(spark, outcomes, draft / "distinct")
        retractions = _stored(spark, retracted(outcomes, asked.labelling), draft / "retractions")
        distinct = impressions.where(f"status IN {DISTINCT}")
        placed = attributed(outcomes, retractions, distinct, asked.labelling, asked.cutoff_ms)
        placed = _stored(spark, placed, draft / "outcomes")
        counted = count_outcomes(read, outcomes, retractions, placed, asked.labelling)
        labels = _stored(spark, labels_of(placed, asked.labelling), draft / "labels")

        used = impressions.where(f"status = '{USED}'").selectExpr("*", f"{asked.split_sql} AS split")
        used = used.where("split IS NOT NULL")
        items = used.selectExpr("*", "inline(items)").drop("items")
        if used.where(f"NOT ({_is_of(plan, service)} AND whole)").isEmpty():
            logged, questions = items, None
            newer = used.selectExpr("flatten(items.newer) AS newer")  # of which no vector is read
        else:
            is_logged = _is_logged(plan, service)
            logged = newer = items.where(is_logged)
            rest = _labelled(items.where(f"NOT {is_logged}"), labels, asked)
            questions = _questions(spark, plan, service, rest, asked, draft)
        kept = [*asked.columns, *(f"`{name}`" for name in names), LABEL_ROW]
        vectors = [f"features[{at}] AS `{name}`" for at, name in enumerate(names)]
        rows = (
            _labelled(logged, labels, asked)
            .selectExpr("*", "'logged' AS features_from", f"CAST(NULL AS BIGINT) AS {LABEL_ROW}", *vectors)
            .selectExpr(*kept)
        )
        few = questions is not None and questions.rows <= FEW
        if questions is not None:
            compute = cut_rows if few else service_rows
            recomputed = compute(spark, settings, plan, service, questions).withColumnRenamed(ROW, LABEL_ROW)
            rows = rows.unionByName(recomputed.selectExpr(*kept))
        rows.sortWithinPartitions("event_timestamp", "request_id", "item_id").write.parquet(str(draft / "rows"))

        written = ds.dataset(draft / "rows", format="parquet")
        accounting = account(impressions, asked.split_sql, written, counted, asked.labelling)
        made = _describe(settings, plan, service, asked, out, written, accounting)
        leaks = find_telling(written, names, [*asked.labelling.objectives], check.limits)
        leaks += find_newer(newer, plan, service)
        if questions is not None and not few:
            leaks += find_changed(spark, settings, plan, service, questions, written, check.limits)
        return finish(draft / "rows", out, made, leaks, check)


def _check_names(plan: FeaturePlan, service: str, asked: Asked) -> None:
    taken = {*_BEFORE, *_AFTER, LABEL_ROW, *_INSIDE, *plan.service(service).names}
    for name in asked.labelling.objectives:
        if name in taken:
            raise ConfigError(f"labels.toml: objective {name!r} is a column of the rows already. Name it otherwise.")
    clash = {*_BEFORE, *_AFTER, LABEL_ROW} & set(plan.service(service).names)
    if clash:
        raise ConfigError(
            f"{service}: feature {sorted(clash)[0]!r} is a column of the rows already. Name it otherwise."
        )


def _labelled(items: Any, labels: Any, asked: Asked) -> Any:
    """DataFrame of one row an item: its own columns and its list's, its label, and the vector as logged."""
    joined = items.join(labels, ["request_id", "item_id"], "left")
    objectives = asked.labelling.objectives
    # A candidate that was not shown has no label: 0, and `shown` says that it means nothing.
    folded = [
        f"CAST(IF(shown, COALESCE({name}, 0), 0) AS {_SQL[objective.fold]}) AS {name}"
        for name, objective in objectives.items()
    ]
    main = f"CAST(IF(shown AND COALESCE({asked.labelling.label}, 0) > 0, 1, 0) AS TINYINT) AS label"
    weight = "CAST(1 / sampling_probability AS FLOAT) AS weight"
    others = [name for name in joined.columns if name not in objectives]
    return joined.selectExpr(*others, "timestamp_millis(time) AS event_timestamp", weight, main, *folded)


def _is_of(plan: FeaturePlan, service: str) -> str:
    """Whether vectors were logged that mean what the service means today, as SQL that is true or false."""
    names = ", ".join(f"'{name}'" for name in plan.service(service).names)
    return f"COALESCE(feature_schema = '{plan.schema_hash(service)}' AND feature_names = array({names}), false)"


def _is_logged(plan: FeaturePlan, service: str) -> str:
    """Whether a row's own vector is such a one and there."""
    return f"({_is_of(plan, service)} AND COALESCE(size(features) = size(feature_names), false))"


def _questions(spark: Any, plan: FeaturePlan, service: str, rows: Any, asked: Asked, draft: Path) -> Labels | None:
    """Rows whose features have to be recomputed, as labels of the point-in-time join; ``None`` where there are none."""
    if rows.isEmpty():
        return None
    keys = join_keys(plan, service)
    wanted = dict.fromkeys([*keys, *assemble.request_inputs(plan, service)])
    known = {asked.labelling.keys.user: "user_id", asked.labelling.keys.item: "item_id"}
    rest = [name for name in wanted if name not in known]
    if asked.items is not None:
        table = read_parquet(spark, str(asked.items))
        held = [name for name in rest if name in table.columns]
        columns = (f"`{name}` AS `_item_{name}`" for name in held)
        own = table.selectExpr("CAST(item_id AS STRING) AS item_id", *columns).dropDuplicates(["item_id"])
        rows = rows.join(own, "item_id", "left")
        known |= {name: f"`_item_{name}`" for name in held}
    for name in rest:
        if name not in known and not rows.where(f"context['{name}'] IS NULL").isEmpty():
            raise DataError(
                f"{name}: service {service} needs it where features were not logged, and neither the impressions' "
                "context nor a table of items has it. Give one with --items."
            )
    columns_of = {name: known.get(name, f"context['{name}']") for name in wanted}
    given = {name: name for name in asked.columns if name != "features_from"}
    chosen = {**columns_of, **given, "features_from": "'recomputed'"}
    rows.selectExpr(*(f"{sql} AS `{name}`" for name, sql in chosen.items())).write.parquet(str(draft / "questions"))
    return number_labels(draft / "questions", keys, draft / "labels.parquet")


def _describe(
    settings: Settings, plan: FeaturePlan, service: str, asked: Asked, out: Path, written: ds.Dataset,
    accounting: Accounting,
) -> TrainingSet:  # fmt: skip
    told = written.to_table(columns=["request_id", "label", "event_timestamp"])
    bounds = pc.min_max(told["event_timestamp"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())).as_py()
    schema_hash = plan.schema_hash(service)
    what = f"{asked.labelling.model_dump_json()} {asked.cutoff_ms} {asked.split}"
    return TrainingSet(
        str(out), service, len(plan.service(service).features), told.num_rows, len(pc.unique(told["request_id"])),
        pc.sum(told["label"]).as_py() or 0, True, bounds["min"] or 0, bounds["max"] or 0, schema_hash,
        data_hash(settings, schema_hash, sha256(what.encode()).hexdigest()), accounting=accounting.told(),
    )  # fmt: skip


def _stored(spark: Any, rows: Any, folder: Path) -> Any:
    """Write a DataFrame, and return it as read back: computed once, and on disk rather than in memory."""
    plain = {"compression": "none", "parquet.enable.dictionary": "false"}  # it is read once or twice, and deleted
    rows.write.options(**plain).parquet(str(folder))
    return spark.read.parquet(str(folder))
