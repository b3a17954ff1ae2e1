"""Spark's point-in-time join against the naive window."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.archives import START, draw, plan_with, rows_of, user_and_pair_views, write

from batch import point_in_time
from batch.labels import number_labels
from batch.point_in_time import column_name, join_views
from benchmarks.oracle import fold
from headwater.plan import DAY_MS, HOUR_MS
from headwater.settings import Settings

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("known", [True, False], ids=["as known", "as of"])
def test_spark_equals_the_naive_window(spark: Any, tmp_path: Path, known: bool) -> None:
    """Late events, copies, nulls, composite keys, duplicate labels and unknown entities; one row a label."""
    stored = draw(400)
    settings = Settings(state_dir=tmp_path)
    write(stored, settings.events_dir)
    views = user_and_pair_views(ttl_ms=30 * HOUR_MS)
    rng = np.random.default_rng(1)
    names = [str(number) + ones for number in range(1, 7) for ones in ("", "1")]
    instants = START + rng.integers(0, 4 * DAY_MS, 60) // 60_000 * 60_000
    asked = [(str(rng.choice(names)), str(rng.choice(names)), int(t)) for t in instants]
    asked += [asked[0], asked[0], ("never", "seen", START + DAY_MS)]
    users, items, times = zip(*asked, strict=True)
    table = pa.table({"item_id": items, "label": range(len(asked)), "user_id": users, "event_timestamp": times})
    labels = number_labels(table, ("user_id", "item_id"), tmp_path / "labels.parquet")
    wanted = {view.name: view.features for view in views}
    joined = join_views(spark, settings, plan_with(*views), labels, wanted, known).orderBy("_row").toArrow()

    assert joined["label"].to_pylist() == list(range(len(asked)))
    for view in views:
        rows = rows_of(stored, view.join_keys)
        for at, (user, item, t) in enumerate(asked):
            key = (user, item)[: len(view.join_keys)]
            _, values = fold(view, rows, key, t, known)
            told = {name: _plain(joined[column_name(view.name, name)][at].as_py()) for name in view.features}
            assert told == values, (view.name, key, t)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def test_a_bucket_in_pieces_answers_as_a_whole_one(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that a third of the labels have: its bucket is answered in pieces, each with all of its events."""
    stored = draw(300)
    settings = Settings(state_dir=tmp_path)
    write(stored, settings.events_dir)
    view, _ = user_and_pair_views()
    rng = np.random.default_rng(2)
    users = [str(rng.integers(1, 6)) if rng.random() < 0.7 else "1" for _ in range(200)]
    times = (START + rng.integers(0, 3 * DAY_MS, 200)).tolist()
    labels = number_labels(pa.table({"user_id": users, "event_timestamp": times}), ["user_id"], tmp_path / "l.parquet")

    def answer() -> Any:
        wanted = {view.name: view.features}
        return join_views(spark, settings, plan_with(view), labels, wanted, True).orderBy("_row").toArrow().to_pylist()

    whole = answer()
    monkeypatch.setattr(point_in_time, "PIECE", 7)
    assert repr(answer()) == repr(whole)
    assert len(whole) == 200
