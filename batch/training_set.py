"""A training set on disk: labels, a service's features as they were known, and what they were made from.

::

    out/part-*.parquet   row number, the labels' columns, float32 features in the service's order
    out/_meta.json       counts, window, schema and data hashes, leaks that were allowed
    out/_quarantine/     rows that are not as expected (:mod:`batch.quarantine`)

The folder appears whole or not at all: it is written beside its place, searched for features that know the label
(:mod:`batch.leaks`), and exchanged for what was there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batch.drafts import draft_beside, put_in_place
from batch.labels import ROW, Labels, number_labels
from batch.leaks import DEFAULT_LIMITS, LABEL_ROW, Leak, LeakError, LeakLimits, find_changed, find_telling
from batch.point_in_time import service_rows
from batch.quarantine import Quarantined, quarantine
from headwater import assemble
from headwater.archive_files import rows_by_date
from headwater.errors import DataError
from headwater.expectations import load_expectations
from headwater.log import get_logger
from headwater.plan import FeaturePlan, OnDemandView
from headwater.settings import Settings
from models.paths import paths_of
from models.requests import DEFAULT_SAMPLING, Sampling, draw_training_requests

META = "_meta.json"
_LABEL = re.compile("label(_(?!row$).+)?")
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What ``_meta.json`` says; times are epoch milliseconds.

    Attributes
    ----------
    leaks
        Those that were found and allowed.
    accounting
        What became of impressions and outcomes, where the labels come from those (:mod:`batch.shown`).
    """

    path: str
    service: str
    features: int
    rows: int
    groups: int | None
    positives: int | None
    known: bool
    first_ms: int
    last_ms: int
    feature_schema_hash: str
    data_hash: str
    leaks: Sequence[Mapping[str, str]] = ()
    accounting: Mapping[str, Any] | None = None
    quarantined: int = 0
    quarantined_by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """Which columns are labels (all numbers named ``label`` or ``label_*`` where none is told), and what then."""

    labels: Sequence[str] | None = None
    limits: LeakLimits = DEFAULT_LIMITS
    allow: bool = False


CHECK = LeakCheck()


def build_training_set(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    service: str,
    labels: Path | pa.Table,
    out: Path,
    known: bool = True,
    check: LeakCheck = CHECK,
) -> TrainingSet:
    """Join labels with a service's features and replace ``out`` by the result.

    Parameters
    ----------
    labels
        A Parquet file, a folder of them, or a table: the join keys, ``event_timestamp`` and any columns to pass on.
    known
        Features as known at the label's instant; otherwise as of it, late arrivals included.

    Raises
    ------
    DataError
        The labels lack a column, or an instant has no time zone; or what came of them is not as expected.
    LeakError
        A feature knows the label.
    """
    expectations = load_expectations(plan)
    with draft_beside(out) as draft:
        numbered = number_labels(labels, join_keys(plan, service), draft / "labels.parquet")
        rows = service_rows(spark, settings, plan, service, numbered, known)
        rows.sortWithinPartitions(ROW).withColumnRenamed(ROW, LABEL_ROW).write.parquet(str(draft / "rows"))
        written = ds.dataset(draft / "rows", format="parquet")
        leaks = find_telling(written, plan.service(service).names, _label_columns(written.schema, check), check.limits)
        leaks += find_changed(spark, settings, plan, service, numbered, written, check.limits)
        apart = quarantine(draft / "rows", expectations, set(plan.service(service).names))
        made = _describe(settings, plan, service, numbered, draft / "rows", out, known, apart)
        made = finish(draft / "rows", out, made, leaks, check)
    return made


def finish(rows: Path, out: Path, made: TrainingSet, leaks: Sequence[Leak], check: LeakCheck) -> TrainingSet:
    """Describe finished rows and put them in place.

    Raises
    ------
    LeakError
        There are leaks, and they are not allowed.
    """
    if leaks and not check.allow:
        raise LeakError(out, leaks)
    told = replace(made, leaks=tuple(asdict(leak) for leak in leaks))
    (rows / META).write_text(json.dumps(asdict(told), indent=1))
    put_in_place(rows, out)
    log.info("training_set_built", rows=told.rows, service=told.service, path=str(out), leaks=len(leaks))
    return told


