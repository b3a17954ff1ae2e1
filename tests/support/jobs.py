"""The stream job as `headwater up` runs it, in a process of its own."""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from headwater.kafka_io import offset_bounds
from headwater.runtime import process
from headwater.runtime.ready import is_marked
from headwater.settings import Settings
from streaming import progress

Sent = tuple[bytes | None, bytes | None, int]
"""Key, value and ingest time (epoch ms) of a record."""


def environment(settings: Settings) -> dict[str, str]:
    """The settings as a child process reads them."""
    return {f"HEADWATER_{name.upper()}": str(value) for name, value in settings.model_dump().items() if value}


class Job:
    """Starts, feeds and ends one job."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings = settings
        self._producer = Producer({"bootstrap.servers": settings.kafka, "log_level": 0})
        self._log = log
        self._process: process.Process | None = None

    def start(self) -> None:
        self._process = process.spawn([sys.executable, "-m", "streaming.job"], self._log, environment(self.settings))
        self.until(lambda: self._process is not None and is_marked(self.settings, "stream", self._process.pid))

    def until(self, holds: Callable[[], bool], timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert self._process is not None
            assert self._process.is_alive(), "\n".join(process.last_lines(self._log, 40))
            assert time.monotonic() < deadline, "\n".join(process.last_lines(self._log, 40))
            time.sleep(0.1)

    def kill(self) -> list[psutil.Process]:
        """kill -9 of the job's process alone; return the JVM and the workers it leaves."""
        assert self._process is not None
        leader = psutil.Process(self._process.pid)
        children = leader.children(recursive=True)
        leader.kill()
        return children

    def end(self) -> None:
        if self._process is not None:
            process.end(self._process)

    def send(self, records: Iterable[Sent], topic: str) -> None:
        for key, value, ingest_ms in records:
            self._producer.produce(topic, value, key, timestamp=ingest_ms)
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def catch_up(self) -> None:
        assert progress.wait_until_caught_up(self.settings, 300), "\n".join(process.last_lines(self._log, 40))


def read_all(kafka: str, topic: str) -> list[Message]:
    """All that a topic holds, by partition and offset."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "oracle", "enable.auto.commit": False})
    bounds = offset_bounds(consumer, topic, consumer.list_topics(topic).topics[topic].partitions)
    wanted = sum(end for _, end in bounds.values())
    consumer.assign([TopicPartition(topic, partition, 0) for partition in bounds])
    messages: list[Message] = []
    while len(messages) < wanted:
        messages += consumer.consume(1000, timeout=1)
    consumer.close()
    return sorted(messages, key=lambda message: (message.partition(), message.offset()))
