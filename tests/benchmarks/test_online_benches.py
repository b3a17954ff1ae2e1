"""The measurements of the online store run at a small size and tell of every subject beside its baseline."""

import importlib

import pytest

NAMES = {
    "online_read": {"read_matrix, 1 entities", "read_matrix, 500 entities", "an entity, MEMORY USAGE"},
    "online_write": {"packed rows, compare-and-set", "tiles of the stream"},
}


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bench", list(NAMES))
def test_it_measures_every_subject_beside_its_baseline(bench):
    found = importlib.import_module(f"benchmarks.{bench}").measure(0.01)
    assert NAMES[bench] <= {one.name for one in found}
    assert all(one.value > 0 and one.baseline_value > 0 for one in found)
