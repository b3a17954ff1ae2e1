"""Random event streams of two topics: disorder, copies, late and too late, clocks ahead, bursts, gaps, hot keys."""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwater import folds
from headwater.kafka_io import Record
from headwater.plan import HOUR_MS
from headwater.settings import Settings

Fields = Mapping[str, Any]
START = 1_700_000_000_000
SPAN_MS = 30 * HOUR_MS
USERS, ITEMS, SESSIONS, SENSORS, ROOMS = 150, 60, 80, 40, 12
ENVELOPE_COLUMNS = (
    "event_id string, event_type string, event_time bigint, user_id string, item_id string, session_id string, "
    "request_id string, position int, value double, context map<string,string>"
)
READING_COLUMNS = (
    "reading bigint, at bigint, Sensor string, room string, celsius double, count int, faulty boolean, "
    "labels map<string,string>"
)
NUMERALS = ("0", "1", "2", "17", "-3", "many", "1.7", " 12 ", "+5", "7\n", "9223372036854775808", "")
"""Texts that are an integer, and such as are none."""


@dataclass(frozen=True)
class Sent:
    """A record as drawn, in the order of sending. ``event_time`` (epoch ms) is as written, ``event_id`` as text."""

    event_id: str
    event_time: int
    ingest_time: int
    fields: Fields


def fixed(value: float | None) -> int | None:
    """Millionths, half away from zero."""
    return None if value is None else int(folds.to_fixed(value))  # type: ignore[arg-type]


def whole(text: str | None) -> int | None:
    """What a cast to BIGINT makes of a text."""
    number = int(text) if text is not None and re.fullmatch(r" *[+-]?[0-9]+ *", text) else 2**63
    return number if number < 2**63 else None


def draw_stream(chance: random.Random, shape: str, count: int, horizon_ms: int | None) -> list[Sent]:
    """Draw what is sent to the topic of a shape, ``events`` or ``readings``."""
    now, sent, burst = START, list[Sent](), 0
    for at in range(count):
        burst = burst - 1 if burst else chance.choice((0,) * 60 + (50,))
        now += 0 if burst else _pause(chance, SPAN_MS // count)
        if sent and chance.random() < 0.04:
            sent.append(_copy(chance, chance.choice(sent[-500:]), now))
            continue
        when = now - _lateness(chance, horizon_ms)
        fields = _event(chance, at, when) if shape == "events" else _reading(chance, at, when)
        sent.append(Sent(str(fields.get("event_id", fields.get("reading"))), when, now, fields))
    return sent


def records(stream: Sequence[Sent], topic: str, key: str) -> Iterable[Record]:
    """Records as the topic carries them; copies have one key."""
    for one in stream:
        yield Record(topic, one.fields[key].encode(), json.dumps(one.fields).encode(), one.ingest_time)


def counted(stream: Sequence[Sent], settings: Settings, horizon_ms: int | None) -> list[Sent]:
    """The first copy of each event that is not too late; one ahead of the clock is cut to its arrival.

    Parameters
    ----------
    horizon_ms
        Lateness past which an event is too late; by ``None`` none is, as in the archive.
    """
    first: dict[str, Sent] = {}
    for one in stream:
        ahead, behind = one.event_time - one.ingest_time, one.ingest_time - one.event_time
        if ahead > settings.max_clock_skew_s * 1000 or (horizon_ms is not None and behind > horizon_ms):
            continue
        first.setdefault(one.event_id, Sent(
            one.event_id, min(one.event_time, one.ingest_time), one.ingest_time, one.fields,
        ))  # fmt: skip
    return list(first.values())


def _pause(chance: random.Random, usual_ms: int) -> int:
    return chance.randrange(2 * HOUR_MS) if chance.random() < 0.002 else chance.randrange(2 * usual_ms)


def _lateness(chance: random.Random, horizon_ms: int | None) -> int:
    """How long before its arrival an event happened, in milliseconds; below zero its clock is ahead."""
    if chance.random() < 0.03:
        edges = [] if horizon_ms is None else [horizon_ms, horizon_ms + 1, horizon_ms - 1, 2 * horizon_ms]
        return chance.choice([-300_000, -300_001, chance.randrange(12 * HOUR_MS), *edges])
    near = [chance.randrange(60_000), chance.randrange(HOUR_MS), -chance.randrange(300_000)]
    return chance.choice([0] * 6 + near)


def _copy(chance: random.Random, one: Sent, now: int) -> Sent:
    """The same event sent again, every other time with another amount."""
    amount = "value" if "value" in one.fields else "celsius"
    changed = {amount: 12.5} if chance.random() < 0.5 else {}
    return Sent(one.event_id, one.event_time, now, {**one.fields, **changed})


def _hot(chance: random.Random, count: int) -> int:
    """A few are drawn often."""
    return int(count * chance.random() ** 3)


def _number(chance: random.Random) -> float | None:
    return chance.choice((
        None, round(chance.gauss(0, 20), 7), round(chance.gauss(0, 20), 2), chance.randrange(-50, 50) / 2_000_000,
        chance.randrange(-(10**6), 10**6) / 3, float(chance.randrange(10)),
    ))  # fmt: skip


def _event(chance: random.Random, at: int, when: int) -> dict[str, Any]:
    kind = {"kind": chance.choice("xxyyzwü")} if chance.random() < 0.85 else {}
    quantity = {"quantity": chance.choice(NUMERALS)} if chance.random() < 0.85 else {}
    return {
        "event_id": f"e{at}", "event_type": chance.choice(("purchase", "purchase", "view", "cart")),
        "event_time": when, "user_id": f"ü{_hot(chance, USERS)}",
        "item_id": f"i{_hot(chance, ITEMS)}" if chance.random() < 0.95 else None,
        "session_id": f"s{_hot(chance, SESSIONS)}" if chance.random() < 0.8 else None, "value": _number(chance),
        "context": kind | quantity,
    }  # fmt: skip


def _reading(chance: random.Random, at: int, when: int) -> dict[str, Any]:
    labels = chance.choice((None, {}, {"kind": "x"}, {"kind": "y"}, {"kind": "z"}, {"kind": "x"}, {"kind": "w"}))
    return {
        "reading": at, "at": when, "Sensor": f"sensor {_hot(chance, SENSORS)}",
        "room": f"r{_hot(chance, ROOMS)}" if chance.random() < 0.9 else None, "celsius": _number(chance),
        "count": chance.choice((None, 0, 1, 2, 3, -7, 2**31 - 1)), "faulty": chance.choice((None, False, False, True)),
        "labels": labels,
    }  # fmt: skip
