"""The stream job, whose TaskManager ends at SIGUSR1 while its JVM and JobManager live on: ``python doomed_job.py``."""

import signal
import sys
from typing import Any

from streaming import flink, job

start = flink.start


def start_doomed(*arguments: Any) -> Any:
    client = start(*arguments)
    handle = client._j_job_client
    held = handle.getClass().getDeclaredField("miniCluster")
    held.setAccessible(True)
    cluster = held.get(handle)
    signal.signal(signal.SIGUSR1, lambda *_: cluster.terminateTaskManager(0))
    return client


if __name__ == "__main__":
    flink.start = start_doomed
    sys.exit(job.main())
