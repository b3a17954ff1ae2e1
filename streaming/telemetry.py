"""What an operator asks of the stream: one set of facts, for ``headwater stream status`` and for Prometheus."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from headwater import metrics
from headwater.errors import HeadwaterError, UnavailableError
from headwater.log import configure_logging, get_logger
from headwater.online.connect import connect as open_store
from headwater.online.cuts import read_cuts, views_to_backfill
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.settings import Settings, addresses, get_settings
from streaming import cluster, health
from streaming.archive_writer import DEAD_LETTERS, LATE
from streaming.health import Health, RunFacts
from streaming.parquet_log import read_manifest
from streaming.progress import committed_offsets, current_job, end_offsets
from streaming.sink import DELAY_BUCKETS_MS, stats_key

_OFFSET = re.compile(r"\.topic\.(.+)\.partition\.(\d+)\.currentOffset$")
STORE_TIMEOUT_S = 2


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Of the running job: its newest complete checkpoint, and what kept the newer ones from completing.

    ``age_s`` counts from its trigger, ``None`` before the first.
    """

    age_s: float | None = None
    size_bytes: int = 0
    completed: int = 0
    failed: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What the sink has written since the store is empty: counts by ``DELAY_BUCKETS_MS``, one more for the rest."""

    tiles: int = 0
    newest_event_ms: int | None = None
    delay_sum_ms: int = 0
    delays: tuple[int, ...] = (0,) * (len(DELAY_BUCKETS_MS) + 1)

    def delay_within_ms(self, share: float) -> int | None:
        """Return the smallest bucket bound that so large a share of tiles kept; ``None`` beyond the last."""
        held, total = 0, sum(self.delays)
        for bound, count in zip(DELAY_BUCKETS_MS, self.delays, strict=False):
            held += count
            if total and held >= share * total:
                return bound
        return None


@dataclass(frozen=True, slots=True)
class Refused:
    """What the archive writer has refused, by reason, and what came late and counts."""

    late: int = 0
    dead_letters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it at one moment.

    Attributes
    ----------
    unread, lag
        Records of each (topic, partition) that the job has not read; that lie beyond its newest checkpoint.
    to_backfill
        Views of which the stream folds only what lies behind a cut, as nothing has been backfilled below it.
    """

    job: RunFacts | None
    health: Health
    last_failure: str | None
    unread: Mapping[tuple[str, int], int]
    lag: Mapping[tuple[str, int], int]
    writes_per_s: float
    written: Written
    refused: Refused
    checkpoints: Checkpoints
    to_backfill: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return what ``stream status --json`` prints."""
        newest = self.written.newest_event_ms
        return {
            **asdict(self.health),
            "job_id": None if self.job is None else self.job.job_id,
            "last_failure": self.last_failure,
            "lag": sum(self.lag.values()),
            "lag_by_partition": _by_partition(self.lag),
            "unread": sum(self.unread.values()),
            "unread_by_partition": _by_partition(self.unread),
            "online_writes": self.written.tiles,
            "online_writes_per_s": round(self.writes_per_s, 1),
            "newest_event_time": newest,
            "delay_ms": {name: self.written.delay_within_ms(share) for name, share in (("p50", 0.5), ("p99", 0.99))},
            "late_events": self.refused.late,
            "dead_letters": dict(self.refused.dead_letters),
            "checkpoint": asdict(self.checkpoints),
            "to_backfill": list(self.to_backfill),
        }


def gather(settings: Settings, plan: FeaturePlan, store: "redis.Redis", job: RunFacts | None) -> Facts:
    """Ask Flink, Kafka, the store and the archive of a job.

    Raises
    ------
    UnavailableError
        Kafka or the store does not answer.
    """
    ends = end_offsets(settings, plan)
    firsts = {key: first for key, (first, _) in ends.items()}
    checkpointed = firsts if job is None else committed_offsets(settings, job.group, ends)
    read = {} if job is None else read_offsets(job)
    return Facts(
        job=job,
        health=Health("STOPPED") if job is None else health.look(job, store),
        last_failure=None if job is None else health.last_failure(job),
        unread={key: max(end - max(read.get(key, 0), checkpointed[key]), 0) for key, (_, end) in ends.items()},
        lag={key: max(end - checkpointed[key], 0) for key, (_, end) in ends.items()},
        writes_per_s=0.0 if job is None else write_rate(job),
        written=written(store, plan.project),
        refused=refused(settings),
        checkpoints=Checkpoints() if job is None else checkpoints(job),
        to_backfill=tuple(views_to_backfill(plan, read_cuts(store, plan.project))),
    )


def status(settings: Settings, plan: FeaturePlan) -> dict[str, Any]:
    """All facts as ``stream status --json`` prints them."""
    with connect(settings) as store:
        return gather(settings, plan, store, current_job(settings, plan.project)).as_dict()


def connect(settings: Settings) -> "redis.Redis":
    """Open a client that does not wait long."""
    return open_store(addresses(settings).redis, socket_timeout=STORE_TIMEOUT_S, socket_connect_timeout=STORE_TIMEOUT_S)


def read_offsets(job: RunFacts) -> dict[tuple[str, int], int]:
    """Next offset that the job's sources will read, where Flink tells it yet."""
    found = {}
    for vertex in _vertices(job):
        if str(vertex["name"]).startswith("Source: KafkaSource"):
            url = f"{job.rest}/jobs/{job.job_id}/vertices/{vertex['id']}/subtasks/metrics"
            names = [str(one["id"]) for one in _ask(url) or () if _OFFSET.search(str(one["id"]))]
            for name, newest in (_metrics(url, names, "max") if names else {}).items():
                topic, partition = _OFFSET.search(name).groups()  # type: ignore[union-attr]
                found[topic, int(partition)] = int(newest) + 1
    return found


