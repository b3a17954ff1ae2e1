"""History that was imported and also sent, on the real parts: naive = online = offline, each event once."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.parts import Platform, Sent, draw

from batch.backfill import backfill
from batch.parity import compare
from benchmarks.oracle import Row, fold
from headwater.clock import ManualClock
from headwater.events import EventLimits, archive_table, parse_event
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, HOUR_MS
from streaming.archive import catch_up
from streaming.verification import verify

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture
def platform(tmp_path) -> Iterator[Platform]:
    running = Platform(tmp_path)
    try:
        running.start()
        yield running
    finally:
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
