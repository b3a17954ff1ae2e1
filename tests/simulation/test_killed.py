"""Each part is killed while shoppers are served; the training rows are those of the simulator's own record.

Real parts on a generated shop. The oracle is plain Python over what the simulator wrote down: the lists that it saw
answered, their items in order, and which were clicked.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from pandas.testing import assert_frame_equal
from support.archives import Stored, write
from support.parts import IS_FULL, until

from benchmarks import shop as shops
from benchmarks.loop.run import HERE
from benchmarks.parts import apply_example, settings_in
from benchmarks.served import SURFACES, family, promote
from benchmarks.shop import CATEGORIES, Shop
from headwater.clock import StoredClock, wall_ms
from headwater.datasets.complete_journey import home_of
from headwater.errors import UnavailableError
from headwater.events import Event
from headwater.kafka_io import Sender
from headwater.plan import HOUR_MS, FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.runtime import supervisor
from headwater.runtime.parts import environment
from headwater.settings import Settings, addresses
from serving.client import AsyncClient
from serving.contracts import Ranked
from simulation.config import WorldConfig, load_world_config
from simulation.drive import Drive
from simulation.record import Record
from simulation.run import announcer, identity, play_days, world_of
from streaming.archive import catch_up

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not IS_FULL, reason="it takes minutes; HEADWATER_TEST_FULL=1 runs it"),
]
VICTIMS = ("workers", "serve", "kafka", "valkey", "stream", "archive")
"""One a day, just after a list was answered; ``serve`` is the leader of the workers, ``stream`` the JVM of Flink."""
MEANWHILE = 12
"""Calls that are made before anybody waits for the part: more in a row without an answer would end the run."""
IN_MEMORY_S = 0.5
"""How long an impression may lie in a worker's memory before the log or a file has it."""
Row = tuple[str, str, int, int]


@dataclass
class Havoc:
    """Kills the part of a day in its midst, and starts it again as somebody would: ``headwater up``.

    Attributes
    ----------
    killed
        When each was, monotonic seconds.
    answered
        When the simulator had each list, likewise.
    tries
        How often ``headwater up`` was run until all was there again.
    """

    settings: Settings
    killed: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    next: str = ""
    meanwhile: int = 0
    mending: "asyncio.Task[None] | None" = None

    def report(self, day: int, done: int, total: int) -> None:
        if day < len(VICTIMS) and VICTIMS[day] not in self.killed and done >= total // 3:
            self.next = VICTIMS[day]

    def strike(self, request_id: str) -> None:
        """A list was answered: kill whose turn it is."""
        self.answered[request_id] = time.monotonic()
        if not (name := self.next):
            return
        victims = self._victims(name)
        for one in victims:
            one.kill()
        self.next, self.meanwhile, self.killed[name] = "", 0, time.monotonic()
        self.mending = asyncio.get_running_loop().create_task(asyncio.to_thread(self._mend, name, victims))

    async def wait(self, calls: int = 0) -> None:
        """Until the part is there again, unless there were few calls since it was killed."""
        self.meanwhile += 1
        if self.mending is not None and self.meanwhile > calls:
            await asyncio.shield(self.mending)

    def _victims(self, name: str) -> list[psutil.Process]:
        part = "serve" if name == "workers" else name
        leader = psutil.Process(next(one.pid for one in supervisor.recorded(self.settings) if one.name == part))
        if name == "stream":
            return [child for child in leader.children() if child.name() == "java"]
        return self._workers(leader) if name == "workers" else [leader]

    def _workers(self, leader: psutil.Process) -> list[psutil.Process]:
        port, held = self.settings.grpc_port, leader.children(recursive=True)
        return [one for one in held if any(it.laddr.port == port for it in one.net_connections("tcp"))]

    def _mend(self, name: str, victims: list[psutil.Process]) -> None:
        assert len(victims) == (self.settings.serve_workers if name == "workers" else 1)
        psutil.wait_procs(victims, 30)
        if name != "workers":  # which their leader starts again
            until(lambda: self._is_up(name))

    def _is_up(self, name: str) -> bool:
        self.tries[name] = self.tries.get(name, 0) + 1
        return up(self.settings).returncode == 0