def write_rate(job: RunFacts) -> float:
    """Tiles written per second, over Flink's last minute."""
    ours = [vertex for vertex in _vertices(job) if str(vertex["name"]).startswith("hw_out")]
    url = f"{job.rest}/jobs/{job.job_id}/vertices/{{}}/subtasks/metrics"
    return sum(sum(_metrics(url.format(v["id"]), ["numRecordsInPerSecond"], "sum").values()) for v in ours)


def checkpoints(job: RunFacts) -> Checkpoints:
    """Return the state of the job's checkpoints; a failure counts as a problem until one completes."""
    told = _ask(f"{job.rest}/jobs/{job.job_id}/checkpoints")
    if told is None:
        return Checkpoints()
    completed, failed, counts = told["latest"]["completed"], told["latest"]["failed"], told["counts"]
    problem = None
    if failed is not None and (completed is None or failed["id"] > completed["id"]):
        problem = str(failed.get("failure_message") or "no reason was given").strip()
    if completed is None:
        return Checkpoints(None, 0, counts["completed"], counts["failed"], problem)
    age_s = round(time.time() - completed["trigger_timestamp"] / 1000, 1)  # Flink's own, in wall time
    return Checkpoints(age_s, completed["state_size"], counts["completed"], counts["failed"], problem)


def written(store: "redis.Redis", project: str) -> Written:
    """Read the sink's counters.

    Raises
    ------
    UnavailableError
        The store does not answer.
    """
    held: Mapping[bytes, bytes] = store.hgetall(stats_key(project))  # type: ignore[assignment]
    newest = held.get(b"newest_event_ms")
    return Written(
        tiles=int(held.get(b"online_writes", 0)),
        newest_event_ms=None if newest is None else int(newest),
        delay_sum_ms=int(held.get(b"delay_ms", 0)),
        delays=tuple(int(held.get(b"delay_%d" % bucket, 0)) for bucket in range(len(DELAY_BUCKETS_MS) + 1)),
    )


def refused(settings: Settings) -> Refused:
    """Read what the archive writer has counted."""
    manifest = read_manifest(settings.events_dir)
    totals = {} if manifest is None else manifest.totals
    prefix = DEAD_LETTERS + ":"
    reasons = {name.removeprefix(prefix): count for name, count in totals.items() if name.startswith(prefix)}
    return Refused(totals.get(LATE, 0), reasons)


class StreamCollector:
    """Gathers the facts anew at each scrape; a part that does not answer is left out, and ``up`` is 0."""

    def __init__(self, settings: Settings, plan: FeaturePlan, find: Callable[[], RunFacts | None]) -> None:
        self._settings, self._plan, self._find = settings, plan, find
        self._store = connect(settings)

    def describe(self) -> list[Metric]:
        """Register without being asked for values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of docs/streaming.md."""
        try:
            facts = gather(self._settings, self._plan, self._store, self._find())
        except UnavailableError:
            yield _gauge("up", "1 while the job runs whole: tasks, TaskManager, Python workers.", 0)
            return
        yield from _of_health(facts)
        yield from _of_records(facts)
        yield from _of_writes(facts.written, facts.writes_per_s)
        yield from _of_checkpoints(facts.checkpoints)


