"""Simulated shoppers on the whole platform."""

import json

import pytest

from benchmarks.loop.bench import found, surfaces_of, world_config
from benchmarks.loop.run import declare, play
from headwater.settings import Settings
from models import registry

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


def test_a_generation_learns_from_what_the_one_before_it_showed(platform, tmp_path):
    """Two generations of ``headwater bench loop``, of two days each; the last of these tests, since it changes all."""
    told = {name.removeprefix("HEADWATER_").lower(): value for name, value in platform.environment.items()}
    settings = Settings(**told)
    before = registry.champion(settings).name
    declare(settings)
    said = []
    first, last = played = play(settings, world_config(1, 1.0), surfaces_of(True), 2, 2, tmp_path / "loop", said.append)
    assert first.verdict["decision"] in ("champion", "refused"), first.verdict
    now = registry.champion(settings).name
    assert (now == before) == (first.verdict["decision"] == "refused")
    assert set(first.lists["bundle_version"]) == {before}
    assert set(last.lists["bundle_version"]) == {now}
    assert min(len(one.lists) for one in played) > 20
    assert all(one.lists["share"].between(0, 1).all() for one in played)
    assert len(said) == 4
    assert found([played], [played])[4].value == 0, "a loop costs nothing beside itself"
