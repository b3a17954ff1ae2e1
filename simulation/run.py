"""A run from beginning to end: fit the world, take up the folder, play what is left of its days."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater import topics
from headwater.clock import StoredClock
from headwater.datasets.complete_journey import home_of
from headwater.kafka_io import Record as Message
from headwater.kafka_io import Sender
from headwater.online.connect import connect
from headwater.plan import DAY_MS
from headwater.settings import Settings, addresses
from serving.client import AsyncClient
from simulation.config import WorldConfig
from simulation.drive import Drive, MovableClock, Report
from simulation.fitted import Fitted, fit
from simulation.record import Record
from simulation.world import World


@dataclass(frozen=True)
class Asked:
    """What a run is asked for: so many days in all, of which the folder may hold some."""

    config: WorldConfig
    days: int
    out: Path
    side_by_side: int = 8
    connections: int = 1
    stretches: int = 4


def simulate(
    settings: Settings, asked: Asked, report: Report, begun: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Play the days that the folder lacks, and sum up all that it holds; ``begun`` is called at each stretch of a day.

    Raises
    ------
    ConfigError
        The folder holds the run of another world, or the world does not fit the data.
    UnavailableError
        A part of the platform does not answer; started again, the run goes on from the last finished day.
    """
    began, record = time.monotonic(), Record(asked.out)
    with connect(addresses(settings).redis) as store:
        store.ping()  # without a store a clock tells the wall's time
        world = world_of(settings, asked.config, asked.days)
        clock = StoredClock(store)
        next_midnight = -(-clock.now_ms() // DAY_MS) * DAY_MS
        start_ms = record.begin(identity(world.fitted, asked.config), next_midnight)
        played = asyncio.run(_play(settings, world, asked, clock, start_ms, record, report, begun))
    told = {"played": played, "seconds": round(time.monotonic() - began, 2), "seed": asked.config.seed}
    return record.summary() | told


def world_of(settings: Settings, config: WorldConfig, days: int) -> World:
    """The world of a configuration, fitted to the platform's archive.

    Raises
    ------
    DataError
        The archive has no purchase before the cut-off, or there is no catalogue.
    """
    fitted = fit(settings.events_dir, home_of(settings), config.fitted_until_ms, config.tastes.dimensions)
    return World(fitted, config, days)


def identity(fitted: Fitted, config: WorldConfig) -> dict[str, Any]:
    """What makes this world another than others."""
    held: dict[str, Any] = json.loads(config.model_dump_json())
    return held | {"data": fitted.fingerprint}


def announcer(world: World, sender: Sender, clock: MovableClock) -> Callable[[int], None]:
    """Tells the platform of a day's new products and shoppers, on topics ``items`` and ``users``."""

    def announce(day: int) -> None:
        products, shoppers = world.products, world.newcomers
        for at in (products.day == day).nonzero()[0]:
            told = {"item_id": str(products.ids[at])} | {name: str(held[at]) for name, held in products.text.items()}
            _send(topics.ITEMS, "item_id", told)
        for at in (shoppers.day == day).nonzero()[0]:
            _send(topics.USERS, "user_id", {"user_id": str(shoppers.ids[at])})
        sender.settle()

    def _send(topic: str, key: str, told: dict[str, str]) -> None:
        sender.send(Message(topic, told[key].encode(), json.dumps(told).encode(), clock.now_ms()))

    return announce


async def play_days(drive: Drive, record: Record, days: int) -> int:
    """Play the days that the folder lacks of so many; how many those were."""
    first, (_, longest) = record.finished(), drive.world.config.outcomes.return_days
    for day in range(first, days):
        played = await drive.play(day, record.due(day, longest))
        record.finish(day, played.lists, played.sent, played.later)
        drive.clock.set(max(drive.clock.now_ms(), drive.start_ms + (day + 1) * DAY_MS))
    return max(0, days - first)


async def _play(
    settings: Settings, world: World, asked: Asked, clock: StoredClock, start_ms: int, record: Record, report: Report,
    begun: Callable[[], None],
) -> int:  # fmt: skip
    where = addresses(settings)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(where.grpc, own_connection=True))
            for _ in range(asked.connections)
        ]
        drive = Drive(
            world, clients, clock, announcer(world, Sender(where.kafka), clock), start_ms, asked.side_by_side,
            asked.stretches, report=report, begun=begun,
        )  # fmt: skip
        return await play_days(drive, record, asked.days)
