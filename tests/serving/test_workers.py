"""Worker processes on one port: all answer, one that dies comes back, and they end together."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headwater.errors import ResourceError
from headwater.runtime.ready import is_marked, ready_path
from headwater.settings import Settings, addresses
from serving import workers
from serving.client import Client, ModelError
from serving.metrics_page import Gathered

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


def page_of(count: int) -> str:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["code"], registry=registry).labels("OK").inc(count)
    Gauge("bundle", "Bundle.", registry=registry).set(count)
    Histogram("seconds", "Time.", buckets=(1, 5), registry=registry).observe(count)
    return generate_latest(registry).decode()


def test_the_page_has_every_sample_of_every_worker_under_its_number() -> None:
    registry, pages = CollectorRegistry(), {0: page_of(2), 3: page_of(4)}
    registry.register(Gathered(lambda: pages))
    told = {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for one in family.samples
    }
    expected = {
        (one.name, *sorted({**one.labels, "worker": str(number)}.items())): one.value
        for number, page in pages.items()
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }
    assert told == expected
    assert told["calls_total", ("code", "OK"), ("worker", "3")] == 4
    assert told["seconds_bucket", ("le", "5.0"), ("worker", "0")] == 1


def test_a_taken_port_is_refused_before_a_worker_starts(settings: Settings) -> None:
    several = settings.model_copy(update={"serve_workers": 2})
    with workers._reserved(several), pytest.raises(ResourceError, match="HEADWATER_GRPC_PORT"):
        workers._reserved(several)


@dataclass(frozen=True)
class Running:
    """The module, as `headwater up` runs it."""

    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path

    def serving(self) -> list[psutil.Process]:
        """Processes that have sockets of the port: the workers."""
        port, children = self.settings.grpc_port, psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in children if any(it.laddr.port == port for it in one.net_connections("tcp"))]

    def ask(self) -> None:
        """One call on a connection of its own."""
        with Client(addresses(self.settings).grpc) as client, pytest.raises(ModelError, match="promoted"):
            client.recommend("u1")

    def calls(self) -> dict[str, float]:
        """Calls answered, by worker."""
        return self._samples("headwater_calls_total")

    def starts(self) -> dict[str, float]:
        return self._samples("headwater_worker_starts_total")

    def _samples(self, name: str) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.metrics_port}/metrics") as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        return {one.labels["worker"]: one.value for held in families for one in held.samples if one.name == name}


def environment(settings: Settings, store: str) -> dict[str, str]:
    """Two workers of these settings on a store."""
    return {
        "HEADWATER_STATE_DIR": str(settings.state_dir), "HEADWATER_REPO": str(settings.repo),
        "HEADWATER_KAFKA": "127.0.0.1:1", "HEADWATER_REDIS": store, "HEADWATER_GRPC_PORT": str(settings.grpc_port),
        "HEADWATER_METRICS_PORT": str(settings.metrics_port), "HEADWATER_SERVE_WORKERS": "2", "PATH": "/usr/bin",
    }  # fmt: skip


@pytest.fixture
def running(settings: Settings, valkey: str, until: Callable[..., None], tmp_path: Path) -> Iterator[Running]:
    several, env = settings.model_copy(update={"serve_workers": 2}), environment(settings, valkey)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "serving.workers"], env=env, stdout=output, stderr=output)
    family: list[psutil.Process] = []
    try:
        until(lambda: is_marked(settings, "serve", process.pid) or process.poll() is not None, "the workers", 90)
        assert process.poll() is None, log.read_text()
        family = psutil.Process(process.pid).children(recursive=True)
        yield Running(several, process, log)
    finally:
        process.terminate()
        process.wait(30)
        for left in family:
            if left.is_running():
                left.kill()


def test_a_worker_that_cannot_start_ends_all_with_its_reason(settings: Settings) -> None:
    env = environment(settings, "http://no.store")
    done = subprocess.run(
        [sys.executable, "-m", "serving.workers"], env=env, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert "HEADWATER_REDIS" in done.stderr
    assert "ended while starting, exit code 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_all_answer_and_one_page_has_the_metrics_of_all(running: Running, until: Callable[..., None]) -> None:
    asked = 0
    while set(running.calls()) != {"0", "1"}:  # the kernel draws one for each connection
        assert asked < 200, running.calls()
        running.ask()
        asked += 1
    assert sum(running.calls().values()) == asked


@pytest.mark.integration
def test_a_worker_that_is_killed_is_started_again_while_the_others_answer(
    running: Running, until: Callable[..., None]
) -> None:
    before = {one.pid for one in running.serving()}
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    until(lambda: not psutil.pid_exists(min(before)), "its end")
    running.ask()
    until(lambda: len({one.pid for one in running.serving()} - {min(before)}) == 2, "another in its place", 60)
    assert sum(running.starts().values()) == 3
    running.ask()


@pytest.mark.integration
def test_the_end_is_asked_for_once_and_nothing_stays(running: Running, until: Callable[..., None]) -> None:
    family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0, running.log.read_text()
    assert not ready_path(running.settings, "serve").exists()
    until(lambda: not any(one.is_running() for one in family), "the end of all")
    assert b"Traceback" not in running.log.read_bytes()


@pytest.mark.integration
def test_workers_end_by_themselves_when_their_parent_is_killed(running: Running, until: Callable[..., None]) -> None:
    family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.kill()
    until(lambda: not any(one.is_running() for one in family), "the end of all", 30)
    with (
        grpc.insecure_channel(addresses(running.settings).grpc, options=OPTIONS) as channel,
        pytest.raises(grpc.FutureTimeoutError),
    ):
        grpc.channel_ready_future(channel).result(timeout=0.5)
