"""What is planted in an archive is found there, against a real broker; what is in order is told to be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headwater import topics
from headwater.archive_files import live_files
from headwater.cli.main import build
from headwater.events import Event, archive_table
from headwater.forgotten import Tombstone, save_tombstone
from headwater.kafka_io import Record, Sender
from headwater.settings import Settings, get_settings
from streaming.archive import archived_offsets, catch_up
from streaming.compaction import compact
from streaming.erasure import Eraser, erase
from streaming.verification import TopicReport, verify

pytestmark = pytest.mark.integration
NOW = 1_511_000_000_000


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", kafka=kafka)


def events(name: str, n: int = 30) -> list[Event]:
    return [Event(f"{name}{at}", "view", NOW - at * 7_200_000, f"u{at % 5}", value=at / 4) for at in range(n)]


def send(kafka: str, sent: list[Event], *raw: bytes) -> None:
    sender = Sender(kafka)
    for one in sent:
        sender.send(Record(topics.EVENTS, one.user_id.encode(), one.to_json(), NOW))
    for value in raw:
        sender.send(Record(topics.EVENTS, b"u1", value, NOW))
    sender.settle()


def of_events(settings: Settings) -> TopicReport:
    return next(topic for topic in verify(settings) if topic.topic == topics.EVENTS)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Replace one of the archive's files; return what it held."""
    held = pq.ParquetFile(path).read()
    pq.write_table(change(held), path)
    return held


def test_an_archive_in_order_is_told_to_be_with_what_was_refused(settings: Settings, kafka: str) -> None:
    catch_up(settings)
    before = of_events(settings)
    send(kafka, events("ordinary"), b"{", b"", events("ahead", 1)[0].to_json().replace(b'"view"', b'"No Type"'))
    catch_up(settings)
    found = of_events(settings)
    assert found.is_exact
    assert all(topic.is_exact for topic in verify(settings))
    assert sum(part.rows for part in found.partitions) == sum(part.rows for part in before.partitions) + 30
    assert sum(part.refused for part in found.partitions) == sum(part.refused for part in before.partitions) + 3
    for part in found.partitions:
        assert (part.next_offset, part.gaps, part.doubles) == (part.kafka_end, [], [])
        assert part.rows + part.refused + part.no_record + part.expired == part.next_offset
    assert sum(found.rows_by_date.values()) == sum(part.rows for part in found.partitions)
    compact(settings.archive_dir, settings.events_dir)
    assert of_events(settings) == found


def test_a_gap_and_a_double_are_named(settings: Settings, kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send(kafka, events("whole"))
    catch_up(settings)
    held = rewrite(
        live_files(settings.events_dir)[-1],
        lambda table: pa.concat_tables([table.slice(1), table.slice(table.num_rows - 1)]),
    )
    partition, gone, twice = held["partition"][0].as_py(), held["offset"][0].as_py(), held["offset"][-1].as_py()
    assert gone != twice
    found = of_events(settings)
    assert not found.is_exact
    wrong = {part.partition: (part.gaps, part.doubles) for part in found.partitions if not part.is_exact}
    assert wrong == {partition: ([(gone, gone)], [twice])}

    monkeypatch.setenv("HEADWATER_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("HEADWATER_KAFKA", kafka)
    get_settings.cache_clear()
    told = CliRunner()
    result = told.invoke(build("archive"), ["archive", "--verify", "--json"])
    get_settings.cache_clear()
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["exact"] is False
    (part,) = [
        part for topic in answer["topics"] if topic["topic"] == topics.EVENTS
        for part in topic["partitions"] if part["partition"] == partition
    ]  # fmt: skip
    assert (part["gaps"], part["doubles"]) == ([[gone, gone]], [twice])


def test_a_file_that_was_lost_is_a_gap_as_long_as_it_was(settings: Settings, kafka: str) -> None:
    send(kafka, events("lost"))
    catch_up(settings)
    path = live_files(settings.events_dir)[0]
    offsets = pq.ParquetFile(path).read()["offset"].to_pylist()
    path.unlink()
    found = {offset for part in of_events(settings).partitions for a, b in part.gaps for offset in range(a, b + 1)}
    assert found == set(offsets)


def test_who_was_forgotten_is_no_gap_and_what_is_lost_beside_them_is(settings: Settings, kafka: str) -> None:
    send(kafka, events("kept"))
    catch_up(settings)
    ends = {topics.EVENTS: archived_offsets(settings)}
    eraser = Eraser(topics.EVENTS, None, (Tombstone("user_id", "u1", NOW, ends),))
    save_tombstone(settings.archive_dir, eraser.tombstones[0])
    gone = erase(settings.archive_dir, settings.events_dir, eraser.kept).rows
    found = of_events(settings)
    assert found.is_exact
    assert sum(part.forgotten for part in found.partitions) == gone > 0
    files = [path for path in live_files(settings.events_dir) if pq.read_metadata(path).num_rows]
    held = rewrite(files[-1], lambda table: table.slice(1))
    wrong = [part.gaps for part in of_events(settings).partitions if part.gaps]
    assert wrong == [[(held["offset"][0].as_py(),) * 2]]


def test_what_a_running_writer_has_not_committed_is_not_judged(settings: Settings, kafka: str) -> None:
    send(kafka, events("flushed"))
    catch_up(settings)
    beyond = archived_offsets(settings)[0] + 5
    uncommitted = archive_table([events("next", 1)[0]] * 2, [NOW] * 2, 0, [beyond] * 2)
    pq.write_table(uncommitted, live_files(settings.events_dir)[0].with_name("p0000-late.parquet"))
    assert of_events(settings).is_exact


def test_what_was_imported_and_sent_is_counted_and_other_contents_under_one_id_are_named(
    settings: Settings, kafka: str
) -> None:
    sent = events("seam", 6)
    send(kafka, [*sent, sent[0]])
    catch_up(settings)
    assert of_events(settings).seam.imported == 0
    imported = [*sent[:2], replace(sent[2], value=99.0), *events("before", 3)]
    folder = live_files(settings.events_dir)[0].parent
    times = [one.event_time for one in imported]
    pq.write_table(archive_table(imported, times, -1, range(6)), folder / "import-0.parquet")
    found = of_events(settings)
    assert (found.seam.imported, found.seam.on_both_sides, found.seam.differing) == (6, 3, 1)
    assert found.seam.examples == ["seam2"]
    assert not found.is_exact
    table = pq.ParquetFile(folder / "import-0.parquet").read()
    pq.write_table(table.filter(pc.field("event_id") != "seam2"), folder / "import-0.parquet")
    assert of_events(settings).is_exact
