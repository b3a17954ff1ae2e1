"""The live part: ask, buy, ask again, and time what lies between."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.clock import Clock
from headwater.errors import UnavailableError
from headwater.events import Event
from serving.client import Client
from serving.contracts import Ranked, RankedItem

GIVE_UP_S = 30.0
SETTLED_S = 2.0
"""After which a list that has changed is taken, though what was bought stands in it as before."""
POLL_S = 0.005


@dataclass(frozen=True)
class Change:
    """The same call before and after one purchase; ``delay_ms`` from sending it to the changed answer."""

    user_id: str
    bought: RankedItem
    before: Ranked
    after: Ranked
    delay_ms: float


def buy(user_id: str, item: RankedItem, clock: Clock, price: float = 2.5) -> Event:
    """A purchase of one shown product, now."""
    context = {name: item.attributes[name] for name in ("category", "department", "brand") if item.attributes.get(name)}
    return Event(
        event_id=f"demo-{uuid.uuid4()}", event_type="purchase", event_time=clock.now_ms(), user_id=user_id,
        item_id=item.item_id, session_id=f"demo-{user_id}", request_id=None, position=item.position, value=price,
        context=context,
    )  # fmt: skip


def changed_answer(client: Client, user_id: str, clock: Clock, limit: int = 10) -> Change:
    """Buy what stands in the middle of the list and wait until it stands there otherwise, or no more.

    What a purchase says of the user alone may be readable a moment before what it says of user and product.

    Raises
    ------
    UnavailableError
        The answer did not change in time.
    """
    before = client.recommend(user_id, limit=limit)
    item = before.items[len(before.items) // 2]
    began, first = time.monotonic(), 0.0
    client.track(buy(user_id, item, clock))

    def has_changed(ranked: Ranked) -> bool:
        nonlocal first
        if _shape(ranked) == _shape(before):
            return False
        first = first or time.monotonic()
        return _place(ranked, item) != _place(before, item) or time.monotonic() - first > SETTLED_S

    after = _until(
        lambda: client.recommend(user_id, limit=limit), has_changed,
        f"the list of {user_id} after a purchase of {item.item_id}",
    )  # fmt: skip
    as_before = _place(after, item) == _place(before, item)
    return Change(user_id, item, before, after, (first - began) * 1000 if as_before else _ms_since(began))


def freshness_ms(
    client: Client, users: Sequence[str], item: RankedItem, clock: Clock, feature: tuple[str, str]
) -> list[float]:
    """From sending an event to ``GetFeatures`` showing it, one user after another; (n_users,) milliseconds."""
    return [_delay_ms(client, user, item, clock, *feature) for user in users]


def _delay_ms(client: Client, user: str, item: RankedItem, clock: Clock, service: str, name: str) -> float:
    def read() -> Any:
        return client.features(service, {"user_id": user}).values[name]

    before = read()
    began = time.monotonic()
    client.track(buy(user, item, clock))
    _until(read, lambda value: value != before, f"{name} of {user} after a purchase")
    return _ms_since(began)


def recommend_ms(client: Client, users: Sequence[str], limit: int = 10) -> list[float]:
    """Time of each call over gRPC, one at a time; (n_users,) milliseconds."""
    times = []
    for user in users:
        began = time.monotonic()
        client.recommend(user, limit=limit)
        times.append(_ms_since(began))
    return times


def percentiles(values: Sequence[float]) -> Mapping[str, float]:
    """p50 and p99."""
    return {"p50": round(float(np.percentile(values, 50)), 1), "p99": round(float(np.percentile(values, 99)), 1)}


def _shape(ranked: Ranked) -> list[tuple[str, float, tuple[str, ...]]]:
    return [(item.item_id, round(item.score, 6), tuple(item.reasons)) for item in ranked.items]


def _place(ranked: Ranked, item: RankedItem) -> list[Any]:
    return [(at, shape) for at, shape in enumerate(_shape(ranked)) if shape[0] == item.item_id]


def _until(ask: Callable[[], Any], fulfilled: Callable[[Any], bool], subject: str) -> Any:
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        answer = ask()
        if fulfilled(answer):
            return answer
        time.sleep(POLL_S)
    raise UnavailableError(f"{subject}: no change within {GIVE_UP_S:.0f} s. See headwater status and the stream's log.")


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000
