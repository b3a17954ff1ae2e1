"""Simulated shoppers on the whole platform."""

import json

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_simulated_days_are_served_and_their_worth_is_known(platform, tmp_path):
    asked = ("simulate", "--seed", "5", "--users", "60", "--out", str(tmp_path / "run"), "--json")
    told = [json.loads(platform.run(*asked, "--days", days).stdout) for days in ("1", "2", "2")]
    assert [one["played"] for one in told] == [1, 1, 0]
    assert told[1]["by_day"] == told[2]["by_day"]
    assert told[1]["by_day"]["0"] == told[0]["by_day"]["0"]
    assert told[2]["simulated"] is True
    assert told[2]["failures"] == told[2]["event_failures"] == {}
    assert told[2]["unknown_items"] == 0
    assert 0 < told[2]["value"] < told[2]["best"]
