"""The commands ``headwater stream`` and ``headwater archive``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit
from streaming.archive_cli import archive

if TYPE_CHECKING:
    from headwater.settings import Settings

__all__ = ["archive", "stream"]

FlinkOption = Annotated[
    str | None, typer.Option("--flink", help="A Flink cluster's REST address; else HEADWATER_FLINK.", metavar="URL")
]

stream = typer.Typer(
    no_args_is_help=True,
    help="Example: headwater stream status --json\n\nThe Flink job that folds events into features.",
)


@stream.command()
def plan(repo: RepoOption = None, as_json: JsonFlag = False) -> None:
    """Example: headwater stream plan.

    Say what the next start would go on from and why, and how to backfill what is new then; then print the job's SQL as
    compiled from the feature definitions, and what it keeps for each table of tiles.
    """
    from headwater.registry.manifest import load_plan
    from streaming.job import program_of
    from streaming.lineage import next_start
    from streaming.sql import describe

    settings = _settings(repo)
    features = load_plan(settings.repo)
    start, cuts, told = next_start(features, settings)
    lineage = start.lineage
    program = program_of(features, settings, lineage.group, lineage.layout, cuts, lineage.forgotten)
    if as_json:
        emit({"next_start": told, "tables": describe(program), "sql": program.statements}, as_json)
        return
    emit(told, as_json, "Next start")
    for statement in program.statements:
        typer.echo(statement + ";\n")
    for table in describe(program):
        emit(table, as_json, str(table["view"]))


@stream.command()
def run(repo: RepoOption = None) -> None:
    """Example: headwater stream run.

    Run the job in the foreground until Ctrl-C; its state is kept and found again by the next start.
    """
    from streaming.job import main

    raise typer.Exit(main(_settings(repo)))


@stream.command()
def submit(
    parallelism: Annotated[int | None, typer.Option(help="Subtasks; by default as the cluster is set.", min=1)] = None,
    savepoint: Annotated[str | None, typer.Option("--from", help="Savepoint or checkpoint to go on from.")] = None,
    flink: FlinkOption = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater stream submit --flink http://jobmanager:8081 --parallelism 4.

    Start the job on a Flink cluster, where it stays. If it runs there already from the same definitions, nothing is
    done. Checkpoints go to HEADWATER_CHECKPOINTS, a URI that all machines of the cluster reach.
    """
    from headwater.registry.manifest import load_plan
    from streaming import cluster
    from streaming.job import cluster_of, program_of

    settings = _settings(repo, flink)
    plan = load_plan(settings.repo)
    cluster_of(plan, settings)
    statements = program_of(plan, settings).statements
    emit(cluster.submit(settings, plan.project, statements, parallelism, savepoint), as_json, "Stream")


@stream.command()
def status(flink: FlinkOption = None, repo: RepoOption = None, as_json: JsonFlag = False) -> None:
    """Example: headwater stream status --json.

    Print the job's state, what it has not read, what lies beyond its newest checkpoint, what it has written and how
    soon, what was refused, and how old and large that checkpoint is: the facts that Prometheus is told.
    """
    from headwater.registry.manifest import load_plan
    from streaming import telemetry

    settings = _settings(repo, flink)
    emit(telemetry.status(settings, load_plan(settings.repo)), as_json, "Stream")


@stream.command()
def wait(
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.")] = 300.0,
    flink: FlinkOption = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater stream wait --timeout 60.

    Wait until all events that Kafka holds now are readable online; exit 1 if that takes longer.
    """
    from streaming.progress import wait_until_caught_up

    caught_up = wait_until_caught_up(_settings(repo, flink), timeout_s)
    emit({"caught_up": caught_up}, as_json, "Stream")
    if not caught_up:
        raise typer.Exit(1)


def _settings(repo: Path | None, flink: str | None = None) -> "Settings":
    from headwater.settings import get_settings

    given = {"repo": repo, "flink": flink}
    return get_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
