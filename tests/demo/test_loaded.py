"""What the real platform serves while events flow equals what Spark computes from its archive."""

import json

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
CALLS = 240


@pytest.fixture(scope="module")
def loaded(platform):
    """Replies of a few minutes in which every third is followed by a purchase."""
    done = platform.run(
        "load", "--qps", "8", "--seconds", str(CALLS // 8), "--users", "40", "--track", "0.35", "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_load_is_answered_whole_and_sends_events_back(loaded):
    assert (loaded["sent"], loaded["ok"], loaded["errors"], loaded["track_errors"]) == (CALLS, CALLS, {}, {})
    assert loaded["tracked"] > CALLS / 5


def test_every_vector_served_meanwhile_is_computed_again_bit_for_bit(platform, loaded):
    done = platform.run("audit", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["mismatched"] == 0, {name: one for name, one in told["by_feature"].items() if one["mismatched"]}
    assert told["vectors"] >= 20 * loaded["ok"]
    assert told["cells"] == told["vectors"] * len(told["by_feature"])
    assert told["unmarked"] == 0


def test_served_vectors_are_compared_with_the_training_rows(platform, loaded):
    told = json.loads(platform.run("skew", "--json").stdout)
    assert told["served_vectors"] >= 20 * loaded["ok"]
    assert set(told["features"]) >= {"user_purchases_90d", "item_trend", "age"}
