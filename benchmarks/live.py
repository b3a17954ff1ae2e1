"""From a purchase to a list that differs, through the whole platform: client, Kafka, Flink, store, server, client.

Start it with ``headwater up`` on what ``headwater demo`` left. One household after another buys what stands in the
middle of its list and asks again until the answer is another. Beside it: until ``GetFeatures`` shows a purchase,
which needs no list. Then products arrive on topic ``items``, one after the other, each until a search for its name
finds it; they are taken back at the end.
"""

import json
import time
from collections.abc import Sequence

import numpy as np

from headwater import topics
from headwater.bench import Measure
from headwater.clock import StoredClock
from headwater.errors import UnavailableError
from headwater.kafka_io import Record, Sender
from headwater.online.connect import connect
from headwater.settings import Addresses, addresses, get_settings
from serving.client import Client
from serving.demo.live import changed_answer, freshness_ms
from serving.demo.story import COUNTER
from serving.evaluation import held_out

HOUSEHOLDS, FEWEST = 200, 10
MOST_MS = 1_000
ARRIVALS, MOST_S, EYE_S, GIVE_UP_S = 10, 5.0, 0.05, 60.0


def measure(size: float) -> Sequence[Measure]:
    """Delays over ``size`` of 200 households, milliseconds.

    Raises
    ------
    UnavailableError
        A part does not answer, or an answer did not change within half a minute.
    """
    settings = get_settings()
    where = addresses(settings)
    data, wanted = held_out(settings)
    users = [str(name) for name in data.users.ids.values[wanted.users[: max(FEWEST, int(HOUSEHOLDS * size))]]]
    with connect(where.redis) as store, Client(where.grpc) as client:
        clock = StoredClock(store)
        changes = [changed_answer(client, user, clock) for user in users]
        readable = freshness_ms(client, users, changes[0].bought, clock, COUNTER)
    delays = [change.delay_ms for change in changes]
    note = f"{len(users)} households, the longest {max(delays):.0f} ms"
    measures = []
    for share, most in ((50, None), (99, MOST_MS)):
        ours, theirs = (float(np.percentile(values, share)) for values in (delays, readable))
        measures.append(Measure(
            f"a purchase until the buyer's list is another, p{share}", round(ours, 1), "ms",
            "until GetFeatures shows it", round(theirs, 1), None, most, ours <= most if most else None, note=note,
        ))  # fmt: skip
    return [*measures, arrivals(where, max(2, int(ARRIVALS * size)))]


def arrivals(where: Addresses, n: int) -> Measure:
    """How long ``n`` new products take to be found, one after the other.

    Raises
    ------
    UnavailableError
        One is not found within a minute.
    """
    with connect(where.redis) as store, Client(where.grpc) as client:
        found_s = _arrivals_s(client, Sender(where.kafka), StoredClock(store), n)
    return Measure(
        "a new product until a search finds it, the longest", round(max(found_s), 2), "s", "the median",
        round(float(np.median(found_s)), 2), None, MOST_S, max(found_s) <= MOST_S, note=f"{n} products",
    )  # fmt: skip


def _arrivals_s(client: Client, sender: Sender, clock: StoredClock, n: int) -> list[float]:
    """Seconds from when the log has each of ``n`` new products to when a search finds it."""
    ids, found_s = [f"new-{clock.now_ms()}-{at}" for at in range(n)], []
    try:
        for item in ids:
            name = item.replace("-", "x")  # one word
            value = json.dumps({"item_id": item, "name": name}).encode()
            sender.send(Record(topics.ITEMS, item.encode(), value, clock.now_ms()))
            sender.settle()
            began = time.monotonic()
            while item not in [found.item_id for found in client.search("nobody", name, limit=1).items]:
                if time.monotonic() - began > GIVE_UP_S:
                    raise UnavailableError(f"bench: {item} not found within {GIVE_UP_S:.0f} s. See the server's log.")
                time.sleep(EYE_S)
            found_s.append(time.monotonic() - began)
    finally:
        for item in ids:
            sender.send(Record(topics.ITEMS, item.encode(), None, clock.now_ms()))
        sender.settle()
    return found_s
