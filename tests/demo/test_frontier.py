"""The frontier of accuracy and diversity is measured on the demo's own lists, and drawn."""

import json

import pytest

from benchmarks.frontier import DPP, MMR

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_more_weight_on_diversity_makes_lists_of_more_categories(platform, tmp_path):
    picture = tmp_path / "frontier.svg"
    done = platform.run("bench", "frontier", "--size", "0.01", "--picture", str(picture), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)["measures"]
    assert len(told) == len(MMR) + len(DPP)
    for method, weights in (("MMR", MMR), ("DPP", DPP)):
        of = {one["name"]: one for one in told if one["name"].startswith(method)}
        plain, least, most = told[0], of[f"{method}, diversity {weights[0]:g}: NDCG@10"], list(of.values())[-1]
        assert least["baseline_value"] == plain["value"] > 0
        assert float(most["note"].split()[0]) > float(plain["note"].split()[0])
    assert picture.read_text().count("MMR") >= 1
