"""docs/data.md tells what the code does."""

from pathlib import Path

import pytest

from headwater.datasets import complete_journey as cj

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("count", [cj.PURCHASES, cj.HOUSEHOLDS, cj.PRODUCTS])
def test_the_counts_are_those_checked(count: int) -> None:
    assert f"{count:,}" in TEXT


@pytest.mark.parametrize("instant", [cj.VALID_START, cj.TEST_START])
def test_the_splits_are_those_made(instant) -> None:
    assert instant.isoformat().replace("+00:00", "Z") in TEXT
