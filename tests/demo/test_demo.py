"""``headwater demo --small``: every part on real data, from Kafka to a changed recommendation."""

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SYSTEMS = {"headwater", "retrieval_only", "own_frequency", "popularity", "recency_popularity"}
SMALL_REPLAY = 8_333
"""Purchases of 200 households in the replayed weeks; docs/data.md has the count."""


def test_every_value_that_is_read_online_equals_the_one_computed_offline(demo_state):
    assert demo_state.told["cells_compared"] >= 10_000
    assert demo_state.told["cells_mismatched"] == 0


def test_every_event_of_the_replay_arrives_and_none_is_refused(demo_state):
    assert demo_state.told["events_replayed"] == SMALL_REPLAY
    assert demo_state.told["dead_letters"] == 0
    assert demo_state.told["online_writes"] > SMALL_REPLAY


def test_lists_are_judged_beside_every_baseline(demo_state):
    for measure in ("ndcg_at_10", "recall_at_20", "recall_at_20_repeats", "recall_at_20_first"):
        assert set(demo_state.told[measure]) >= SYSTEMS
        assert all(0 <= score <= 1 for score in demo_state.told[measure].values())
    assert demo_state.told["ndcg_at_10"]["headwater"] > demo_state.told["ndcg_at_10"]["popularity"]


def test_delays_and_costs_are_told(demo_state):
    for measure in ("freshness_ms", "recommend_ms"):
        assert 0 < demo_state.told[measure]["p50"] <= demo_state.told[measure]["p99"]
    assert demo_state.told["changed_answer_ms"] > 0
    assert demo_state.told["elapsed_s"] > 0
    assert demo_state.told["peak_rss_mb"] > 0


def test_it_ends_what_it_started_and_leaves_a_champion(demo_state):
    aliases = Path(demo_state.environment["HEADWATER_STATE_DIR"]) / "bundles" / "aliases.json"
    assert json.loads(aliases.read_text())["champion"]
    assert json.loads(demo_state.run("status", "--json").stdout) == {"parts": []}
