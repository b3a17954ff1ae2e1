"""Tuning: a search that goes on where it was ended, and settings that training takes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs
from support.labelled import NAMES, labelled

from models.ranking import DEFAULT_RANKER, RankerConfig, Rows, read_rows
from models.training import Paths, Service, ranker_config
from models.tuning import Tuned, keep, tune

CONFIG = RankerConfig(rounds=40, least_in_leaf=10)
SERVICE = Service("recommend", NAMES, "meaning")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    directory = tmp_path_factory.mktemp("rows")
    pq.write_table(labelled(), directory / "part.parquet")
    return read_rows(directory, NAMES)


def test_the_best_of_all_trials_is_no_worse_than_what_there_was(rows: Rows, tmp_path: Path) -> None:
    tuned = tune(rows, NAMES, tmp_path / "tuning.db", 12, CONFIG)
    assert tuned.ndcg >= tuned.default_ndcg > 0
    assert tuned.trials == 12
    assert set(tuned.settings) == {"learning_rate", "leaves", "least_in_leaf", "feature_share", "row_share"}


def test_a_search_that_was_ended_goes_on_and_another_begins_for_other_rows(rows: Rows, tmp_path: Path) -> None:
    begun: list[tuple[int, int]] = []

    def ended(done: int, total: int, told: str) -> None:
        if done == 3:
            raise KeyboardInterrupt
        begun.append((done, total))

    with pytest.raises(KeyboardInterrupt):
        tune(rows, NAMES, tmp_path / "tuning.db", 5, CONFIG, ended)
    tune(rows, NAMES, tmp_path / "tuning.db", 5, CONFIG, lambda done, total, told: begun.append((done, total)))
    assert [done for done, _ in begun] == [0, 1, 2, 3, 4]
    tune(rows, NAMES, tmp_path / "tuning.db", 5, CONFIG, lambda done, total, told: begun.append((done, total)))
    assert len(begun) == 5
    fewer = rows.take(rows.at_ms < rows.at_ms[-3])
    tune(fewer, NAMES, tmp_path / "tuning.db", 1, CONFIG, lambda done, total, told: begun.append((done, total)))
    assert begun[5:] == [(0, 1)]


def test_training_takes_what_was_tuned_for_its_features_alone(rows: Rows, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert ranker_config(paths, SERVICE) is DEFAULT_RANKER
    tuned = tune(rows, NAMES, paths.studies, 6, CONFIG)
    keep(tuned, paths.tuned, SERVICE.schema_hash)
    taken = ranker_config(paths, SERVICE)
    assert isinstance(tuned, Tuned)
    assert {name: getattr(taken, name) for name in tuned.settings} == dict(tuned.settings)
    assert taken.rounds == DEFAULT_RANKER.rounds
    with capture_logs() as logs:
        assert ranker_config(paths, Service("recommend", NAMES, "another")) is DEFAULT_RANKER
    assert logs[0]["event"] == "tuned_settings_left"
