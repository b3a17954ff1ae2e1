"""Stand-ins for the platform that a simulation drives."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from headwater.clock import ManualClock
from headwater.events import Event
from serving.contracts import Ranked, RankedItem
from simulation.world import World


class Movable(ManualClock):
    """Also tells the speeds that it was given, as the platform's clock is."""

    def set(self, at_ms: int, speed: float = 1.0) -> None:
        assert at_ms >= self.at_ms, "a clock that is moved back"
        super().set(at_ms)


@dataclass
class FakeServer:
    """Answers with products of its own choice; remembers what it was sent; ``fails`` says what it raises, and when."""

    world: World
    clock: Movable
    fails: Callable[[str, str], Exception | None] = lambda call, user: None
    events: list[Event] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0

    async def recommend(self, user_id: str, surface: str, limit: int) -> Ranked:
        await self._work("recommend", user_id)
        self.asked.append((user_id, self.clock.now_ms()))
        n = len(self.world.fitted.item_ids)
        turn = sum(user == user_id for user, _ in self.asked)
        first = int.from_bytes(f"{user_id}{turn}".encode(), "big") % n
        ids = [*(str(self.world.item_ids[(first + at) % n]) for at in range(limit - 1)), "unheard-of"]
        items = [RankedItem(item, 0.5, at, (), (), {}) for at, item in enumerate(ids, start=1)]
        return Ranked(f"r-{user_id}-{turn}", items, ("rank",) if first % 2 else (), "v1", "champion")

    async def track(self, event: Event) -> int:
        await self._work("track", event.user_id)
        self.events.append(event)
        return self.clock.now_ms()

    async def _work(self, call: str, user: str) -> None:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if (error := self.fails(call, user)) is not None:
            raise error
