"""Each kind of leak is planted and found, and a clean set passes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import START, Stored, draw, write
from support.services import NOW
from support.shown import AT, CUT, LABELLING, arrived, logged, record, vectors, write_impressions

from batch.labels import number_labels
from batch.leaks import LeakError, LeakLimits, auc, find_changed, find_telling
from batch.shown import Asked, build_shown_rows
from batch.training_set import LeakCheck, build_training_set, read_meta
from headwater.errors import DataError
from headwater.events import Event
from headwater.plan import DAY_MS, HOUR_MS, FeaturePlan
from headwater.settings import Settings

few = st.sampled_from([0.0, 1.0, 2.0, -1.5, float("nan")])
LOOSE = LeakCheck(limits=LeakLimits(auc=1.1))
"""Judges no feature by its AUC, which on a handful of users says little."""


def slow_auc(values: list[float], positive: list[bool]) -> float:
    """Over all pairs of a positive and a negative row."""
    keys = [(1, 0.0) if np.isnan(value) else (0, value) for value in values]
    ours = [key for key, is_one in zip(keys, positive, strict=True) if is_one]
    theirs = [key for key, is_one in zip(keys, positive, strict=True) if not is_one]
    won = sum(1.0 if one > other else 0.5 if one == other else 0.0 for one in ours for other in theirs)
    return won / (len(ours) * len(theirs))


@settings(deadline=None)
@given(st.lists(st.tuples(few, st.booleans()), min_size=2, max_size=30))
def test_the_area_counts_all_pairs_and_halves_ties(rows: list[tuple[float, bool]]) -> None:
    values, positive = [value for value, _ in rows], [is_one for _, is_one in rows]
    if any(positive) and not all(positive):
        assert auc(np.array(values, np.float32), np.array(positive)) == pytest.approx(slow_auc(values, positive), 1e-12)


def telling(**columns: Any) -> list[str]:
    table = pa.table({"label": columns.pop("label"), **columns})
    return [leak.feature for leak in find_telling(ds.dataset(table), [*columns], ["label"])]


def test_a_feature_that_orders_the_labels_is_found_whichever_way_round() -> None:
    rng = np.random.default_rng(0)
    label = rng.random(2000) < 0.1
    noise = rng.normal(size=2000)
    missing = np.where(label, noise, np.nan)
    found = telling(
        label=label.astype(np.int8), honest=noise + label, copy=label + 0.1 * noise, inverse=-2.0 * label, gap=missing
    )
    assert found == ["copy", "inverse", "gap"]


def test_too_few_rows_prove_nothing() -> None:
    label = np.arange(499) % 2
    assert telling(label=label, copy=label * 1.0) == []
    rare = (np.arange(2000) < 19).astype(int)
    assert telling(label=rare, copy=rare * 1.0) == []
    assert telling(label=np.arange(500) % 2, copy=np.arange(500) % 2 * 1.0) == ["copy"]


def test_candidates_that_were_not_shown_have_no_label_to_tell() -> None:
    """Their labels are zeros whatever would have been, so a feature that tells them apart is no leak."""
    shown = np.arange(4000) % 2 == 0
    label = shown & (np.arange(4000) % 4 == 0)
    assert telling(label=label, shown=shown, honest=shown * 1.0) == []


@pytest.mark.integration
def test_a_feature_that_counts_the_outcome_itself_is_refused(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """Labels asked about an instant after the outcome: the purchase is in the window that should foretell it."""
    settings = Settings(state_dir=tmp_path)
    users = [str(number) for number in range(600)]
    bought = [user for user in users if int(user) % 5 == 0]
    events = [Event(f"e{user}", "purchase", NOW - 60_000, user, "1", value=1.0) for user in bought]
    write([Stored(event, event.event_time, -1, at) for at, event in enumerate(events)], settings.events_dir)
    labels = pa.table({
        "user_id": users, "event_timestamp": [NOW] * 600, "label": [int(user in bought) for user in users],
    })  # fmt: skip
    with pytest.raises(LeakError) as refused:
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows")
    told = "n_1h: alone it has an AUC of 0.0000 for label on 600 rows"  # the others have no value, which is above all
    assert told in str(refused.value)
    assert "Check that event_timestamp lies before the outcome" in str(refused.value)
    assert not (tmp_path / "rows").exists()
    made = build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows", check=LeakCheck(allow=True))
    assert "n_1h" in {leak["feature"] for leak in made.leaks}
    assert [dict(leak) for leak in read_meta(tmp_path / "rows").leaks] == [dict(leak) for leak in made.leaks]


@pytest.mark.integration
def test_what_arrived_after_the_label_is_found(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """As of the label's instant a late event counts, as known then it does not: the first is refused, the other not."""
    settings = Settings(state_dir=tmp_path)
    write(draw(400), settings.events_dir)
    labels = pa.table({"user_id": [str(n % 5 + 1) for n in range(40)],
                       "event_timestamp": [START + n * HOUR_MS for n in range(40)]})  # fmt: skip
    with pytest.raises(LeakError) as refused:
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows", known=False, check=LOOSE)
    assert {leak.kind for leak in refused.value.leaks} == {"changed_later"}
    assert "rows differ from an archive cut at their instant" in str(refused.value)
    assert "Build with --as-known" in str(refused.value)
    assert build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows", check=LOOSE).leaks == ()


