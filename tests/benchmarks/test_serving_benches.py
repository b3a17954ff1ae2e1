"""The measurements of the server run at a small size: the real processes, a generated shop, every target told."""

import importlib

import pytest

from headwater.settings import get_settings

NAMES = {
    "serve": {"a request, all told, at most 7", "stage hydrate, mean", "two workers, memory", "150 requests/s, p99"},
    "rank_only": {"24 items, 1 connection", "100 items, 4 connections"},
    "soak": {"memory of 2 workers after 6 s of 20 requests/s over before, at most 1.02"},
    "swap": {
        "30 requests/s while bundles are swapped, p99",
        "from promotion until all workers answer with it",
        "a new product until a search finds it, the longest",
    },
}
NOTHING_WRONG = {
    "serve": "lists that differ from the baseline's", "soak": "calls that failed meanwhile",
    "swap": "requests that failed in 2 swaps, 2 workers",
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Bundles go to a folder of the tests' own, those of one size once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWATER_STATE_DIR", str(tmp_path_factory.mktemp("bundles")))
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bench", list(NAMES))
def test_it_measures_the_real_server_and_finds_nothing_wrong(bench, kept):
    found = {one.name: one for one in importlib.import_module(f"benchmarks.{bench}").measure(0.01)}
    assert NAMES[bench] <= set(found)
    assert all(one.value >= 0 for one in found.values())
    if bench in NOTHING_WRONG:
        assert found[NOTHING_WRONG[bench]].value == 0
