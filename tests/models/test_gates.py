"""The rules of promotion: read from a file that is held to its words, and what is measured for them."""

from pathlib import Path

import numpy as np
import pytest
from support import bundles

from headwater.errors import ConfigError
from models.bundle import load_bundle
from models.gates import FILE, Rules, load_rules, measure
from models.ranking import Rows

ROOT = Path(__file__).parents[2]


def test_the_examples_rules_are_read() -> None:
    rules = load_rules(ROOT / "feature_repo")
    assert rules.gates.least_gain == 0
    assert not rules.promotion.automatic


def test_without_a_file_a_bundle_must_gain(tmp_path: Path) -> None:
    assert load_rules(tmp_path) == Rules()
    assert Rules().gates.model_dump(exclude_none=True) == {"least_gain": 0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gates", "not TOML"),
        ("[gates]\nspeed = 3", "gates.speed: extra inputs are not permitted"),
        ("[gates]\ncoverage = 2", "gates.coverage: input should be less than or equal to 1"),
        ("[objective]\nmetric = 'clicks'", "objective.metric: input should be 'ndcg@10'"),
    ],
)
def test_what_is_wrong_with_the_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_rules(tmp_path)


def test_what_is_measured_of_a_bundle(tmp_path: Path) -> None:
    bundles.write(tmp_path / "1")
    bundle = load_bundle(tmp_path / "1")
    n, wide = 40, len(bundle.meta.feature_names)
    rng = np.random.default_rng(0)
    rows = Rows(
        rng.random((n, wide), np.float32), np.zeros(n, np.int8), np.ones(n, np.float32),
        np.repeat(np.arange(4), 10).astype(np.int32), np.tile([0, 1], 20).astype(np.int32), np.arange(4),
    )  # fmt: skip
    found = measure(bundle, tmp_path / "1", rows)
    assert found["coverage"] == 2 / len(bundle.items)
    assert found["score_ms"] > 0
    assert found["size_mb"] == sum(file.stat().st_size for file in (tmp_path / "1").iterdir()) / 2**20
    assert "coverage" not in measure(bundle, tmp_path / "1", None)
