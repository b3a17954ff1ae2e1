"""``headwater up | down | status | doctor``."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from headwater.cli.output import JsonFlag, emit, err
from headwater.settings import get_settings

Only = Annotated[str | None, typer.Option("--only", help="Parts, comma-separated.", metavar="NAME,NAME")]


def up(only: Only = None, as_json: JsonFlag = False) -> None:
    """Example: headwater up --only kafka,valkey

    Start the servers on this machine and leave them running: Kafka, the online store, and as soon as there is
    something for them to do, the stream, the archive and the gRPC server. Returns once they answer; what runs already
    is left alone.
    """
    from headwater.runtime import supervisor
    from headwater.runtime.parts import find

    settings = get_settings()
    parts = supervisor.start(settings, _names(only), tell=_progress)
    if only is None:
        for spec in find(None):
            if (reason := spec.lacking(settings)) is not None:
                _progress(f"{spec.name}: not started, {reason}")
    _print_parts(parts, as_json)


def down(only: Only = None, as_json: JsonFlag = False) -> None:
    """Example: headwater down

    End what ``headwater up`` started, and nothing else. What they stored stays.
    """
    from headwater.runtime import supervisor

    ended = supervisor.stop(get_settings(), _names(only))
    if as_json:
        emit({"ended": ended}, as_json=True)
    else:
        err.print(f"Ended {', '.join(ended)}." if ended else "Nothing was running.")


def status(as_json: JsonFlag = False) -> None:
    """Example: headwater status --json

    Tell which parts run and whether they answer; of one that has ended, its last log lines.
    """
    from headwater.runtime import supervisor

    _print_parts(supervisor.status(get_settings()), as_json)


def doctor(as_json: JsonFlag = False) -> None:
    """Example: headwater doctor

    Check Python, Java, packages, jars, memory, disk and ports, and say how to mend what is missing.
    """
    from headwater.runtime.doctor import examine

    checks = examine(get_settings())
    if as_json:
        emit({"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}, as_json=True)
    else:
        _print_table(
            ("", "check", "found", "to mend"),
            [("ok" if check.ok else "NO", check.name, check.found, check.mend) for check in checks],
        )
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _names(only: str | None) -> list[str] | None:
    return None if only is None else [name.strip() for name in only.split(",") if name.strip()]


def _progress(line: str) -> None:
    err.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_parts(parts: list[Any], as_json: bool) -> None:
    if as_json:
        emit({"parts": [part.as_dict() for part in parts]}, as_json=True)
        return
    if not parts:
        err.print("Nothing runs. Start it with `headwater up`.")
        return
    _print_table(
        ("part", "pid", "address", "ready", "memory"),
        [
            (
                part.name,
                part.pid or "",
                part.address,
                "yes" if part.ready else "NO",
                f"{part.rss_mb} MiB" if part.rss_mb else "",
            )
            for part in parts
        ],
    )
    for part in parts:
        if part.last_log:
            err.print(
                f"{part.name} has ended. Its last lines:\n" + "\n".join(part.last_log), highlight=False, markup=False
            )


def _print_table(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
