"""Impressions on disk as serving's records, and their labels word for word, in plain Python over lists."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.archives import START, Stored

from batch.objectives import Labelling
from headwater.folds import to_fixed
from headwater.plan import DAY_MS, FeaturePlan

LABELLING = Labelling.model_validate({
    "label": "purchase",
    "keys": {"user": "user_id", "item": "item_id"},
    "objectives": {
        "click": {"events": ["click"], "window": "1h", "delay": "0s"},
        "purchase": {"events": ["bought"], "window": "3h", "delay": "1h"},
        "value": {"events": ["bought"], "fold": "sum", "window": "3h", "delay": "1h"},
    },
    "retractions": {"return": {"events": ["bought"], "within": "5h"}},
})  # fmt: skip
CUT = START + 3 * DAY_MS
AT = START + DAY_MS
ODD = [0.1, None, -0.0, 1e-45, 3.4028234e38, 16777217.0, 1 / 3]


def vectors(plan: FeaturePlan, *items: str) -> dict[str, list[float | None]]:
    """Awkward float32 as serving writes them: the float64 that each equals."""
    n = len(plan.service("all").names)
    made: dict[str, list[float | None]] = {}
    for at, item in enumerate(items):
        row = [ODD[(at + place) % len(ODD)] for place in range(n)]
        made[item] = [None if value is None else float(np.float32(value)) for value in row]
    return made


def logged(plan: FeaturePlan) -> dict[str, Any]:
    return {"feature_schema": plan.schema_hash("all"), "feature_names": list(plan.service("all").names)}


@dataclass(frozen=True)
class Arrived:
    """A record of topic ``impressions`` and where and when it arrived."""

    value: str
    ingest_time: int
    partition: int = 0
    offset: int = 0

    @property
    def record(self) -> Any:
        return json.loads(self.value)


def record(
    request_id: str,
    time: int,
    user: str = "u",
    items: Sequence[str] = ("a", "b"),
    others: Sequence[str] = (),
    vectors: dict[str, list[float | None]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Lay out an impression as ``serving.impressions.document`` does."""
    held = vectors or {}
    shown = [
        {"item_id": name, "score": 0.5, "sources": ["popular"], "features": held.get(name), "position": at,
         "propensity": 1.0}
        for at, name in enumerate(items, start=1)
    ]  # fmt: skip
    rest = [
        {"item_id": name, "score": 0.25, "sources": [], "features": held.get(name), "probability": 0.5}
        for name in others
    ]
    return {
        "request_id": request_id, "time": time, "user_id": user, "surface": "home", "context": {},
        "bundle_version": "7", "variant": "champion", "policy": "greedy", "degraded": [],
        "feature_service": "all", "feature_schema": "", "feature_names": [],
        "propensity": 1.0, "items": shown, "candidates": len(items) + 2 * len(others),
        "others": rest, "views": {}, **fields,
    }  # fmt: skip


def arrived(records: Sequence[dict[str, Any]]) -> list[Arrived]:
    """Records that arrived as they were made, in order."""
    return [Arrived(json.dumps(one), one["time"], 0, at) for at, one in enumerate(records)]


