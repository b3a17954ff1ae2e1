"""A cluster of three nodes holds and gives back the bytes of one server."""

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from headwater.clock import ManualClock, StoredClock
from headwater.errors import UnavailableError
from headwater.online import codec
from headwater.online.connect import connect
from headwater.online.erase import erase_entity
from headwater.online.keys import entity_key, project_prefix
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import BatchView, Column, FeaturePlan, Service, ServiceFeature

pytestmark = pytest.mark.integration
START = 1_500_000_000_000
USERS = [f"user{at}" for at in range(500)]


def view(*join_keys):
    return BatchView(
        name="_".join(join_keys),
        join_keys=join_keys,
        path="",
        timestamp_field="event_timestamp",
        created_field="created",
        ttl_ms=0,
        id=f"{len(join_keys):016x}",
        columns=(Column(name="age", dtype="int64"), Column(name="score", dtype="float32")),
    )


ALONE, PAIR = view("user_id"), view("user_id", "item_id")
PLAN = FeaturePlan(
    project="shop",
    registry_sha256="",
    repo=".",
    sources=(),
    views=(),
    batch_views=(ALONE, PAIR),
    on_demand=(),
    services=(
        Service(
            name="all",
            features=tuple(
                ServiceFeature(view=one.name, feature=column.name) for one in (ALONE, PAIR) for column in one.columns
            ),
        ),
    ),
)


def write(client, users, project="shop", ahead=0):
    writer = OnlineWriter(client, project)
    for one in (ALONE, PAIR):
        keys = [(user, f"item{at % 7}")[: len(one.join_keys)] for at, user in enumerate(users)]
        rows = [codec.encode_row(one, START + ahead, 0, (at, at / 3)) for at in range(len(users))]
        writer.write_rows(one, keys, rows)


def read(client, users):
    rows = {"user_id": list(users), "item_id": [f"item{at % 7}" for at in range(len(users))]}
    return OnlineReader(client, PLAN, ManualClock(START + 1)).read_matrix("all", rows).values


def test_a_matrix_of_500_users_on_three_nodes_is_the_one_servers(valkey_client, valkey_cluster, valkey_nodes):
    wanted = [*USERS, "nobody"]
    for client in (valkey_client, valkey_cluster):
        write(client, USERS)
    assert all(node.dbsize() > 100 for node in valkey_nodes)
    assert read(valkey_cluster, wanted).tobytes() == read(valkey_client, wanted).tobytes()
    held = {key: valkey_client.hgetall(key) for key in valkey_client.scan_iter()}
    assert {key: valkey_cluster.hgetall(key) for key in valkey_cluster.scan_iter()} == held


@given(st.lists(st.text(max_size=4), max_size=60), st.lists(st.text(max_size=4), max_size=20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_names_each_row_is_its_own(valkey_client, valkey_cluster, written, others):
    """Names with braces, which choose a slot, and repeated ones included."""
    for client in (valkey_client, valkey_cluster):
        client.flushall()
        write(client, written)
    wanted = [*others, *written]
    assert read(valkey_cluster, wanted).tobytes() == read(valkey_client, wanted).tobytes()


def test_the_items_of_a_user_and_its_forgetting_reach_the_users_node(valkey_cluster):
    write(valkey_cluster, USERS[:9])
    reader = OnlineReader(valkey_cluster, PLAN, ManualClock(START + 1))
    for at, user in enumerate(USERS[:9]):
        held = reader.read_entity("user_id", user)
        assert list(reader.partners(PAIR.name, held)) == [(user, f"item{at % 7}")]
        assert erase_entity(valkey_cluster, PLAN, "user_id", user).keys == 1
    assert list(valkey_cluster.scan_iter()) == []


def test_a_projects_deletion_reaches_every_node_and_no_other_project(valkey_cluster, valkey_nodes):
    for project in ("shop", "sho"):
        write(valkey_cluster, USERS[:60], project)
    OnlineWriter(valkey_cluster, "shop").drop([ALONE.field, PAIR.field])
    left = [key for node in valkey_nodes for key in node.scan_iter()]
    assert len(left) == 60
    assert all(key.startswith(project_prefix("sho")) for key in left)
    assert min(node.dbsize() for node in valkey_nodes) > 0


@pytest.fixture
def moving(valkey_nodes):
    """A user's slot, the node that holds it and one that does not; at the end the slot is back."""
    slot = key_slot(entity_key(project_prefix("shop"), "user_id", USERS[0]))
    source = valkey_nodes[slot // 5462]
    target = valkey_nodes[(slot // 5462 + 1) % 3]
    yield slot, source, target
    move(slot, target, source, valkey_nodes)


def name_of(node):
    return node.execute_command("CLUSTER", "MYID").decode()


def migrate(slot, source, target):
    """Open the slot on both sides and carry its keys over."""
    target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", name_of(source))
    source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", name_of(target))
    place = target.connection_pool.connection_kwargs
    for key in source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
        source.migrate(place["host"], place["port"], key, 0, 5000)


def move(slot, source, target, nodes):
    if source.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot):
        migrate(slot, source, target)
    for node in (target, source, *nodes):
        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name_of(target))


def test_a_slot_that_moves_is_followed(valkey_cluster, valkey_nodes, moving):
    slot, source, target = moving
    write(valkey_cluster, USERS)
    expected = read(valkey_cluster, USERS).tobytes()
    migrate(slot, source, target)
    assert read(valkey_cluster, USERS).tobytes() == expected  # ASK
    write(valkey_cluster, USERS, ahead=1)
    move(slot, source, target, valkey_nodes)
    for _ in range(2):
        assert read(valkey_cluster, USERS).tobytes() == expected  # MOVED, then known
    write(valkey_cluster, USERS, ahead=2)
    assert read(valkey_cluster, USERS).tobytes() == expected
    assert target.exists(entity_key(project_prefix("shop"), "user_id", USERS[0]))


def test_a_write_follows_a_slot_to_a_node_that_has_no_scripts(valkey_cluster, valkey_nodes, moving):
    slot, source, target = moving
    write(valkey_cluster, USERS)
    move(slot, source, target, valkey_nodes)
    target.script_flush()
    write(valkey_cluster, USERS, ahead=1)
    np.testing.assert_array_equal(read(valkey_cluster, USERS)[:, 0], np.arange(500))


def test_all_processes_share_the_clock_of_a_cluster(valkey_cluster, valkey_cluster_url):
    StoredClock(valkey_cluster).set(START)
    with connect(valkey_cluster_url) as other:
        assert START <= StoredClock(other).now_ms() < START + 60_000


def test_a_node_of_no_cluster_yet_is_refused_in_a_sentence(valkey_cluster, monkeypatch):
    def no_slots(*args, **options):
        raise IndexError

    monkeypatch.setattr("headwater.online.connect.RedisCluster", no_slots)
    port = valkey_cluster.connection_pool.connection_kwargs["port"]
    with (
        connect(f"redis://127.0.0.1:{port}") as client,
        pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: no node of the cluster holds a slot"),
    ):
        client.get("a")


def test_a_client_of_one_server_asks_once_what_it_is(valkey, valkey_client):
    with connect(valkey) as client:
        before = valkey_client.info("commandstats")["cmdstat_info"]["calls"]
        for _ in range(3):
            client.get("a")
            write(client, USERS[:3])
        after = valkey_client.info("commandstats")["cmdstat_info"]["calls"]
    assert after - before == 2  # this test's own one among them
    assert isinstance(client, redis.Redis)
