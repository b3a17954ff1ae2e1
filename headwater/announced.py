"""Items as topic ``items`` announces them.

A record is JSON, ``item_id`` and attributes; one without a value takes its item back.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from headwater import topics
from headwater.errors import UnavailableError
from headwater.kafka_io import client_config, describe, offset_bounds, partitions_of
from headwater.log import get_logger

log = get_logger(__name__)
ASK_S, TURN_S = 20.0, 0.2
Attributes = Mapping[str, str]


def read_item(key: bytes | None, value: bytes | None) -> tuple[str, Attributes | None]:
    """Item and attributes of a record, ``None`` for one that takes its item back.

    Raises
    ------
    ValueError, TypeError, KeyError
        It is none.
    """
    if value is None:
        if not key:
            raise ValueError("neither key nor value")
        return key.decode(), None
    record: Any = json.loads(value)
    item = record["item_id"]
    if not isinstance(item, str) or not item:
        raise ValueError(f"item_id is {item!r}, and it is a string that is not empty")
    return item, {name: str(held) for name, held in record.items() if name != "item_id" and held is not None}


def announced_items(bootstrap: str) -> dict[str, Attributes]:
    """Attributes of every item that has been announced and not taken back; a record that is none is logged and left.

    Raises
    ------
    UnavailableError
        The broker does not answer.
    """
    partitions = partitions_of(describe(bootstrap), topics.ITEMS)
    consumer = Consumer(client_config(bootstrap) | {"group.id": "headwater-announced", "enable.auto.commit": False})
    try:
        bounds = offset_bounds(consumer, topics.ITEMS, partitions)
        ends = {number: end for number, (first, end) in bounds.items() if first < end}
        consumer.assign([TopicPartition(topics.ITEMS, number, OFFSET_BEGINNING) for number in ends])
        held: dict[str, Attributes] = {}
        asked_until = time.monotonic() + ASK_S
        while any(at < ends[number] for number, at in _positions(consumer).items()):
            if time.monotonic() > asked_until:
                raise UnavailableError(
                    f"kafka at {bootstrap}: topic {topics.ITEMS} stays unread. Run `headwater status`."
                )
            for message in consumer.consume(1_000, TURN_S):
                if message.error() is None:
                    _take(held, message)
                    asked_until = time.monotonic() + ASK_S
        return held
    finally:
        consumer.close()


def _positions(consumer: Consumer) -> dict[int, int]:
    """Next offset of each partition; below 0 before its first record."""
    return {place.partition: place.offset for place in consumer.position(consumer.assignment())}


def _take(held: dict[str, Attributes], message: Message) -> None:
    key = message.key()
    try:
        item, told = read_item(key, message.value())
    except (ValueError, TypeError, KeyError) as error:
        log.warning("item_refused", key=(key or b"").decode(errors="replace")[:80], reason=str(error))
        return
    if told is None:
        held.pop(item, None)
    else:
        held[item] = told
