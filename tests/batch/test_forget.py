"""``headwater forget`` on the real parts: gone everywhere, and neither a restart nor a replay brings it back."""

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import typer
from support.jobs import read_all
from support.parts import ITEMS, START, USERS, Platform, Sent, draw
from typer.testing import CliRunner

from batch.forget_cli import forget
from benchmarks.oracle import Row
from headwater import topics
from headwater.clock import ManualClock
from headwater.errors import DataError
from headwater.events import Event
from headwater.online.erase import Erased, erase_entity
from headwater.online.reader import OnlineReader
from headwater.settings import addresses, get_settings
from streaming.archive import catch_up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
EVENTS = 3_000
GONE, STAYS = "s-7", "s-8"
NOW = START + 3_600_000


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("platform"))
    running.start("kafka", "valkey", "stream", "archive")
    yield running
    running.stop()


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
