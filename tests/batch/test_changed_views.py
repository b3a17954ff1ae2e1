"""Views added, changed and removed under a stream that goes on from its checkpoint, on the real parts."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from support.definitions import aggregation, plan_of, stream_view
from support.parts import DAY, HOUR, Platform, Sent, draw, events_sent

from batch.backfill import backfill
from benchmarks.oracle import Row, fold
from headwater.clock import ManualClock
from headwater.errors import UnavailableError
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, FeaturePlan
from streaming import health, progress
from streaming.archive import catch_up
from streaming.lineage import next_start, read_lineage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
PURCHASES = "SELECT user_id, item_id, value, event_time FROM events WHERE event_type = 'purchase'"
KEPT = stream_view(
    [
        aggregation("n", "count", window=DAY, hop=HOUR),
        aggregation("spend", "sum", "value", DAY, HOUR),
        aggregation("most", "max", "value", DAY, HOUR),
        aggregation("items", "last(5)", "item_id", DAY, HOUR),
    ],
    ("user_id",), PURCHASES, name="kept",
)  # fmt: skip
REMOVED = stream_view([aggregation("r", "count", window=DAY, hop=HOUR)], ("item_id",), PURCHASES, name="removed")
ADDED = stream_view(
    [
        aggregation("n", "count", window=DAY, hop=HOUR),
        aggregation("least", "min", "value", DAY, HOUR),
        aggregation("first", "min", "event_time", None),
        aggregation("lately", "last_distinct(3)", "user_id", DAY, HOUR),
    ],
    ("item_id",), PURCHASES, name="added",
)  # fmt: skip


def changed(*more: Any) -> Any:
    total = aggregation("total", "count", window=None)
    return stream_view([total, *more], ("user_id", "item_id"), PURCHASES, name="changed")


BEFORE = plan_of(KEPT, changed(), REMOVED, project="faulty")
AFTER = plan_of(ADDED, changed(aggregation("spent", "sum", "value", None)), KEPT, project="faulty")


@pytest.fixture
def platform(tmp_path) -> Iterator[Platform]:
    running = Platform(tmp_path, plan=BEFORE)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def later(sent: Sent, seconds: int) -> Sent:
    """The same events, each arriving later than it happened."""
    return replace(
        sent,
        records=[(key, value, ingest + 1000 * seconds) for key, value, ingest in sent.records],
        rows=[replace(row, ingest_time=row.ingest_time + 1000 * seconds) for row in sent.rows],
    )


def test_a_changed_set_of_views_goes_on_from_the_checkpoint_and_only_what_is_new_is_backfilled(platform, spark):
    """Disorder, copies and late events on both sides of the cut; every value of every view equals the naive fold."""
    old, between = draw("a", events_sent(80_000)), draw("b", events_sent(16_000))
    platform.send(old)
    platform.catch_up()
    platform.stop("stream")
    platform.send(between)  # below the cut, and beyond the checkpoint
    platform.apply(AFTER)
    start, _, told = next_start(platform.plan, platform.settings)
    assert (start.action, start.added, start.changed, start.removed) == (
        "savepoint", ("added",), ("changed",), ("removed",),
    )  # fmt: skip
    assert told["backfill"] == [f"headwater backfill --materialize --view {name}" for name in ("added", "changed")]
    group = read_lineage(platform.settings).group

    platform.start("stream")
    assert read_lineage(platform.settings).group == group
    late, new = later(draw("c", 3_000), 3_600), draw("d", 3_000, seed=1)
    copies = later(Sent([*old.records[::5], *between.records[::5]], [], []), 7_200)
    for sent in (late, copies, new):
        platform.send(sent)
    platform.catch_up()
    since = sum(len(sent.records) for sent in (between, late, copies, new))
    assert 0 < records_read(platform) <= since < len(old.records) + since

    assert platform.status()["to_backfill"] == ["added", "changed"]
    with pytest.raises(UnavailableError, match=r"added: the stream folds it from offset \d+ of partition .* archive`"):
        backfill(spark, platform.settings, platform.plan, 0, ["added"])
    catch_up(platform.settings)
    rows = [row for sent in (old, between, late, new) for row in sent.rows]
    assert differing(platform, rows) == {"added", "changed"}
    backfill(spark, platform.settings, platform.plan, 0, ["added"])
    assert platform.status()["to_backfill"] == ["changed"]
    assert differing(platform, rows) == {"changed"}
    backfill(spark, platform.settings, platform.plan, 0, ["changed"])
    assert platform.status()["to_backfill"] == []
    assert differing(platform, rows) == set()

    platform.apply(BEFORE)
    start, _, told = next_start(platform.plan, platform.settings)
    assert (start.action, start.why.split(",")[0]) == ("replay", "changed was removed and is back")
    assert told["records_to_replay"] == since + len(old.records)

    platform.apply(AFTER)  # a cut holds in a replay from the first event too
    platform.stop("stream")
    shutil.rmtree(platform.settings.checkpoints_dir)
    platform.start("stream")
    platform.catch_up()
    assert read_lineage(platform.settings).group != group
    assert records_read(platform) > since
    assert differing(platform, rows) == set()


def records_read(platform: Platform) -> int:
    """Records that count which the running job has read since it was started."""
    job = progress.running_job(platform.settings)
    vertices = health.get(f"{job.rest}/jobs/{job.job_id}")["vertices"]
    return sum(v["metrics"]["write-records"] for v in vertices if v["name"].startswith("Source: KafkaSource"))


def differing(platform: Platform, rows: Sequence[Row]) -> set[str]:
    """Views with a value that is not the naive fold's, at once and as the first tiles leave the windows."""
    plan: FeaturePlan = platform.plan
    keys = {"kept": (0,), "added": (1,), "changed": (0, 1)}
    newest = max(row.event_time for row in rows)
    found = set()
    with platform.store() as client:
        for at in (newest + 1, newest + DAY_MS):
            reader = OnlineReader(client, plan, ManualClock(at))
            for view in plan.views:
                own = [
                    replace(row, key=tuple(row.key[place] for place in keys[view.name]),
                            values={**row.values, "user_id": row.key[0]})
                    for row in rows
                ]  # fmt: skip
                by_key = {key: list(held) for key, held in groupby(sorted(own, key=_key), key=_key)}
                read = reader.read_views({view.name: list(by_key)}, at)[view.name]
                for place, (key, held) in enumerate(by_key.items()):
                    is_found, values = fold(view, held, key, at, known=False)
                    if (bool(read.found[place]), _told(read.values, place)) != (is_found, values):
                        found.add(view.name)
    return found


def _key(row: Row) -> tuple[str, ...]:
    return row.key


def _told(values: Any, at: int) -> dict[str, Any]:
    return {
        name: None if not isinstance(held, list) and np.isnan(held[at]) else held[at] for name, held in values.items()
    }
