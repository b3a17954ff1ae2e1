"""The stream job: ``python -m streaming.job`` runs it in a local mini-cluster until it is told to end.

Its JVM and Python workers are children in its own process group and session. State lives in checkpoints, which are
kept when the job ends, by whatever end, and found again by the next start (:mod:`streaming.lineage`).
"""

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from headwater.errors import HeadwaterError
from headwater.files import write_whole
from headwater.forgotten import Tombstone, read_tombstones
from headwater.kafka_io import describe, partitions_of
from headwater.log import configure_logging, get_logger
from headwater.online.connect import connect
from headwater.online.cuts import Cut
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.runtime import classes
from headwater.runtime.jars import flink_jars
from headwater.runtime.java import STREAMING, find_java
from headwater.runtime.ports import free_port
from headwater.runtime.ready import mark_ready, ready_path
from headwater.settings import Settings, addresses, get_settings
from streaming import cluster, health, patches, telemetry
from streaming.health import Health, RunFacts
from streaming.layout import Layout
from streaming.lineage import begin, drop_others, first_cuts
from streaming.progress import facts_path, running_job
from streaming.sql import KafkaOptions, Program, compile_program

CHECKPOINT_MS, RETAINED = 15_000, 2
LATENCY_MS = 100
"""For how long folds are gathered before they go on: one row a tile instead of one an event."""
LOOK_S, UNWELL_S, ALONE_S = 0.5, 300.0, 10.0
"""How often the job is looked at; how long it may be unwell, or without its TaskManager, before its process ends."""
FAILURES, HEALTHY_AGAIN_S = 10, 60
"""A mini-cluster starts a failed job again so often; after as many seconds without a failure it counts from the first.
On a cluster there is no end to it: a machine that is lost may be away for long."""
ROCKSDB_MB = 256
"""Of native memory for RocksDB's caches and write buffers and for Python, beside the heap; shared by the slots."""
YOUNG_SHARE = 3
"""One part in so many of the heap is for what is young, from the start: left to grow, it is collected too often."""
LOG4J = Path(__file__).with_name("log4j2.properties")


def program_of(
    plan: FeaturePlan,
    settings: Settings,
    group: str = "",
    layout: Layout | None = None,
    cuts: Mapping[str, Cut] | None = None,
    forgotten: Sequence[Tombstone] = (),
) -> Program:
    """Compile a plan for the servers that the settings name, for a state that never held the ``forgotten``."""
    return compile_program(
        plan,
        KafkaOptions(addresses(settings).kafka, group, settings.max_clock_skew_s * 1000, settings.max_event_bytes),
        layout,
        {table: cut.offsets for table, cut in (cuts or {}).items()},
        forgotten,
        [one for one in read_tombstones(settings.archive_dir) if one not in forgotten],
    )


def parallelism(settings: Settings) -> int:
    """Tasks of each kind, and Python workers: one a partition, none beyond the cores, where it would only add work."""
    return min(settings.partitions, os.cpu_count() or 1)


def flink_options(settings: Settings, checkpoint: Path | None, rest_port: int) -> dict[str, str]:
    """Options of a local run; every one that a cluster would set for itself is left out by ``cluster_options``."""
    local = {
        "parallelism.default": str(parallelism(settings)),
        "pipeline.jars": ";".join(jar.resolve().as_uri() for jar in flink_jars()),
        "rest.address": settings.host,
        "rest.bind-address": settings.host,
        "rest.bind-port": str(rest_port),
        "jobmanager.bind-host": settings.host,
        "taskmanager.bind-host": settings.host,
        "execution.checkpointing.dir": settings.checkpoints_dir.resolve().as_uri(),
        "taskmanager.memory.network.min": "64mb",
        "taskmanager.memory.network.max": "64mb",
        "metrics.fetcher.update-interval": "2000",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": str(FAILURES),
    }
    if settings.state_backend == "rocksdb":
        local |= {
            "state.backend.rocksdb.localdir": str(settings.rocksdb_dir.resolve()),
            "taskmanager.memory.managed.size": f"{ROCKSDB_MB}mb",
        }
    if checkpoint is not None:
        # A superseded checkpoint is deleted by Flink, unless the next may share files with it: see drop_others.
        claim = "CLAIM" if settings.state_backend == "heap" else "NO_CLAIM"
        local |= {"execution.state-recovery.path": checkpoint.as_uri(), "execution.state-recovery.claim-mode": claim}
    return cluster_options(settings) | local


