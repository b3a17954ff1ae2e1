"""Checks what the platform needs of the machine, and says how to mend what is missing."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from headwater.errors import HeadwaterError
from headwater.runtime import kafka, valkey
from headwater.runtime.jars import all_cached, cache_dir
from headwater.runtime.java import find_java
from headwater.runtime.parts import PARTS
from headwater.runtime.ports import holder, is_taken, next_free
from headwater.runtime.supervisor import status
from headwater.settings import Settings, shown_url

GIB = 1 << 30
MEMORY_GIB = 8
DISK_GIB = 5
LOCK = Path(__file__).parents[2] / "requirements.lock"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``mend`` is empty where all is well."""

    name: str
    ok: bool
    found: str
    mend: str = ""


def examine(settings: Settings) -> list[Check]:
    """Make every check; none stops another."""
    checks: tuple[Callable[[Settings], list[Check]], ...] = (
        _python, _java, _packages, _jars, _memory, _disk, _servers, _ports,
    )  # fmt: skip
    return [finding for check in checks for finding in check(settings)]


def _python(settings: Settings) -> list[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] in ((3, 11), (3, 12))
    return [_finding("python", ok, found, "make install PYTHON=/path/to/python3.11")]


def _java(settings: Settings) -> list[Check]:
    try:
        java = find_java()
    except HeadwaterError as error:
        return [Check("java", False, str(error), "make install")]
    return [Check("java", True, f"{java.version} from {java.source}, {java.home}")]


def _packages(settings: Settings) -> list[Check]:
    """Compare what is installed with the lock, where the lock is at hand."""
    from packaging.requirements import Requirement

    if not LOCK.exists():
        return [Check("packages", True, "installed without a lock")]
    lines = (line.removesuffix("\\").strip() for line in LOCK.read_text().splitlines())
    locked = [Requirement(line) for line in lines if "==" in line and not line.startswith(("#", "--"))]
    wrong = []
    for wanted in locked:
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} ({wanted.specifier})")
    found = f"{len(locked)} as locked" if not wrong else f"{len(wrong)} differ: {', '.join(wrong[:5])}"
    return [_finding("packages", not wrong, found, "make install")]


def _jars(settings: Settings) -> list[Check]:
    ok = all_cached()
    return [_finding("jars", ok, f"{'complete' if ok else 'incomplete'} in {cache_dir()}", "make install")]


def _memory(settings: Settings) -> list[Check]:
    total = psutil.virtual_memory().total / GIB
    mend = "Lower HEADWATER_FLINK_HEAP_MB and HEADWATER_SPARK_HEAP_MB, or use a larger machine."
    return [_finding("memory", total > MEMORY_GIB - 0.5, f"{total:.1f} GiB", mend)]  # firmware keeps some of it


def _disk(settings: Settings) -> list[Check]:
    place = next(
        folder for folder in (settings.state_dir.resolve(), *settings.state_dir.resolve().parents) if folder.exists()
    )
    free = shutil.disk_usage(place).free / GIB
    mend = f"Free {DISK_GIB} GiB, or set HEADWATER_STATE_DIR to a roomier place."
    return [_finding("disk", free >= DISK_GIB, f"{free:.1f} GiB free under {place}", mend)]


def _servers(settings: Settings) -> list[Check]:
    """Servers that the settings name have to answer."""
    findings = []
    if settings.kafka:
        mend = "Start it, or unset HEADWATER_KAFKA."
        findings.append(_finding("kafka", kafka.is_ready(settings.kafka), settings.kafka, mend))
    if settings.redis:
        fault = valkey.fault(settings.redis)
        findings.append(_finding("redis", fault is None, shown_url(settings.redis), fault or ""))
    return findings


def _ports(settings: Settings) -> list[Check]:
    """A port has to be free, or ours."""
    ours = {part.name for part in status(settings) if part.rss_mb is not None}
    findings = []
    for spec in PARTS:
        for setting, port_of in spec.ports.items():
            port = port_of(settings)
            if spec.existing(settings) is not None:
                continue
            if spec.name in ours:
                findings.append(Check(setting, True, f"{port}, {spec.name} runs there"))
                continue
            taken = is_taken(settings.host, port)
            mend = f"End it, or use HEADWATER_{setting.upper()}={next_free(settings.host, port + 1)}." if taken else ""
            found = f"{port} is taken by {holder(port)}" if taken else f"{port} is free"
            findings.append(_finding(setting, not taken, found, mend))
    return findings


def _finding(name: str, ok: bool, found: str, mend: str) -> Check:
    return Check(name, ok, found, "" if ok else mend)
