"""Rows of what was shown: features as served bit for bit, everything counted, splits by time."""

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.archives import Stored, draw, write
from support.shown import AT, CUT, LABELLING, Arrived, arrived, logged, record, vectors, write_impressions

from batch.objectives import load_labelling
from batch.shown import Asked, Split, build_shown_rows
from batch.training_set import build_training_set, read_meta
from headwater.errors import ConfigError, DataError
from headwater.events import Event
from headwater.plan import DAY_MS, HOUR_MS, FeaturePlan
from headwater.settings import Settings


def outcome(number: int, kind: str, user: str, item: str, at: int, **fields: Any) -> Stored:
    return Stored(Event(f"o{number}", kind, at, user, item, **fields), at, 0, 10_000 + number)


def build(spark: Any, plan: FeaturePlan, folder: Path, split: Split = Split()) -> Any:  # noqa: B008
    places = Settings(state_dir=folder)
    made = build_shown_rows(spark, places, plan, "all", Asked(LABELLING, CUT, split), folder / "rows")
    return made, ds.dataset(folder / "rows").to_table()


def in_order(rows: pa.Table) -> list[dict[str, Any]]:
    """NaN is written as text, for it equals nothing."""
    held = rows.sort_by([(name, "ascending") for name in ("event_timestamp", "request_id", "item_id")])
    return [{name: repr(value) for name, value in row.items()} for row in held.to_pylist()]


