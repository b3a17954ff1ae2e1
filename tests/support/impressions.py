"""Impressions as the archive writer leaves them."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headwater import topics
from headwater.settings import Settings
from streaming.archive_writer import IMPRESSION_SCHEMA
from streaming.parquet_log import ParquetLog


def archive_impressions(settings: Settings, logged: Sequence[dict[str, Any]]) -> None:
    """Archive those that are not yet, in one flush."""
    log: ParquetLog[tuple[int, str]] = ParquetLog(settings.impressions_dir, topics.IMPRESSIONS, "cluster", _table)
    for offset in range(log.next_offset(0), len(logged)):
        log.add(0, offset, "1970-01-01", (offset, json.dumps(logged[offset])))
    log.flush()


def _table(partition: int, rows: list[tuple[int, str]]) -> pa.Table:
    told = [
        {"value": value, "ingest_time": 0, "partition": partition, "offset": offset} for offset, value in rows
    ]  # fmt: skip
    return pa.Table.from_pylist(told, IMPRESSION_SCHEMA)
