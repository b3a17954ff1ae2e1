"""The comparison on Complete Journey, over small data: who is judged by what, and whose interval decides."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import lightgbm
import numpy as np
import pyarrow as pa
import pytest
from support.camps import DAY_MS, two_camps

from benchmarks import journey_quality, pipeline
from benchmarks.journey_quality import OURS, TOWERS, Task, _beside, _pairs, task_of
from headwater.errors import ConfigError
from headwater.settings import Settings
from models.evaluation.metrics import Ints, Relevance
from models.interactions import Dataset, Ids, Items, Users
from models.ranker import Ranker


@pytest.fixture
def task() -> Task:
    data, at_ms = two_camps(n_trips=5), 3 * DAY_MS
    before = data.bought.before(at_ms)
    return Task(data, before, _pairs(data.bought.between(at_ms, 2**62)), at_ms)


def test_every_method_is_judged_and_only_what_is_to_be_beaten_has_a_target(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def journey(households: int) -> Iterator[Settings]:
        yield Settings()

    def lists(settings: Settings, data: Dataset, users: Ints, at_ms: int, depth: int) -> Ints:
        return np.tile(np.arange(depth, dtype=np.int32), (len(users), 1))

    monkeypatch.setattr(journey_quality, "require_cornac", lambda: None)
    monkeypatch.setattr(journey_quality, "differences", lambda *asked: {"TIFU-KNN": 0.0, "UP-CF": 1.0})
    monkeypatch.setattr(journey_quality, "task_of", lambda settings, period: task)
    monkeypatch.setattr(pipeline, "journey", journey)
    monkeypatch.setattr(pipeline, "lists", lists)
    found = list(journey_quality.measure(1.0))
    told = [(one.name, one.baseline) for one in found]
    others = {"own decayed frequency", "popularity", "TIFU-KNN", "UP-CF", "EASE", "item-to-item", TOWERS}
    for label in ("NDCG@10", "recall@20"):
        assert {name for subject, name in told if subject == f"{OURS}, {label}"} == others
    for label in ("NDCG@10", "recall@20", "recall@100"):
        beside = {name for subject, name in told if subject == f"first purchases, {TOWERS}, {label}"}
        assert beside == {"popularity", "EASE", "item-to-item"}
    assert {(one.name, one.baseline) for one in found if one.target is not None and one.ratio is not None} == {
        *((f"{OURS}, NDCG@10", name) for name in ("own decayed frequency", "TIFU-KNN", "UP-CF")),
        *((f"first purchases, {TOWERS}, recall@100", name) for name in ("EASE", "item-to-item")),
    }
    assert [one.holds for one in found if "cornac" in one.name] == [True, False]


def test_a_gain_holds_where_its_interval_lies_above_zero() -> None:
    """All households gain, and half of them gain what the others lose."""
    n = 40
    wanted = Relevance.from_pairs(np.arange(n), np.zeros(n), n, 3)
    right, wrong = np.zeros((n, 20), np.int32), np.ones((n, 20), np.int32)
    wrong[0] = 0
    half = np.where(np.arange(n)[:, None] % 2, right, wrong)
    better = list(_beside("a", {"a": right, "b": wrong, "c": right}, wanted, ("b", "c"), "NDCG@10"))
    assert {one.baseline: one.holds for one in better if one.name == "a, NDCG@10"} == {"b": True, "c": False}
    even = list(_beside("a", {"a": half, "b": half[::-1]}, wanted, ("b",), "NDCG@10"))
    assert [one.holds for one in even] == [False, None]


def test_the_pipelines_candidates_are_put_in_order_in_the_datas_numbering() -> None:
    names = ["a", "b", "c"]
    items = Items.from_table(pa.table({"item_id": names}))
    users = Users(Ids(["u", "v", "w"]), np.zeros((3, 0), np.int32), ())
    data = Dataset(users, items, two_camps().bought)
    learnt = lightgbm.Dataset(np.arange(100.0)[:, None], np.arange(100.0), feature_name=["x"], params={"verbosity": -1})
    ranker = Ranker(lightgbm.train({"verbosity": -1}, learnt, 5))
    offered = pa.table(
        {"user_id": ["w", "u", "w"], "item_id": ["a", "b", "c"], "x": np.array([10, 20, 90], np.float32)}
    )
    found = pipeline._ordered(offered, ranker, data, np.array([0, 1, 2], np.int32), 2)
    assert found.tolist() == [[1, -1], [-1, -1], [2, 0]]


def test_another_period_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no period 'tset'\. Choose validation or test"):
        task_of(Settings(state_dir=tmp_path), "tset")
