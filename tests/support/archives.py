"""Drawn purchases as an archive on disk, and as the rows that the naive oracle folds."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from support.definitions import ENVELOPE
from support.views import every_function, stepped

from benchmarks.oracle import Row
from headwater.events import Event, archive_table
from headwater.folds import to_fixed
from headwater.plan import DAY_MS, HOUR_MS, FeaturePlan, Source, View

START = 20_000 * DAY_MS
ODD = ("a dozen", "1.5", "\t7\n", "7\n", "inf", "", " 12 ", "+5", "9223372036854775808")
"""Quantities of which only ' 12 ' and '+5' are integers, whatever an engine by itself may think."""


@dataclass(frozen=True)
class Stored:
    """An event and where and when it arrived."""

    event: Event
    ingest_time: int
    partition: int
    offset: int


def draw(
    count: int, seed: int = 0, users: int = 5, items: int = 5, days: float = 2.0, late: bool = True
) -> list[Stored]:
    """Purchases with ties, nulls, late arrivals and, where some arrive late, copies under ids already seen."""
    rng = np.random.default_rng(seed)
    stored = []
    for number in range(count):
        time = START + int(rng.integers(0, days * DAY_MS)) // 60_000 * 60_000
        delay = int(rng.integers(0, 2 * HOUR_MS)) if late and rng.random() < 0.4 else 0
        odd = ODD[int(rng.integers(len(ODD)))]
        context = {"quantity": str(int(rng.integers(-2, 5))) if rng.random() < 0.8 else odd}
        context |= {"kind": "xyz"[int(rng.integers(3))]} if rng.random() < 0.8 else {}
        event = Event(
            event_id=f"e{number if not late or rng.random() < 0.9 else number // 2}",
            event_type="purchase" if rng.random() < 0.9 else "view",
            event_time=time,
            user_id=str(rng.integers(1, users + 1)) + "1" * int(rng.integers(2)),
            item_id=str(rng.integers(1, users + 1)) + "1" * int(rng.integers(2)) if rng.random() < 0.95 else None,
            value=round(float(rng.normal(0, 20)), 7) if rng.random() < 0.8 else None,
            context=context,
        )
        stored.append(Stored(event, time + delay, 0 if late else -1, number))
    return stored


def write(stored: Iterable[Stored], folder: Path) -> None:
    """Archive the events by date, one file a partition."""
    ordered = sorted(stored, key=lambda s: (s.event.event_time // DAY_MS, s.partition, s.offset))
    for (day, partition), held in groupby(ordered, key=lambda s: (s.event.event_time // DAY_MS, s.partition)):
        part = list(held)
        target = folder / f"date={np.datetime64(day, 'D')}" / f"p{partition}-{part[0].offset}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        offsets = [s.offset for s in part]
        pq.write_table(
            archive_table([s.event for s in part], [s.ingest_time for s in part], partition, offsets), target
        )


def whole(text: str) -> int | None:
    """What a cast to BIGINT makes of a text."""
    number = int(text) if re.fullmatch(r" *[+-]?[0-9]+ *", text) else 2**63
    return number if number < 2**63 else None


def rows_of(stored: Sequence[Stored], keys: tuple[str, ...]) -> list[Row]:
    """Distinct purchases that have all keys, as ``every_function`` projects them."""
    first: dict[str, Stored] = {}
    for one in sorted(stored, key=lambda s: (s.ingest_time, s.partition, s.offset)):
        first.setdefault(one.event.event_id, one)
    return [
        Row(
            one.event.event_id,
            one.event.event_time,
            one.ingest_time,
            tuple(getattr(one.event, key) for key in keys),
            stepped(
                {
                    "kind": one.event.context.get("kind"),
                    "amount": None if one.event.value is None else int(to_fixed(np.array([one.event.value]))[0]),
                    "quantity": whole(one.event.context["quantity"]),
                }
            ),
        )
        for one in first.values()
        if one.event.event_type == "purchase" and all(getattr(one.event, key) is not None for key in keys)
    ]


def plan_with(*views: View, **parts: Any) -> FeaturePlan:
    """A plan of views on the default envelope."""
    columns: Any = tuple(tuple(column.strip().split(" ", 1)) for column in ENVELOPE.split(", "))
    source = Source(
        name="events", topic="events", columns=columns, event_id="event_id", event_time="event_time", key="user_id"
    )
    fields: Any = {"on_demand": (), "batch_views": (), "services": (), **parts}
    return FeaturePlan(project="test", registry_sha256="", repo=".", sources=(source,), views=views, **fields)


def user_and_pair_views(ttl_ms: int = 0) -> tuple[View, View]:
    """Every function by user, and by user and item."""
    return every_function(ttl_ms, "by_user"), every_function(ttl_ms, "by_pair", ("user_id", "item_id"))