def expose(settings: Settings, plan: FeaturePlan, find: Callable[[], RunFacts | None]) -> None:
    """Serve the metrics of the job that is found at each scrape.

    Raises
    ------
    ResourceError
        The port is taken.
    """
    registry = CollectorRegistry()
    registry.register(StreamCollector(settings, plan, find))
    metrics.expose(settings, registry, "stream_metrics_port")


def main(rest: str) -> int:
    """Serve the metrics of the job on a Flink cluster: ``python -m streaming.telemetry http://jobmanager:8081``."""
    configure_logging("info")
    try:
        settings = get_settings()
        plan = load_plan(settings.repo)
        expose(settings, plan, lambda: cluster.run_facts(rest, plan.project))
    except HeadwaterError as error:
        get_logger("streaming").error("stream_metrics_refused", reason=str(error))
        return 1
    signal.pause()
    return 0


def _of_health(facts: Facts) -> Iterator[Metric]:
    yield _gauge("up", "1 while the job runs whole: tasks, TaskManager, Python workers.", facts.health.is_well)
    yield _gauge("task_managers", "TaskManagers that Flink knows.", facts.health.task_managers)
    yield _gauge("tasks_running", "Tasks of the job that run.", facts.health.tasks_running)
    yield _gauge("workers", "Python workers with a recent sign of life.", facts.health.workers)
    yield _counter("restarts", "Restarts of the job by Flink.", facts.health.restarts)


def _of_records(facts: Facts) -> Iterator[Metric]:
    unread = _gauge("unread_records", "Records in Kafka that the job has not read.", labels=("topic", "partition"))
    lag = _gauge("lag_records", "Records in Kafka beyond the newest checkpoint.", labels=("topic", "partition"))
    for family, held in ((unread, facts.unread), (lag, facts.lag)):
        for (topic, partition), count in held.items():
            family.add_metric((topic, str(partition)), count)
    dead = _counter("dead_letters", "Records refused, by reason; counted by the archive writer.", labels=("reason",))
    for reason, count in facts.refused.dead_letters.items():
        dead.add_metric((reason,), count)
    late = _counter("late_events", "Events that came late and count.", facts.refused.late)
    yield from (unread, lag, dead, late)


def _of_writes(held: Written, per_s: float) -> Iterator[Metric]:
    yield _counter("tiles_written", "Tiles written to the online store.", held.tiles)
    yield _gauge("tiles_written_per_second", "The same per second, over the last minute.", per_s)
    if held.newest_event_ms is not None:
        yield _gauge("newest_event_seconds", "Newest event time folded, Unix time.", held.newest_event_ms / 1000)
    delay = HistogramMetricFamily(
        "headwater_stream_delay_seconds", "From a tile's newest ingest time to its write, on the platform's clock."
    )
    bounds = [*(str(bound / 1000) for bound in DELAY_BUCKETS_MS), "+Inf"]
    below = [sum(held.delays[: at + 1]) for at in range(len(bounds))]
    delay.add_metric((), list(zip(bounds, below, strict=True)), held.delay_sum_ms / 1000)
    yield delay


def _of_checkpoints(held: Checkpoints) -> Iterator[Metric]:
    if held.age_s is not None:
        yield _gauge("checkpoint_age_seconds", "Since the newest complete checkpoint was begun.", held.age_s)
        yield _gauge("checkpoint_bytes", "Its size.", held.size_bytes)
    yield _counter("checkpoints_failed", "Checkpoints of this run that failed.", held.failed)


def _gauge(name: str, told: str, value: float | None = None, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headwater_stream_{name}", told, None if labels else value, labels or None)


def _counter(name: str, told: str, value: float | None = None, labels: tuple[str, ...] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(f"headwater_stream_{name}", told, None if labels else value, labels or None)


def _by_partition(held: Mapping[tuple[str, int], int]) -> dict[str, int]:
    return {f"{topic}/{partition}": count for (topic, partition), count in held.items()}


def _vertices(job: RunFacts) -> list[dict[str, Any]]:
    about = _ask(f"{job.rest}/jobs/{job.job_id}")
    return [] if about is None else list(about["vertices"])


def _metrics(url: str, names: list[str], aggregate: str) -> dict[str, float]:
    try:
        return health.metrics(url, names, aggregate)
    except (OSError, ValueError, KeyError):
        return {}


def _ask(url: str) -> Any:
    """Read from Flink; ``None`` where it does not answer."""
    try:
        return health.get(url)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
