"""From a purchase to a list that differs, through the whole platform: client, Kafka, Flink, store, server, client.

Start it with ``headwater up`` on what ``headwater demo`` left. One household after another buys what stands in the
middle of its list and asks again until the answer is another. Beside it: until ``GetFeatures`` shows a purchase,
which needs no list.
"""

from collections.abc import Sequence

import numpy as np

from headwater.bench import Measure
from headwater.clock import StoredClock
from headwater.online.connect import connect
from headwater.settings import addresses, get_settings
from serving.client import Client
from serving.demo.live import changed_answer, freshness_ms
from serving.demo.story import COUNTER
from serving.evaluation import held_out

HOUSEHOLDS, FEWEST = 200, 10
MOST_MS = 1_000


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
    return measures
