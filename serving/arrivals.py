"""Items that came after a bundle was trained, followed on topic ``items``.

A record (:mod:`headwater.announced`) counts for bundles whose training had ended when it came, by its timestamp, which
is the platform's clock: what came before is the retraining's business.
"""

import math
import threading
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from headwater import topics
from headwater.announced import Attributes, read_item
from headwater.errors import UnavailableError
from headwater.kafka_io import client_config, offset_bounds
from headwater.log import get_logger
from models.additions import with_items
from models.bundle import Bundle

log = get_logger("serving")
TURN_S, ASK_S, CLOSE_S = 0.2, 5.0, 1.0
PAUSE_S, MOST_PAUSE_S = 0.5, 30.0
QUIET_S, LONGEST_S = 0.3, 2.0
"""Items that come together are taken up together: once none has come for so long, or the first has waited so long."""
REST = 1.0
"""So many times as long as the last making of a bundle took passes before it is made anew."""


@dataclass(frozen=True)
class _Arrival:
    at_ms: int
    told: Attributes


class Arrivals:
    """Follows the topic from the end of the first bundle's training on; ``version`` counts the changes to take up."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._held: dict[str, _Arrival] = {}
        self._version, self._not_before = 0, 0.0
        self._first_at, self._last_at = math.inf, -math.inf
        """Of the changes that no version has: when the first and the last were heard of."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def version(self) -> int:
        """Another number once there is something that the last bundle was made without; not too often, for the cost."""
        now = time.monotonic()
        with self._lock:
            is_due = now >= self._last_at + QUIET_S or now >= self._first_at + LONGEST_S
            if self._first_at < math.inf and is_due and now >= self._not_before:
                self._first_at, self._version = math.inf, self._version + 1
            return self._version

    def added_to(self, bundle: Bundle) -> Bundle:
        """The bundle with what came since its training, or as it is where that fails; the first starts following."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._follow, args=(bundle.meta.training_end_ms,), name="arrivals", daemon=True
            )
            self._thread.start()
        with self._lock:
            held = {item: one for item, one in sorted(self._held.items()) if one.at_ms >= bundle.meta.training_end_ms}
        if not held:
            return bundle
        names = sorted({name for one in held.values() for name in one.told})
        table = pa.table({
            "item_id": pa.array(held, pa.string()),
            **{name: pa.array([one.told.get(name) for one in held.values()], pa.string()) for name in names},
        })  # fmt: skip
        try:
            extended = with_items(bundle, table, np.array([one.at_ms for one in held.values()], np.int64))
        except Exception as error:  # an odd item is no reason to serve no bundle
            log.error("items_not_added", bundle=bundle.version, items=len(held), exc_info=error)
            return bundle
        log.info("items_added", bundle=bundle.version, items=len(extended.items) - len(bundle.items))
        return extended

    def took(self, seconds: float) -> None:
        """Tell how long a bundle took to be made, which is also how long it is left at least."""
        self._not_before = time.monotonic() + REST * seconds

    def close(self) -> None:
        """Stop following; a broker that does not answer is not waited for."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def take(self, key: bytes | None, value: bytes | None, at_ms: int) -> None:
        """Take one record; one that cannot be read is logged and left."""
        try:
            item, told = read_item(key, value)
        except (ValueError, TypeError, KeyError) as error:
            log.warning("item_refused", key=(key or b"").decode(errors="replace")[:80], reason=str(error))
            return
        with self._lock:
            before = self._held.get(item)
            if (None if before is None else before.told) == told:
                return
            if told is None:
                del self._held[item]
            else:
                self._held[item] = _Arrival(before.at_ms if before else at_ms, told)
            self._last_at = time.monotonic()
            self._first_at = min(self._first_at, self._last_at)

    def _follow(self, since_ms: int) -> None:
        pause_s = PAUSE_S
        while not self._closed.is_set():
            try:
                self._read(since_ms)
            except (KafkaException, UnavailableError) as error:
                log.warning("items_not_followed", address=self._bootstrap, reason=str(error), again_s=pause_s)
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, MOST_PAUSE_S)

    def _read(self, since_ms: int) -> None:
        """Read on until told to end, through outages of the broker that the client mends itself."""
        own = {"group.id": "headwater-arrivals", "enable.auto.commit": False}  # a name that no offset is kept under
        consumer = Consumer(client_config(self._bootstrap) | own)
        try:
            consumer.assign(_places(consumer, since_ms))
            while not self._closed.is_set():
                message: Message | None = consumer.poll(TURN_S)
                if message is not None and message.error() is None:
                    self.take(message.key(), message.value(), message.timestamp()[1])
        finally:
            consumer.close()


def _places(consumer: Consumer, since_ms: int) -> list[TopicPartition]:
    """Where each partition's records from an instant on begin; its present end where there is none so late."""
    found = consumer.list_topics(topics.ITEMS, timeout=ASK_S).topics[topics.ITEMS]
    if found.error is not None:
        raise KafkaException(found.error)
    numbers = list(found.partitions)
    ends = offset_bounds(consumer, topics.ITEMS, numbers, ASK_S)  # asked first: what comes after it is not missed
    asked = [TopicPartition(topics.ITEMS, number, since_ms) for number in numbers]
    begins = consumer.offsets_for_times(asked, timeout=ASK_S)
    return [
        TopicPartition(topics.ITEMS, one.partition, one.offset if one.offset >= 0 else ends[one.partition][1])
        for one in begins
    ]
