"""The stream job, telling every two seconds how much of its JVM's heap is in use after a collection; ``python -m``."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.stream_state import heap_path
from headwater.files import write_whole
from headwater.settings import get_settings
from streaming import flink, job
from streaming.sql import Program

EVERY_S = 2.0
start = flink.start


def start_and_tell(program: Program, redis_url: str, options: Mapping[str, str]) -> Any:
    """Submit the program as the job does."""
    client = start(program, redis_url, options)
    threading.Thread(target=_tell, args=(heap_path(get_settings()),), daemon=True).start()
    return client


def _tell(path: Path) -> None:
    from pyflink.java_gateway import get_gateway

    java: Any = get_gateway().jvm
    times = 0
    while True:
        java.System.gc()
        runtime = java.Runtime.getRuntime()
        times += 1
        write_whole(path, f"{times} {(runtime.totalMemory() - runtime.freeMemory()) / 2**20:.1f}")
        time.sleep(EVERY_S)


if __name__ == "__main__":
    flink.start = start_and_tell
    sys.exit(job.main())
