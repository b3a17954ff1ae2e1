"""The example's data: what is published is what arrives, in order, each purchase in one part."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from headwater.datasets import complete_journey as cj
from headwater.datasets.catalogue import readable, week_start
from headwater.errors import DataError
from headwater.events import ARCHIVE_SCHEMA, EVENT_SCHEMA, Event, EventLimits, parse_event
from headwater.settings import Settings

HOUSEHOLDS = 30


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(state_dir=tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def prepared(settings: Settings) -> cj.DataSummary:
    return cj.prepare(settings, households=HOUSEHOLDS)


@pytest.fixture(scope="module")
def parts(prepared: cj.DataSummary) -> dict[str, pa.Table]:
    archive = ds.dataset(prepared.archive, schema=ARCHIVE_SCHEMA).to_table().sort_by("offset")
    return {
        "history": archive,
        "replay": pq.read_table(prepared.path("replay")),
        "holdout": pq.read_table(prepared.path("holdout")),
    }


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray]:
    table = pq.read_table(cj._source("transactions"))
    return {name: table[name].to_numpy() for name in table.column_names}


def test_the_parts_follow_each_other_and_lose_nothing(parts, source, prepared) -> None:
    whole = pa.concat_tables(parts.values())
    users = set(whole["user_id"].to_pylist())
    assert len(users) == HOUSEHOLDS == prepared.households
    expected = np.isin(source["household_id"], [int(user) for user in users])
    assert whole.num_rows == expected.sum()
    assert sum(whole["value"].to_pylist()) == pytest.approx(source["sales_value"][expected].sum())
    times = whole["event_time"].to_numpy()
    assert (np.diff(times) >= 0).all()
    assert parts["history"]["event_time"].to_numpy().max() < prepared.replay_start_ms
    assert parts["replay"]["event_time"].to_numpy().min() >= prepared.replay_start_ms
    assert parts["replay"]["event_time"].to_numpy().max() < prepared.test_start_ms
    assert parts["holdout"]["event_time"].to_numpy().min() >= prepared.test_start_ms


def test_ids_are_rows_of_the_whole_order(parts) -> None:
    for part in parts.values():
        assert part["event_id"].to_pylist() == [f"cj-{row}" for row in part["offset"].to_pylist()]
        assert set(part["partition"].to_pylist()) == {-1}
        assert part["ingest_time"].equals(part["event_time"])


def test_history_lies_under_the_date_of_the_event(prepared) -> None:
    for file in Path(prepared.archive).glob("date=*/import-0.parquet"):
        day = datetime.fromisoformat(file.parent.name.removeprefix("date=")).replace(tzinfo=UTC).timestamp() * 1000
        times = pq.read_table(file)["event_time"].to_numpy()
        assert ((day <= times) & (times < day + cj.DAY_MS)).all()
    assert prepared.dates == sum(1 for _ in Path(prepared.archive).glob("date=*"))


def test_every_purchase_is_a_valid_event(parts) -> None:
    for row in parts["replay"].select(EVENT_SCHEMA.names).slice(0, 500).to_pylist():
        event = Event(**row | {"context": dict(row["context"])})
        assert parse_event(event.to_json(), event.user_id.encode(), event.event_time, EventLimits()) == event
        assert set(event.context) <= {"category", "department", "brand", "quantity", "store"}
        assert {"quantity", "store"} <= set(event.context)


def test_context_names_the_products_own_category(parts, prepared) -> None:
    items = {row["item_id"]: row for row in pq.read_table(prepared.path("items")).to_pylist()}
    for row in parts["holdout"].slice(0, 500).to_pylist():
        context, item = dict(row["context"]), items.get(row["item_id"], {})
        assert context.get("category") == item.get("category")
        assert context.get("brand") == item.get("brand")


def test_few_households_have_the_products_that_they_buy(parts, prepared) -> None:
    bought = {item for part in parts.values() for item in part["item_id"].to_pylist()}
    everything = set(pq.read_table(cj._source("products"))["product_id"].cast(pa.string()).to_pylist())
    assert set(pq.read_table(prepared.path("items"))["item_id"].to_pylist()) == bought & everything
    assert set(pq.read_table(prepared.path("item_promotion"))["item_id"].to_pylist()) < bought


def test_weeks_begin_when_the_purchases_weeks_do(source) -> None:
    starts = np.array([week_start(week).timestamp() for week in range(1, 55)])
    seconds = source["transaction_timestamp"].astype("datetime64[s]").astype(np.int64)
    assert (np.searchsorted(starts, seconds, side="right") == source["week"]).all()


def test_promotions_are_shares_of_stores_by_week(prepared) -> None:
    table = pq.read_table(prepared.path("item_promotion"))
    shares = np.stack([table["display_share"].to_numpy(), table["mailer_share"].to_numpy()])
    assert shares.min() == 0
    assert shares.max() <= 1
    assert (shares.sum(axis=0) > 0).all()
    assert table.group_by(["item_id", "event_timestamp"]).aggregate([]).num_rows == table.num_rows


def test_households_are_known_by_ordinals_or_not_at_all(prepared) -> None:
    profile = pq.read_table(prepared.path("household_profile")).to_pylist()
    assert len(profile) == HOUSEHOLDS
    assert {row["age"] for row in profile} <= {None, 0, 1, 2, 3, 4, 5}
    assert {row["home_owner"] for row in profile} <= {None, 0, 1}


def test_a_second_run_finds_the_first_and_other_parameters_replace_it(settings, prepared) -> None:
    marker = cj.home_of(settings) / "complete.json"
    before = marker.stat().st_mtime_ns
    assert cj.prepare(settings, households=HOUSEHOLDS) == prepared
    assert marker.stat().st_mtime_ns == before


def test_an_import_that_lost_a_file_is_written_anew(tmp_path: Path, prepared, settings) -> None:
    marker = cj.home_of(settings) / "complete.json"
    asked = {"layout": cj.LAYOUT, "households": HOUSEHOLDS, "replay_days": 28}
    assert cj._complete(marker, asked, settings.events_dir) == prepared
    assert cj._complete(marker, asked | {"households": None}, settings.events_dir) is None
    assert cj._complete(marker, asked, tmp_path) is None


def test_other_counts_are_refused(tmp_path: Path) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(cj._source("transactions")).slice(0, 1000), few)
    with pytest.raises(DataError, match="1469307"):
        cj.Purchases.read(few, cj._source("products"))


@pytest.mark.parametrize(
    ("kind", "size", "name"),
    [
        ("FLUID MILK WHITE ONLY", "1 GA", "Fluid milk white only, 1 GA"),
        ("SFT DRNK 2 LITER BTL CARB INCL", "2 L", "Soft drink 2 liter bottle carbonated, 2 L"),
        ("CANDY BARS (SINGLES)(INCLUDING", None, "Candy bars"),
        ("SW GDS:DONUTS", " ", "Sweet goods: donuts"),
    ],
)
def test_names_read_as_words(kind: str, size: str | None, name: str) -> None:
    assert readable(kind, size) == name
