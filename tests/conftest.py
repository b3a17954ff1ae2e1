"""The real servers that tests share: one broker and one online store per session, on free loopback ports."""

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
import redis
from xdist.scheduler import LoadScopeScheduling

from headwater.online.connect import Store, connect
from headwater.registry.lean import import_feast
from headwater.runtime import kafka as kafka_server
from headwater.runtime import process
from headwater.runtime import valkey as valkey_server
from headwater.runtime.ports import free_port

# Feast's import makes the registries of its process share their values, and those of the test workers it starts.
for _name in [name for name in os.environ if name.startswith("PROMETHEUS_MULTIPROC")]:
    del os.environ[_name]
importlib.import_module("prometheus_client")  # before Feast
import_feast()
HOST = "127.0.0.1"
ALONE = ("streaming", "examples", "benchmarks", "models")
"""Folders of which each file starts servers of its own, or none."""
FLINK = ("cluster_form", "faults", "rocksdb", "stream_job")
HEAVY = {"demo", "batch", "examples/test_fraud.py", "benchmarks/test_parity.py"} | {
    f"streaming/test_{name}.py" for name in FLINK
}
"""What runs Flink jobs or Spark; it comes first, and is taken by two workers while there is anything else to do."""


class ByServers(LoadScopeScheduling):
    """Tests that share servers go to one worker, in the order in which they were collected.

    A Flink job is waited for more than it computes, so that two leave half the cores idle, which is for what is light.
    The third worker takes such a job only when nothing light is left, and workers after it never.
    """

    def _reschedule(self, node: Any) -> None:
        if self.workqueue and self._next_for(node) is None and not node.shutting_down:
            node.shutdown()
        super()._reschedule(node)

    def _assign_work_unit(self, node: Any) -> None:
        self.workqueue.move_to_end(self._next_for(node), last=False)
        super()._assign_work_unit(node)

    def _next_for(self, node: Any) -> str | None:
        """Name what a worker does next, if there is anything for it."""
        heavy = [scope for scope in self.workqueue if scope in HEAVY]
        light = [scope for scope in self.workqueue if scope not in HEAVY]
        number = self.nodes.index(node)
        takes = heavy + light if number < 2 else light + heavy if number == 2 else light
        return next(iter(takes), None)

    def _split_scope(self, nodeid: str) -> str:
        """Name what a test shares servers with: its folder or, where files have their own, its file."""
        file = PurePath(nodeid.partition("::")[0])
        folder = file.parts[1]
        return str(file.relative_to("tests")) if folder in ALONE else folder


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServers:
    config.option.loadscopereorder = False  # by the number of tests, which says little of how long they take
    return ByServers(config, log)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey server."""
    folder, port = tmp_path_factory.mktemp("valkey"), free_port()
    url = f"redis://{HOST}:{port}/0"
    command = valkey_server.command(folder, HOST, port)
    yield from _served(command, folder / "valkey.log", url, valkey_server.is_ready)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a Kafka broker that has the platform's topics, with two partitions each."""
    folder, port = tmp_path_factory.mktemp("kafka"), free_port()
    bootstrap = f"{HOST}:{port}"
    command = kafka_server.command(folder, HOST, port, heap_mb=320)
    for address in _served(command, folder / "kafka.log", bootstrap, kafka_server.is_ready):
        kafka_server.create_topics(address, partitions=2)
        yield address


@pytest.fixture
def valkey_client(valkey: str) -> Iterator[redis.Redis]:
    """Client of an empty Valkey server."""
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def valkey_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[redis.Redis]]:
    """Clients of the three primaries of a Valkey cluster, a third of the slots each."""
    with contextlib.ExitStack() as held:
        nodes = [held.enter_context(_node(tmp_path_factory.mktemp("node"))) for _ in range(3)]
        first = nodes[0].connection_pool.connection_kwargs["port"]
        for at, node in enumerate(nodes):
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", at * 5462, min(at * 5462 + 5461, 16383))
            bus = nodes[0].config_get("cluster-port")["cluster-port"]
            node.execute_command("CLUSTER", "MEET", HOST, first, bus)
        deadline = time.monotonic() + 60
        while not all(_knows_all_slots(node) for node in nodes):
            assert time.monotonic() < deadline, nodes[0].execute_command("CLUSTER", "INFO")
            time.sleep(0.05)
        yield nodes


@pytest.fixture(scope="session")
def valkey_cluster_url(valkey_nodes: list[redis.Redis]) -> str:
    """URL of one node of the cluster."""
    return f"redis://{HOST}:{valkey_nodes[1].connection_pool.connection_kwargs['port']}"


@pytest.fixture
def valkey_cluster(valkey_cluster_url: str, valkey_nodes: list[redis.Redis]) -> Iterator[Store]:
    """Client of the empty cluster."""
    for node in valkey_nodes:
        node.flushall()
    with connect(valkey_cluster_url) as client:
        yield client


@contextlib.contextmanager
def _node(folder: Path) -> Iterator[redis.Redis]:
    port = free_port()
    command = [*valkey_server.command(folder, HOST, port), "--cluster-enabled", "yes"]
    command += ["--cluster-port", str(free_port())]
    for url in _served(command, folder / "valkey.log", f"redis://{HOST}:{port}/0", _pings):
        with redis.Redis.from_url(url) as client:
            yield client


def _pings(url: str) -> bool:
    """Whether a node answers, which is no part of a cluster yet."""
    with redis.Redis.from_url(url) as client, contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


def _knows_all_slots(node: redis.Redis) -> bool:
    told: Any = node.execute_command("CLUSTER", "INFO")
    held = told if isinstance(told, dict) else dict(line.split(":") for line in told.decode().split())
    return (held["cluster_state"], held["cluster_slots_ok"], held["cluster_known_nodes"]) == ("ok", "16384", "3")


def _served(command: list[str], log: Path, address: str, is_ready: Callable[[str], bool]) -> Iterator[str]:
    server = process.spawn(command, log)
    try:
        deadline = time.monotonic() + 120
        while not is_ready(address):
            assert server.is_alive(), f"{command[0]} ended while starting:\n" + "\n".join(process.last_lines(log))
            assert time.monotonic() < deadline, f"{command[0]} does not answer at {address}"
            time.sleep(0.1)
        yield address
    finally:
        process.end(server)