def state_options(settings: Settings) -> dict[str, str]:
    """Where folds are kept between events: as objects in the JVM's heap, or on disk behind a cache of bounded size."""
    if settings.state_backend == "heap":
        return {"state.backend.type": "hashmap"}
    return {"state.backend.type": "rocksdb", "execution.checkpointing.incremental": "true"}


def cluster_options(settings: Settings) -> dict[str, str]:
    """Options that decide what the job does, wherever it runs."""
    return state_options(settings) | {
        "pipeline.name": health.JOB_NAME,
        "pipeline.object-reuse": "true",
        "pipeline.max-parallelism": "128",
        "execution.checkpointing.interval": f"{CHECKPOINT_MS} ms",
        "execution.checkpointing.min-pause": "1 s",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.num-retained": str(RETAINED),
        "execution.checkpointing.tolerable-failed-checkpoints": "1000",
        "execution.buffer-timeout.interval": "5 ms",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
        "restart-strategy.exponential-delay.reset-backoff-threshold": f"{HEALTHY_AGAIN_S} s",
        "table.local-time-zone": "UTC",
        "table.exec.mini-batch.enabled": "true",
        "table.exec.mini-batch.allow-latency": f"{LATENCY_MS} ms",
        "table.exec.mini-batch.size": "20000",
        "python.fn-execution.bundle.time": str(LATENCY_MS // 2),
        "python.fn-execution.bundle.size": "10000",
        "python.fn-execution.arrow.batch.size": "10000",
    }


def jvm_environment(settings: Settings, leaves_classes: bool = False) -> dict[str, str]:
    """What pyflink's launcher reads: which Java, how much heap, where it logs, and whether others map its classes."""
    log = settings.log_dir.resolve() / "flink.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_of(settings)
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        "JAVA_HOME": str(find_java().home),
        "JVM_ARGS": (
            f"-Xms{settings.flink_heap_mb}m -Xmx{settings.flink_heap_mb}m "
            f"-Xmn{settings.flink_heap_mb // YOUNG_SHARE}m {STREAMING} "
            f"{' '.join(classes.flags('flink', leaves_classes))} "
            "-XX:+ExitOnOutOfMemoryError "
            f"-Djava.awt.headless=true -Dheadwater.log={log} -Djava.io.tmpdir={scratch}"
        ),
        "FLINK_HOME": str(cluster.pyflink_home()),  # else pyflink sets the next one itself
        "FLINK_LIB_DIR": str(patches.library(cluster.pyflink_home(), classes.kept_folder() or scratch.parent)),
        "LOG4J_PROPERTIES": str(LOG4J),
        "FLINK_LOG_DIR": str(log.parent),
        # Else pyflink runs the sink within this process, behind a port open to all, and keeps idle workers beside it.
        "_python_worker_execution_mode": "process",
    }


def scratch_of(settings: Settings) -> Path:
    """Where Flink unpacks a jar of 24 MB and keeps other files of a run."""
    return settings.state_dir.resolve() / "flink" / "tmp"


def cluster_of(plan: FeaturePlan, settings: Settings) -> str:
    """Kafka's id of its log, where all topics that the plan reads are; a broker formatted anew has another.

    Raises
    ------
    UnavailableError
        The broker does not answer, or lacks a topic.
    """
    cluster = describe(addresses(settings).kafka)
    for source in plan.sources:
        partitions_of(cluster, source.topic)
    return cluster.id


