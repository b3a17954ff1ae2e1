"""One row a list that was asked for: what was shown, what it was worth beside the best, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.evaluation.metrics import PAD
from serving.contracts import Ranked
from simulation.fitted import Ints
from simulation.shoppers import CART, CLICK, PURCHASE, Deeds, Shown, session_id
from simulation.world import World

SCHEMA = pa.schema(
    [
        ("day", pa.int32()),
        ("session_id", pa.string()),
        ("number", pa.int32()),
        ("user_id", pa.string()),
        ("is_new", pa.bool_()),
        ("at_ms", pa.int64()),
        ("request_id", pa.string()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("clicked", pa.list_(pa.bool_())),
        ("unknown", pa.int32()),
        ("value", pa.float64()),
        ("best", pa.float64()),
        ("regret", pa.float64()),
        ("value_clicks", pa.float64()),
        ("value_money", pa.float64()),
        ("clicks", pa.int32()),
        ("carts", pa.int32()),
        ("purchases", pa.int32()),
        ("cut", pa.int32()),
        ("bundle_version", pa.string()),
        ("variant", pa.string()),
        ("degraded", pa.list_(pa.string())),
        ("failure", pa.string()),
    ],
    metadata={"simulated": "true"},
)
"""``value``, ``best`` and ``regret`` are expected purchases; a list that failed has none, and ``failure`` says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its reply, ``None`` where there was none and ``failure`` names the error, and what followed."""

    shown: Shown
    ranked: Ranked | None
    deeds: Deeds
    at_ms: int
    failure: str | None


def rows_of(world: World, day: int, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Rows of ``SCHEMA``, in order of session and list; the values of all lists are computed at once."""
    if not asked:
        return []
    ordered = sorted(asked, key=lambda one: (one.shown.visit.number, one.shown.number))
    limit = world.config.lists.limit
    users = np.array([one.shown.visit.user for one in ordered], np.int32)
    lists = np.stack([_padded(one.shown.items, limit) for one in ordered])  # int32 (n, limit)
    who, which = np.unique(users, return_inverse=True)
    best = world.value(who, world.best_lists(who, day, limit), day).purchases[which]
    value = world.value(users, lists, day)
    worth = {
        "value": value.purchases,
        "regret": best - value.purchases,
        "value_clicks": value.clicks,
        "value_money": value.money,
    }
    return [
        _told(world, one)
        | {"best": float(best[at])}
        | {name: None if one.ranked is None else float(column[at]) for name, column in worth.items()}
        for at, one in enumerate(ordered)
    ]


def _told(world: World, asked: Asked) -> dict[str, Any]:
    shown, ranked, visit = asked.shown, asked.ranked, asked.shown.visit
    clicked = {event.item_id for event in asked.deeds.now if event.event_type == CLICK}
    return {
        "day": visit.day,
        "session_id": session_id(world, visit),
        "number": shown.number,
        "user_id": str(world.user_ids[visit.user]),
        "is_new": visit.user >= len(world.fitted.user_ids),
        "at_ms": asked.at_ms,
        "request_id": shown.request_id or None,
        "items": list(shown.item_ids),
        "scores": [] if ranked is None else [item.score for item in ranked.items],
        "clicked": [item in clicked for item in shown.item_ids],
        "unknown": int((shown.items == PAD).sum()),
        "clicks": asked.deeds.count(CLICK),
        "carts": asked.deeds.count(CART),
        "purchases": asked.deeds.count(PURCHASE),
        "cut": asked.deeds.cut,
        "bundle_version": None if ranked is None else ranked.bundle_version,
        "variant": None if ranked is None else ranked.variant,
        "degraded": [] if ranked is None else list(ranked.degraded),
        "failure": asked.failure,
    }


def _padded(items: Ints, limit: int) -> Ints:
    return np.pad(items[:limit], (0, limit - len(items[:limit])), constant_values=PAD).astype(np.int32)
