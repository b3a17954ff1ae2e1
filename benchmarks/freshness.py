"""From producing an event to a read that shows it, under a thousand others a second, against a plain Python loop."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import redis
from confluent_kafka import Producer

from benchmarks.parts import platform, purchases, running, wait
from benchmarks.stream import JOB, LOOP
from headwater import topics
from headwater.bench import Measure
from headwater.clock import StoredClock
from headwater.events import Event
from headwater.online.reader import OnlineReader
from headwater.registry.manifest import load_plan
from headwater.runtime.ready import is_marked
from headwater.settings import Settings, addresses

LOAD, PROBES, EVERY_S, POLL_S, GIVE_UP_S = 1_000, 300, 0.1, 0.002, 30.0
WARM_UP_S = 10.0
MOST_MS = 600
VIEW, FEATURE = "user_activity", "user_purchases_90d"


def measure(size: float) -> Sequence[Measure]:
    """Delays of probes, each a purchase of a household of its own, while others buy."""
    delays = {}
    for module in (JOB, LOOP):
        with platform(partitions=2) as settings:
            delays[module] = _delays_ms(settings, module, max(20, int(PROBES * size)))
    found = []
    for share in (50, 99):
        ours, loop = (float(np.percentile(delays[module], share)) for module in (JOB, LOOP))
        most = f", at most {MOST_MS}" if share == 99 else ""
        holds = ours <= MOST_MS if share == 99 else None
        found.append(Measure(
            f"event to feature, p{share} at {LOAD} events/s{most}", round(ours, 1), "ms",
            "a plain Python consumer loop", round(loop, 1), round(loop / ours, 2), None, holds,
        ))  # fmt: skip
    return found


def _delays_ms(settings: Settings, module: str, probes: int) -> list[float]:
    ended = threading.Event()
    with running(settings, module) as started, redis.Redis.from_url(addresses(settings).redis) as client:
        if module == JOB:
            wait(lambda: is_marked(settings, "stream", started.pid), started, "the job's start")
        load = threading.Thread(target=_load, args=(settings, ended))
        load.start()
        try:
            time.sleep(WARM_UP_S)
            reader = OnlineReader(client, load_plan(settings.repo), StoredClock(client))
            producer = _producer(settings)
            return [_delay_ms(reader, producer, f"{module}-{number}") for number in range(probes)]
        finally:
            ended.set()
            load.join()


def _delay_ms(reader: OnlineReader, producer: Producer, user: str) -> float:
    now = int(time.time() * 1000)
    event = Event(f"probe-{user}", "purchase", now, user, "p1", session_id=user, value=1.0, context={"category": "c1"})
    began = time.monotonic()
    producer.produce(topics.EVENTS, event.to_json(), user, timestamp=now)
    producer.poll(0)
    while reader.read_views({VIEW: [(user,)]})[VIEW].values[FEATURE][0] != 1:
        if time.monotonic() - began > GIVE_UP_S:
            return GIVE_UP_S * 1000
        time.sleep(POLL_S)
    delay = (time.monotonic() - began) * 1000
    time.sleep(EVERY_S)
    return delay


def _load(settings: Settings, ended: threading.Event) -> None:
    """Send purchases at an even rate, each arriving as it happens."""
    producer, began = _producer(settings), time.monotonic()
    stamp = int(time.time() * 1000)
    for sent, event in enumerate(purchases(stamp, 10**9, days=0)):
        producer.produce(topics.EVENTS, event.to_json(), event.user_id, timestamp=event.event_time)
        while sent >= (time.monotonic() - began) * LOAD:
            producer.poll(0)
            if ended.wait(0.01):
                producer.flush(10)
                return


def _producer(settings: Settings) -> Producer:
    return Producer({"bootstrap.servers": addresses(settings).kafka, "linger.ms": 1, "log_level": 0})
