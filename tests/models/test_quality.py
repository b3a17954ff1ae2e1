"""``headwater quality`` on files of one's own: lists for anyone to judge, metrics, and a sentence for what is wrong."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headwater.cli.main import build
from headwater.errors import DataError
from models.evaluation.metrics import PAD
from models.retrieval import choice
from models.retrieval.checkpoint import TIME
from models.retrieval.ease import Ease
from models.retrieval.quality import SOURCES, by_segment, checkpoint_of, exposed, judged, run, write
from models.retrieval.sequence import Sequences
from models.retrieval.task import read_task

N_USERS, N_ITEMS = 200, 60


def drawn(with_times: bool = False) -> tuple[pa.Table, pa.Table]:
    """Users who walk along the items, so that what comes next can be told from what came last."""
    rng = np.random.default_rng(5)
    first = rng.integers(0, N_ITEMS, N_USERS)
    user, step = np.divmod(rng.permutation(N_USERS * 9), 9)
    order = np.argsort(step, kind="stable")
    user, step = user[order], step[order]
    item = (first[user] + step + (rng.random(len(user)) < 0.1)) % N_ITEMS
    table = pa.table({"user_id": [f"u{one}" for one in user], "item_id": item})
    if with_times:
        table = table.append_column("event_time", pa.array(step * 86_400_000, pa.timestamp("ms")))
    return table.filter(pa.array(step < 8)), table.filter(pa.array(step == 8))


def saved(folder: Path, train: pa.Table, test: pa.Table) -> tuple[Path, Path]:
    paths = folder / "train.parquet", folder / "test.parquet"
    for path, table in zip(paths, (train, test), strict=True):
        pq.write_table(table, path)
    return paths


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs enough to tell a trained model from one that is not."""
    monkeypatch.setattr(choice, "Sequences", partial(Sequences, most_epochs=8))


@pytest.mark.parametrize(
    ("name", "with_times"),
    [("itemknn", False), ("itemknn", True), ("ease", False), ("ease", True), ("retriever", True)],
)
def test_a_model_finds_what_popularity_does_not(tmp_path: Path, name: str, with_times: bool) -> None:
    task = read_task(*saved(tmp_path, *drawn(with_times)), repeats=False)
    _, found = run(task, name, False, 20, 1.0)
    assert found["ndcg@10"] > 0.4
    assert found["ndcg@10_over_popularity"][1] > 0.2
    assert found["validation_users"] > 50
    assert (found["train"], found["items"], found["new_test_users"]) == (N_USERS * 8, N_ITEMS, 0)
    assert "recall@20" in found
    assert "recall@50" not in found


def test_the_lists_that_are_written_are_the_lists_that_are_judged(tmp_path: Path) -> None:
    task = read_task(*saved(tmp_path, *drawn()), repeats=False)
    lists, found = run(task, "itemknn", False, 10, 0.1)
    write(task, lists, tmp_path / "deep" / "out.parquet")
    rows = pq.read_table(tmp_path / "deep" / "out.parquet")
    assert rows.schema.names == ["user_id", "rank", "item_id", "score"]
    wanted = dict(zip(*(drawn()[1][name].to_pylist() for name in ("user_id", "item_id")), strict=True))
    had = set(zip(*(drawn()[0][name].to_pylist() for name in ("user_id", "item_id")), strict=True))
    hits = [row["rank"] for row in rows.to_pylist() if wanted[row["user_id"]] == int(row["item_id"])]
    judged_users = {row["user_id"] for row in rows.to_pylist()}
    assert found["recall@10"] == pytest.approx(len(hits) / len(judged_users), abs=1e-5)
    assert found["mrr@10"] == pytest.approx(sum(1 / rank for rank in hits) / len(judged_users), abs=1e-5)
    assert not {(row["user_id"], int(row["item_id"])) for row in rows.to_pylist()} & had
    assert judged(task, lists.items)["ndcg@10"] == found["ndcg@10"]


