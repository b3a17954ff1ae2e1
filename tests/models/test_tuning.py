"""Tuning: a search that goes on where it was ended, and settings that training takes."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs
from support.labelled import NAMES, labelled

from headwater.errors import ConfigError, DataError
from models.evaluation.metrics import Interval
from models.objectives import DEFAULT_OBJECTIVES, Trees
from models.paths import Paths
from models.ranking import DEFAULT_RANKER, RankerConfig, Rows, read_rows
from models.training import Service, ranker_config
from models.tuning import Tuned, keep, tune

CONFIG = RankerConfig(rounds=40, least_in_leaf=10)
SERVICE = Service("recommend", NAMES, "meaning")
GOOD = {"learning_rate": 0.1, "leaves": 7, "least_in_leaf": 10, "feature_share": 0.5, "row_share": 0.5}


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


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "invalid json"), ("[]", "object"), ("{", "invalid json"), ('{"settings": {}}', "required"),
        ('{"feature_schema_hash": "meaning", "settings": {"leaves": 15}}', "required"),
        (None, "no text"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_in_a_sentence(tmp_path: Path, text: str | None, why: str) -> None:
    paths = Paths(tmp_path)
    paths.tuned.write_bytes(b"\xff\xfe" if text is None else text.encode())
    with pytest.raises(ConfigError, match=r"tuned\.json: not what headwater tune writes") as error:
        ranker_config(paths, SERVICE)
    assert why in str(error.value)
    assert "headwater tune; or delete the file" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 0), ("leaves", 1), ("least_in_leaf", -3), ("feature_share", 1.5), ("row_share", "NaN")],
)
def test_a_setting_that_cannot_be_is_told(tmp_path: Path, field: str, value: object) -> None:
    paths = Paths(tmp_path)
    keep(Tuned(GOOD | {field: value}, 0.5, 0.4, Interval(0.1, 0, 0.2), 1, 0), paths.tuned, SERVICE.schema_hash)
    with pytest.raises(ConfigError, match=f"settings.{field}"):
        ranker_config(paths, SERVICE)


def test_labels_that_tell_nothing_apart_are_refused_before_the_first_trial(rows: Rows, tmp_path: Path) -> None:
    for label, told in ((0, "a no"), (1, "a yes")):
        with pytest.raises(DataError, match=f"every label of the .* rows of earlier requests is {told}"):
            tune(rows.told_by([label] * len(rows)), NAMES, tmp_path / "tuning.db", 1, CONFIG)
    with pytest.raises(DataError, match="parted by time"):
        tune(rows.take(rows.at_ms < rows.at_ms[1]), NAMES, tmp_path / "tuning.db", 1, CONFIG)


def test_a_damaged_file_of_trials_is_told_in_a_sentence(rows: Rows, tmp_path: Path) -> None:
    study = tmp_path / "tuning.db"
    tune(rows, NAMES, study, 1, CONFIG)
    whole = study.read_bytes()
    for damaged in (b"no database, but long enough to be looked into" * 40, whole[: len(whole) // 2]):
        study.write_bytes(damaged)
        with pytest.raises(DataError, match=r"tuning\.db: no file of trials, (?s:.*)Delete it"):
            tune(rows, NAMES, study, 1, CONFIG)


def test_what_is_declared_is_searched_with_and_apart_from_other_trials(rows: Rows, tmp_path: Path) -> None:
    begun: list[int] = []
    constrained = replace(CONFIG, declared=DEFAULT_OBJECTIVES.model_copy(update={"monotone": {"habit": -1}}))
    for config in (CONFIG, constrained):
        tuned = tune(rows, NAMES, tmp_path / "tuning.db", 2, config, lambda done, total, told: begun.append(done))
    assert begun == [0, 1, 0, 1]
    free = tune(rows, NAMES, tmp_path / "tuning.db", 2, CONFIG)
    assert tuned.default_ndcg < free.default_ndcg  # what decides may not raise the score


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


def test_declared_trees_come_before_the_default_and_tuned_ones_before_them(tmp_path: Path) -> None:
    paths, declared = Paths(tmp_path), DEFAULT_OBJECTIVES.model_copy(update={"trees": Trees(least_in_leaf=200)})
    found = ranker_config(paths, SERVICE, declared)
    assert (found.least_in_leaf, found.leaves) == (200, DEFAULT_RANKER.leaves)
    keep(Tuned(GOOD, 0.5, 0.4, Interval(0.1, 0, 0.2), 1, 0), paths.tuned, SERVICE.schema_hash)
    assert ranker_config(paths, SERVICE, declared).least_in_leaf == GOOD["least_in_leaf"]
