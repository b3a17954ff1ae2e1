import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from headwater.clock import REFRESH_S, Anchor, StoredClock, wall_ms


def test_an_anchored_clock_runs_at_its_speed():
    anchor = Anchor(wall_ms=1_000, clock_ms=50_000, speed=60.0)
    assert anchor.at(2_000) == 110_000
    assert Anchor.decode(anchor.encode()) == anchor


@pytest.mark.integration
def test_all_processes_share_the_clock_that_one_has_set(valkey_client):
    mine, other = StoredClock(valkey_client), StoredClock(valkey_client)
    assert abs(other.now_ms() - wall_ms()) < 5_000
    mine.set(1_500_000_000_000)
    assert abs(StoredClock(valkey_client).now_ms() - 1_500_000_000_000) < 60_000
    mine.clear()
    assert abs(StoredClock(valkey_client).now_ms() - wall_ms()) < 5_000


def test_no_thread_tells_the_old_time_while_another_reads_the_new_one():
    """The anchor that a clock holds may be as old as the last time that anyone asked it."""
    reading, go_on = threading.Event(), threading.Event()

    class Store:
        def get(self, key: bytes) -> bytes:
            reading.set()
            assert go_on.wait(10)
            return Anchor(wall_ms(), 1_500_000_000_000, 0.0).encode()

    clock = StoredClock(Store())
    clock._anchor, clock._read_at = Anchor(wall_ms(), 1_000_000, 0.0), time.monotonic() - 2 * REFRESH_S
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(clock.now_ms)
        assert reading.wait(10)
        second = threads.submit(clock.now_ms)
        time.sleep(0.05)
        go_on.set()
        assert (first.result(10), second.result(10)) == (1_500_000_000_000, 1_500_000_000_000)
