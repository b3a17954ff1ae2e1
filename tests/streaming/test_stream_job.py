"""The real job on the real broker and store: every tile equals what Python folds from the topic."""

import json
import os
import urllib.request

import psutil
import pyarrow.dataset as ds
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from support.streamed import (
    FORGOTTEN,
    HIDDEN,
    ODD,
    ODD_READINGS,
    ODD_TRIPS,
    SENSORS,
    START,
    TOPIC,
    TRIPS,
    Stream,
    counted,
    disorder,
    keyed,
    record,
    sensor_rows,
    topic_rows,
    trip,
    trip_rows,
)
from support.tiles import write_all
from support.views import stepped

from benchmarks.oracle import Row
from headwater.forgotten import save_tombstone
from headwater.online import codec
from headwater.online.keys import project_prefix
from headwater.online.writer import OnlineWriter
from headwater.plan import HOUR_MS
from headwater.runtime import kafka as kafka_server
from headwater.settings import Settings
from streaming import cluster, health, progress, telemetry
from streaming.archive import catch_up
from streaming.job import parallelism, scratch_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def stored(client: redis.Redis, project: str) -> dict:
    prefix = project_prefix(project)
    return {key.removeprefix(prefix): client.hgetall(key) for key in client.scan_iter(prefix + b"*", count=1000)}


def expect_equal(stream: Stream, kafka: str, client: redis.Redis, base: list[Row]) -> None:
    """Write the oracle's tiles under another project of the same store, and compare byte for byte."""
    client.delete(*client.scan_iter(project_prefix("oracle") + b"*"), b"none")
    writer, rows = OnlineWriter(client, "oracle"), topic_rows(stream, kafka)
    by_user, by_item, by_session, by_three, by_sensor, by_rider = stream.plan.views
    write_all(writer, by_user, base, codec.BASE)
    write_all(writer, by_user, keyed(rows, 0), codec.LIVE)
    write_all(writer, by_item, keyed(rows, 0, 1), codec.LIVE)
    write_all(writer, by_session, keyed(rows, 2), codec.LIVE)
    write_all(writer, by_three, keyed(rows, 2, 0, 1), codec.LIVE)
    write_all(writer, by_sensor, sensor_rows(stream, kafka), codec.LIVE)
    write_all(writer, by_rider, trip_rows(stream, kafka), codec.LIVE)
    assert len(rows) > 100
    found, wanted = stored(client, "streamed"), stored(client, "oracle")
    assert found.keys() == wanted.keys()
    different = [(key, field) for key in wanted for field in wanted[key] if found[key].get(field) != wanted[key][field]]
    assert not different
    assert found == wanted


@pytest.fixture(scope="module")
def stream(tmp_path_factory, kafka, valkey):
    kafka_server.create_topics(kafka, partitions=2, names=(TOPIC, SENSORS, TRIPS))
    running = Stream(tmp_path_factory.mktemp("stream"), kafka, valkey)
    for tombstone in FORGOTTEN:
        save_tombstone(running.settings.archive_dir, tombstone)
    running.send(disorder(1, 600, 0))
    running.send([(b"u", value, START) for value in ODD])
    running.send([(b"u", None, START), (None, record(), START), (b"", record(), START), (b"\xff", record(), START)])
    running.send([
        (b"s", json.dumps({"reading": at, "at": START + at * 7, "Sensor": f"s{at % 3}" if at % 7 else "",
                           "celsius": at / 7, "count": at, "faulty": at % 11 == 0}).encode(), START + at)
        for at in range(200)
    ], SENSORS)  # fmt: skip
    running.send([(None, value, START) for value in [*ODD_READINGS, None]], SENSORS)
    running.send([(None, trip(at), START + at) for at in range(100)], TRIPS)
    running.send([(None, value, START) for value in [*ODD_TRIPS, None]], TRIPS)
    yield running
    running.end()


BACKFILLED = [
    Row(f"old{at}", START - HOUR_MS + at, START - HOUR_MS + at, (f"ü{at % 5}",),
        stepped({"kind": "xw"[at % 2], "amount": 5, "quantity": 1}))
    for at in range(20)
]  # fmt: skip