@dataclass(frozen=True)
class App:
    """Asks as an application does: what was not taken is sent again, under its id."""

    client: AsyncClient
    havoc: Havoc

    async def recommend(self, user_id: str, surface: str, limit: int) -> Ranked:
        await self.havoc.wait(MEANWHILE)
        ranked = await self.client.recommend(user_id, surface, limit)
        self.havoc.strike(ranked.request_id)
        return ranked

    async def track(self, event: Event) -> int:
        while True:
            with suppress(UnavailableError):
                return await self.client.track(event)
            await self.havoc.wait()
            await asyncio.sleep(0.1)


class PatientClock(StoredClock):
    """Is moved once the store is there."""

    def set(self, now_ms: int, speed: float = 1.0) -> None:
        def moved() -> bool:
            with suppress(redis.RedisError, UnavailableError):
                super(PatientClock, self).set(now_ms, speed)
                return True
            return False

        until(moved)


def up(settings: Settings) -> "subprocess.CompletedProcess[str]":
    return headwater(settings, "up", "--json")


def headwater(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), env=os.environ | environment(settings), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "headwater", *arguments]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """All parts, two workers, and a shop of 300 products and 60 households in store, bundle and archive."""
    settings = settings_in(
        tmp_path_factory.mktemp("killed"), serve_workers=2, kafka_heap_mb=320, flink_heap_mb=700, spark_heap_mb=1024
    )
    apply_example(settings, SURFACES.read_text())
    (settings.repo / "labels.toml").write_text((HERE / "labels.toml").read_text())
    plan, shop = load_plan(settings.repo), Shop(300, 60, wall_ms())
    _past(settings, plan, shop)
    try:
        supervisor.start(settings, ["kafka", "valkey"])
        with redis.Redis.from_url(addresses(settings).redis) as store:
            shops.fill(store, plan, shop)
            shops.publish(settings.bundles_dir / "v0", store, plan, shop, trees=10)
        promote(settings, "v0")
        started = up(settings)
        assert started.returncode == 0, started.stderr
        yield settings
    finally:
        supervisor.stop(settings)


def _past(settings: Settings, plan: FeaturePlan, shop: Shop) -> None:
    """Archive what was bought, and write the catalogue and the ready-made tables."""
    bought, product = shop.bought
    stored = [
        Stored(
            Event(f"past-{at}", "purchase", when, f"h{user}", f"p{item}", value=value / 1e6,
                  context={"category": f"c{item % CATEGORIES}"}),
            when, -1, at,
        )
        for at, (user, item, when, value) in enumerate(
            zip(bought.owner.tolist(), product.tolist(), bought.at_ms.tolist(), bought.micros.tolist(), strict=True)
        )
    ]  # fmt: skip
    write(stored, settings.events_dir)
    home_of(settings).mkdir(parents=True, exist_ok=True)
    told = {
        "item_id": shop.items,
        "name": shop.items,
        "category": [f"c{at % CATEGORIES}" for at in range(shop.n_items)],
    }
    pq.write_table(pa.table(told), home_of(settings) / "items.parquet")
    at = pa.array([shop.now_ms - HOUR_MS], pa.timestamp("ms", "UTC"))
    for view in plan.batch_views:
        row = {key: ["none"] for key in view.join_keys} | {column.name: [0] for column in view.columns}
        pq.write_table(pa.table(row | {"event_timestamp": at, "created": at}), view.path)


@pytest.fixture(scope="module")
def config() -> WorldConfig:
    held = load_world_config().model_dump()
    held["fitted_until"] = datetime.now(UTC)
    held["shoppers"] |= {"sessions_a_day": 0.5, "new_a_day": 1}
    held["tastes"] |= {"dimensions": 4, "base": -2.0}
    held["new_products"] |= {"count": 3, "a_day": 3}
    return WorldConfig.model_validate(held | {"trends": []})


@dataclass(frozen=True)
class Played:
    """What the simulator wrote down, and when what happened."""

    havoc: Havoc
    out: Path

    @property
    def lists(self) -> list[dict[str, Any]]:
        return [one for one in pq.read_table(self.out / "lists").to_pylist() if one["failure"] is None]

    def rows(self) -> list[Row]:
        """The oracle: request, item, place from 1, and whether it was clicked."""
        return sorted(
            (one["request_id"], item, place, int(clicked))
            for one in self.lists
            for place, (item, clicked) in enumerate(zip(one["items"], one["clicked"], strict=True), start=1)
        )