def build_ranking_rows(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    service: str,
    known_until_ms: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    out: Path | None = None,
    check: LeakCheck = CHECK,
) -> TrainingSet:
    """Draw past requests as serving would answer them, and give each candidate its features of that time.

    Needs the retriever in ``training/retriever``; leaves the ranker's rows in ``training/rows`` unless told where.
    """
    paths = paths_of(settings)
    requests = draw_training_requests(settings, known_until_ms, sampling)
    draft = paths.requests.with_name(f".{paths.requests.name}.draft")
    pq.write_table(requests, draft)
    draft.replace(paths.requests)
    return build_training_set(spark, settings, plan, service, paths.requests, out or paths.rows, check=check)


def read_meta(folder: Path) -> TrainingSet:
    """Read a training set's description.

    Raises
    ------
    DataError
        There is none.
    """
    if not (folder / META).is_file():
        raise DataError(f"{folder}: no training set there. Make one with headwater training-set.")
    told = json.loads((folder / META).read_text())
    return TrainingSet(**told | {"leaks": tuple(told.get("leaks", ()))})


def join_keys(plan: FeaturePlan, service: str) -> tuple[str, ...]:
    """Join keys of the stored views that a service reads."""
    views = [plan.view(name) for name in assemble.needed(plan, service)]
    keys = [key for view in views if not isinstance(view, OnDemandView) for key in view.join_keys]
    return tuple(dict.fromkeys(keys))


def _describe(
    settings: Settings,
    plan: FeaturePlan,
    service: str,
    labels: Labels,
    rows: Path,
    out: Path,
    known: bool,
    apart: Quarantined,
) -> TrainingSet:
    written = ds.dataset(rows, format="parquet")
    count = written.count_rows()
    if count + apart.rows != labels.rows:
        raise DataError(
            f"{out}: {count + apart.rows} rows came of {labels.rows} labels, so it was not put in place. Run it again."
        )
    names = labels.schema.names
    groups = len(pc.unique(written.to_table(columns=["request_id"])["request_id"])) if "request_id" in names else None
    positives = None
    if "label" in names:
        positives = pc.sum(pc.greater(written.to_table(columns=["label"])["label"], 0)).as_py() or 0
    schema_hash = plan.schema_hash(service)
    with labels.path.open("rb") as file:
        asked = file_digest(file, "sha256").hexdigest()
    return TrainingSet(
        str(out), service, len(plan.service(service).features), count, groups, positives, known,
        labels.first_ms, labels.last_ms, schema_hash, data_hash(settings, schema_hash, asked),
        quarantined=apart.rows, quarantined_by=apart.by_reason,
    )  # fmt: skip


def data_hash(settings: Settings, schema_hash: str, asked: str) -> str:
    """Hash of what rows are a function of: definitions, what was asked, how many rows the archive has of each date."""
    digest = sha256(f"{schema_hash} {asked}".encode())
    for folder in sorted(path for path in settings.archive_dir.glob("*") if path.is_dir()):
        digest.update(json.dumps([folder.name, rows_by_date(folder)]).encode())
    return digest.hexdigest()


def _label_columns(schema: pa.Schema, check: LeakCheck) -> list[str]:
    if check.labels is None:
        return [field.name for field in schema if _LABEL.fullmatch(field.name) and _is_number(field.type)]
    for name in check.labels:
        if name not in schema.names or not _is_number(schema.field(name).type):
            raise DataError(f"labels: {name!r} is no column of numbers among {', '.join(schema.names)}. Name another.")
    return list(check.labels)


def _is_number(kind: pa.DataType) -> bool:
    is_whole: bool = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    return is_whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
