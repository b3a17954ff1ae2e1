"""Days of the world against the real server: many shoppers side by side, each of them in the order of time.

::

    day ──► products and shoppers are announced ──► returns that are due ──► sessions, by stretch
                                                                                  │
            Recommend ──► what the shopper does ──► Track, one event at a time ◄──┘   and again, list by list

The platform's clock stands at the beginning of each stretch of the day and goes on from there at the pace of the wall;
it is never moved back. A session starts once its stretch has begun, and the next stretch when all are over.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol, TypeVar

from headwater.clock import REFRESH_S
from headwater.errors import HeadwaterError
from headwater.events import Event
from headwater.log import get_logger
from headwater.plan import DAY_MS
from serving.contracts import Ranked
from simulation.record import Sent
from simulation.rows import Asked, rows_of
from simulation.shoppers import Deeds, Later, Shown, Visit, budget, buy_unseen, react, sessions_by_shopper, visits
from simulation.world import World

log = get_logger("simulation")
MOST_IN_A_ROW = 50
"""After so many calls without one that succeeds, the server counts as gone."""
SEEN_S = 1.5 * REFRESH_S
"""Until all processes have seen that the clock was moved, and before that for the stream to fold what was sent: wall
seconds. An event that is folded after the clock was moved counts as hours late."""
T = TypeVar("T")
Report = Callable[[int, int, int], None]


class Platform(Protocol):
    """What is asked of the server: :class:`serving.client.AsyncClient` is one."""

    def recommend(self, user_id: str, surface: str, limit: int) -> Awaitable[Ranked]:
        """A list, best first."""
        ...

    def track(self, event: Event) -> Awaitable[int]:
        """Take one event."""
        ...


class MovableClock(Protocol):
    """The platform's time: :class:`headwater.clock.StoredClock` is one."""

    def now_ms(self) -> int:
        """Epoch milliseconds, UTC."""
        ...

    def set(self, now_ms: int, speed: float = 1.0) -> None:
        """Move it."""
        ...


@dataclass(frozen=True)
class Played:
    """A day that was played: rows of ``simulation.rows.SCHEMA`` in order, what was sent, and what is due later."""

    lists: Sequence[dict[str, Any]]
    sent: Sequence[Sent]
    later: Sequence[Later]


@dataclass(frozen=True)
class Drive:
    """Plays days.

    Attributes
    ----------
    platforms
        Connections, taken in turn.
    announce
        Called with a day whose newcomers are to be told.
    start_ms
        When day 0 begins.
    side_by_side
        So many shoppers at once.
    stretches
        Into so many the day is cut; each costs twice ``seen_s``.
    report
        Called with (day, sessions done, sessions in all).
    begun
        Called once the clock has come to a stretch, before anybody comes.
    """

    world: World
    platforms: Sequence[Platform]
    clock: MovableClock
    announce: Callable[[int], None]
    start_ms: int
    side_by_side: int = 8
    stretches: int = 4
    seen_s: float = SEEN_S
    report: Report = lambda day, done, total: None
    begun: Callable[[], None] = lambda: None

    async def play(self, day: int, due: Sequence[Event]) -> Played:
        """Play one day; ``due`` are events that earlier days left for it.

        Raises
        ------
        HeadwaterError
            The server has not answered for a while, or not once; what it said last. The day can be played again.
        """
        planned = visits(self.world, day)
        today = _Today(self, planned)
        length = DAY_MS // self.stretches
        for number in range(self.stretches):
            begins = number * length
            await self._move(self.start_ms + day * DAY_MS + begins)
            if number == 0:
                self.announce(day)
                await side_by_side(due, self.side_by_side, today.send)
            stretch = [visit for visit in planned if begins <= visit.offset_ms < begins + length]
            await side_by_side(list(sessions_by_shopper(stretch)), self.side_by_side, today.shopper)
            self.report(day, today.done, len(planned))
        if today.error is not None and not today.answered:
            raise today.error
        return Played(rows_of(self.world, day, today.asked), today.sent, today.later)

    async def _move(self, to_ms: int) -> None:
        await asyncio.sleep(self.seen_s)
        self.clock.set(max(to_ms, self.clock.now_ms()))
        self.begun()
        await asyncio.sleep(self.seen_s)


async def side_by_side(things: Sequence[T], n: int, work: Callable[[T], Awaitable[None]]) -> None:
    """Do all of them in order, at most ``n`` at a time; where one fails the others are stopped."""
    waiting: Iterator[T] = iter(things)

    async def take() -> None:
        for thing in waiting:
            await work(thing)

    tasks = [asyncio.ensure_future(take()) for _ in range(min(n, len(things)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@dataclass
class _Today:
    """What has happened today."""

    drive: Drive
    planned: Sequence[Visit]
    done: int = 0
    asked: list[Asked] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)
    spent: dict[int, float] = field(default_factory=dict)
    answered: int = 0
    in_a_row: int = 0
    error: HeadwaterError | None = None
    turn: "count[int]" = field(default_factory=count)

    async def shopper(self, sessions: Sequence[Visit]) -> None:
        """All of one shopper's sessions, one after the other."""
        for visit in sessions:
            for number in range(visit.lists):
                await self._list(visit, number)
            unseen = buy_unseen(self.drive.world, visit, self.drive.clock.now_ms(), self._left(visit.user))
            await self._do(visit.user, unseen)
            self.done += 1
            self.drive.report(visit.day, self.done, len(self.planned))

    async def send(self, event: Event) -> None:
        """Track an event, now."""
        now = replace(event, event_time=self.drive.clock.now_ms())
        _, failure = await self._call(self._platform().track(now))
        self.sent.append(Sent(now, failure))

    async def _list(self, visit: Visit, number: int) -> None:
        world = self.drive.world
        asked = world.config.lists
        user = str(world.user_ids[visit.user])
        ranked, failure = await self._call(self._platform().recommend(user, asked.surface, asked.limit))
        ids = [] if ranked is None else [item.item_id for item in ranked.items]
        request_id = "" if ranked is None else ranked.request_id
        shown = Shown(visit, number, request_id, world.items_of(ids), ids)
        now = self.drive.clock.now_ms()
        deeds = react(world, shown, now, self._left(visit.user))
        self.asked.append(Asked(shown, ranked, deeds, now, failure))
        await self._do(visit.user, deeds)

    async def _do(self, user: int, deeds: Deeds) -> None:
        self.spent[user] = self.spent.get(user, 0.0) + deeds.spent
        self.later += deeds.later
        for event in deeds.now:
            await self.send(event)

    async def _call(self, answer: Awaitable[T]) -> tuple[T | None, str | None]:
        """The answer, or the name of the error that came instead."""
        try:
            found = await answer
        except HeadwaterError as error:
            self.in_a_row, self.error = self.in_a_row + 1, error
            if self.in_a_row >= MOST_IN_A_ROW:
                raise
            if self.in_a_row == 1:
                log.warning("call_failed", error=type(error).__name__, reason=str(error))
            return None, type(error).__name__
        self.in_a_row, self.answered = 0, self.answered + 1
        return found, None

    def _platform(self) -> Platform:
        return self.drive.platforms[next(self.turn) % len(self.drive.platforms)]

    def _left(self, user: int) -> float:
        return budget(self.drive.world, user) - self.spent.get(user, 0.0)
