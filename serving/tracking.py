"""From a request to the log: the rules of :mod:`headwater.events`, the platform's clock, every in-sync replica."""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headwater import topics
from headwater.clock import Clock
from headwater.errors import DataError, HeadwaterError, UnavailableError
from headwater.events import BadRecord, Event, EventLimits, parse_event
from headwater.log import get_logger

log = get_logger("serving")
DELIVERY_S, SETTLED_S = 5.0, 8.0
"""How long the client tries, and until when it has said what came of it: it looks for what is overdue now and then."""
QUIET_S = 10.0
_OPTIONAL = ("item_id", "session_id", "request_id", "position", "value")


class KafkaLog:
    """Appends records; a background thread serves the deliveries."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._quiet_until = 0.0
        self._producer = Producer({
            "bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 1,
            "message.timeout.ms": int(DELIVERY_S * 1000), "partitioner": "murmur2_random", "log_level": 0,
            "compression.type": "zstd", "compression.level": 1, "error_cb": self._complain,
        })  # fmt: skip
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="kafka-deliveries", daemon=True)
        self._thread.start()

    def append(self, topic: str, key: str, value: bytes, timestamp_ms: int) -> "Future[None]":
        """Send without waiting; the future ends with an :class:`UnavailableError` where the log did not take it, or
        a :class:`DataError` where it never will."""
        done: Future[None] = Future()

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(self._told(error))

        try:
            self._producer.produce(topic, key=key.encode(), value=value, timestamp=timestamp_ms, on_delivery=delivered)
        except (BufferError, KafkaException) as error:
            done.set_exception(self._told(error))
        return done

    def close(self) -> None:
        """Wait for what has been sent, at most as long as a delivery may take."""
        self._producer.flush(DELIVERY_S)
        self._closed.set()
        self._thread.join()

    def _deliver(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(0.1)

    def _complain(self, error: KafkaError) -> None:
        """Log what the client reports by itself, at most once in ten seconds."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S
            log.warning("event_log", address=self._bootstrap, reason=error.str())

    def _told(self, error: object) -> HeadwaterError:
        cause = error.args[0] if isinstance(error, KafkaException) else error
        if isinstance(cause, KafkaError) and cause.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return DataError(f"event log at {self._bootstrap}: a record is too large for it, {cause.str()}. Send less.")
        return UnavailableError(
            f"event log at {self._bootstrap}: {error}. Start it with headwater up, or point HEADWATER_KAFKA at one "
            "that runs, and send the event again with the same event_id."
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """One event on its way."""

    event: Event
    ingest_ms: int
    delivery: "Future[None]"

    def settle(self, within_s: float = SETTLED_S) -> None:
        """Return once the log has it.

        Raises
        ------
        UnavailableError
            The log did not take it, or nobody can say. To send it again is safe: an ``event_id`` counts once.
        """
        try:
            self.delivery.result(within_s)
        except TimeoutError:
            raise UnavailableError(
                f"event log: nothing heard of {self.event.event_id} for {within_s:g} s. Send it again; it counts once."
            ) from None


@dataclass(frozen=True)
class Tracker:
    """Takes events for topic ``events``.

    Lateness does not refuse an event here: the archive keeps a late one, and the stream job says what it was late for.
    """

    log: KafkaLog
    clock: Clock
    limits: EventLimits

    def take(self, message: Any) -> Taken:
        """Validate and send one protobuf ``Event``.

        Raises
        ------
        BadRecord
            It breaks one of the rules of :mod:`headwater.events`.
        """
        now = self.clock.now_ms()
        raw = _envelope(message, now)
        event = parse_event(raw, message.user_id.encode(), now, self.limits)
        return Taken(event, now, self.log.append(topics.EVENTS, event.user_id, event.to_json(), now))

    def take_all(self, messages: Iterable[Any]) -> Iterator[Taken | BadRecord]:
        """One outcome a message, in order; refused ones stop nothing."""
        for message in messages:
            try:
                yield self.take(message)
            except BadRecord as refusal:
                yield refusal


def _envelope(message: Any, now: int) -> bytes:
    """JSON of topic ``events``; an absent ``event_time`` is now."""
    fields: dict[str, Any] = {
        "event_id": message.event_id,
        "event_type": message.event_type,
        "event_time": message.event_time if message.HasField("event_time") else now,
        "user_id": message.user_id,
        "context": dict(message.context),
    }
    fields |= {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    return json.dumps(fields, ensure_ascii=False).encode()
