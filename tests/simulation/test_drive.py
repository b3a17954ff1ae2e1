"""Days against a stand-in for the server: order, failures, and runs that are stopped and go on."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.simulated import FakeServer, Movable

from headwater.errors import ConfigError, DataError, ModelError, UnavailableError
from headwater.plan import DAY_MS
from simulation.drive import MOST_IN_A_ROW, Drive, side_by_side
from simulation.record import Record
from simulation.run import identity, play_days
from simulation.shoppers import RETURN, visits
from simulation.world import World

START = 401 * DAY_MS
"""The midnight after the clock's present."""


def drive_of(world: World, server: FakeServer, **parts) -> Drive:
    return Drive(world, [server], server.clock, lambda day: None, START, seen_s=0.0, **parts)


def run(drive: Drive, folder: Path, days: int) -> int:
    record = Record(folder)
    assert record.begin(identity(drive.world.fitted, drive.world.config), START) == START
    return asyncio.run(play_days(drive, record, days))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_a_run_says_what_was_shown_and_what_it_was_worth(world, server, tmp_path):
    assert run(drive_of(world, server), tmp_path, 3) == 3
    lists = pq.read_table(tmp_path / "lists").to_pandas()
    planned = [visit for day in range(3) for visit in visits(world, day)]
    assert len(lists) == sum(visit.lists for visit in planned) == len(server.asked)
    for day, rows in lists.groupby("day"):
        users = world.users_of(rows["user_id"].tolist())
        shown = np.stack([world.items_of(items.tolist()) for items in rows["items"]])
        np.testing.assert_allclose(rows["value"], world.value(users, shown, int(day)).purchases)
        np.testing.assert_allclose(rows["regret"], world.regret(users, shown, int(day)), atol=1e-12)
    assert (lists["unknown"] == 1).all()
    assert (lists["regret"] > 0).all()
    assert lists["clicked"].map(sum).tolist() == lists["clicks"].tolist()
    assert lists["clicked"].map(len).tolist() == lists["scores"].map(len).tolist() == lists["items"].map(len).tolist()


def test_the_summary_counts_what_was_sent(world, server, tmp_path):
    run(drive_of(world, server), tmp_path, 3)
    told = Record(tmp_path).summary()
    kinds = Counter(event.event_type for event in server.events)
    unseen = sum(event.request_id is None for event in server.events if event.event_type == "purchase")
    assert told["simulated"] is True
    assert (told["days"], told["requests"], told["events"]) == (3, len(server.asked), len(server.events))
    assert (told["clicks"], told["carts"]) == (kinds["click"], kinds["cart_add"])
    assert (told["purchases"], told["unseen_purchases"]) == (kinds["purchase"] - unseen, unseen)
    assert told["regret"] == pytest.approx(told["best"] - told["value"], abs=2e-6)
    assert 0 < told["degraded_share"] < 1
    assert told["degraded"] == {"rank": round(told["degraded_share"] * told["requests"])}
    assert set(told["by_day"]) == {"0", "1", "2"}
    assert told["by_bundle"]["v1"] == told["by_variant"]["champion"]
    assert told["failures"] == told["event_failures"] == {}


def test_all_that_is_written_says_that_it_is_simulated(world, server, tmp_path):
    run(drive_of(world, server), tmp_path, 1)
    assert '"simulated": true' in (tmp_path / "run.json").read_text()
    for path in tmp_path.rglob("*.parquet"):
        assert pq.read_schema(path).metadata[b"simulated"] == b"true"


def test_the_same_seed_writes_the_same_bytes_however_many_go_side_by_side(world, tmp_path):
    for name, n in (("one", 1), ("many", 32)):
        server = FakeServer(world, Movable(400 * DAY_MS))
        run(drive_of(world, server, side_by_side=n), tmp_path / name, 3)
        assert server.busiest <= n
    assert server.busiest > 1
    assert content(tmp_path / "one") == content(tmp_path / "many")


def test_a_shopper_is_in_one_session_at_a_time_and_the_clock_goes_on(world, server, tmp_path):
    run(drive_of(world, server), tmp_path, 2)
    for user in {name for name, _ in server.asked}:
        sessions = [event.session_id for event in server.events if event.user_id == user and event.event_type != RETURN]
        assert len(set(sessions)) == sum(one != other for one, other in zip(sessions, ["", *sessions], strict=False))
    times = [at for _, at in server.asked]
    assert times == sorted(times)
    assert START <= times[0] < times[-1] < START + 2 * DAY_MS
    assert server.clock.now_ms() == START + 2 * DAY_MS


