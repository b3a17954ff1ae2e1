"""What shoppers do: when they come, and what they make of a list that was shown to them.

The events are those that the platform's labels know: ``click``, ``cart_add``, ``purchase``, and a ``return`` days later
that names its purchase. An event's id follows from seed, day, list and place alone, so a day that is played again
sends ids that the platform has, and of these the first counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from headwater.events import Event
from headwater.plan import DAY_MS
from simulation.chance import Draw, chance
from simulation.fitted import Floats, Ints
from simulation.world import World

CLICK, CART, PURCHASE, RETURN = "click", "cart_add", "purchase", "return"
STEPS = {CLICK: 1, CART: 2, PURCHASE: 3, RETURN: 4}
OPEN_H, CLOSED_H = 7, 22
"""Shoppers come between these hours, UTC."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A session: ``number`` counts those of the day in order of time, ``offset_ms`` is since midnight."""

    day: int
    number: int
    user: int
    offset_ms: int
    lists: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A list as it was shown: item numbers best first (k,), ``PAD`` for what the world does not know, and its ids."""

    visit: Visit
    number: int
    request_id: str
    items: Ints
    item_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Later:
    """An event that is due on a later day."""

    day: int
    event: Event


@dataclass
class Deeds:
    """What one did: events of now in order, what is due later, what was spent and what the budget cut."""

    now: list[Event] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)
    spent: float = 0.0
    cut: int = 0

    def count(self, kind: str) -> int:
        return sum(event.event_type == kind for event in self.now)


def visits(world: World, day: int) -> list[Visit]:
    """The day's sessions in order of time."""
    config, rng = world.config, chance(world.config.seed, Draw.VISITS, day)
    present = world.present(day)
    rhythm = np.concatenate([world.fitted.rhythm, np.ones(len(world.newcomers.ids))])[present]
    users = np.repeat(present, rng.poisson(config.shoppers.sessions_a_day * rhythm))
    offset = rng.integers(OPEN_H * DAY_MS // 24, CLOSED_H * DAY_MS // 24, size=len(users))
    lists = 1 + rng.poisson(config.shoppers.lists_a_session - 1, size=len(users))
    order = np.argsort(offset, kind="stable")
    columns = (users[order].tolist(), offset[order].tolist(), lists[order].tolist())
    return [Visit(day, at, *told) for at, told in enumerate(zip(*columns, strict=True))]


def budget(world: World, user: int) -> float:
    """What one may spend on a day; a newcomer what is usual (money)."""
    times, spend = world.config.outcomes.budget, world.fitted.spend
    if not times:
        return float("inf")
    return times * float(spend[user] if user < len(spend) else spend.mean())


def session_id(world: World, visit: Visit) -> str:
    """Name of a session, the same in each run."""
    return f"sim-{world.config.seed}-{visit.day}-{visit.number}"


def react(world: World, shown: Shown, at_ms: int, left: float) -> Deeds:
    """What the shopper makes of a list: drawn by the world's chances, from seed, day, session and list alone.

    Parameters
    ----------
    at_ms
        When; the time of all events of now.
    left
        Of the day's budget; a purchase that costs more is not made, and is counted as cut.
    """
    visit, config = shown.visit, world.config
    rng = chance(config.seed, Draw.ACTS, visit.day, visit.number, shown.number)
    found = world.chances(np.array([visit.user]), shown.items[None], visit.day)
    looks, clicks, carts, buys = rng.random((4, len(shown.items)))
    clicked = (looks < world.examined(len(shown.items))) & (clicks < found.click[0])
    carted = clicked & (carts < found.cart)
    bought = carted & (buys < found.purchase[0])
    deeds = Deeds()
    for place in np.flatnonzero(clicked).tolist():
        make = _Maker(world, visit, f"{shown.number}-{place + 1:03d}", at_ms, shown.request_id, place + 1)
        item, item_id = int(shown.items[place]), shown.item_ids[place]
        deeds.now.append(make.event(CLICK, item, item_id))
        if carted[place]:
            deeds.now.append(make.event(CART, item, item_id))
        if bought[place]:
            _buy(deeds, make, item, left, rng)
    return deeds


def buy_unseen(world: World, visit: Visit, at_ms: int, left: float) -> Deeds:
    """What a shopper buys in a session without having been shown it: own products by habit, others by popularity."""
    asked = world.config.unseen
    rng = chance(world.config.seed, Draw.UNSEEN, visit.day, visit.number)
    _, own, count = world.habits.rows(np.array([visit.user]))
    habit = np.cumsum(count * world.factor(visit.day)[own])
    deeds = Deeds()
    for at, is_own in enumerate(rng.random(rng.poisson(asked.a_session)) < asked.own):
        by_habit = is_own and len(own) > 0
        item = int(own[_drawn(rng, habit)]) if by_habit else _drawn(rng, world.crowd(visit.day))
        make = _Maker(world, visit, f"unseen-{at:03d}", at_ms, None, None)
        _buy(deeds, make, item, left, rng)
    return deeds


def sessions_by_shopper(planned: Sequence[Visit]) -> Iterator[list[Visit]]:
    """The visits of each shopper in order of time, in order of the shoppers' first; these may go side by side."""
    by_user: dict[int, list[Visit]] = {}
    for visit in planned:
        by_user.setdefault(visit.user, []).append(visit)
    yield from by_user.values()


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the events of one place."""

    world: World
    visit: Visit
    place: str
    at_ms: int
    request_id: str | None
    position: int | None

    def event(self, kind: str, item: int, item_id: str, value: float | None = None, **context: str) -> Event:
        world, session = self.world, session_id(self.world, self.visit)
        told = {name: str(world.text[name][item]) for name in ("category", "department", "brand")}
        return Event(
            event_id=f"{session}-{self.place}-{STEPS[kind]}", event_type=kind, event_time=self.at_ms,
            user_id=str(world.user_ids[self.visit.user]), item_id=item_id, session_id=session,
            request_id=self.request_id, position=self.position, value=value,
            context={name: text for name, text in told.items() if text} | context,
        )  # fmt: skip


def _buy(deeds: Deeds, make: _Maker, item: int, left: float, rng: np.random.Generator) -> None:
    """Buy if the budget allows it, and draw whether and when it comes back."""
    world, visit = make.world, make.visit
    asked, price = world.config.outcomes, float(world.price[item])
    comes_back, first_last = rng.random() < asked.returned, asked.return_days
    due = visit.day + int(rng.integers(first_last[0], first_last[1] + 1))
    if deeds.spent + price > left:
        deeds.cut += 1
        return
    item_id = str(world.item_ids[item])
    bought = make.event(PURCHASE, item, item_id, price)
    deeds.spent += price
    deeds.now.append(bought)
    if comes_back:
        deeds.later.append(Later(due, make.event(RETURN, item, item_id, price, purchase_id=bought.event_id)))


def _drawn(rng: np.random.Generator, running: Floats) -> int:
    """One place, by weights of which there is the running sum (n,)."""
    return min(int(np.searchsorted(running, rng.random() * running[-1], side="right")), len(running) - 1)
