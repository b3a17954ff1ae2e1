"""The world's file says what is wrong with it."""

from importlib.resources import files
from pathlib import Path

import pytest

from headwater.datasets.complete_journey import TEST_START, epoch_ms
from headwater.errors import ConfigError
from simulation.config import load_world_config

SHIPPED = (files("simulation") / "world.toml").read_text()


def test_the_shipped_world_is_fitted_to_what_precedes_the_test_period():
    assert load_world_config().fitted_until_ms == epoch_ms(TEST_START)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("drift = 0.03", "drfit = 0.03", "tastes.drift: field required"),
        ("seed = 1", "seed = 1\nspeed = 2", "speed: extra inputs"),
        ("click = 0.7", "click = 1.7", "outcomes.click: input should be less than or equal to 1"),
        ("purchase = [0.3, 0.9]", "purchase = [0.9, 0.3]", "purchase: 0.9 comes before 0.3 and is more than it"),
        ("return_days = [2, 10]", "return_days = [0, 10]", "outcomes.return_days.0"),
        ("to_day = 4", "to_day = 1", "to_day 1 is before from_day 2"),
        ("14:56:44Z", "14:56:44", "write z after it for utc"),
        ("base = -5.0", "base = nan", "tastes.base: input should be a finite number"),
        ("[unseen]", "[unseen", "not TOML"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_the_reason(tmp_path: Path, old, new, said):
    path = tmp_path / "mine.toml"
    assert old in SHIPPED
    path.write_text(SHIPPED.replace(old, new))
    with pytest.raises(ConfigError) as told:
        load_world_config(path)
    assert str(told.value).startswith(f"{path}: ")
    assert said in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file.*--world"):
        load_world_config(tmp_path / "none.toml")


def test_a_seed_and_a_number_of_shoppers_from_outside_come_first():
    shipped = load_world_config()
    assert shipped.seeded(None).peopled(None) == shipped
    other = shipped.seeded(7).peopled(50)
    assert (other.seed, other.shoppers.count) == (7, 50)
    assert other.tastes == shipped.tastes