def test_what_lists_show_and_whom_they_suit_is_told_apart(tmp_path: Path) -> None:
    train = pa.table({"user_id": ["a", "a", "b", "b", "c"], "item_id": ["x", "y", "x", "z", "x"]})
    test = pa.table({"user_id": ["a", "new", "b", "b"], "item_id": ["z", "x", "x", "never"]})
    pq.write_table(pa.table({"item_id": ["x", "y", "z"], "category": ["k", "k", "l"]}), tmp_path / "items.parquet")
    task = read_task(*saved(tmp_path, train, test), True, tmp_path / "items.parquet")
    x, y, z = range(3)
    lists = np.array([[z, y], [x, z], [y, x]], np.int32)  # of a, b and new
    assert task.users.ids.values[task.test_users].tolist() == ["a", "b", "new"]
    shown = exposed(task, lists)
    assert shown["novelty@2"] == pytest.approx(-np.mean(np.log2([2 / 5, 2 / 5, 4 / 5, 2 / 5, 2 / 5, 4 / 5])), abs=1e-4)
    assert shown["popularity@2"] == pytest.approx((1 + 1 + 3 + 1 + 1 + 3) / 6 / ((9 + 1 + 1) / 5), abs=1e-4)
    assert shown["gini@2"] == 0
    parts = by_segment(task, lists)
    assert parts["new_users"] == {"users": 1, "ndcg@2": pytest.approx(1 / np.log2(3), abs=1e-4), "recall@2": 1}
    assert parts["light_users"]["users"] == 2
    assert "heavy_users" not in parts
    assert parts["repeats"] == {"users": 1, "ndcg@2": 1, "recall@2": 1}
    assert parts["first_time"]["users"] == 3
    assert parts["first_time"]["recall@2"] == pytest.approx((1 + 0 + 1) / 3, abs=1e-4)


def test_what_is_judged_changes_no_list(tmp_path: Path) -> None:
    train, test = drawn()
    task = read_task(*saved(tmp_path, train, test), repeats=True)
    other = pa.table({"user_id": test["user_id"], "item_id": pa.array(np.zeros(test.num_rows, np.int64))})
    changed = read_task(*saved(tmp_path, train, other), repeats=True)
    for name in ("popularity", "itemknn", "ease", "retriever"):
        one, two = (run(given, name, True, 5, 10.0)[0] for given in (task, changed))
        assert np.array_equal(one.items, two.items)