def test_every_tile_equals_what_python_folds_and_the_backfill_keeps_its_slot(stream, kafka, valkey_client):
    """Duplicates, disorder, late, early, malformed, keyless and forgotten records, three topics, every function."""
    write_all(OnlineWriter(valkey_client, "streamed"), stream.plan.views[0], BACKFILLED, codec.BASE)
    stream.start()
    stream.send(disorder(2, 300, 500))
    stream.catch_up()
    expect_equal(stream, kafka, valkey_client, BACKFILLED)
    assert {"session_id", "Sensor", "rider"} == HIDDEN
    told = telemetry.status(stream.settings, stream.plan)
    assert told["state"] == "RUNNING"
    assert told["tasks"] == told["tasks_running"] > 0
    assert told["workers"] == parallelism(stream.settings)
    assert told["lag"] == told["unread"] == 0
    assert told["online_writes"] > 0


def test_each_record_is_read_once(stream):
    """Whatever the number of views: Flink finds what they share."""
    job = progress.running_job(stream.settings)
    planned = json.dumps(health.get(f"{job.rest}/jobs/{job.job_id}/plan"))
    assert [planned.count(f"hw_read_{number}(") for number in range(4)] == [1, 1, 1, 0]


def test_prometheus_reads_what_stream_status_tells(stream):
    told = telemetry.status(stream.settings, stream.plan)
    metrics = scrape(stream.settings)
    assert metrics["headwater_stream_up", ()] == 1
    assert metrics["headwater_stream_tiles_written_total", ()] == told["online_writes"]
    assert metrics["headwater_stream_delay_seconds_count", ()] == told["online_writes"]
    assert metrics["headwater_stream_newest_event_seconds", ()] == told["newest_event_time"] / 1000
    assert metrics["headwater_stream_checkpoint_bytes", ()] == told["checkpoint"]["size_bytes"] > 0
    assert 0 <= metrics["headwater_stream_checkpoint_age_seconds", ()] < 60
    for topic in (TOPIC, SENSORS):
        for partition in ("0", "1"):
            assert metrics["headwater_stream_unread_records", (topic, partition)] == 0


def test_a_job_on_a_cluster_is_found_by_its_name(stream):
    job = progress.running_job(stream.settings)
    found = cluster.run_facts(job.rest, stream.plan.project)
    assert (found.job_id, found.workers) == (job.job_id, 0)
    with telemetry.connect(stream.settings) as store:
        facts = telemetry.gather(stream.settings, stream.plan, store, found)
    assert facts.health.is_well
    assert sum(facts.unread.values()) == 0


def scrape(settings: Settings) -> dict:
    """Values by name and labels, these in the order of their names, reversed: topic before partition."""
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.stream_metrics_port}/metrics") as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        (one.name, tuple(value for _, value in sorted(one.labels.items(), reverse=True))): one.value
        for family in families
        for one in family.samples
    }


def test_the_archive_keeps_what_the_stream_counts_of_topics_with_columns_of_their_own(stream, kafka):
    """JSON and Avro; the oracle's own count of what counts, so that neither side counts nothing."""
    catch_up(stream.settings)
    for name, at_least in (("sensors", 150), ("trips", 80)):
        wanted = {str(one.values[stream.plan.source(name).event_id]) for one, _ in counted(stream, kafka, name)}
        folder = stream.settings.archive_dir / stream.plan.source(name).topic
        archived = ds.dataset(folder, format="parquet").to_table()
        assert {str(value) for value in archived[stream.plan.source(name).event_id].to_pylist()} == wanted
        assert at_least < len(wanted) < archived.num_rows + 1
    assert archived["at"].type == "int64"


def test_a_job_killed_under_load_goes_on_from_its_checkpoint_and_leaves_no_process(stream, kafka, valkey):
    with redis.Redis.from_url(valkey) as client:
        stream.send(disorder(3, 2_000, 800))
        orphans = stream.kill()
        _, left = psutil.wait_procs(orphans, timeout=60)
        assert not left
        group = json.loads((stream.settings.checkpoints_dir / "lineage.json").read_text())["group"]
        stream.send(disorder(4, 300, 2_800))
        stream.start()
        job = progress.running_job(stream.settings)
        assert job is not None
        assert job.group == group  # it resumed: a fresh state has a fresh group
        stream.catch_up()
        expect_equal(stream, kafka, client, BACKFILLED)


def test_a_job_told_to_end_ends_with_all_its_processes_and_leaves_no_files_of_the_run(stream):
    scratch = scratch_of(stream.settings)
    assert any(scratch.glob("flink-rpc-*.jar")), "Flink unpacks it elsewhere"
    leader = psutil.Process(progress.running_job(stream.settings).pid)
    family = [leader, *leader.children(recursive=True)]
    leader.terminate()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not [member for member in left if member.status() != psutil.STATUS_ZOMBIE]
    assert progress.running_job(stream.settings) is None
    assert os.path.isdir(stream.settings.checkpoints_dir)
    assert not scratch.exists()