@pytest.fixture(scope="module")
def played(platform: Settings, config: WorldConfig, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A day for each victim and one more, all archived, and old enough to be labelled."""
    done = Played(Havoc(platform), tmp_path_factory.mktemp("run"))
    days = len(VICTIMS) + 1
    world, record = world_of(platform, config, days), Record(done.out)
    with redis.Redis.from_url(addresses(platform).redis, socket_timeout=5) as store:
        clock = PatientClock(store)
        start_ms = record.begin(identity(world.fitted, config), clock.now_ms())
        announce = announcer(world, Sender(addresses(platform).kafka), clock)

        async def play() -> None:
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(AsyncClient(addresses(platform).grpc, own_connection=True))
                    for _ in range(4)
                ]
                apps = [App(client, done.havoc) for client in clients]
                drive = Drive(world, apps, clock, announce, start_ms, 4, 2, report=done.havoc.report)
                for day in range(days):
                    await play_days(drive, record, day + 1)
                    await done.havoc.wait()

        asyncio.run(play())
        catch_up(platform)
        clock.set(clock.now_ms() + 3 * HOUR_MS)
    assert set(done.havoc.killed) == set(VICTIMS)
    return done


def made(settings: Settings, out: Path) -> dict[str, Any]:
    told = headwater(settings, "training-set", "--from-impressions", "--out", str(out), "--json")
    assert told.returncode == 0, told.stderr[-3000:]
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def shown(out: Path) -> list[Row]:
    table = pq.read_table(out)
    return sorted(
        (one["request_id"], one["item_id"], one["position"], one["label"]) for one in table.to_pylist() if one["shown"]
    )


def whole(out: Path) -> pd.DataFrame:
    """All rows and columns; a value that is missing equals another."""
    table: pd.DataFrame = pq.read_table(out).to_pandas()
    return table.sort_values(["request_id", "item_id"], ignore_index=True)


@pytest.fixture(scope="module")
def built(platform: Settings, played: Played) -> tuple[Path, dict[str, Any]]:
    out = platform.training_dir / "first"
    return out, made(platform, out)


def test_the_rows_are_those_that_the_simulator_saw(played: Played, built: tuple[Path, dict[str, Any]]) -> None:
    """None lost and none twice, but for what lay in a killed server's memory: of that all clicks are counted."""
    out, told = built
    asked = {one["request_id"] for one in played.lists}
    rows = [row for row in shown(out) if row[0] in asked]
    lost = asked - {row[0] for row in rows}
    assert rows == [row for row in played.rows() if row[0] not in lost]
    assert len({row[:2] for row in shown(out)}) == len(shown(out))
    killed, answered = played.havoc.killed, played.havoc.answered
    before = {one: {name: round(at - answered[one], 3) for name, at in killed.items()} for one in lost}
    assert all(abs(seconds["workers"]) < IN_MEMORY_S for seconds in before.values()), before  # a reply may be under way
    fates = told["accounting"]["outcomes"]["fates"]["click"]
    clicks = [row for row in played.rows() if row[3]]
    assert fates.get("without_impression", 0) == sum(row[0] in lost for row in clicks)
    assert fates.get("credited", 0) == sum(row[0] not in lost for row in clicks)
    assert sum(fates.values()) == len(clicks)
    assert told["accounting"]["impressions"]["unreadable"] == 0


def test_building_that_is_killed_and_begun_again_ends_in_the_same_rows(
    platform: Settings, played: Played, built: tuple[Path, dict[str, Any]]
) -> None:
    out, _ = built
    before = whole(out)
    asked = command("training-set", "--from-impressions", "--out", str(out), "--json")
    with subprocess.Popen(asked, env=os.environ | environment(platform), stderr=subprocess.PIPE) as process:
        until(lambda: any(out.parent.glob(f".{out.name}.*.draft/labelled")) or process.poll() is not None)
        assert process.poll() is None, "it was over before"
        for one in family(process.pid):  # Python and Spark's JVM
            one.kill()
    assert_frame_equal(whole(out), before)  # what was there stays until another is whole
    made(platform, out)
    assert_frame_equal(whole(out), before)
    assert not list(out.parent.glob(".*.draft"))