@pytest.mark.integration
def test_a_ready_made_row_of_a_later_day_is_found(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """Back-dated rows: of before the label, created after it."""
    settings = Settings(state_dir=tmp_path)
    write(draw(50, late=False), settings.events_dir)
    instants = pa.array([START, START], pa.timestamp("ms", "UTC"))
    created = pa.array([START, NOW + 1], pa.timestamp("ms", "UTC"))
    table = pa.table({"user_id": ["1", "1"], "age": [30, 31], "event_timestamp": instants, "created": created})
    view = plan.batch_views[0].model_copy(update={"created_field": "created"})
    pq.write_table(table, view.path)
    plan = plan.model_copy(update={"batch_views": (view,)})
    labels = pa.table({"user_id": ["1", "2"], "event_timestamp": [NOW, NOW]})
    with pytest.raises(LeakError) as refused:
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows", known=False, check=LOOSE)
    assert {(leak.kind, leak.feature) for leak in refused.value.leaks} >= {("newer_than_row", "age")}
    assert "created column" in str(refused.value)
    assert build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows", check=LOOSE).leaks == ()


@pytest.mark.integration
def test_a_value_folded_from_what_came_after_the_row_is_found(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """Rows whose values are those of an hour later."""
    settings = Settings(state_dir=tmp_path)
    write(draw(400, late=False), settings.events_dir)
    early = pa.table({"user_id": ["1", "2"], "event_timestamp": [START + DAY_MS] * 2})
    later = pa.table({"user_id": ["1", "2"], "event_timestamp": [START + DAY_MS + 3 * HOUR_MS] * 2})
    build_training_set(spark, settings, plan, "all", later, tmp_path / "rows", check=LOOSE)
    labels = number_labels(pa.concat_tables([early, later]).slice(0, 2), ["user_id"], tmp_path / "labels.parquet")
    wide = number_labels(later, ["user_id"], tmp_path / "later.parquet")
    asked = type(labels)(labels.path, labels.rows, labels.first_ms, wide.last_ms, labels.schema, labels.keys)
    leaks = find_changed(spark, settings, plan, "all", asked, ds.dataset(tmp_path / "rows"))
    assert {leak.kind for leak in leaks if leak.feature == "n_ever"} == {"newer_than_row"}


@pytest.mark.integration
def test_a_log_that_tells_of_events_of_the_row_or_later_is_found(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    """A ready-made row of the very instant is allowed, an event of it is not."""
    settings = Settings(state_dir=tmp_path)
    write(draw(20, late=False), settings.events_dir)
    read = {"at": [AT], "newest": [AT], "rows": [0]}
    newest = {"by_user": read, "profile": read}
    records = [record("r", AT, "1", ["a"], [], vectors(plan, "a"), views=newest, **logged(plan))]
    write_impressions(arrived(records), settings.impressions_dir)
    with pytest.raises(LeakError) as refused:
        build_shown_rows(spark, settings, plan, "all", Asked(LABELLING, CUT), tmp_path / "rows")
    found = {leak.feature for leak in refused.value.leaks}
    assert {leak.kind for leak in refused.value.leaks} == {"newer_than_row"}
    assert "n_1h" in found
    assert "ratio" in found
    assert "age" not in found


@pytest.mark.integration
def test_a_label_that_is_no_number_is_named(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    write(draw(20, late=False), settings.events_dir)
    labels = pa.table({"user_id": ["1"], "event_timestamp": [NOW], "verdict": ["good"]})
    with pytest.raises(DataError, match="'verdict' is no column of numbers"):
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows", check=LeakCheck(labels=["verdict"]))
