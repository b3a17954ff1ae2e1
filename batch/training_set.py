"""A training set on disk: labels, a service's features as they were known, and what they were made from.

::

    out/part-*.parquet   row number, the labels' columns, float32 features in the service's order
    out/_meta.json       counts, window, schema and data hashes
    out/_quarantine/     rows that are not as expected (:mod:`batch.quarantine`)

The folder appears whole or not at all: it is written beside its place and renamed into it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batch.labels import ROW, Labels, number_labels
from batch.point_in_time import service_rows
from batch.quarantine import Quarantined, quarantine
from headwater import assemble
from headwater.archive_files import rows_by_date
from headwater.errors import DataError
from headwater.expectations import load_expectations
from headwater.log import get_logger
from headwater.plan import FeaturePlan, OnDemandView
from headwater.settings import Settings
from models.requests import DEFAULT_SAMPLING, Sampling
from models.training import draw_training_requests, paths_of

META = "_meta.json"
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What ``_meta.json`` says; times are epoch milliseconds."""

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
    quarantined: int = 0
    quarantined_by: Mapping[str, int] = field(default_factory=dict)


def build_training_set(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    service: str,
    labels: Path | pa.Table,
    out: Path,
    known: bool = True,
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
    """
    expectations = load_expectations(settings.repo, plan)
    with _draft(out) as draft:
        numbered = number_labels(labels, _join_keys(plan, service), draft / "labels.parquet")
        rows = service_rows(spark, settings, plan, service, numbered, known)
        rows.sortWithinPartitions(ROW).withColumnRenamed(ROW, "label_row").write.parquet(str(draft / "rows"))
        apart = quarantine(draft / "rows", expectations, set(plan.service(service).names))
        made = _describe(settings, plan, service, numbered, draft / "rows", out, known, apart)
        (draft / "rows" / META).write_text(json.dumps(asdict(made), indent=1))
        _replace(draft / "rows", out)
    log.info("training_set_built", rows=made.rows, service=service, path=str(out))
    return made


def build_ranking_rows(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    service: str,
    known_until_ms: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    out: Path | None = None,
) -> TrainingSet:
    """Draw past requests as serving would answer them, and give each candidate its features of that time.

    Needs the retriever in ``training/retriever``; leaves the ranker's rows in ``training/rows`` unless told where.
    """
    paths = paths_of(settings)
    requests = draw_training_requests(settings, known_until_ms, sampling)
    pq.write_table(requests, paths.requests)
    return build_training_set(spark, settings, plan, service, paths.requests, out or paths.rows)


def read_meta(folder: Path) -> TrainingSet:
    """Read a training set's description.

    Raises
    ------
    DataError
        There is none.
    """
    if not (folder / META).is_file():
        raise DataError(f"{folder}: no training set there. Make one with headwater training-set.")
    return TrainingSet(**json.loads((folder / META).read_text()))


def _join_keys(plan: FeaturePlan, service: str) -> tuple[str, ...]:
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
    return TrainingSet(
        str(out), service, len(plan.service(service).features), count, groups, positives, known,
        labels.first_ms, labels.last_ms, schema_hash, _data_hash(settings, labels.path, schema_hash),
        apart.rows, apart.by_reason,
    )  # fmt: skip


def _data_hash(settings: Settings, labels: Path, schema_hash: str) -> str:
    """Hash of what the rows are a function of: labels, definitions, and how many rows the archive has of each date."""
    digest = sha256(schema_hash.encode())
    with labels.open("rb") as file:
        digest.update(file_digest(file, "sha256").digest())
    for folder in sorted(path for path in settings.archive_dir.glob("*") if path.is_dir()):
        digest.update(json.dumps([folder.name, rows_by_date(folder)]).encode())
    return digest.hexdigest()


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that is gone afterwards."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _replace(made: Path, out: Path) -> None:
    """Put a finished folder in place; what was there stays readable until the rename."""
    old = made.parent / "replaced"
    if out.exists():
        out.rename(old)
    made.rename(out)
