"""A life on the real parts: history that was imported and also sent, then entities that are forgotten.

The platform is shared, for its start costs more than most tests; what was forgotten would differ between online and
offline where others are counted beside it, so it comes last.
"""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import typer
from support.jobs import read_all
from support.parts import ITEMS, START, USERS, Platform, Sent, draw
from typer.testing import CliRunner

from batch.backfill import backfill
from batch.forget_cli import forget
from batch.parity import compare
from benchmarks.oracle import Row, fold
from headwater import topics
from headwater.clock import ManualClock
from headwater.errors import DataError
from headwater.events import Event, EventLimits, archive_table, parse_event
from headwater.online.erase import Erased, erase_entity
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, HOUR_MS
from headwater.settings import addresses, get_settings
from streaming.archive import catch_up
from streaming.verification import verify

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
EVENTS = 3_000
GONE, STAYS = "s-7", "s-8"
NOW = START + 3_600_000


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("platform"))
    running.start("kafka", "valkey", "stream", "archive")
    yield running
    running.stop()


def imported(platform: Platform, sent: Sent) -> list[Row]:
    """Archive a day's events as an import does: known when they happened."""
    events = {}
    for key, value, ingest_ms in sent.records:
        if key != b"poison":
            event = parse_event(value, key, ingest_ms, EventLimits())
            events.setdefault(event.event_id, event)
    by_date: dict[str, list] = {}
    for event in events.values():
        by_date.setdefault(str(np.datetime64(event.event_time // DAY_MS, "D")), []).append(event)
    for date, held in by_date.items():
        folder = platform.settings.events_dir / f"date={date}"
        folder.mkdir(parents=True, exist_ok=True)
        table = archive_table(held, [event.event_time for event in held], -1, range(len(held)))
        pq.write_table(table, folder / "import-0.parquet")
    return [replace(row, ingest_time=row.event_time) for row in sent.rows]


def test_what_was_imported_and_sent_counts_once_online_and_offline(platform: Platform, spark) -> None:
    """A third of the import comes over the topic before the backfill, a third after it, a third never."""
    history, own = draw("history", 3_000), draw("own", 1_500, seed=1)
    known = imported(platform, history)
    records = [record for record in history.records if record[0] != b"poison"]
    random.Random(3).shuffle(records)
    before, after = records[: len(records) // 3], records[len(records) // 3 : 2 * len(records) // 3]
    rows = known + own.rows

    platform.send(Sent(own.records + before, [], []))
    platform.catch_up()
    catch_up(platform.settings)
    backfill(spark, platform.settings, platform.plan, 0)
    assert differing(platform, rows) == 0
    assert compare(spark, platform.settings, platform.plan, cells=2_000).first is None

    platform.send(Sent([(key, value, ingest + HOUR_MS) for key, value, ingest in after], [], []))
    platform.catch_up()
    catch_up(platform.settings)
    (events, *_) = verify(platform.settings)
    assert events.is_exact
    assert events.seam.on_both_sides == len({json.loads(value)["event_id"] for _, value, _ in before + after})
    assert differing(platform, rows) > 0, "what came after the backfill is in both slots"
    backfill(spark, platform.settings, platform.plan, 0)
    assert differing(platform, rows) == 0
    assert compare(spark, platform.settings, platform.plan, cells=2_000).first is None


def differing(platform: Platform, rows: list[Row]) -> int:
    """Values that are not the naive fold's, at once and as the first tiles leave the windows."""
    newest, wrong = max(row.event_time for row in rows), 0
    with platform.store() as client:
        for view, own in zip(platform.plan.views, (_by_user(rows), rows), strict=True):
            by_key: dict[tuple[str, ...], list[Row]] = {}
            for row in own:
                by_key.setdefault(row.key, []).append(row)
            for at in (newest + 1, newest + DAY_MS):
                read = OnlineReader(client, platform.plan, ManualClock(at)).read_views({view.name: list(by_key)}, at)
                for place, (key, held) in enumerate(by_key.items()):
                    is_found, values = fold(view, held, key, at, known=False)
                    told = {name: _plain(column[place]) for name, column in read[view.name].values.items()}
                    wrong += (bool(read[view.name].found[place]), told) != (is_found, values)
    return wrong


def _by_user(rows: list[Row]) -> list[Row]:
    return [replace(row, key=row.key[:1]) for row in rows]


def _plain(value):
    return None if not isinstance(value, list) and np.isnan(value) else value


@pytest.fixture
def told(platform, monkeypatch):
    """What the command prints, asked as a program asks it."""
    app = typer.Typer()
    app.command()(forget)
    for name in ("state_dir", "repo", "kafka_port", "redis_port"):
        monkeypatch.setenv(f"HEADWATER_{name.upper()}", str(getattr(platform.settings, name)))
    get_settings.cache_clear()

    def ask(entity: str) -> dict:
        done = CliRunner().invoke(app, [entity, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    yield ask
    get_settings.cache_clear()


def found(platform: Platform, user: str) -> list[bool]:
    """Whether each view knows the user, alone and with any of the items."""
    with platform.store() as client:
        reader = OnlineReader(client, platform.plan, ManualClock(NOW))
        keys = {"by_user": [(user,)], "by_item": [(user, str(item)) for item in range(ITEMS)]}
        return [bool(read.found.any()) for read in reader.read_views(keys).values()]


def archived(platform: Platform, topic: str = topics.EVENTS) -> pa.Table:
    return ds.dataset(platform.settings.archive_dir / topic, format="parquet").to_table()


def of_user(sent: Sent, is_wanted) -> Sent:
    """The part of what was sent that is of the users wanted."""
    rows = [row for row in sent.rows if is_wanted(row.key[0])]
    return Sent(sent.records, rows, [user for user in sent.users if is_wanted(user)])


def place(found: dict, name: str) -> dict:
    return next(one for one in found["deleted"] if one["place"] == name)


def test_an_entity_is_forgotten_and_neither_a_restart_nor_a_replay_brings_it_back(platform, told):
    sent = draw("s", EVENTS)
    platform.send(sent)
    platform.catch_up()
    catch_up(platform.settings)
    home = platform.settings.data_dir / "mine"
    home.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [GONE, STAYS], "age": [1, 2]}), home / "profile.parquet")
    bundle = platform.settings.bundles_dir / "3"
    bundle.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [GONE]}), bundle / "users.parquet")
    before = archived(platform)
    assert found(platform, GONE) == found(platform, STAYS) == [True, True]

    done = told(f"user_id={GONE}")

    n = len([user for user in before["user_id"].to_pylist() if user == GONE])
    assert n > 0
    assert place(done, "online store") == {
        "place": "online store", "keys": 1, "fields": place(done, "online store")["fields"], "rows": 0, "files": 0,
        "nulls_sent": 0,
    }  # fmt: skip
    assert place(done, "online store")["fields"] >= 2
    assert place(done, "archive events")["rows"] == n
    assert place(done, "data mine")["rows"] == 1
    assert place(done, "kafka users")["nulls_sent"] == 1
    assert [message.value() for message in read_all(addresses(platform.settings).kafka, topics.USERS)] == [None]
    left = {one["place"] for one in done["not_reached"]}
    assert left >= {"kafka events", "kafka events.dead_letter", "stream state", "bundle 3", "copies"}
    assert found(platform, GONE) == [False, False]
    assert archived(platform).equals(before.filter(pa.array(np.array(before["user_id"]) != GONE)))

    # The state still holds the entity's tiles, and its later events fold into them.
    later = _later(sent)
    platform.send(later)
    platform.catch_up()
    assert found(platform, GONE) == [False, False]
    platform.stop("stream")
    platform.start("stream")
    platform.send(draw("t", 500))
    platform.catch_up()
    assert found(platform, GONE) == [False, False]
    platform.expect_exactly(of_user(sent, lambda user: user != GONE))

    # A replay from the first record, with fresh state: what came before is gone, what came after counts.
    platform.stop("stream", "archive")
    shutil.rmtree(platform.settings.checkpoints_dir)
    shutil.rmtree(platform.settings.archive_dir / topics.EVENTS)
    platform.start("stream", "archive")
    platform.catch_up()
    platform.expect_exactly(of_user(sent, lambda user: user != GONE))
    platform.expect_exactly(later)
    catch_up(platform.settings)
    assert sorted(event for event, user in _archived_ids(platform) if user == GONE) == ["again-0", "again-1"]

    again = told(f"user_id={GONE}")
    assert place(again, "online store")["keys"] == 1
    assert place(again, "archive events")["rows"] == 2
    assert found(platform, GONE) == [False, False]


