"""Whether a running job is well, by what Flink's REST says of it and by the signs of life of its Python workers."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
import redis

JOB_NAME = "headwater-stream"
RUNNING, UNREACHABLE = "RUNNING", "UNREACHABLE"
DEPLOYING, WAITING, NO_TASK_MANAGER = "DEPLOYING", "WAITING_FOR_WORKERS", "NO_TASK_MANAGER"
BEAT_PATIENCE_S = 15.0
HEAP_LOOK_S, HEAP_FULL = 60.0, 0.8
"""A heap is full if so much of so long went into collections of all of it: then next to nothing else is done."""
_FULL_COLLECTIONS = "Status.JVM.GarbageCollector.PS_MarkSweep.Time"
BEATS = (
    "CREATE TEMPORARY TABLE `hw_beats` (`beat` BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '{workers}')"
)
BEAT = "SELECT hw_beat(`beat`) FROM `hw_beats`"
"""A row a second through each Python worker, which leaves a sign of life in the store."""
_direct = build_opener(ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a running job says of itself: its process, where Flink answers, its consumer group, how many workers."""

    pid: int
    job_id: str
    rest: str
    group: str
    workers: int


@dataclass(frozen=True, slots=True)
class Health:
    """One look at a job.

    Attributes
    ----------
    state
        RUNNING only while a TaskManager is there, every task runs and every Python worker beats; else Flink's word,
        or what is missing.
    """

    state: str
    task_managers: int = 0
    tasks_running: int = 0
    tasks: int = 0
    workers: int = 0
    restarts: int = 0

    @property
    def is_well(self) -> bool:
        return self.state == RUNNING


def look(job: RunFacts, store: "redis.Redis") -> Health:
    """Ask Flink and the store how a job is."""
    try:
        about = get(f"{job.rest}/jobs/{job.job_id}")
        managers = len(get(f"{job.rest}/taskmanagers")["taskmanagers"])
        tasks = [count for vertex in about["vertices"] for count in vertex["tasks"].items()]
        restarts = metrics(f"{job.rest}/jobs/{job.job_id}/metrics", ["numRestarts"]).get("numRestarts", 0.0)
    except (OSError, ValueError, KeyError):
        return Health(UNREACHABLE)
    beating = beating_workers(store, job.group)
    state = judge(str(about["state"]), tasks, managers, missing_workers=0 if beating is None else job.workers - beating)
    running = sum(count for status, count in tasks if status == RUNNING)
    total = sum(count for _, count in tasks)
    return Health(state, managers, running, total, beating or 0, int(restarts))


def judge(said: str, tasks: Iterable[tuple[str, int]], task_managers: int, missing_workers: int) -> str:
    """Say what a job's state is; Flink's own RUNNING means no more than that it has not given up.

    Parameters
    ----------
    tasks
        Pairs of a task's status and the number of tasks that have it.
    """
    if task_managers == 0:
        return said if said in ("FAILED", "FINISHED", "CANCELED") else NO_TASK_MANAGER
    if said != RUNNING:
        return said
    if any(count for status, count in tasks if status != RUNNING):
        return DEPLOYING
    return WAITING if missing_workers > 0 else RUNNING


def group_of(project: str) -> str:
    """Consumer group of the job on a cluster, which keeps its own checkpoints."""
    return f"headwater-{project}"


def beats_key(group: str) -> str:
    """Redis hash of a run's Python workers, by pid: the second of their last sign of life."""
    return f"hw1:beats:{group}"


def beating_workers(store: "redis.Redis", group: str) -> int | None:
    """Workers with a recent sign of life; ``None`` while the store cannot tell."""
    try:
        beats: Mapping[bytes, bytes] = store.hgetall(beats_key(group))  # type: ignore[assignment]
    except redis.RedisError:
        return None
    oldest = time.time() - BEAT_PATIENCE_S  # wall time: of processes, not of events
    return len([pid for pid, beat in beats.items() if float(beat) > oldest and psutil.pid_exists(int(pid))])


def root_cause(stack: str) -> str:
    """Return the innermost cause in a Java stack trace that says why."""
    lines = [line.strip() for line in stack.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    told = [cause for cause in causes if ": " in cause]  # a cancellation that says no more follows from another
    return (told[-1:] or causes[-1:] or lines[:1] or ["no reason was given"])[0][:500]


def last_failure(job: RunFacts) -> str | None:
    """Return the cause of the job's newest restart, if there was one."""
    try:
        entries = get(f"{job.rest}/jobs/{job.job_id}/exceptions")["exceptionHistory"]["entries"]
        return root_cause(str(entries[0]["stacktrace"])) if entries else None
    except (OSError, ValueError, KeyError):
        return None


class HeapWatch:
    """Looks at how much of a JVM's time goes into collecting its whole heap (the parallel collector's)."""

    def __init__(self, job: RunFacts) -> None:
        self._url = f"{job.rest}/jobmanager/metrics"  # of a mini-cluster's only JVM
        self._since: tuple[float, float] | None = None

    def full_share(self) -> float:
        """Share of the last minute, if it is so much that the heap is full; else, and while Flink is silent, 0."""
        now = time.monotonic()
        if self._since is not None and now - self._since[0] < HEAP_LOOK_S:
            return 0.0
        try:
            spent_s = metrics(self._url, [_FULL_COLLECTIONS])[_FULL_COLLECTIONS] / 1000
        except (OSError, ValueError, KeyError):
            return 0.0
        since, self._since = self._since, (now, spent_s)
        share = 0.0 if since is None else (spent_s - since[1]) / (now - since[0])
        return share if share >= HEAP_FULL else 0.0


def metrics(url: str, names: Iterable[str] | None = None, aggregate: str = "") -> dict[str, float]:
    """Read Flink metrics by name; those that are not numbers are left out."""
    query = "" if names is None else f"?get={','.join(names)}" + (f"&agg={aggregate}" if aggregate else "")
    found = {}
    for one in get(url + query):
        value = one.get(aggregate or "value", 0.0)
        if str(value) not in ("NaN", "", "n/a"):
            found[str(one["id"])] = float(value)
    return found


def get(url: str, body: Mapping[str, Any] | None = None) -> Any:
    """Read JSON from Flink's REST; with a body, POST it.

    Raises
    ------
    OSError
        Nobody answers there, or with an error.
    """
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with _direct.open(request, timeout=10) as reply:
            return json.load(reply)
    except URLError as error:
        raise OSError(str(error)) from error