def write_impressions(held: Sequence[Arrived], folder: Path) -> None:
    """Archive the records by date of arrival, one file each day."""
    for day in sorted({one.ingest_time // DAY_MS for one in held}):
        part = [one for one in held if one.ingest_time // DAY_MS == day]
        target = folder / f"date={np.datetime64(day, 'D')}" / "p0.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {
            "value": [one.value for one in part],
            "ingest_time": pa.array([one.ingest_time for one in part], pa.int64()),
            "partition": pa.array([one.partition for one in part], pa.int32()),
            "offset": pa.array([one.offset for one in part], pa.int64()),
        }
        pq.write_table(pa.table(columns), target)


def first_of_each(held: Sequence[Any], key: Any) -> list[Any]:
    """Of copies the first by (ingest time, partition, offset)."""
    first: dict[Any, Any] = {}
    for one in sorted(held, key=lambda one: (one.ingest_time, one.partition, one.offset)):
        first.setdefault(key(one), one)
    return list(first.values())


def taken_back(events: Sequence[Any], labelling: Labelling) -> dict[str, str]:
    """Retraction to the outcome that it takes back."""
    ordered = sorted(events, key=lambda one: (one.event_time, one.event_id))
    pairs: dict[str, str] = {}
    for named_ones in (True, False):
        for at, back in enumerate(ordered):
            rule = labelling.retractions.get(back.event_type)
            name = back.context.get(rule.names) if rule and rule.names else None
            if rule is None or (name is not None) != named_ones:
                continue
            for one in reversed(ordered[:at]):
                is_it = one.event_id == name if named_ones else one.item_id == back.item_id is not None
                in_time = back.event_time - one.event_time <= rule.within_ms
                free = one.event_id not in pairs.values() and one.event_type in rule.events
                if is_it and in_time and free and one.user_id == back.user_id:
                    pairs[back.event_id] = one.event_id
                    break
    return pairs


def oracle(
    impressions: Sequence[Arrived], stored: Sequence[Stored], labelling: Labelling, cutoff: int
) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, dict[str, int]]]:
    """Labels of each row of the used impressions, and each objective's fates."""
    known = first_of_each(
        [one for one in impressions if one.ingest_time < cutoff], lambda one: one.record["request_id"]
    )
    lists = [one.record for one in known]
    events = [one.event for one in first_of_each(stored, lambda one: one.event.event_id) if one.ingest_time < cutoff]
    events = [one for one in events if one.event_time < cutoff]
    gone = set(taken_back(events, labelling).values())
    used = [one for one in lists if one["time"] + labelling.final_ms <= cutoff]
    labels: dict[tuple[str, str], dict[str, Any]] = {
        (one["request_id"], item["item_id"]): dict.fromkeys(labelling.objectives, 0)
        for one in used
        for item in [*one["items"], *one["others"]]
    }
    fates: dict[str, dict[str, int]] = {name: {} for name in labelling.objectives}
    for event in events:
        for name, objective in labelling.objectives.items():
            if event.event_type not in objective.events:
                continue
            fate, owner = _fate(event, lists, objective.window_ms, event.event_id in gone)
            if fate == "credited" and owner not in used:
                fate = "too_young"
            fates[name][fate] = fates[name].get(fate, 0) + 1
            if fate == "credited":
                row = labels[owner["request_id"], event.item_id]
                row[name] = 1 if objective.fold == "any" else row[name] + _millionths(event.value)
    return labels, fates


def _fate(event: Any, lists: list[Any], window: int, gone: bool) -> tuple[str, Any]:
    if gone:
        return "retracted", None
    if event.request_id is not None:
        named = [one for one in lists if one["request_id"] == event.request_id]
        owners = [one for one in named if _shows(one, event.item_id)]
        other_lists = named
    else:
        theirs = [one for one in lists if one["user_id"] == event.user_id and one["time"] <= event.event_time]
        owners = [one for one in theirs if _shows(one, event.item_id)]
        other_lists = [one for one in theirs if event.event_time < one["time"] + window and one["items"]]
    if not owners:
        return ("not_shown" if other_lists else "without_impression"), None
    owner = max(owners, key=lambda one: (one["time"], one["request_id"]))
    if event.event_time < owner["time"]:
        return "before_impression", owner
    return ("past_window" if event.event_time >= owner["time"] + window else "credited"), owner


def _shows(one: Any, item: str | None) -> bool:
    return any(shown["item_id"] == item for shown in one["items"])


def _millionths(value: float | None) -> Decimal:
    return Decimal(0) if value is None else Decimal(int(to_fixed(np.array([value]))[0])).scaleb(-6)
