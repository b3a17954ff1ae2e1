import pytest

from headwater.clock import Anchor, StoredClock, wall_ms


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
