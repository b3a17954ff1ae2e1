"""The funnel on a log of any origin: facts against a loop that counts, and trees that order what models find."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.interactions import Interactions
from models.retrieval import pipeline, quality
from models.retrieval.checkpoint import Checkpoint
from models.retrieval.choice import hold_out
from models.retrieval.facts import DECAYS, HALF_LIVES, RECENT, Facts
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.pipeline import Pipeline, choose_pipeline
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import best
from models.retrieval.task import read_task

CHEAP = {"popularity": [Popularity()], "itemknn": [ItemNeighbours()]}


def log_of(rows: list[tuple[int, int, int]], n_users: int, n_items: int) -> Interactions:
    rows = sorted(rows, key=lambda row: row[2])
    user, item, at_ms = (np.array([row[n] for row in rows]) for n in range(3))
    return Interactions(user.astype(np.int32), item.astype(np.int32), at_ms.astype(np.int64), n_users, n_items)


def counted(log: Interactions, code: list[int], user: int, item: int) -> dict[str, float]:
    """Every fact of a pair by going through the log."""
    rows = [(int(u), int(i), int(t)) for u, i, t in zip(log.user, log.item, log.at_ms, strict=True)]
    end = rows[-1][2] + 1
    span = max(end - rows[0][2], 1)
    age = [(end - at) / span for _, _, at in rows]
    of_user = [n for n, row in enumerate(rows) if row[0] == user]
    of_item = [n for n, row in enumerate(rows) if row[1] == item]
    of_pair = [n for n in of_user if rows[n][1] == item]
    of_kind = [n for n in of_user if code[rows[n][1]] == code[item]]
    nan = float("nan")
    told = dict.fromkeys(
        ("pair_count", "pair_share", "pair_since", "pair_since_of_user", "pair_places_since", "pair_period", "pair_due",
         "user_since", "item_again", "item_age", "item_since", "kind_share", "kind_faded", "kind_since",
         *(f"pair_faded_{one}" for one in HALF_LIVES), *(f"pair_faded_by_{one}" for one in DECAYS)), nan,
    )  # fmt: skip
    told |= {"user_count": len(of_user), "item_count": len(of_item)}
    told["user_new_share"] = len({rows[n][1] for n in of_user}) / max(len(of_user), 1)
    for share in RECENT:
        newest = range(len(rows) - int(len(rows) * share), len(rows))
        told[f"item_recent_{share}"] = sum(n in newest for n in of_item) / (share * max(len(of_item), 1))
    if of_user:
        told["user_since"] = age[of_user[-1]]
    if of_item:
        told["item_again"] = 1 - len({rows[n][0] for n in of_item}) / len(of_item)
        told |= {"item_age": age[of_item[0]], "item_since": age[of_item[-1]]}
    if of_kind:
        told |= {"kind_share": len(of_kind) / len(of_user), "kind_since": age[of_kind[-1]]}
        told["kind_faded"] = sum(2 ** (-age[n] / HALF_LIVES[1]) for n in of_kind)
    if of_pair:
        last = of_pair[-1]
        told |= {"pair_count": len(of_pair), "pair_share": len(of_pair) / len(of_user), "pair_since": age[last]}
        told["pair_since_of_user"] = age[last] - age[of_user[-1]]
        told["pair_places_since"] = sum(n > last for n in of_user)
        if len(of_pair) > 1:
            told["pair_period"] = (age[of_pair[0]] - age[last]) / (len(of_pair) - 1)
            told["pair_due"] = age[last] / told["pair_period"] if told["pair_period"] > 0 else nan
        for one in HALF_LIVES:
            told[f"pair_faded_{one}"] = sum(2 ** (-age[n] / one) for n in of_pair)
        for one in DECAYS:
            told[f"pair_faded_by_{one}"] = sum(one ** sum(m > n for m in of_user) for n in of_pair)
    return told


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=40))
def test_facts_are_what_a_loop_counts(rows: list[tuple[int, int, int]]) -> None:
    log, code = log_of(rows, 5, 6), [0, 0, 1, 1, 2, 2]
    user, item = (part.ravel().astype(np.int32) for part in np.meshgrid(np.arange(5), np.arange(6)))
    found = Facts(log, {"kind": np.array(code, np.int32)}).of(user, item)
    for n in range(len(user)):
        told = counted(log, code, int(user[n]), int(item[n]))
        assert set(told) == set(found)
        for name, value in told.items():
            assert found[name][n] == pytest.approx(value, rel=1e-9, nan_ok=True), (name, user[n], item[n])


def habits(n_users: int = 300, n_items: int = 80, weeks: int = 12) -> Interactions:
    """Each user has five items that come again, each in a rhythm of its own, and something else now and then."""
    rng = np.random.default_rng(11)
    rows = []
    for user in range(n_users):
        own = rng.choice(n_items, 5, replace=False)
        rhythm = rng.integers(2, 5, 5)
        for week in range(weeks):
            rows += [
                (user, int(item), week) for item, every in zip(own, rhythm, strict=True) if (week + user) % every == 0
            ]
            rows += [(user, int(rng.integers(n_items)), week)] if rng.random() < 0.3 else []
    return log_of(rows, n_users, n_items)


def test_the_trees_find_a_rhythm_that_no_model_knows_of() -> None:
    held = hold_out(habits(), 11, repeats=True)
    chosen = choose_pipeline(CHEAP, {}, held, True, time.monotonic())
    alone = max(score for name, score in chosen.tried.items() if name != "trees")
    assert isinstance(chosen.model, Pipeline)
    assert chosen.score == pytest.approx(chosen.tried["trees"], abs=1e-5)
    assert chosen.score > alone + 0.1


def test_lists_do_not_depend_on_who_is_asked_for_with_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    log = habits()
    model = choose_pipeline(CHEAP, {}, hold_out(log, 11, repeats=True), True, time.monotonic()).model
    scorer, users = model.fit(log), np.arange(log.n_users, dtype=np.int32)
    together = best(scorer, log, users, 20, True)
    monkeypatch.setattr(pipeline, "USERS_AT_A_TIME", 7)
    apart = best(scorer, log, users[::-1].copy(), 20, True)
    assert np.array_equal(together.items, apart.items[::-1])
    assert np.array_equal(together.scores, apart.scores[::-1])
    assert np.isfinite(scorer.scores(users[:3])).all()


def test_a_pipeline_whose_models_were_chosen_before_is_the_same(tmp_path: Path) -> None:
    log, users = habits(), np.arange(20, dtype=np.int32)
    held = hold_out(log, 11, repeats=True)
    first, again = (
        choose_pipeline(CHEAP, {}, held, True, time.monotonic(), checkpoint=Checkpoint(tmp_path)) for _ in range(2)
    )
    assert (again.score, again.tried, again.untried) == (first.score, first.tried, first.untried)
    assert np.array_equal(again.scorer.scores(users), first.scorer.scores(users))


def test_what_was_had_is_put_forward_only_where_it_may_come_again() -> None:
    log = habits()
    for repeats in (True, False):
        sources = pipeline.Sources({"popularity": Popularity().fit(log)}, log, {}, repeats)
        found = sources.found(np.arange(10, dtype=np.int32))
        had = {(int(user), int(item)) for user, item in zip(log.user, log.item, strict=True) if user < 10}
        pairs = set(zip(found.row.tolist(), found.item.tolist(), strict=True))
        assert had <= pairs if repeats else not had & pairs


def test_with_too_few_users_to_learn_from_the_best_model_stays_alone() -> None:
    held = hold_out(habits(n_users=20), 11, repeats=True)
    chosen = choose_pipeline(CHEAP, {}, held, True, time.monotonic())
    assert not isinstance(chosen.model, Pipeline)
    assert chosen.tried[str(chosen.model)] == max(chosen.tried.values())


def test_where_nobody_can_be_held_out_a_model_stays_alone() -> None:
    rows = [(user, user % 3, user) for user in range(60)]
    held = hold_out(log_of(rows, 60, 3), None, repeats=True)
    assert not len(held.users)
    assert not isinstance(choose_pipeline(CHEAP, {}, held, True, time.monotonic()).model, Pipeline)


def test_the_pipeline_is_judged_like_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "SOURCES", ("popularity", "itemknn"))
    log, paths = habits(weeks=13), (tmp_path / "train.parquet", tmp_path / "test.parquet")
    for path, rows in zip(paths, (log.at_ms < 12, log.at_ms == 12), strict=True):
        kind = np.where(log.item[rows] % 2 == 0, "even", "odd")
        columns = {"user_id": log.user[rows].astype(str), "item_id": log.item[rows].astype(str), "kind": kind}
        pq.write_table(pa.table(columns | {"event_time": log.at_ms[rows] * 86_400_000}), path)
    task = read_task(*paths, repeats=True)
    lists, found = quality.run(task, "pipeline", True, 10, 0.1)
    assert found["model"].startswith("Pipeline(sources={'popularity'")
    assert found["ndcg@10_over_popularity"][1] > 0.2
    assert len(lists.items) == found["test_users"]