def test_an_items_fields_lie_under_its_users_and_go_as_well(platform, told):
    with platform.store() as client:
        reader = OnlineReader(client, platform.plan, ManualClock(NOW))
        pairs = [(f"s-{user}", "3") for user in range(USERS)]
        n = int(reader.read_views({"by_item": pairs})["by_item"].found.sum())
        assert n > 0
        done = told("item_id=3")
        assert place(done, "online store")["keys"] == 0
        assert place(done, "online store")["fields"] >= n
        assert not reader.read_views({"by_item": pairs})["by_item"].found.any()
        assert erase_entity(client, platform.plan, "item_id", "3") == Erased()
    assert "3" not in archived(platform)["item_id"].to_pylist()


def test_what_no_view_is_keyed_by_is_refused(platform, told):
    with pytest.raises(DataError, match="no view of project faulty is keyed by it"):
        told("session_id=7")


def _later(sent: Sent) -> Sent:
    """Two purchases of the forgotten user, who has come back."""
    records, rows = [], []
    for at in range(2):
        event = Event(f"again-{at}", "purchase", NOW - 10 + at, GONE, str(at), value=2.5)
        records.append((GONE.encode(), event.to_json(), NOW))
        values = {"item_id": str(at), "value": 2_500_000, "event_time": event.event_time}
        rows.append(Row(event.event_id, event.event_time, NOW, (GONE, str(at)), values))
    return Sent(records, rows, [GONE])


def _archived_ids(platform: Platform) -> list[tuple[str, str]]:
    table = archived(platform)
    return list(zip(table["event_id"].to_pylist(), table["user_id"].to_pylist(), strict=True))