class Run:
    """One run of the job in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ending = False
        self._checkpoint_problem: str | None = None
        self._is_alone = self._ran = False
        self._family: set[psutil.Process] = set()
        self._log = get_logger("streaming")

    def end(self, *_: object) -> None:
        """Ask the run to end; safe in a signal handler."""
        self._ending = True

    def __call__(self) -> int:
        """Run until told to end (0) or until the job fails for good (1)."""
        settings = self._settings
        plan = load_plan(settings.repo)
        start, cuts = begin(plan, settings, cluster_of(plan, settings))
        lineage, checkpoint = start.lineage, start.checkpoint
        for left in (settings.rocksdb_dir, scratch_of(settings)):  # by a run that was killed; state is in checkpoints
            shutil.rmtree(left, ignore_errors=True)
        os.environ.update(jvm_environment(settings, leaves_classes=True))
        from streaming import flink

        rest_port = free_port(settings.host)
        self._log.info("stream_starting", tables=len(lineage.views), **start.as_dict())
        try:
            telemetry.expose(settings, plan, lambda: running_job(settings))
            options = flink_options(settings, checkpoint, rest_port)
            program = program_of(plan, settings, lineage.group, lineage.layout, cuts, lineage.forgotten)
            client = flink.start(program, addresses(settings).redis, options)
            rest = f"http://{settings.host}:{rest_port}"
            job = RunFacts(os.getpid(), flink.job_id(client), rest, lineage.group, parallelism(settings))
            write_whole(facts_path(settings), json.dumps(asdict(job)))
            return self._watch(client, job, checkpoint)
        except HeadwaterError as error:
            self._log.error("stream_failed", reason=str(error), **_way_back(checkpoint, was_well=False))
            return 1
        finally:
            for said in (ready_path(settings, "stream"), facts_path(settings)):
                said.unlink(missing_ok=True)
            logging.disable()  # py4j would tell, at the exit, of each object that it cannot hand back to the JVM
            end_children(self._family, self._patience_s())
            shutil.rmtree(scratch_of(settings), ignore_errors=True)

    def _patience_s(self) -> float:
        """How long the JVM may take to end, which leaves its archive of classes only if it had loaded all that run."""
        return (classes.LEAVING_S if self._ran else 0.0) if classes.is_wanted("flink") else 2.0

    def _watch(self, client: Any, job: RunFacts, checkpoint: Path | None) -> int:
        from streaming import flink

        seen, well_at, was_well = Health(""), time.monotonic(), False
        heap = health.HeapWatch(job)
        with telemetry.connect(self._settings) as store:
            while not self._ending:
                failure = flink.failure(client)
                now = Health("FAILED") if failure else health.look(job, store)
                if now.state != seen.state or now.restarts != seen.restarts:
                    self._tell(job, now)
                if now.is_well:
                    well_at, was_well = time.monotonic(), True
                elif failure or time.monotonic() - well_at > patience_s(now.state):
                    reason = health.root_cause(failure) if failure else f"{now.state} for {patience_s(now.state):.0f} s"
                    self._log.error("stream_failed", reason=reason, **_way_back(checkpoint, was_well))
                    return 1
                if share := heap.full_share():
                    self._tell_of_full_heap(share)
                    return 1
                self._tell_of_checkpoints(job)
                seen = now
                time.sleep(LOOK_S)
        return 0

    def _tell(self, job: RunFacts, now: Health) -> None:
        """Say how the job is: in the log, and by the mark that ``headwater status`` and ``up`` read."""
        self._family |= set(psutil.Process().children(recursive=True))
        self._log.info(
            "stream_state", state=now.state, job_id=job.job_id, tasks=f"{now.tasks_running}/{now.tasks}",
            workers=now.workers, restarts=now.restarts, last_failure=health.last_failure(job) if now.restarts else None,
        )  # fmt: skip
        if now.is_well:
            self._ran = True
            mark_ready(self._settings, "stream", **asdict(job) | {"pid": os.getpid()})
        else:
            ready_path(self._settings, "stream").unlink(missing_ok=True)

    def _tell_of_full_heap(self, share: float) -> None:
        self._log.error(
            "stream_failed", reason=f"the heap of {self._settings.flink_heap_mb} MB is full: looking for room in it "
            f"took {share:.0%} of the last {health.HEAP_LOOK_S:.0f} s",
            way_back="set HEADWATER_FLINK_HEAP_MB to more, and the next start goes on from the newest checkpoint; or "
            "HEADWATER_STATE_BACKEND=rocksdb, and it begins anew with its state on disk",
        )  # fmt: skip

    def _tell_of_checkpoints(self, job: RunFacts) -> None:
        """Say once that checkpoints fail, and once that they complete again; drop what earlier runs have left."""
        now = telemetry.checkpoints(job)
        problem = now.problem
        if now.completed >= RETAINED and not self._is_alone:
            drop_others(self._settings.checkpoints_dir, job.job_id)
            self._is_alone = True
        if problem is not None and self._checkpoint_problem is None:
            self._log.error(
                "checkpoints_fail", reason=problem, folder=str(self._settings.checkpoints_dir.resolve()),
                way_back="features go on being written; free space or mend the folder, and the next one completes",
            )  # fmt: skip
        if problem is None and self._checkpoint_problem is not None:
            self._log.info("checkpoints_complete_again")
        self._checkpoint_problem = problem


def patience_s(state: str) -> float:
    """How long a state that is not well may last: a mini-cluster that has lost its TaskManager gets no other."""
    return ALONE_S if state == health.NO_TASK_MANAGER else UNWELL_S


def _way_back(checkpoint: Path | None, was_well: bool) -> dict[str, str]:
    """Where a job never ran from its checkpoint, which one that is, and how to start without it."""
    if checkpoint is None or was_well:
        return {}
    return {
        "checkpoint": str(checkpoint),
        "way_back": "if the reason is this checkpoint, remove its folder: the next start goes on from the one before "
        "it or, where there is none, from the first event; what is replayed overwrites itself",
    }


def end_children(seen: Iterable[psutil.Process], patience_s: float) -> None:
    """End the JVM and its Python workers; none outlives the job.

    The job is not cancelled first: that waits for workers to start and to flush, and the next run goes on from the
    newest checkpoint either way, writing the same absolute tiles again.

    Parameters
    ----------
    seen
        Descendants of before: workers whose JVM was killed are nobody's children.
    """
    children = [child for child in {*psutil.Process().children(recursive=True), *seen} if child.is_running()]
    for child in children:
        _quietly(child.terminate)
    _, left = psutil.wait_procs(children, timeout=patience_s)
    for child in left:
        _quietly(child.kill)


def _quietly(action: Any) -> None:
    try:
        action()
    except psutil.Error:
        return


def submit(settings: Settings) -> None:
    """Start the job on the cluster whose ``flink run`` started this process, and leave it there.

    A cluster keeps its own checkpoints, so that a table that is new is folded from the first event on.
    """
    from streaming import flink

    plan = load_plan(settings.repo)
    group, told = cluster.parameters(plan.project, program_of(plan, settings).statements)
    storage = settings.checkpoints or settings.checkpoints_dir.resolve().as_uri()
    own = {"execution.checkpointing.dir": storage, "pipeline.jars": cluster.jars(settings)}
    with connect(addresses(settings).redis) as store:
        cuts = first_cuts(plan, store, cluster_of(plan, settings))
    options = cluster_options(settings) | told | own
    flink.start(program_of(plan, settings, group, cuts=cuts), addresses(settings).redis, options)


def main(settings: Settings | None = None) -> int:
    """Exit 0 once told to end, 1 when the job cannot run."""
    configure_logging("info")
    try:
        settings = settings or get_settings()
        if "PYFLINK_GATEWAY_PORT" in os.environ:
            submit(settings)
            return 0
        run = Run(settings)
        signal.signal(signal.SIGTERM, run.end)
        signal.signal(signal.SIGINT, run.end)
        return run()
    except HeadwaterError as error:
        get_logger("streaming").error("stream_refused", reason=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
