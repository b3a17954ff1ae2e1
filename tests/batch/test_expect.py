"""Archived events, training sets and served vectors against a declared file; what is quarantined adds up."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.archives import START, Stored, draw, plan_with, write
from support.views import every_function
from typer.testing import CliRunner

from batch.expect import check_events, check_served, check_training_set
from batch.quarantine import QUARANTINE, REASONS, quarantine
from batch.training_set import build_training_set, read_meta
from headwater.cli.main import build
from headwater.errors import DataError
from headwater.expectations import Expectations
from headwater.plan import DAY_MS, FeaturePlan, Service, ServiceFeature
from headwater.settings import Settings

PLAN = plan_with(
    every_function(0, "by_user"),
    services=(
        Service(name="all", features=tuple(ServiceFeature(view="by_user", feature=f) for f in ("n_3h", "n_ever"))),
    ),
)


def expected(**tables: Any) -> Expectations:
    return Expectations.model_validate(tables)


def failing(findings: Any) -> dict[str, int]:
    return {f"{one.subject}: {one.expected}": one.failed for one in findings if not one.holds}


def settled(tmp_path: Path, stored: list[Stored]) -> Settings:
    settings = Settings(state_dir=tmp_path)
    write(stored, settings.events_dir)
    return settings


def test_events_are_judged_by_column_with_the_place_of_the_first(tmp_path: Path) -> None:
    stored = draw(100, late=False)
    settings = settled(tmp_path, stored)
    values = [one.event.value for one in stored]
    below, without = sum(v is not None and v < 0 for v in values), sum(v is None for v in values)
    types = Counter(one.event.event_type for one in stored)
    odd = sum(one.event.context["quantity"] not in map(str, range(-2, 5)) for one in stored)
    columns = {
        "value": {"min": 0, "max": 1e6, "nulls": without / 100},
        "event_type": {"values": ["purchase"]},
        "user_id": {"matches": "[0-9]+", "nulls": 0},
        "context.quantity": {"matches": "-?[0-9]"},
    }
    found = list(check_events(settings, PLAN, expected(events={"events": {"columns": columns}}), 0))
    assert failing(found) == {
        "value: min 0": below, "event_type: values purchase": types["view"], "context.quantity: matches -?[0-9]": odd,
    }  # fmt: skip
    (values_found,) = [one for one in found if one.expected == "min 0"]
    where = {f"{one.event.value} at {one.partition}-{one.offset}" for one in stored}
    assert len(values_found.examples) == 5
    assert set(values_found.examples) <= where
    few = {"value": {"nulls": (without - 1) / 100}}
    assert failing(check_events(settings, PLAN, expected(events={"events": {"columns": few}}), 0)) == {
        f"value: nulls {(without - 1) / 100:g}": without
    }


def test_whole_days_are_counted_a_day_without_events_too(tmp_path: Path) -> None:
    """The first and the last day are not whole; days 1 to 4 have 10, 20, 0 and 10 rows."""
    drawn = draw(70, late=False)
    days = [0] * 10 + [1] * 10 + [2] * 20 + [4] * 10 + [5] * 20
    stored = [
        replace(one, event=replace(one.event, event_time=START + day * DAY_MS + at))
        for at, (one, day) in enumerate(zip(drawn, days, strict=True))
    ]
    settings = settled(tmp_path, stored)
    within = expected(events={"events": {"rows_per_day": {"min": 0, "max": 20}}})
    assert failing(check_events(settings, PLAN, within, 0)) == {}
    beyond = expected(events={"events": {"rows_per_day": {"min": 1, "max": 15}}})
    found = list(check_events(settings, PLAN, beyond, 0))
    assert [(one.rows, one.failed, one.examples) for one in found] == [
        (4, 1, ("0 on 2024-10-07",)), (4, 1, ("20 on 2024-10-06",)),
    ]  # fmt: skip


@pytest.mark.parametrize(("age_h", "holds"), [(2, True), (2.01, False)])
def test_the_newest_event_is_no_older_than_declared(tmp_path: Path, age_h: float, holds: bool) -> None:
    stored = draw(40, late=False)
    newest = max(one.event.event_time for one in stored)
    found = check_events(
        settled(tmp_path, stored), PLAN, expected(events={"events": {"newest_within": "2h"}}),
        newest + round(age_h * 3_600_000),
    )  # fmt: skip
    assert [one.holds for one in found] == [holds]


def test_an_archive_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no archived events of events"):
        list(check_events(Settings(state_dir=tmp_path), PLAN, expected(events={"events": {}}), 0))


def parts(folder: Path) -> list[dict[str, Any]]:
    """Rows of two files: n_3h is 0 to 9 and missing in two rows."""
    rows = [{"label_row": at, "n_3h": None if at % 6 == 5 else float(at), "n_ever": at / 2} for at in range(12)]
    schema = pa.schema([("label_row", pa.int64()), ("n_3h", pa.float32()), ("n_ever", pa.float32())])
    folder.mkdir()
    for at in (0, 6):
        pq.write_table(pa.Table.from_pylist(rows[at : at + 6], schema), folder / f"part-{at}.parquet")
    return rows


def test_what_is_taken_out_and_what_is_kept_add_up_to_what_was_there(tmp_path: Path) -> None:
    rows = parts(tmp_path / "rows")
    wanted = expected(
        features={"n_3h": {"max": 7, "nulls": 0.3}, "n_ever": {"min": 1}, "other": {"max": 0}},
        training_set={"quarantined": 0.5},
    )
    done = quarantine(tmp_path / "rows", wanted, {"n_3h", "n_ever"})
    kept = ds.dataset(tmp_path / "rows", format="parquet").to_table().to_pylist()
    aside = pq.read_table(tmp_path / "rows" / QUARANTINE).to_pylist()
    bad = [row for row in rows if (row["n_3h"] or 0) > 7 or row["n_ever"] < 1]
    assert done.rows == len(aside) == len(bad)
    assert [{name: row[name] for name in rows[0]} for row in aside] == bad
    assert kept == [row for row in rows if row not in bad]
    assert done.by_reason == dict(Counter(reason for row in aside for reason in row[REASONS]))
    assert done.by_reason == {"n_3h: max 7": 3, "n_ever: min 1": 2}
    assert failing(check_training_set(tmp_path / "rows", wanted)) == {}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"features": {"n_3h": {"nulls": 0.1}}}, r"n_3h: 2 of 12 rows of the training set have no value"),
        ({"features": {"n_ever": {"min": 1}}, "training_set": {"quarantined": 0.1}}, r"2 of 12 rows .* 10.00% may be"),
        ({"features": {"n_ever": {"min": 1}}}, r"2 of 12 rows .* 0.00% may be; most fail n_ever: min 1 \(2\)"),
    ],
)
def test_more_than_is_tolerated_refuses_the_set(tmp_path: Path, tables: dict[str, Any], told: str) -> None:
    parts(tmp_path / "rows")
    with pytest.raises(DataError, match=told):
        quarantine(tmp_path / "rows", expected(**tables), {"n_3h", "n_ever"})


def test_where_nothing_is_expected_nothing_is_touched(tmp_path: Path) -> None:
    parts(tmp_path / "rows")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert quarantine(tmp_path / "rows", expected(features={"other": {"max": 0}}), {"n_3h"}).rows == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == before


def test_served_vectors_are_judged_by_the_names_they_were_logged_with(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    records = [
        {"feature_names": names, "items": [{"features": vector} for vector in vectors]}
        for names, vectors in [
            (["n_3h", "n_ever"], [[1.0, 9.0], [None, 2.0]]), (["n_ever"], [[-1.0], None]), ([], [None]),
        ]
    ]  # fmt: skip
    folder = settings.impressions_dir / "date=2024-10-04"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"value": [json.dumps(record) for record in records]}), folder / "p0-0.parquet")
    wanted = expected(features={"n_ever": {"min": 0, "max": 8}, "n_3h": {"nulls": 0.5}, "other": {"max": 0}})
    found = list(check_served(settings, wanted))
    assert failing(found) == {"n_ever: min 0": 1, "n_ever: max 8": 1}
    assert {one.subject: one.rows for one in found} == {"n_ever": 3, "n_3h": 2}


@pytest.mark.integration
def test_a_training_set_is_built_without_what_fails_and_says_how_much(spark: Any, tmp_path: Path) -> None:
    """Rows in place and in quarantine are the labels, each once; a refused set leaves the former in place."""
    repo = tmp_path / "repo"
    repo.mkdir()
    settings, plan = settled(tmp_path, draw(200, late=False)), PLAN.model_copy(update={"repo": str(repo)})
    labels = pa.table({
        "user_id": ["1", "2", "3", "9"], "label": [1, 0, 1, 0],
        "event_timestamp": pa.array([START + DAY_MS] * 4, pa.int64()),
    })  # fmt: skip
    build_training_set(spark, settings, plan, "all", labels, tmp_path / "all")
    whole = ds.dataset(tmp_path / "all").to_table().sort_by("label_row").to_pylist()
    greatest = max(row["n_ever"] for row in whole if row["n_ever"] is not None)

    (repo / "expectations.toml").write_text(
        f"[features.n_ever]\nmax = {greatest - 0.5}\n[training_set]\nquarantined = 0.5\n"
    )
    made = build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows")
    bad = [row for row in whole if row["n_ever"] == greatest]
    assert (made.rows, made.quarantined) == (4 - len(bad), len(bad))
    assert made.quarantined_by == {f"n_ever: max {greatest - 0.5:g}": len(bad)}
    assert read_meta(tmp_path / "rows") == made
    kept = ds.dataset(tmp_path / "rows").to_table().sort_by("label_row")["label_row"].to_pylist()
    aside = pq.read_table(tmp_path / "rows" / QUARANTINE)["label_row"].to_pylist()
    assert sorted(kept + aside) == [0, 1, 2, 3]

    (repo / "expectations.toml").write_text("[features.n_ever]\nmax = 0\n")
    with pytest.raises(DataError, match=r"not as expectations\.toml expects"):
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows")
    assert read_meta(tmp_path / "rows") == made


@pytest.mark.parametrize(("greatest", "code"), [(1e9, 0), (0, 1)])
def test_the_command_exits_by_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greatest: float, code: int
) -> None:
    settings, plan = settled(tmp_path, draw(20, late=False)), PLAN.model_copy(update={"repo": str(tmp_path)})
    (tmp_path / "expectations.toml").write_text(f"[events.events.columns.value]\nmax = {greatest}\n")

    def begin(repo: Path | None) -> tuple[Settings, FeaturePlan]:
        return settings, plan

    monkeypatch.setattr("batch.cli._begin", begin)
    result = CliRunner().invoke(build("expect"), ["expect", "--json"])
    assert result.exit_code == code, result.output
    told = json.loads(result.stdout)
    assert told["holds"] is (code == 0)
    assert [one["subject"] for one in told["findings"]] == ["value"]
    assert "value" in CliRunner().invoke(build("expect"), ["expect"]).stdout
