"""The measurement of scoring runs at a small size, and finds no bit that differs."""

from benchmarks.ranker import measure


def test_every_forest_is_scored_beside_lightgbm() -> None:
    found = measure(0.01)
    assert len(found) == 8
    assert [one.value for one in found if one.unit == "rows"] == [0, 0, 0, 0]
    assert all(one.value > 0 and one.baseline_value > 0 for one in found if one.unit == "CPU ms")
