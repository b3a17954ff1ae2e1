"""Small hands on Kafka that the platform's Python processes share: send, settle, dead-letter, look up."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from headwater import topics
from headwater.errors import UnavailableError
from headwater.events import BadRecord

GIVE_UP_MS = 30_000
CARRIED_BYTES = 900_000
"""A dead letter keeps this much of a record; a broker's own limit is a little above it."""

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Record:
    """What is sent: ``timestamp_ms`` is the record's ingest time."""

    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers | None = None


def client_config(bootstrap: str) -> dict[str, Any]:
    """Settings of every client; what goes wrong is raised, so the library itself stays silent."""
    return {"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 10_000}


class Sender:
    """An idempotent producer that is asked, from time to time, whether everything has arrived."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._refused: KafkaError | None = None
        self._producer = Producer(
            client_config(bootstrap)
            | {
                "enable.idempotence": True,
                "linger.ms": 20,
                "partitioner": "murmur2_random",  # as Java's clients choose
                "message.timeout.ms": GIVE_UP_MS,
                "message.max.bytes": 8_000_000,
            }
        )

    def send(self, record: Record) -> None:
        """Queue one record; waits where the queue is full."""
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, timestamp=record.timestamp_ms,
                    headers=record.headers, on_delivery=self._delivered,
                )  # fmt: skip
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def settle(self) -> None:
        """Return once the broker has acknowledged all that was sent.

        Raises
        ------
        UnavailableError
            It did not take one of the records, or did not answer.
        """
        unsent = self._producer.flush(GIVE_UP_MS / 1000 + 5)
        if self._refused is not None or unsent:
            reason = self._refused.str() if self._refused is not None else f"{unsent} records wait without an answer"
            self._refused = None
            raise UnavailableError(f"kafka at {self._bootstrap}: {reason}. Run `headwater status`, then try again.")

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._refused = error


def dead_letter(
    bad: BadRecord, raw: bytes | None, key: bytes | None, source: str, partition: int, offset: int, timestamp_ms: int
) -> Record:
    """Wrap a refused record: its bytes as they came, the reason and where it lay as headers.

    The key is ``source-partition-offset``, the same for every copy, so a reader can tell one sent twice.
    """
    raw = raw or b""
    headers = {
        "reason": bad.reason,
        "detail": bad.detail,
        "source": source,
        "partition": str(partition),
        "offset": str(offset),
    }
    if len(raw) > CARRIED_BYTES:
        headers["cut_from_bytes"] = str(len(raw))
    encoded = [(name, text.encode(errors="replace")) for name, text in headers.items()]
    if key is not None:
        encoded.append(("key", key))
    name = f"{source}-{partition}-{offset}".encode(errors="replace")
    return Record(topics.DEAD_LETTER, name, raw[:CARRIED_BYTES], timestamp_ms, encoded)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which broker this is, and the partitions of its topics."""

    id: str
    partitions: dict[str, list[int]]


def describe(bootstrap: str, timeout_s: float = 10) -> Cluster:
    """Ask the broker who it is.

    Raises
    ------
    UnavailableError
        It does not answer.
    """
    try:
        found = AdminClient(client_config(bootstrap)).list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise UnavailableError(
            f"kafka at {bootstrap}: no answer, {error.args[0].str()}. Run `headwater up` or set HEADWATER_KAFKA."
        ) from None
    return Cluster(found.cluster_id, {name: sorted(topic.partitions) for name, topic in found.topics.items()})


def partitions_of(cluster: Cluster, topic: str) -> list[int]:
    """Partitions of a topic that must be there.

    Raises
    ------
    UnavailableError
        It is not.
    """
    if topic not in cluster.partitions:
        raise UnavailableError(f"kafka: topic {topic} does not exist. Run `headwater up`, which creates it.")
    return cluster.partitions[topic]


def offset_bounds(
    consumer: Consumer, topic: str, partitions: Iterable[int], timeout_s: float = 30
) -> dict[int, tuple[int, int]]:
    """First offset kept and next offset written of each partition; waits for one that has no leader yet.

    Raises
    ------
    UnavailableError
        A partition does not answer in time.
    """
    deadline, bounds = time.monotonic() + timeout_s, {}
    for partition in partitions:
        while partition not in bounds:
            try:
                bounds[partition] = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"kafka: partition {partition} of {topic} does not answer, {error.args[0].str()}. "
                        "Run `headwater status`."
                    ) from None
                time.sleep(0.1)
    return bounds
