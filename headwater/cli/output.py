"""Results on stdout, progress on stderr."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

err = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
RepoOption = Annotated[Path | None, typer.Option("--repo", help="Another Feast repository.", metavar="DIR")]


def emit(result: Mapping[str, Any], as_json: bool, title: str = "") -> None:
    """Print a result: one JSON object, or a two-column table for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=str) + "\n")
        sys.stdout.flush()
        return
    table = Table("", "", title=title or None, show_header=False)
    for key, value in result.items():
        table.add_row(
            key.replace("_", " "), json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
        )
    Console().print(table)


def progress() -> Progress:
    """Draw a progress bar on stderr: ``with progress() as bar: bar.add_task(label, total=n)``."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=not err.is_terminal,
    )