@pytest.mark.integration
def test_rows_hold_labels_and_features_as_they_were_served(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """Logged vectors bit for bit, recomputed ones as a training set has them; every record is accounted for."""
    held = vectors(plan, "a", "b", "c")
    records = [
        record("r1", AT, "1", ["a", "b"], ["c"], held, **logged(plan)),
        record("r2", AT + HOUR_MS, "2", ["a"], [], None, **logged(plan)),
        record("r3", AT + HOUR_MS, "1", ["b"], [], held, **{**logged(plan), "feature_schema": "another"}),
        record("young", CUT - HOUR_MS, "1", ["a"], [], held, **logged(plan)),
    ]
    copies = [replace(one, offset=one.offset + 100) for one in arrived(records)[:1]]
    write_impressions(
        [*arrived(records), *copies, Arrived("{", AT, 0, 50)], Settings(state_dir=tmp_path).impressions_dir
    )
    happened = [
        outcome(1, "click", "1", "a", AT + 1, request_id="r1"),
        outcome(2, "bought", "1", "a", AT + 2, value=0.1),
        outcome(3, "bought", "1", "a", AT + 3, value=0.2),
        replace(outcome(3, "bought", "1", "a", AT + 3, value=0.2), offset=10_100),
        outcome(4, "bought", "2", "a", AT + HOUR_MS, value=5.0),
        outcome(5, "return", "2", "a", AT + 2 * HOUR_MS),
        outcome(6, "return", "2", "z", AT + 2 * HOUR_MS),
        outcome(7, "click", "2", "z", AT + HOUR_MS + 1),
        outcome(8, "click", "9", "z", AT),
    ]
    happened = [replace(one, offset=10_000 + at) for at, one in enumerate(happened)]
    write([*draw(100, late=False), *happened], Settings(state_dir=tmp_path).events_dir)
    made, rows = build(spark, plan, tmp_path)
    assert read_meta(tmp_path / "rows").data_hash == made.data_hash
    by_row = {(row["request_id"], row["item_id"]): row for row in rows.to_pylist()}
    assert set(by_row) == {("r1", "a"), ("r1", "b"), ("r1", "c"), ("r2", "a"), ("r3", "b")}

    bought, other = by_row["r1", "a"], by_row["r1", "c"]
    told = {name: bought[name] for name in ("click", "purchase", "value", "label", "shown", "position", "weight")}
    expected = {"click": 1, "purchase": 1, "value": Decimal("0.3"), "label": 1, "shown": True, "position": 1}
    assert told == {**expected, "weight": 1.0}
    assert (other["shown"], other["position"], other["sampling_probability"], other["weight"]) == (
        False,
        None,
        0.5,
        2.0,
    )
    assert (other["label"], other["position_propensity"], other["propensity"]) == (0, None, 1.0)
    assert by_row["r2", "a"]["purchase"] == 0, "its purchase was returned"
    assert {row["bundle_version"] for row in by_row.values()} == {"7"}
    assert rows["event_timestamp"].type == pa.timestamp("us", "UTC")

    names = plan.service("all").names
    for item in "abc":
        served = np.array([np.nan if value is None else value for value in held[item]], np.float32)
        ours = np.array([by_row["r1", item][name] for name in names], np.float32)
        assert served.view(np.uint32).tolist() == ours.view(np.uint32).tolist()
    assert [row["features_from"] for row in by_row.values()].count("recomputed") == 2
    asked = pa.table({"user_id": ["2", "1"], "event_timestamp": [AT + HOUR_MS] * 2})
    build_training_set(spark, Settings(state_dir=tmp_path), plan, "all", asked, tmp_path / "asked")
    expected_rows = ds.dataset(tmp_path / "asked").to_table().sort_by("label_row").to_pylist()
    for key, row in zip((("r2", "a"), ("r3", "b")), expected_rows, strict=True):
        ours, theirs = (np.array([held[name] for name in names], np.float32) for held in (by_row[key], row))
        assert ours.view(np.uint32).tolist() == theirs.view(np.uint32).tolist()

    counted = made.accounting
    assert counted is not None
    impressions = counted["impressions"]
    assert impressions == {
        "read": 6, "used": 3, "too_young": 1, "copy": 1, "unreadable": 1, "in_gap": 0, "with_outcome": 1,
        "without_outcome": 2,
    }  # fmt: skip
    outcomes = counted["outcomes"]
    assert (outcomes["read"], outcomes["copies"], outcomes["retractions"]) == (9, 1, 2)
    assert outcomes["retractions_without_outcome"] == 1
    assert outcomes["read"] == outcomes["copies"] + outcomes["retractions"] + sum(outcomes["distinct"].values())
    some = {name: {fate: n for fate, n in fates.items() if n} for name, fates in outcomes["fates"].items()}
    assert some["click"] == {"credited": 1, "not_shown": 1, "without_impression": 1}
    assert some["purchase"] == some["value"] == {"credited": 2, "retracted": 1}
    assert counted["rows"] == {
        "shown": 4, "not_shown": 1, "train": 5, "validation": 0, "logged": 3, "recomputed": 2,
    }  # fmt: skip
    assert impressions["used"] == impressions["in_gap"] + impressions["with_outcome"] + impressions["without_outcome"]


@pytest.mark.integration
def test_splits_are_by_time_with_nothing_in_the_gap(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """The gap is the longest window where none is told, so no training label tells of the validation period."""
    held = vectors(plan, "a")
    times = [AT - 1, AT, AT + 3 * HOUR_MS - 1, AT + 3 * HOUR_MS]
    records = [record(f"r{at}", time, "1", ["a"], [], held, **logged(plan)) for at, time in enumerate(times)]
    write_impressions(arrived(records), Settings(state_dir=tmp_path).impressions_dir)
    write(draw(20, late=False), Settings(state_dir=tmp_path).events_dir)
    made, rows = build(spark, plan, tmp_path, Split(AT))
    parts = dict(zip(rows["request_id"].to_pylist(), rows["split"].to_pylist(), strict=True))
    assert parts == {"r0": "train", "r3": "validation"}
    assert made.accounting is not None
    assert made.accounting["impressions"]["in_gap"] == 2
    _, rows = build(spark, plan, tmp_path, Split(AT, timedelta(0)))
    assert sorted(rows["split"].to_pylist()) == ["train", "validation", "validation", "validation"]
    both = rows
    made, rows = build(spark, plan, tmp_path, Split(AT, timedelta(0), keeps_train=False))
    assert in_order(rows) == in_order(both.filter(pc.equal(both["split"], "validation")))
    assert rows["split"].to_pylist() == ["validation"] * 3
    assert made.accounting is not None
    assert made.accounting["impressions"]["in_gap"] == 0, "the day before is not read"


@pytest.mark.integration
def test_what_lies_before_a_set_for_judging_alone_changes_none_of_its_labels(
    spark: Any, plan: FeaturePlan, tmp_path: Path
) -> None:
    """Lists of four days and outcomes of either side, some taken back: as the whole set has them, of fewer files."""
    rng, held = np.random.default_rng(8), vectors(plan, "a", "b")
    times = np.sort(rng.integers(AT - 2 * DAY_MS, AT + DAY_MS, 60)).tolist()
    records = [
        record(f"r{n}", t, str(rng.integers(3)), ["a", "b"], [], held, **logged(plan)) for n, t in enumerate(times)
    ]
    write_impressions(arrived(records), Settings(state_dir=tmp_path).impressions_dir)
    kinds, happened = ["click", "bought", "bought", "return"], []
    for n in range(200):
        at, kind, shown = int(rng.choice(times) + rng.integers(2 * HOUR_MS)), str(rng.choice(kinds)), rng.random() < 0.3
        told = {"request_id": f"r{rng.integers(60)}"} if shown and kind != "return" else {}
        happened.append(outcome(n, kind, str(rng.integers(3)), str(rng.choice(["a", "b"])), at, value=1.0, **told))
    write([*draw(20, late=False), *happened], Settings(state_dir=tmp_path).events_dir)
    made, whole = build(spark, plan, tmp_path, Split(AT, timedelta(0)))
    judged, rows = build(spark, plan, tmp_path, Split(AT, timedelta(0), keeps_train=False))
    assert in_order(rows) == in_order(whole.filter(pc.equal(whole["split"], "validation")))
    assert judged.positives
    assert made.accounting is not None
    assert judged.accounting is not None
    assert judged.accounting["impressions"]["read"] < made.accounting["impressions"]["read"]


@pytest.mark.integration
def test_impressions_that_are_all_too_young_give_an_empty_set_with_the_full_schema(
    spark: Any, plan: FeaturePlan, tmp_path: Path
) -> None:
    held = vectors(plan, "a")
    records = [record("r", CUT - 1, "1", ["a"], [], held, **logged(plan)), record("s", CUT - 1, "1", ["a"])]
    write_impressions(arrived(records), Settings(state_dir=tmp_path).impressions_dir)
    write(draw(20, late=False), Settings(state_dir=tmp_path).events_dir)
    made, rows = build(spark, plan, tmp_path)
    assert (made.rows, made.groups, made.positives) == (0, 0, 0)
    assert set(plan.service("all").names) < set(rows.column_names)
    assert {"label", "click", "purchase", "value", "split", "weight"} < set(rows.column_names)


@pytest.mark.integration
def test_a_join_key_that_is_nowhere_is_named(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """Taken from the impression's context, else from a table of items, else asked for."""
    view = plan.batch_views[0].model_copy(update={"join_keys": ("shelf",)})
    other = plan.model_copy(update={"batch_views": (view,)})
    path = Path(view.path)
    table = ds.dataset(path).to_table().rename_columns(["shelf", "age", "event_timestamp"])
    pq.write_table(table, path)
    records = [record("r", AT, "1", ["a"]), record("s", AT, "1", ["a"], context={"shelf": "2"})]
    write_impressions(arrived(records), Settings(state_dir=tmp_path).impressions_dir)
    write(draw(20, late=False), Settings(state_dir=tmp_path).events_dir)
    with pytest.raises(DataError, match="shelf: service all needs it"):
        build(spark, other, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "draft" in path.name] == []
    pq.write_table(pa.table({"item_id": ["a"], "shelf": ["1"]}), tmp_path / "items.parquet")
    asked = Asked(LABELLING, CUT, items=tmp_path / "items.parquet")
    build_shown_rows(spark, Settings(state_dir=tmp_path), other, "all", asked, tmp_path / "rows")
    assert ds.dataset(tmp_path / "rows").to_table()["age"].to_pylist() == [30, 30]


def test_the_shipped_file_is_read_and_a_repository_has_its_own(tmp_path: Path) -> None:
    shipped = load_labelling(tmp_path)
    assert list(shipped.objectives) == ["click", "cart", "purchase", "value"]
    assert shipped.final_ms == 8 * DAY_MS
    (tmp_path / "labels.toml").write_text(
        'label = "x"\n[keys]\nuser = "u"\nitem = "i"\n[objectives.x]\nevents = ["e"]\nwindow = "2h"\ndelay = "0s"'
    )
    assert load_labelling(tmp_path).final_ms == 2 * HOUR_MS


GOOD: dict[str, Any] = json.loads(LABELLING.model_dump_json()) | {
    "objectives": {"purchase": {"events": ["bought"], "window": "3h", "delay": "1h"}},
    "retractions": {"return": {"events": ["bought"], "within": "5h"}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "love"}, "'love' is not one of the objectives purchase"),
        ({"objectives": {"purchase": {"events": [], "window": "3h", "delay": "1h"}}}, "objectives.purchase.events"),
        (
            {"objectives": {"purchase": {"events": ["x"], "window": "3 weeks", "delay": "1h"}}},
            "3 weeks' is no duration",
        ),
        ({"objectives": {"purchase": {"events": ["x"], "window": "0s", "delay": "1h"}}}, "objectives.purchase.window"),
        ({"objectives": {"Purchase!": {"events": ["x"], "window": "3h", "delay": "1h"}}}, "Purchase!"),
        (
            {"retractions": {"bought": {"events": ["bought"], "within": "5h"}}},
            "'bought' is an outcome and a retraction",
        ),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_file_is_told_by_its_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.toml").write_text(toml(GOOD | change))
    with pytest.raises(ConfigError) as refused:
        load_labelling(tmp_path)
    assert message in str(refused.value)


def toml(table: dict[str, Any], path: str = "") -> str:
    """Just enough of TOML for the tests' tables."""
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            name = f"{path}.{json.dumps(key)}" if path else json.dumps(key)
            lines += [f"[{name}]", toml(value, name)]
    return "\n".join(lines)
