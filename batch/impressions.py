"""Archived impressions as a table: JSON read once, each request once, what cannot be read counted.

A record is what ``serving/impressions.py`` lays out. Of records with one request id the first by (ingest time,
partition, offset) counts, as for events; an item that a record holds twice counts at its first place.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from headwater.archive_files import date_at, live_files
from headwater.errors import DataError
from headwater.events import read_object
from headwater.plan import FeaturePlan, View
from headwater.settings import Settings

USED, TOO_YOUNG, COPY, UNREADABLE = STATUSES = ("used", "too_young", "copy", "unreadable")
DISTINCT = (USED, TOO_YOUNG)
_FLOATS = pa.list_(pa.float32())
_ITEM = pa.struct([
    ("item_id", pa.string()), ("shown", pa.bool_()), ("position", pa.int32()), ("position_propensity", pa.float64()),
    ("sampling_probability", pa.float64()), ("score", pa.float64()), ("sources", pa.list_(pa.string())),
    ("features", _FLOATS), ("newer", pa.list_(pa.string())),
])  # fmt: skip
_REQUEST = pa.schema([
    ("request_id", pa.string()), ("time", pa.int64()), ("user_id", pa.string()), ("surface", pa.string()),
    ("context", pa.map_(pa.string(), pa.string())), ("bundle_version", pa.string()), ("variant", pa.string()),
    ("policy", pa.string()),
    ("propensity", pa.float64()), ("feature_schema", pa.string()), ("feature_names", pa.list_(pa.string())),
    ("whole", pa.bool_()), ("items", pa.list_(_ITEM)),
])  # fmt: skip
_PLACE = ("ingest_time", "partition", "offset")
_TEXTS = ("surface", "bundle_version", "variant", "policy", "feature_schema")
_SQL = (
    "request_id string, time bigint, user_id string, surface string, context map<string,string>, bundle_version string,"
    " variant string, policy string, propensity double, feature_schema string, feature_names array<string>,"
    " whole boolean, items array<struct<"
    "item_id: string, shown: boolean, position: int, position_propensity: double, sampling_probability: double,"
    " score: double, sources: array<string>, features: array<float>, newer: array<string>>>,"
    " ingest_time bigint, partition int, offset bigint"
)


def read_impressions(
    spark: Any, settings: Settings, plan: FeaturePlan, cutoff_ms: int, final_ms: int, since_ms: int | None = None
) -> Any:
    """DataFrame of the impressions that had arrived before ``cutoff_ms``, one row a record.

    Columns are the record's; ``items`` those shown, then the sampled others, each with the windowed views that had
    folded an event at or after the instant they were read at (``newer``); ``whole``, whether each has a value of every
    feature named; ``status`` says what becomes of the record.

    Parameters
    ----------
    final_ms
        Age at which all labels are final.
    since_ms
        Those that arrived on dates before it are not read.
    """
    folder = settings.impressions_dir
    files = live_files(folder, None if since_ms is None else date_at(since_ms))
    if not files:
        raise DataError(
            f"{folder}: no archived impressions there. Serve with headwater up, which logs and archives what is shown."
        )
    read = spark.read.schema("value string, ingest_time bigint, partition int, offset bigint").parquet(*map(str, files))
    windowed = frozenset(view.name for view in plan.views if isinstance(view, View))
    parsed = read.where(f"ingest_time < {cutoff_ms}").mapInArrow(_parser(windowed), _SQL)
    place = "row_number() over (partition by request_id order by ingest_time, partition, offset)"
    status = (
        f"CASE WHEN request_id IS NULL THEN '{UNREADABLE}' WHEN _place > 1 THEN '{COPY}' "
        f"WHEN time + {final_ms} > {cutoff_ms} THEN '{TOO_YOUNG}' ELSE '{USED}' END AS status"
    )
    return parsed.selectExpr("*", f"{place} AS _place").selectExpr("*", status).drop("_place")


def parse_record(value: str, windowed: Collection[str]) -> dict[str, Any] | None:
    """One record as a row; ``None`` where it is not one that serving writes."""
    try:
        record = read_object(value.encode())
        row: dict[str, Any] = {name: _required(record, name) for name in ("request_id", "user_id")}
        row |= {name: _text(record.get(name)) for name in _TEXTS}
        row["time"], row["propensity"] = _whole(record["time"], 2**53), float(record["propensity"])
        row["context"] = [(str(key), str(held)) for key, held in (record.get("context") or {}).items()]
        row["feature_names"] = [str(name) for name in record.get("feature_names") or ()]
        row["items"] = _items(record, windowed)
        row["whole"] = all(len(item["features"] or ()) == len(row["feature_names"]) for item in row["items"])
    except (DataError, ValueError, TypeError, LookupError, AttributeError, OverflowError):
        return None
    return row


def _items(record: dict[str, Any], windowed: Collection[str]) -> list[dict[str, Any]]:
    shown, others = record["items"], record.get("others") or ()
    rows = [_item(one, True, _whole(one["position"], 2**31), float(one["propensity"]), 1.0) for one in shown]
    rows += [_item(one, False, None, None, float(one["probability"])) for one in others]
    for view, read in (record.get("views") or {}).items():
        for row, place in zip(rows, read["rows"], strict=True):
            at, newest = read["at"][place], read["newest"][place]
            if newest > at or (newest == at and view in windowed):  # a ready-made row may be of the very instant
                row["newer"].append(view)
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["item_id"], row)
    return list(first.values())


def _item(
    one: dict[str, Any], shown: bool, position: int | None, propensity: float | None, probability: float
) -> dict[str, Any]:
    if not 0 < probability <= 1:
        raise ValueError(f"probability {probability}")
    vector = one["features"]
    return {
        "item_id": _required(one, "item_id"), "shown": shown, "position": position, "position_propensity": propensity,
        "sampling_probability": probability, "score": float(one["score"]),
        "sources": [str(name) for name in one.get("sources") or ()], "newer": [],
        "features": None if vector is None else [np.nan if value is None else float(value) for value in vector],
    }  # fmt: skip


def _required(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value:
        raise ValueError(name)
    return value


def _whole(value: Any, below: int) -> int:
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(value)
    return value


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _parser(windowed: frozenset[str]) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    nothing = dict.fromkeys(_REQUEST.names)

    def parse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for first in range(0, batch.num_rows, 1_000):  # a record is a thousand times a row
                part = batch.slice(first, 1_000)
                rows = [parse_record(value or "", windowed) or nothing for value in part["value"].to_pylist()]
                columns = [pa.array([row[name] for row in rows], kind) for name, kind in _types()]
                places = [part[name] for name in _PLACE]
                yield pa.RecordBatch.from_arrays([*columns, *places], [*_REQUEST.names, *_PLACE])

    return parse


def _types() -> Iterator[tuple[str, pa.DataType]]:
    return ((field.name, field.type) for field in _REQUEST)
