"""Parts killed, stopped and starved in the middle of a stream: every tile equals what Python folds of what was sent.

State lies in the heap; ``test_rocksdb`` and ``test_stream_job`` kill the JVM itself.
"""

import ipaddress
import signal
import sys
import time
from dataclasses import replace

import psutil
import pytest
from support import doomed_job
from support.parts import Platform, events_sent, until

from headwater.runtime import parts
from streaming import progress

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

EVENTS = events_sent(200_000)


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """The job ends its TaskManager when it is told to, which the last test does."""
    doomed = [
        replace(part, command=lambda settings: [sys.executable, doomed_job.__file__]) if part.name == "stream" else part
        for part in parts.PARTS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PARTS", tuple(doomed))
        running = Platform(tmp_path_factory.mktemp("platform"))
        running.start()
        yield running
        running.stop()


def expect_no_restart(platform, restarts):
    after = platform.status()
    assert after["restarts"] == restarts, after["last_failure"]


def test_no_port_is_open_beyond_loopback(platform):
    servers = [psutil.Process(platform.pid(name)) for name in ("kafka", "valkey", "stream")]
    family = [member for server in servers for member in (server, *server.children(recursive=True))]
    listening = [one.laddr for member in family for one in member.net_connections() if one.status == "LISTEN"]
    assert len(listening) > 10
    assert [
        place for place in listening if not ipaddress.ip_address(place.ip.removeprefix("::ffff:")).is_loopback
    ] == []


def test_a_python_worker_is_killed(platform):
    """Flink starts the job again by itself; meanwhile it does not say that it runs."""
    sent = platform.sent_and_begun(EVENTS, "worker")
    victim = platform.workers()[0]
    victim.kill()
    until(lambda: not platform.part("stream").ready)
    until(lambda: platform.status()["restarts"] >= 1)
    until(lambda: platform.part("stream").ready, told=platform.log)
    assert platform.status()["state"] == "RUNNING"
    assert platform.status()["last_failure"]
    platform.catch_up()
    platform.expect_exactly(sent)


@pytest.mark.parametrize("name", ["valkey", "kafka"])
def test_a_server_is_killed(platform, name):
    """Nothing that was acknowledged is lost with it, and the job goes on without being started again."""
    sent, job, restarts = platform.sent_and_begun(EVENTS, name), platform.pid("stream"), platform.status()["restarts"]
    psutil.Process(platform.pid(name)).kill()
    until(lambda: not platform.part(name).ready)
    time.sleep(3)  # the job meets a server that is not there
    platform.start(name)
    platform.catch_up()
    assert platform.pid("stream") == job
    expect_no_restart(platform, restarts)
    platform.expect_exactly(sent)


def test_the_store_does_not_answer_for_half_a_minute(platform):
    sent = platform.sent_and_begun(EVENTS, "frozen")
    store, restarts = psutil.Process(platform.pid("valkey")), platform.status()["restarts"]
    store.send_signal(signal.SIGSTOP)
    try:
        time.sleep(35)  # longer than a command is waited for
    finally:
        store.send_signal(signal.SIGCONT)
    platform.catch_up()
    expect_no_restart(platform, restarts)
    platform.expect_exactly(sent)


def test_no_room_for_checkpoints(platform):
    """Features go on being written, the reason is told, and the next checkpoint with room completes."""
    sent = platform.sent_and_begun(EVENTS, "room")
    jvm = platform.jvm()
    _, most = jvm.rlimit(psutil.RLIMIT_FSIZE)
    jvm.rlimit(psutil.RLIMIT_FSIZE, (1_000, most))  # as a full disk, each write beyond fails
    try:
        assert not progress.wait_until_caught_up(platform.settings, 10)
        until(lambda: platform.status()["checkpoint"]["problem"])
        assert platform.status()["state"] == "RUNNING"
        until(lambda: "checkpoints_fail" in platform.log())
        assert str(platform.settings.checkpoints_dir) in platform.log()
    finally:
        jvm.rlimit(psutil.RLIMIT_FSIZE, (most, most))
    platform.catch_up()
    assert platform.status()["checkpoint"]["problem"] is None
    platform.expect_exactly(sent)


def test_the_task_manager_is_gone(platform):
    """Flink would wait for another, which a mini-cluster never starts: the process ends and says why."""
    doomed = psutil.Process(platform.pid("stream"))
    doomed.send_signal(signal.SIGUSR1)
    until(lambda: not platform.part("stream").ready)
    assert platform.status()["state"] != "RUNNING"
    doomed.wait(60)
    assert "NO_TASK_MANAGER" in platform.log().splitlines()[-1]
