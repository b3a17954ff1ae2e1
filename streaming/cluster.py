"""The job on a Flink cluster: submitted by Flink's own client, found again over REST by its name.

What a job on a cluster is, it says itself, in its global parameters: its consumer group, and a hash of its statements.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headwater.errors import ConfigError, UnavailableError
from headwater.runtime.jars import flink_jars
from headwater.runtime.java import SHORT_RUN
from headwater.runtime.parts import environment
from headwater.settings import Settings
from streaming import health, patches
from streaming.health import RunFacts

GROUP, STATEMENTS = "headwater.group", "headwater.statements"
ENDED = ("FAILED", "FINISHED", "CANCELED")
SUBMIT_S, SUBMIT_LOG = 300, "flink-submit.log"
_JOB_ID = re.compile(r"JobID ([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job of ours: Flink's id and word for its state, its consumer group, a hash of its statements."""

    job_id: str
    state: str
    group: str
    statements: str


def newest_job(rest: str, project: str) -> ClusterJob | None:
    """Return the newest job of ours on a cluster, ended or not.

    Raises
    ------
    UnavailableError
        The cluster does not answer.
    """
    jobs = [job for job in _ask(rest, "jobs/overview")["jobs"] if job["name"] == health.JOB_NAME]
    if not jobs:
        return None
    newest = max(jobs, key=lambda job: int(job["start-time"]))
    told = _ask(rest, f"jobs/{newest['jid']}/config").get("execution-config", {}).get("user-config", {})
    group = told.get(GROUP, health.group_of(project))
    return ClusterJob(str(newest["jid"]), str(newest["state"]), str(group), str(told.get(STATEMENTS, "")))


def run_facts(rest: str, project: str) -> RunFacts | None:
    """Return the newest job as a local one is described; its workers are on other machines, and not asked for."""
    job = newest_job(rest, project)
    return None if job is None else RunFacts(os.getpid(), job.job_id, rest.rstrip("/"), job.group, workers=0)


def parameters(project: str, statements: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Consumer group of a job to be, which is its own, and the options by which the job says what it is."""
    group = f"{health.group_of(project)}-{uuid.uuid4().hex[:12]}"
    return group, {"pipeline.global-job-parameters": f"{GROUP}:{group},{STATEMENTS}:{fingerprint(statements)}"}


def fingerprint(statements: Iterable[str]) -> str:
    """Hash of what a job does."""
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()


def submit(
    settings: Settings, project: str, statements: Iterable[str], parallelism: int | None = None,
    savepoint: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Submit the job and return its id, or that of the same job if it runs there already.

    Raises
    ------
    ConfigError
        No cluster is named, or other statements run there as this job.
    UnavailableError
        The cluster does not answer, has no TaskManager, or does not accept the job.
    """
    rest = _rest_of(settings)
    if not _ask(rest, "taskmanagers")["taskmanagers"]:
        raise UnavailableError(f"flink at {rest}: has no TaskManager, so the job would wait. Start one that joins it.")
    job = newest_job(rest, project)
    if job is not None and job.state not in ENDED:
        if job.statements == fingerprint(statements):
            return {"job_id": job.job_id, "submitted": False}
        raise ConfigError(
            f"flink at {rest}: job {job.job_id} ({job.state}) runs there from other definitions. End it with `flink "
            f"cancel {job.job_id}`, and submit again: a changed job folds from the first event, over the same tiles."
        )
    said = _run(settings, _command(rest, parallelism, savepoint))
    accepted = _JOB_ID.search(said)
    if accepted is None:
        log = settings.log_dir / SUBMIT_LOG
        raise UnavailableError(f"flink at {rest}: submitting failed, {_reason(said)} {log} has all that was said.")
    return {"job_id": accepted[1], "submitted": True}


def _run(settings: Settings, command: list[str]) -> str:
    """Run Flink's client; return what it says, which is kept too."""
    log = settings.log_dir / SUBMIT_LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    told = {
        **os.environ, **environment(settings), "FLINK_LOG_DIR": str(log.parent.resolve()),
        "JVM_ARGS": os.environ.get("JVM_ARGS", SHORT_RUN),
    }  # fmt: skip
    with log.open("w") as output, suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=SUBMIT_S, check=False, env=told)
    return log.read_text()


def _command(rest: str, parallelism: int | None, savepoint: str | None) -> list[str]:
    return [
        str(pyflink_home() / "bin" / "flink"), "run", "--detached", "--jobmanager", urlsplit(rest).netloc,
        *(() if parallelism is None else ("--parallelism", str(parallelism))),
        *(() if savepoint is None else ("--fromSavepoint", savepoint)),
        "--pyClientExecutable", sys.executable, "--pyExecutable", sys.executable, "--pyModule", "streaming.job",
    ]  # fmt: skip


def jars(settings: Settings) -> str:
    """What a job takes to a cluster, as ``pipeline.jars``: naming any displaces that of Flink's Python, so it is named.

    Flink's client would overwrite what it is given on its command line. What is patched goes before it.
    """
    flink = pyflink_home()
    named = [*flink_jars(), patches.patched_jar(flink, settings.state_dir / "flink"), patches.python_jar(flink)]
    return ";".join(jar.resolve().as_uri() for jar in named)


def pyflink_home() -> Path:
    """Folder of Flink as the pip package brings it."""
    spec = find_spec("pyflink")  # located, never imported
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _rest_of(settings: Settings) -> str:
    if settings.flink is None:
        raise ConfigError(
            "flink: no cluster is named. Set HEADWATER_FLINK, or give --flink, to its REST address, such as "
            "http://jobmanager:8081; on one machine `headwater up` needs none."
        )
    return settings.flink.rstrip("/")


def _ask(rest: str, path: str) -> Any:
    try:
        return health.get(f"{rest.rstrip('/')}/{path}")
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"flink at {rest}: does not answer, {error}. Start the cluster, or set HEADWATER_FLINK to the REST address "
            "of its JobManager, such as http://jobmanager:8081."
        ) from None


def _reason(said: str) -> str:
    """What of the client's output says why: what our program logged as its reason, else the cause of a Java error."""
    logged = [line for line in said.splitlines() if line.startswith("{") and '"reason": ' in line]
    return str(json.loads(logged[-1])["reason"]) if logged else health.root_cause(said)
