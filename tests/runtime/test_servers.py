"""The real broker and the real online store, as the local runtime starts them."""

import time

import pytest
import redis
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource

from headwater import topics

pytestmark = pytest.mark.integration


def test_valkey_runs_lua_and_expires_single_fields(valkey_client: redis.Redis) -> None:
    script = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"
    assert valkey_client.eval(script, 1, "key", "value") == b"value"
    valkey_client.hset("hash", "field", "value")
    assert valkey_client.execute_command("HPEXPIRE", "hash", 60_000, "FIELDS", 1, "field") == [1]


def test_valkey_never_evicts(valkey_client: redis.Redis) -> None:
    assert valkey_client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_the_platform_topics_exist_and_only_the_catalogue_is_compacted(kafka: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    described = admin.list_topics(timeout=10).topics
    assert {name: len(described[name].partitions) for name in topics.ALL} == dict.fromkeys(topics.ALL, 2)
    configs = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics.ALL])
    policies = {resource.name: future.result(10)["cleanup.policy"].value for resource, future in configs.items()}
    assert {name for name, policy in policies.items() if policy == "compact"} == set(topics.COMPACTED)


@pytest.mark.parametrize("years", [-9, 0, 9], ids="{} years from now".format)
def test_a_record_keeps_the_time_of_the_platforms_clock(kafka: str, years: int) -> None:
    """A replay's records are years old, and none is refused or dropped for it."""
    moment = int(time.time() * 1000) + years * 365 * 86_400_000
    producer = Producer({"bootstrap.servers": kafka})
    delivered = []
    producer.produce(
        topics.IMPRESSIONS,
        b'{"request_id": "old"}',
        key=f"years{years}",
        timestamp=moment,
        on_delivery=lambda *d: delivered.append(d),
    )
    producer.flush(30)
    [(error, message)] = delivered
    assert error is None
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"years{years}", "auto.offset.reset": "earliest"})
    consumer.subscribe([topics.IMPRESSIONS])
    try:
        found = None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (found is None or found.key() != message.key()):
            found = consumer.poll(0.5)
        assert found is not None
        assert found.timestamp()[1] == moment
    finally:
        consumer.close()
