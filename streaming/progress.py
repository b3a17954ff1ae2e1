"""How far the stream job has come: its state, its lag, and whether all that Kafka held is readable online."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from headwater.errors import UnavailableError
from headwater.plan import FeaturePlan
from headwater.settings import Settings, addresses
from streaming import cluster
from streaming.health import RunFacts, get

Offsets = Mapping[tuple[str, int], int]
"""(topic, partition) to an offset: of the next record to read."""
LONGEST_PAUSE_S = 8.0
COORDINATOR_PATIENCE_S = 30.0


def running_job(settings: Settings) -> RunFacts | None:
    """Return the job whose process runs now, well or not; ``None`` where there is none."""
    try:
        facts = RunFacts(**json.loads(facts_path(settings).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return facts if psutil.pid_exists(facts.pid) else None


def current_job(settings: Settings, project: str) -> RunFacts | None:
    """Return the job on the Flink cluster that the settings name, where they name one, else the one that runs here.

    Raises
    ------
    UnavailableError
        The cluster does not answer.
    """
    return running_job(settings) if settings.flink is None else cluster.run_facts(settings.flink, project)


def facts_path(settings: Settings) -> Path:
    """Where a running job says of itself what others need to ask it."""
    return settings.run_dir / "stream.json"


def end_offsets(settings: Settings, plan: FeaturePlan) -> dict[tuple[str, int], tuple[int, int]]:
    """First and end offset of each partition that the job reads.

    Raises
    ------
    UnavailableError
        The broker does not answer.
    """
    from confluent_kafka import KafkaException

    from headwater.kafka_io import offset_bounds

    consumer = _consumer(settings, "headwater-watermarks")
    read = {view.source for view in plan.views}
    topics = sorted({source.topic for source in plan.sources if source.name in read})
    try:
        found = consumer.list_topics(timeout=10).topics
        bounds = {topic: offset_bounds(consumer, topic, found[topic].partitions) for topic in topics if topic in found}
        return {(topic, number): both for topic in bounds for number, both in bounds[topic].items()}
    except KafkaException as error:
        raise _kafka_unavailable(settings, error) from None
    finally:
        consumer.close()


def committed_offsets(settings: Settings, group: str, ends: Mapping[tuple[str, int], tuple[int, int]]) -> Offsets:
    """Offsets of the newest completed checkpoint; a partition never committed stands at its first."""
    from confluent_kafka import KafkaException, TopicPartition

    choosing = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS")
    consumer = _consumer(settings, group)
    deadline = time.monotonic() + COORDINATOR_PATIENCE_S
    try:
        while True:
            try:
                found = consumer.committed([TopicPartition(*key) for key in ends], timeout=10)
                return {(at.topic, at.partition): max(at.offset, ends[at.topic, at.partition][0]) for at in found}
            except KafkaException as error:  # a broker just started is still choosing who keeps the group's offsets
                if error.args[0].name() not in choosing or time.monotonic() > deadline:
                    raise _kafka_unavailable(settings, error) from None
                time.sleep(0.2)
    finally:
        consumer.close()


def wait_until_caught_up(settings: Settings, timeout_s: float) -> bool:
    """Wait until all that Kafka holds at the call can be read online; False if ``timeout_s`` passes first.

    A checkpoint's barrier follows every record before it through the job, and the sink writes what it holds before it
    lets the barrier pass; Flink commits a checkpoint's offsets to the consumer group once it is complete. So what lies
    below a committed offset is in the store. Checkpoints are asked for here rather than waited for.

    Raises
    ------
    UnavailableError
        The broker does not answer, or the job is not running.
    """
    from headwater.registry.manifest import load_plan

    plan = load_plan(settings.repo)
    ends = end_offsets(settings, plan)
    wanted = {key: end for key, (first, end) in ends.items() if end > first}
    started = time.monotonic()
    deadline, missing_before, asked_at = started + timeout_s, 0, started
    while True:
        job = current_job(settings, plan.project)
        if job is None:
            start = "headwater up --only stream" if settings.flink is None else "headwater stream submit"
            raise UnavailableError(f"stream: the job is not running. Run `{start}`.")
        committed = committed_offsets(settings, job.group, ends)
        missing = sum(max(end - committed[key], 0) for key, end in wanted.items())
        if not missing:
            return True
        now = time.monotonic()
        if now >= deadline:
            return False
        pause = _pause(missing_before - missing, missing, now - asked_at)
        missing_before, asked_at = missing, now
        time.sleep(min(pause, deadline - now))
        _checkpoint(job, deadline)


def _pause(gained: int, missing: int, seconds: float) -> float:
    """How long to leave the job to its work: most of what the rest will take, as each checkpoint costs some of it."""
    if gained <= 0:
        return 0.0 if missing < 1000 else 1.0
    return min(0.8 * missing * seconds / gained, LONGEST_PAUSE_S)


def _checkpoint(job: RunFacts, deadline: float) -> None:
    """Ask for a checkpoint and wait for it; a job that is just restarting refuses, and is asked again later."""
    with suppress(OSError, ValueError, KeyError):
        trigger = get(f"{job.rest}/jobs/{job.job_id}/checkpoints", {"checkpointType": "CONFIGURED"})["request-id"]
        while time.monotonic() < deadline:
            if get(f"{job.rest}/jobs/{job.job_id}/checkpoints/{trigger}")["status"]["id"] == "COMPLETED":
                break
            time.sleep(0.1)
    time.sleep(0.2)  # the commit follows the checkpoint


def _consumer(settings: Settings, group: str) -> Any:
    from confluent_kafka import Consumer

    return Consumer({
        "bootstrap.servers": addresses(settings).kafka, "group.id": group, "enable.auto.commit": False, "log_level": 0,
    })  # fmt: skip


def _kafka_unavailable(settings: Settings, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"kafka at {addresses(settings).kafka}: does not answer, {error.args[0]}. Run `headwater up --only kafka`."
    )