def test_unknown_items_and_users_count_against_a_model_and_listed_items_may_be_shown(tmp_path: Path) -> None:
    train = pa.table({"user_id": ["a", "a", "b", "b"], "item_id": ["x", "y", "x", "z"]})
    test = pa.table({"user_id": ["a", "new", "b"], "item_id": ["z", "x", "never"]})
    pq.write_table(pa.table({"item_id": ["x", "more"]}), tmp_path / "items.parquet")
    task = read_task(*saved(tmp_path, train, test), False, tmp_path / "items.parquet")
    assert (task.counts["test_of_unknown_items"], task.counts["new_test_users"]) == (1, 1)
    lists, found = run(task, "popularity", False, 10, 0.1)
    assert found["recall@10"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["items"] == 4
    assert {task.items.ids.values[item] for item in lists.items[0] if item >= 0} == {"z", "more"}


@pytest.mark.parametrize("name", [*SOURCES, "pipeline"])
@pytest.mark.parametrize("users", [["a"], ["a"] * 9, [f"u{n}" for n in range(9)]])
def test_a_log_of_one_item_is_answered_with_it(tmp_path: Path, name: str, users: list[str]) -> None:
    train = pa.table({"user_id": users, "item_id": ["x"] * len(users), "event_time": np.arange(len(users))})
    test = pa.table({"user_id": [users[0], "new"], "item_id": ["x", "x"], "event_time": [50, 60]})
    lists, found = run(read_task(*saved(tmp_path, train, test), repeats=True), name, True, 5, 0.1)
    assert lists.items.tolist() == [[0, PAD, PAD, PAD, PAD]] * 2
    assert (found["recall@5"], found["new_test_users"]) == (1, 1)
    assert np.isfinite(lists.scores[:, 0]).all()


def test_new_users_are_shown_what_was_new_to_those_before_them(tmp_path: Path) -> None:
    """Each day thirty users come, for one day, and what they want changes every three days."""
    day, user = np.divmod(np.arange(10 * 30), 30)
    users, items = [f"{one}-{other}" for one, other in zip(day, user, strict=True)], 10 * ((day + 2) // 3) + user % 3
    items = np.append(items, np.zeros(200, int))  # what is popular over all time is of the first day
    times = np.append(day * 86_400_000, np.zeros(200, int))
    table = pa.table({"user_id": [*users, *(f"old-{n}" for n in range(200))], "item_id": items, "event_time": times})
    late = pa.array(times == 9 * 86_400_000)
    task = read_task(*saved(tmp_path, table.filter(pc.invert(late)), table.filter(late)), repeats=False)
    _, found = run(task, "itemknn", False, 5, 1.0)
    assert found["new_users_by"].startswith("Popularity(half_life=0.")
    assert found["segments"]["new_users"]["users"] == 30
    assert found["ndcg@5"] > 0.6
    assert found["ndcg@10_over_popularity"][1] > 0.2


def test_the_command_leaves_no_checkpoint_and_goes_on_from_one(tmp_path: Path) -> None:
    train, test = saved(tmp_path, *drawn())
    task = read_task(train, test, repeats=False)
    kept = checkpoint_of(task, "ease", False, 1.0, tmp_path / "out.parquet.checkpoint")
    assert checkpoint_of(task, "ease", True, 1.0, tmp_path).folder != tmp_path / kept.folder.name
    kept.add(Ease(200), Ease(200, decay=0.5), 2.0)
    kept.end(Ease(200), TIME)
    words = ["quality", "--train", str(train), "--test", str(test), "--out", str(tmp_path / "out.parquet")]
    done = CliRunner().invoke(build(), [*words, "--model", "ease", "--minutes", "1", "--k", "10", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == "Ease(regularization=200, decay=0.5)"
    assert json.loads(done.stdout)["validation_ndcg@10"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "test.parquet", "train.parquet"]


def test_impressions_and_returns_are_no_wishes(tmp_path: Path) -> None:
    train, test = drawn()
    kinds = pa.array((["purchase", "impression", "return", "click"] * train.num_rows)[: train.num_rows])
    task = read_task(*saved(tmp_path, train.append_column("event_type", kinds), test), repeats=True)
    assert task.counts["train"] == train.num_rows // 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.rename_columns(["user", "item_id"]), "no column user_id, only user, item_id"),
        (lambda table: table.slice(0, 0), "holds no interaction"),
        (lambda table: table.set_column(0, "user_id", pa.array([None, *["u1"] * 1599])), "1 rows have no user_id"),
        (lambda table: table.append_column("event_time", pa.array(["now"] * 1600)), "event_time is of type string"),
        (lambda table: table.append_column("event_time", pa.nulls(1600, pa.int64())), "1600 rows have no event_time"),
        (lambda table: table.set_column(1, "item_id", pa.array([[1]] * 1600)), "item_id is of type list"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_a_sentence(tmp_path: Path, change: Any, told: str) -> None:
    train, test = drawn()
    with pytest.raises(DataError, match=told):
        read_task(*saved(tmp_path, change(train), test), repeats=False)


def test_a_file_that_is_none_and_a_test_of_nothing_new_are_told(tmp_path: Path) -> None:
    train, _ = drawn()
    paths = saved(tmp_path, train, train)
    with pytest.raises(DataError, match="nothing is left to find"):
        read_task(*paths, repeats=False)
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(DataError, match="text: cannot be read"):
        read_task(tmp_path / "text", paths[1], repeats=False)


def test_the_command_prints_one_object(tmp_path: Path) -> None:
    train, test = saved(tmp_path, *drawn())
    words = ["quality", "--train", str(train), "--test", str(test), "--out", str(tmp_path / "out.parquet")]
    done = CliRunner().invoke(build(), [*words, "--model", "ease", "--repeats", "forbid", "--k", "10", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["model"].startswith("Ease(")
    assert told["out"] == str(tmp_path / "out.parquet")
