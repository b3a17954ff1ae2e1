"""What the stream's benchmarks share: broker, store and the example's definitions of their own, events to send."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import Producer

from headwater import topics
from headwater.errors import UnavailableError
from headwater.events import Event
from headwater.plan import DAY_MS
from headwater.runtime import process, supervisor
from headwater.runtime.parts import environment
from headwater.runtime.ports import free_port
from headwater.settings import Settings, addresses

EXAMPLE = Path(__file__).resolve().parents[1] / "feature_repo"
HOUSEHOLDS, PRODUCTS, CATEGORIES, DAYS = 2_500, 5_000, 300, 30
PORTS = ("kafka_port", "redis_port", "grpc_port", "metrics_port", "stream_metrics_port")


def settings_in(folder: Path, **told: Any) -> Settings:
    """Settings of a platform of its own below a folder, on free ports; ``told`` are others by name."""
    ports: dict[str, Any] = {port: free_port() for port in PORTS}
    return Settings(state_dir=folder / "state", repo=folder / "feature_repo", kafka=None, redis=None, **ports, **told)


@contextlib.contextmanager
def servers(
    partitions: int = 2, prepare: Callable[[Settings], None] = lambda settings: None, **told: Any
) -> Iterator[Settings]:
    """Broker and store with nothing in them, in a folder of their own that ``prepare`` may fill first.

    ``told`` are settings by name.
    """
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        settings = settings_in(Path(folder), partitions=partitions, **told)
        prepare(settings)
        try:
            supervisor.start(settings, ["kafka", "valkey"])
            yield settings
        finally:
            supervisor.stop(settings)


def platform(partitions: int, **told: Any) -> contextlib.AbstractContextManager[Settings]:
    """Broker and store with nothing in them, and the example's feature definitions applied."""
    return servers(partitions, apply_example, **told)


def apply_example(settings: Settings, surfaces: str | None = None, services: str | None = None) -> None:
    """Copy the example's feature definitions to the settings' repository and apply them.

    Parameters
    ----------
    surfaces, services
        Text of ``surfaces.toml``, and Python in place of the example's feature services.

    Raises
    ------
    UnavailableError
        Feast refuses them.
    """
    shutil.copytree(EXAMPLE, settings.repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    for name, text in (("surfaces.toml", surfaces), ("services.py", services)):
        if text is not None:
            (settings.repo / name).write_text(text)
    applied = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "headwater.registry.lean", "-c", str(settings.repo), "apply"],
        env={**os.environ, "HEADWATER_STATE_DIR": str(settings.state_dir)}, capture_output=True, text=True,
    )  # fmt: skip
    if applied.returncode:
        raise UnavailableError(f"feast apply: {applied.stderr.strip()[-500:]}. Run it by hand on feature_repo.")


@contextlib.contextmanager
def running(settings: Settings, module: str) -> Iterator[process.Process]:
    """``python -m module`` under these settings, ended at the end; its log is ``<module>.log``."""
    started = process.spawn([sys.executable, "-m", module], log_of(settings, module), environment(settings))
    try:
        yield started
    finally:
        process.end(started)


def log_of(settings: Settings, module: str) -> Path:
    """Where a module run here says what it has to say."""
    return settings.log_dir / f"{module}.log"


def purchases(first: int, count: int, days: float = DAYS) -> Iterator[Event]:
    """Synthetic purchases: many of few households and products, in baskets of ten; spread over days, or as of now."""
    draw = random.Random(first)
    until = int(time.time() * 1000)
    for at in range(first, first + count):
        product = int(PRODUCTS * draw.random() ** 2)
        user = f"h{int(HOUSEHOLDS * draw.random() ** 2)}"
        when = until - int((first + count - at) / count * days * DAY_MS) if days else int(time.time() * 1000)
        yield Event(
            f"bench-{at}", "purchase", when, user, f"p{product}", session_id=f"{user}-{at // 10}",
            value=draw.randrange(50, 2_000) / 100, context={"category": f"c{product % CATEGORIES}"},
        )  # fmt: skip


def strangers(count: int) -> Iterator[Event]:
    """Purchases of which each is of a household, a product and a category that no other has."""
    for at, event in enumerate(purchases(0, count)):
        yield replace(event, user_id=f"h{at}", item_id=f"p{at}", session_id=f"h{at}-0", context={"category": f"c{at}"})


def fill(settings: Settings, events: Iterable[Event]) -> None:
    """Write a backlog; each event arrived when it happened."""
    producer = Producer({
        "bootstrap.servers": addresses(settings).kafka, "linger.ms": 50, "queue.buffering.max.messages": 200_000,
        "batch.size": 500_000, "log_level": 0,
    })  # fmt: skip
    for event in events:
        while True:
            try:
                producer.produce(topics.EVENTS, event.to_json(), event.user_id, timestamp=event.event_time)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush(120)


def wait(holds: Callable[[], bool], alive: process.Process, told: str, timeout_s: float = 1_800) -> None:
    """Poll until something holds.

    Raises
    ------
    UnavailableError
        The process has ended, or time is up.
    """
    deadline = time.monotonic() + timeout_s
    while not holds():
        if not alive.is_alive() or time.monotonic() > deadline:
            raise UnavailableError(f"bench: {told} did not come about.")
        time.sleep(0.05)


def empty(settings: Settings) -> None:
    """Delete what has been written online and what a job has kept, so that the next begins as the first did."""
    shutil.rmtree(settings.checkpoints_dir, ignore_errors=True)
    with redis.Redis.from_url(addresses(settings).redis) as client:
        client.flushall()