def test_each_stretch_is_told_of_before_anybody_comes(world, server, tmp_path):
    told = []
    drive = drive_of(world, server, stretches=2, begun=lambda: told.append((server.clock.now_ms(), len(server.asked))))
    run(drive, tmp_path, 2)
    assert [at for at, _ in told] == [START + half * DAY_MS // 2 for half in range(4)]
    assert told[0][1] == 0 < told[1][1]


def test_what_comes_back_is_sent_on_the_day_on_which_it_is_due(fitted, changed, clock, tmp_path):
    outcomes = {"returned": 1.0, "return_days": [1, 2], "click": 1.0, "cart": 1.0, "purchase": [1.0, 1.0]}
    world = World(fitted, changed(outcomes=outcomes), days=4)
    server = FakeServer(world, clock)
    run(drive_of(world, server), tmp_path, 4)
    bought = {event.event_id: event for event in server.events if event.event_type == "purchase"}
    returned = [event for event in server.events if event.event_type == RETURN]
    for event in returned:
        days = event.event_time // DAY_MS - bought[event.context["purchase_id"]].event_time // DAY_MS
        assert days in (1, 2)
    early = [event for event in bought.values() if event.event_time < START + 2 * DAY_MS]
    assert {event.event_id for event in early} <= {event.context["purchase_id"] for event in returned}
    assert Record(tmp_path).summary()["returns"] == len(returned)


def test_newcomers_are_announced_on_their_day(world, server, tmp_path):
    told: list[int] = []
    drive = replace(drive_of(world, server), announce=told.append)
    run(drive, tmp_path, 3)
    assert told == [0, 1, 2]


def test_failures_are_counted_by_name_and_the_others_go_on(world, server, tmp_path):
    def fails(call: str, user: str) -> Exception | None:
        if (call, user) == ("recommend", "u03"):
            return DataError("no list for you")
        return UnavailableError("log is away") if call == "track" and user.endswith("5") else None

    server.fails = fails
    run(drive_of(world, server), tmp_path, 3)
    told, lists = Record(tmp_path).summary(), pq.read_table(tmp_path / "lists").to_pandas()
    refused = lists[lists["user_id"] == "u03"]
    assert told["failures"] == {"DataError": len(refused)}
    assert refused["value"].isna().all()
    assert told["event_failures"].keys() == {"UnavailableError"}
    assert told["requests"] - len(refused) == told["by_variant"]["champion"]["lists"]
    assert lists.loc[lists["user_id"] != "u03", "failure"].isna().all()


def test_a_server_that_never_answers_ends_the_run(world, server, tmp_path):
    server.fails = lambda call, user: ModelError("no bundle. Promote one.")
    with pytest.raises(ModelError, match="Promote one"):
        run(drive_of(world, server), tmp_path, 3)
    assert Record(tmp_path).finished() == 0


def test_a_server_that_is_gone_ends_the_run_which_then_goes_on(fitted, changed, tmp_path):
    """The same shoppers come as if it had not been stopped, and finished days are not played again."""
    world = World(fitted, changed(shoppers={"sessions_a_day": 2.0}), days=3)
    whole = FakeServer(world, Movable(400 * DAY_MS))
    run(drive_of(world, whole), tmp_path / "whole", 3)
    broken = FakeServer(world, Movable(400 * DAY_MS))
    tries = 0

    def fails(call: str, user: str) -> Exception | None:
        nonlocal tries
        gone = broken.clock.now_ms() >= START + DAY_MS + DAY_MS // 2
        tries += gone
        return UnavailableError("server is gone. Start it.") if gone else None

    broken.fails = fails
    with pytest.raises(UnavailableError, match="server is gone"):
        run(drive_of(world, broken), tmp_path / "broken", 3)
    assert MOST_IN_A_ROW <= tries < MOST_IN_A_ROW + 64
    assert Record(tmp_path / "broken").finished() == 1

    broken.fails = lambda call, user: None
    assert run(drive_of(world, broken), tmp_path / "broken", 3) == 2
    assert run(drive_of(world, broken), tmp_path / "broken", 3) == 0
    who = ["day", "session_id", "number", "user_id"]
    came, would = (pq.read_table(tmp_path / name / "lists").to_pandas()[who] for name in ("broken", "whole"))
    assert came.equals(would)
    first = "lists/day-0000.parquet"
    assert content(tmp_path / "broken")[first] == content(tmp_path / "whole")[first]


def test_a_day_that_is_played_again_sends_the_ids_that_it_sent(world, tmp_path):
    ids = []
    for name in ("once", "again"):
        server = FakeServer(world, Movable(400 * DAY_MS))
        run(drive_of(world, server), tmp_path / name, 2)
        ids.append(sorted(event.event_id for event in server.events))
    assert ids[0] == ids[1]
    assert len(ids[0]) == len(set(ids[0]))


def test_a_folder_of_another_world_is_refused_by_what_differs(world, fitted, config, tmp_path):
    Record(tmp_path).begin(identity(fitted, config), START)
    assert Record(tmp_path).begin(identity(fitted, config), START + DAY_MS) == START
    with pytest.raises(ConfigError, match="differs in seed, shoppers"):
        Record(tmp_path).begin(identity(fitted, config.seeded(9).peopled(5)), START)


def test_where_one_fails_the_others_are_stopped():
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number == 3:
            raise ValueError("three")
        done.append(number)

    with pytest.raises(ValueError, match="three"):
        asyncio.run(side_by_side(range(100), 2, work))
    assert len(done) < 10
