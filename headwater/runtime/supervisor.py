"""Starts the platform's parts, tells how they are, and ends them by pid, with nothing half-started and no orphan."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError, ResourceError, UnavailableError
from headwater.files import write_whole
from headwater.runtime.parts import Spec, environment, find
from headwater.runtime.ports import comes_free, holder, next_free
from headwater.runtime.process import Process, end, last_lines, spawn, undivided
from headwater.runtime.ready import ready_path
from headwater.settings import Settings

NEEDED_GIB = 1.0
POLL_S = 0.1

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """How one part is: without a pid it is somebody else's server, which the settings name."""

    name: str
    pid: int | None
    address: str
    ready: bool
    rss_mb: int | None = None
    last_log: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """What ``status --json`` prints: no log for a part that is well."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != []} | {
            "pid": self.pid
        }


@dataclass(frozen=True, slots=True)
class Record:
    """A part that was started, as ``run/parts.json`` keeps it."""

    name: str
    pid: int
    address: str
    started: float
    create_time: float
    ready: bool = False

    @property
    def process(self) -> Process:
        return Process(self.pid, self.create_time)


def start(settings: Settings, names: Sequence[str] | None = None, tell: Tell = lambda line: None) -> list[Part]:
    """Start what does not run yet and wait until it answers; ``None`` is every part that can start.

    Parameters
    ----------
    tell
        Called with one line of progress at a time.

    Raises
    ------
    UnavailableError
        A part ended or does not answer; what this call had started has been ended again.
    ResourceError
        A port is taken or the disk is full; nothing has been started.
    """
    specs = find(None if names is None else list(names))
    if names is None:
        specs = [spec for spec in specs if spec.lacking(settings) is None]
    with _exclusive(settings):
        idle = [spec for spec in specs if spec.existing(settings) is None and not _runs(settings, spec)]
        _check(settings, idle)
        begun: list[Record] = []
        try:
            for _, tier in groupby(specs, key=lambda spec: spec.tier):
                _start_tier(settings, list(tier), begun, tell)
        except BaseException:
            _end(settings, begun)
            raise
    return [part for part in status(settings) if part.name in {spec.name for spec in specs}]


def stop(settings: Settings, names: Sequence[str] | None = None) -> list[str]:
    """End what runs, last started first; return the names."""
    wanted = {spec.name for spec in find(None if names is None else list(names))}
    with _exclusive(settings):
        return _end(settings, [record for record in recorded(settings) if record.name in wanted])


def status(settings: Settings) -> list[Part]:
    """Ask every part that was started, and every server that the settings name."""
    records = {record.name: record for record in recorded(settings)}
    parts = []
    for spec in find(None):
        if (existing := spec.existing(settings)) is not None:
            parts.append(Part(spec.name, None, existing, spec.answers(settings, 0)))
        elif spec.name in records:
            parts.append(_look(settings, spec, records[spec.name]))
    return parts


def part_is_ready(settings: Settings, name: str) -> bool:
    """Whether the part runs and answers."""
    return any(part.name == name and part.ready for part in status(settings))


def log_path(settings: Settings, name: str) -> Path:
    """What the part says goes here."""
    return settings.log_dir / f"{name}.log"


def _start_tier(settings: Settings, specs: list[Spec], begun: list[Record], tell: Tell) -> None:
    waiting = []
    for spec in specs:
        if (existing := spec.existing(settings)) is not None:
            _require_existing(settings, spec, existing)
        elif (record := _recorded(settings, spec)) is not None:
            tell(f"{spec.name}: runs already, pid {record.pid}")
            waiting.append((spec, record))
        else:
            _begin(settings, spec, begun)
            waiting.append((spec, begun[-1]))
    for spec, record in _await(settings, waiting, begun):
        spec.once_ready(settings)
        if not record.ready:
            _save(settings, record.name, replace(record, ready=True))
            tell(f"{spec.name}: answers, pid {record.pid}")


def _begin(settings: Settings, spec: Spec, begun: list[Record]) -> None:
    if (reason := spec.lacking(settings)) is not None:
        raise UnavailableError(f"{spec.name}: cannot start, {reason}.")
    ready_path(settings, spec.name).unlink(missing_ok=True)
    command, log = spec.command(settings), log_path(settings, spec.name)
    if log.exists():
        os.replace(log, log.with_suffix(".log.1"))  # so that a crash is told by its own last lines
    started = time.time()  # for people and timeouts, never for meaning
    address, env = spec.address(settings), environment(settings)
    with undivided():
        process = spawn(command, log, env)
        begun.append(Record(spec.name, process.pid, address, started, process.create_time))
        _save(settings, spec.name, begun[-1])


def _await(settings: Settings, waiting: list[tuple[Spec, Record]], begun: list[Record]) -> list[tuple[Spec, Record]]:
    """Return them once all answer; the first that ends is told at once.

    One that had answered before, and ends now, was ending when it was met: it is begun anew.
    """
    began = time.monotonic()
    parts, pending = list(waiting), [*range(len(waiting))]
    while pending:
        for at in tuple(pending):
            spec, record = parts[at]
            answers = spec.answers(settings, record.pid)
            if not record.process.is_alive():
                if not record.ready:
                    raise UnavailableError(_obituary(settings, spec, "ended while starting"))
                _begin(settings, spec, begun)
                parts[at] = (spec, begun[-1])
            elif answers:
                pending.remove(at)
            elif time.monotonic() - began > spec.patience_s:
                raise UnavailableError(_obituary(settings, spec, f"did not answer within {spec.patience_s:.0f} s"))
        time.sleep(POLL_S if pending else 0)
    return parts


def _obituary(settings: Settings, spec: Spec, fate: str) -> str:
    log = log_path(settings, spec.name)
    lines = "".join(f"\n  {line}" for line in last_lines(log))
    return f"{spec.name}: {fate}, and what was started with it has been ended. The last lines of {log}:{lines}"


def _require_existing(settings: Settings, spec: Spec, address: str) -> None:
    if not spec.answers(settings, 0):
        variable = "HEADWATER_KAFKA" if spec.name == "kafka" else "HEADWATER_REDIS"
        raise UnavailableError(
            f"{spec.name} at {address}: does not answer. {spec.fault(settings) or 'Start that server.'} "
            f"Without {variable} a local one is used."
        )
    spec.once_ready(settings)


def _look(settings: Settings, spec: Spec, record: Record) -> Part:
    if not record.process.is_alive():
        return Part(spec.name, record.pid, record.address, False, None, last_lines(log_path(settings, spec.name)))
    ready = record.address == spec.address(settings) and spec.answers(settings, record.pid)
    return Part(spec.name, record.pid, record.address, ready, record.process.rss_mb())


def _runs(settings: Settings, spec: Spec) -> bool:
    record = _recorded(settings, spec)
    if record is not None and record.address != spec.address(settings):
        raise ConfigError(
            f"{spec.name}: runs at {record.address} and the settings say {spec.address(settings)}. "
            f"Run `headwater down` first, or go back to the former setting."
        )
    return record is not None


def _recorded(settings: Settings, spec: Spec) -> Record | None:
    return next((r for r in recorded(settings) if r.name == spec.name and r.process.is_alive()), None)


def _check(settings: Settings, specs: list[Spec]) -> None:
    """Refuse before anything is started."""
    for spec in specs:
        for setting, port_of in spec.ports.items():
            port = port_of(settings)
            if not comes_free(settings.host, port):
                raise ResourceError(
                    f"{spec.name}: port {port} is taken by {holder(port)}. "
                    f"End it, or use HEADWATER_{setting.upper()}={next_free(settings.host, port + 1)}."
                )
    free = shutil.disk_usage(settings.state_dir).free / 2**30
    if specs and free < NEEDED_GIB:
        raise ResourceError(
            f"disk: {free:.1f} GiB are free under {settings.state_dir.resolve()} and {NEEDED_GIB:.0f} is needed. "
            f"Free some, or set HEADWATER_STATE_DIR to a roomier place."
        )


def _end(settings: Settings, records: list[Record]) -> list[str]:
    """End the tiers in the reverse of their order, and the parts of a tier side by side."""
    alive = [record.name for record in reversed(records) if record.process.is_alive()]
    tiers = {spec.name: spec.tier for spec in find(None)}
    for _, tier in groupby(sorted(records, key=lambda record: -tiers[record.name]), key=lambda r: tiers[r.name]):
        parts = list(tier)
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(end, [record.process for record in parts]))
        for record in parts:
            _save(settings, record.name, None)
            ready_path(settings, record.name).unlink(missing_ok=True)
    return alive


@contextmanager
def _exclusive(settings: Settings) -> Iterator[None]:
    """One ``up`` or ``down`` at a time."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with (settings.run_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recorded(settings: Settings) -> list[Record]:
    """Every part that was started and not ended, whether it still runs or not."""
    try:
        kept = json.loads((settings.run_dir / "parts.json").read_text())
    except FileNotFoundError:
        return []
    return [Record(**record) for record in kept]


def _save(settings: Settings, name: str, record: Record | None) -> None:
    others = [other for other in recorded(settings) if other.name != name]
    kept = [asdict(one) for one in (*others, *([record] if record else []))]
    write_whole(settings.run_dir / "parts.json", json.dumps(kept, indent=1))
