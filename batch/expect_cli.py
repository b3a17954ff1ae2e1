"""The command ``headwater expect``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit

if TYPE_CHECKING:
    from headwater.expectations import Finding


def expect(
    training_set: Annotated[
        Path | None, typer.Option("--training-set", help="Folder of one; the ranker's if none.", metavar="DIR")
    ] = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater expect --json.

    Hold archived events, a training set and the vectors served lately against the repository's expectations.toml:
    ranges, shares without a value, allowed texts, rows per day, the newest event. Exit 1 where one does not hold.
    """
    from batch.cli import _begin, _now
    from batch.expect import check_events, check_served, check_training_set
    from headwater.expectations import load_expectations
    from models.paths import paths_of

    settings, plan = _begin(repo)
    expectations = load_expectations(plan)
    now_ms = _now(settings) if any(one.newest_within for one in expectations.events.values()) else 0
    found = list(check_events(settings, plan, expectations, now_ms))
    rows = training_set or paths_of(settings).rows
    if training_set is not None or rows.is_dir():
        found += check_training_set(rows, expectations)
    found += check_served(settings, expectations)
    failed = [finding for finding in found if not finding.holds]
    if as_json:
        emit({"holds": not failed, "findings": [asdict(finding) for finding in found]}, as_json)
    else:
        _show(found)
    if failed:
        raise typer.Exit(1)


def _show(found: "list[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("of", "subject", "expected", "rows", "failed", "holds", "such as", title="Expectations")
    for one in found:
        failed = f"{one.failed} ({one.failed / max(one.rows, 1):.2%})" if one.failed else "0"
        holds = "yes" if one.holds else "no"
        table.add_row(one.place, one.subject, one.expected, str(one.rows), failed, holds, ", ".join(one.examples))
    Console().print(table)
