"""Ready-made rows joined by Spark against a loop over the words."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.archives import START, plan_with

from batch import ready_made
from batch.labels import number_labels
from batch.point_in_time import column_name, join_views, joined_table
from batch.ready_made import as_key, epoch_ms
from headwater.errors import DataError
from headwater.plan import DAY_MS, HOUR_MS, BatchView, Column
from headwater.settings import Settings


def test_a_text_meets_the_integer_that_it_is_written_as() -> None:
    texts = pa.chunked_array([["7", "-7", "07", "+7", "7.0", " 7", "", "0", "-0", "1" * 18, "1" * 30, None]])
    found = as_key(texts, pa.int64()).to_pylist()
    assert found == [7, -7, None, None, None, None, None, 0, None, int("1" * 18), None, None]
    assert as_key(pa.chunked_array([pa.array([7, None], pa.int32())]), pa.string()).to_pylist() == ["7", None]


@pytest.mark.parametrize(("unit", "per_ms"), [("ms", 1), ("us", 1_000), ("ns", 1_000_000)])
def test_instants_are_rounded_down_to_milliseconds(unit: str, per_ms: int) -> None:
    ticks = [5 * per_ms, 6 * per_ms - 1, -1, -per_ms, None]
    expected = [None if tick is None else tick // per_ms for tick in ticks]
    assert epoch_ms(pa.chunked_array([pa.array(ticks, pa.timestamp(unit))])).to_pylist() == expected


def test_whole_seconds_and_dates_are_instants() -> None:
    assert epoch_ms(pa.chunked_array([pa.array([2], pa.timestamp("s", "UTC"))])).to_pylist() == [2_000]
    assert epoch_ms(pa.chunked_array([pa.array([1], pa.date32())])).to_pylist() == [DAY_MS]


@pytest.mark.integration
@pytest.mark.parametrize("known", [True, False], ids=["as known", "as of"])
@pytest.mark.parametrize(("little", "rows_per_task"), [(ready_made.LITTLE, 1), (0, 70)], ids=["one task", "moved"])
def test_each_label_has_the_newest_row_of_each_view(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, little: int, rows_per_task: int
) -> None:
    """Keys of other types than the labels', several files, ties, late rows, nulls, strangers; one row a label."""
    monkeypatch.setattr(ready_made, "LITTLE", little)
    monkeypatch.setattr(ready_made, "ROWS_PER_TASK", rows_per_task)
    rng = np.random.default_rng(3)
    rows = {name: _draw(rng, name, tmp_path) for name in ("numbers", "texts", "pairs")}
    views = [
        _view("numbers", ("user_id",), tmp_path, ttl_ms=2 * DAY_MS),
        _view("texts", ("user_id",), tmp_path, ttl_ms=0),
        _view("pairs", ("user_id", "item_id"), tmp_path, ttl_ms=0),
    ]
    users, items = rng.integers(0, 12, 300), rng.integers(0, 12, 300)
    times = START + rng.integers(0, 9 * 24, 300) * HOUR_MS
    table = pa.table({
        "user_id": [str(user) if user else None for user in users.tolist()], "item_id": items, "event_timestamp": times,
    })  # fmt: skip
    labels = number_labels(table, ("user_id", "item_id"), tmp_path / "labels.parquet")
    wanted = {view.name: view.features for view in views}
    plan, settings = plan_with(batch_views=tuple(views)), Settings(state_dir=tmp_path)
    joined = joined_table(spark, settings, plan, labels, wanted, known)
    assert joined.num_rows == 300
    for view in views:
        for at, (user, item, t) in enumerate(zip(users.tolist(), items.tolist(), times.tolist(), strict=True)):
            key = (str(user), str(item))[: len(view.join_keys)]
            expected = _newest(rows[view.name], key, t, view.ttl_ms, known) if user else None
            assert joined[column_name(view.name, "value")][at].as_py() == expected, (view.name, key, t)
    shuffled = join_views(spark, settings, plan, labels, wanted, known).toArrow().sort_by("_row")
    assert shuffled.select(joined.column_names).to_pylist() == joined.to_pylist()


@pytest.mark.integration
def test_a_column_that_is_not_there_is_told(spark: Any, tmp_path: Path) -> None:
    _draw(np.random.default_rng(0), "numbers", tmp_path)
    labels = number_labels(
        pa.table({"user_id": ["1"], "event_timestamp": [START]}), ("user_id",), tmp_path / "labels.parquet"
    )
    view = _view("numbers", ("user_id",), tmp_path, ttl_ms=0)
    lost = view.model_copy(update={"columns": (Column(name="lost", dtype="int64"),)})
    with pytest.raises(DataError, match="numbers: no column lost"):
        joined_table(
            spark, Settings(state_dir=tmp_path), plan_with(batch_views=(lost,)), labels, {"numbers": ["lost"]}, True
        )


def _view(name: str, keys: tuple[str, ...], folder: Path, ttl_ms: int) -> BatchView:
    return BatchView(
        name=name, join_keys=keys, columns=(Column(name="value", dtype="int64"),), path=str(folder / name),
        timestamp_field="event_timestamp", created_field="created", ttl_ms=ttl_ms, id="",
    )  # fmt: skip


def _draw(rng: np.random.Generator, name: str, folder: Path) -> list[tuple[tuple[str, ...], int, int, int]]:
    """Two files of rows: on whole hours, so that some meet, some with a null key; keys as integers or as texts."""
    users, items, values = rng.integers(0, 12, 400), rng.integers(0, 12, 400), rng.permutation(400)
    time = START + rng.integers(0, 9 * 24, 400) * HOUR_MS
    created = time + np.where(rng.random(400) < 0.3, rng.integers(0, 3 * DAY_MS, 400), 0)
    kind = pa.string() if name == "texts" else pa.int32()
    unit = "ns" if name == "pairs" else "ms"
    table = pa.table({
        "user_id": pa.array(users, mask=users == 0).cast(kind), "item_id": pa.array(items), "value": pa.array(values),
        "event_timestamp": pa.array(time, pa.timestamp("ms", "UTC")).cast(pa.timestamp(unit, "UTC")),
        "created": pa.array(created, pa.timestamp("ms", "UTC")),
    })  # fmt: skip
    (folder / name).mkdir()
    pq.write_table(table.slice(0, 150), folder / name / "a.parquet", row_group_size=40)
    pq.write_table(table.slice(150), folder / name / "b.parquet")
    owners = [
        (str(user), str(item)) if name == "pairs" else (str(user),) for user, item in zip(users, items, strict=True)
    ]
    return list(zip(owners, time.tolist(), created.tolist(), values.tolist(), strict=True))


def _newest(
    rows: list[tuple[tuple[str, ...], int, int, int]], key: tuple[str, ...], t: int, ttl_ms: int, known: bool
) -> int | None:
    seen = [
        (time, made, value)
        for owner, time, made, value in rows
        if owner == key and time <= t and (not ttl_ms or time >= t - ttl_ms) and (not known or made <= t)
    ]
    return max(seen)[2] if seen else None
