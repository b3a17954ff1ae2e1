"""Rows of a training set that are not as expected, taken out of it before it is put in place.

    out/part-*.parquet               rows that are as `expectations.toml` expects them
    out/_quarantine/part-*.parquet   the others, with a column ``_reasons`` (list of texts)

Readers of the folder skip what begins with an underscore.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.errors import DataError
from headwater.expectations import FILE, Column, Expectations, Finding, Tally

QUARANTINE, REASONS = "_quarantine", "_reasons"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """``rows`` that were taken out, and how many of them failed each expectation; a row may fail several."""

    rows: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)


def expected_of(expectations: Expectations, names: set[str]) -> dict[str, Column]:
    """What is expected of the features of a service."""
    return {name: column for name, column in expectations.features.items() if name in names}


def quarantine(rows: Path, expectations: Expectations, names: set[str]) -> Quarantined:
    """Take failing rows out of a folder of Parquet files.

    Raises
    ------
    DataError
        More rows fail than are tolerated, or a feature has fewer values than expected; the folder is not to be used.
    """
    columns = expected_of(expectations, names)
    if not columns:
        return Quarantined()
    tally, by_reason = Tally("training set", columns), Counter[str]()
    total = taken_out = 0
    for path in sorted(rows.glob("*.parquet")):
        table = pq.ParquetFile(path).read()
        reasons = tally.add(table)
        failing = np.array([bool(one) for one in reasons], np.bool_)
        by_reason.update(reason for one in reasons for reason in one)
        total, taken_out = total + table.num_rows, taken_out + int(failing.sum())
        if failing.any():
            _part(path, table, failing, reasons)
    tolerated = expectations.training_set.quarantined
    for finding in tally.findings(tolerated=1.0):
        if not finding.holds:
            raise DataError(_told(finding))
    if taken_out > tolerated * total:
        worst, count = by_reason.most_common(1)[0]
        raise DataError(
            f"training set: {taken_out} of {total} rows are not as {FILE} expects them, {tolerated:.2%} may be; most "
            f"fail {worst} ({count}). Mend what they were made from, or raise quarantined under [training_set]."
        )
    return Quarantined(taken_out, dict(sorted(by_reason.items())))


def _part(
    path: Path, table: pa.Table, failing: np.ndarray[tuple[int], np.dtype[np.bool_]], reasons: list[list[str]]
) -> None:
    told = pa.array([one for one in reasons if one], pa.list_(pa.string()))
    aside = path.parent / QUARANTINE / path.name
    aside.parent.mkdir(exist_ok=True)
    pq.write_table(table.filter(pa.array(failing)).append_column(REASONS, told), aside)
    kept = path.with_name(f".{path.name}.tmp")
    pq.write_table(table.filter(pa.array(~failing)), kept)
    shutil.move(kept, path)


def _told(finding: Finding) -> str:
    return (
        f"{finding.subject}: {finding.failed} of {finding.rows} rows of the training set have no value, more than "
        f"{finding.expected} in {FILE} allows. Mend what it is made from, or that number."
    )
