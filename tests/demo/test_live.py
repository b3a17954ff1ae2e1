"""How soon a purchase changes a list, and a new product is found, is measured on the real platform."""

import json

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_a_purchase_changes_the_list_of_each_household_that_is_asked(platform):
    done = platform.run("bench", "live", "--size", "0.01", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    half, worst, arrival = json.loads(done.stdout)["measures"]
    assert 0 < half["value"] <= worst["value"]
    assert 0 < half["baseline_value"] <= worst["baseline_value"]
    assert worst["note"].startswith("10 households")
    assert worst["target"] == 1_000
    assert 0 < arrival["baseline_value"] <= arrival["value"] < 60
