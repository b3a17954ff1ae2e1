"""The folder of a run: one Parquet file of lists and one of events a day, and what they come to.

::

    OUT/run.json                    which world, since when
    OUT/lists/day-0000.parquet      one row a list that was asked for; it is there once its day is finished
    OUT/events/day-0000.parquet     what was sent, and the returns that are due later

All of it says that it is simulated: ``run.json`` and the summary in a field, the files in their metadata.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headwater.errors import ConfigError
from headwater.events import EVENT_SCHEMA, Event
from headwater.files import write_whole
from simulation.rows import SCHEMA
from simulation.shoppers import PURCHASE, RETURN, Later

EVENTS_SCHEMA = pa.schema(
    [*EVENT_SCHEMA, ("due_day", pa.int32()), ("failure", pa.string())], metadata={"simulated": "true"}
)
"""``due_day`` is that of an event which is not sent yet; ``failure`` names why one could not be."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An event and, where the platform did not take it, the name of the error."""

    event: Event
    failure: str | None = None


@dataclass(frozen=True)
class Record:
    """A run's folder."""

    folder: Path

    def begin(self, identity: Mapping[str, Any], start_ms: int) -> int:
        """Take up the run that the folder holds, or begin one; the instant at which its first day begins.

        Raises
        ------
        ConfigError
            The folder holds the run of another world.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            write_whole(path, json.dumps({"simulated": True, "start_ms": start_ms, "identity": identity}, indent=2))
            return start_ms
        held = json.loads(path.read_text())
        if held["identity"] != json.loads(json.dumps(identity)):
            other = sorted(
                key for key in identity if held["identity"].get(key) != json.loads(json.dumps(identity[key]))
            )
            raise ConfigError(
                f"{self.folder}: it holds a run of another world, which differs in {', '.join(other)}. "
                "Name another folder with --out, or ask for the same world."
            )
        return int(held["start_ms"])

    def finished(self) -> int:
        """How many days are finished."""
        day = 0
        while self._lists(day).is_file():
            day += 1
        return day

    def finish(
        self, day: int, lists: Iterable[Mapping[str, Any]], sent: Iterable[Sent], later: Iterable[Later]
    ) -> None:
        """Write a day; once its lists are there it counts as finished."""
        events = [_row(one.event, None, one.failure) for one in sent] + [_row(one.event, one.day) for one in later]
        _write(self._events(day), pa.Table.from_pylist(events, EVENTS_SCHEMA).sort_by("event_id"))
        _write(self._lists(day), pa.Table.from_pylist(list(lists), SCHEMA))

    def due(self, day: int, within: int) -> list[Event]:
        """Events that the days before left for this one, at most so many days ago."""
        wanted, found = [*EVENT_SCHEMA.names], []
        for earlier in range(max(0, day - within), day):
            rows = pq.read_table(self._events(earlier), filters=pc.field("due_day") == day).select(wanted)
            found += [Event(**row | {"context": dict(row["context"])}) for row in rows.to_pylist()]
        return found

    def summary(self) -> dict[str, Any]:
        """What all finished days come to.

        Means are per list that was answered; values are expected purchases where nothing else is said.
        """
        days = range(self.finished())
        lists = pa.concat_tables([SCHEMA.empty_table(), *(pq.read_table(self._lists(day)) for day in days)])
        events = pa.concat_tables([EVENTS_SCHEMA.empty_table(), *(pq.read_table(self._events(day)) for day in days)])
        frame, sent = lists.to_pandas(), events.filter(pc.is_null(events["due_day"])).to_pandas()
        answered, taken = frame[frame["failure"].isna()], sent[sent["failure"].isna()]
        bought = taken[taken["event_type"] == PURCHASE]
        stages = pd.Series([stage for named in answered["degraded"] for stage in named], dtype=object)
        return {
            "simulated": True,
            "days": len(days),
            "shoppers": int(frame["user_id"].nunique()),
            "new_shoppers": int(frame.loc[frame["is_new"].astype(bool), "user_id"].nunique()),
            "requests": len(frame),
            "failures": _counts(frame["failure"].dropna()),
            "events": len(taken),
            "event_failures": _counts(sent["failure"].dropna()),
            "clicks": int(answered["clicks"].sum()),
            "carts": int(answered["carts"].sum()),
            "purchases": int(answered["purchases"].sum()),
            "unseen_purchases": int(bought["request_id"].isna().sum()),
            "returns": int((taken["event_type"] == RETURN).sum()),
            "cut_by_budget": int(answered["cut"].sum()),
            "unknown_items": int(answered["unknown"].sum()),
            **_worth(answered),
            "value_clicks": _mean(answered["value_clicks"]),
            "value_money": _mean(answered["value_money"]),
            "degraded_share": _mean(answered["degraded"].map(len) > 0),
            "degraded": _counts(stages),
            "by_day": {str(day): _worth(rows) for day, rows in answered.groupby("day")},
            "by_bundle": {str(name): _worth(rows) for name, rows in answered.groupby("bundle_version")},
            "by_variant": {str(name): _worth(rows) for name, rows in answered.groupby("variant")},
        }

    def _lists(self, day: int) -> Path:
        return self.folder / "lists" / f"day-{day:04d}.parquet"

    def _events(self, day: int) -> Path:
        return self.folder / "events" / f"day-{day:04d}.parquet"


def _worth(rows: pd.DataFrame) -> dict[str, Any]:
    best = _mean(rows["best"])
    regret = _mean(rows["regret"])
    return {
        "lists": len(rows),
        "value": _mean(rows["value"]),
        "best": best,
        "regret": regret,
        "regret_share": round(regret / best, 4) if best and regret is not None else None,
    }


def _mean(column: "pd.Series[Any]") -> float | None:
    return round(float(column.mean()), 6) if len(column) else None


def _counts(column: "pd.Series[Any]") -> dict[str, int]:
    return {str(name): int(count) for name, count in sorted(column.value_counts().items())}


def _row(event: Event, due_day: int | None, failure: str | None = None) -> dict[str, Any]:
    told = {name: getattr(event, name) for name in EVENT_SCHEMA.names} | {"context": list(event.context.items())}
    return told | {"due_day": due_day, "failure": failure}


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    pq.write_table(table, scratch)
    os.replace(scratch, path)
