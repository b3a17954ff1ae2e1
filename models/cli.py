"""Commands that train, compare and name versions; the heavy imports are inside them."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit, progress
from headwater.errors import ConfigError
from headwater.settings import Settings, get_settings
from models.tower_config import UserTowerKind

if TYPE_CHECKING:
    from headwater.plan import FeaturePlan
    from models.training import Service
    from models.trial import Cost

train = typer.Typer(
    no_args_is_help=True,
    help="Example: headwater train retriever --json\n\nTrain the towers, then, on the rows that "
    "headwater training-set made, the ranker and its bundle.",
)

feature = typer.Typer(
    no_args_is_help=True,
    help="Example: headwater feature trial user_category_activity\n\nQuestions about single features.",
)


@feature.callback()
def _features() -> None:
    """A group, though it has one command so far."""


BeforeOption = Annotated[
    str | None, typer.Option("--before", help="Know nothing from this UTC instant on; the archive's end by default.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder with items.parquet and users.parquet.")]
ServiceOption = Annotated[str, typer.Option("--service", help="Feature service that the ranker reads.")]
VersionArgument = Annotated[str, typer.Argument(help="A bundle's version.")]


@train.command("retriever")
def train_retriever(
    before: BeforeOption = None,
    data: DataOption = None,
    passes: int | None = None,
    user_tower: Annotated[
        UserTowerKind,
        typer.Option("--user-tower", help="What tells of the last products: their mean, or a transformer with time."),
    ] = "mean",
    json_: JsonFlag = False,
) -> None:
    """Example: headwater train retriever --user-tower transformer --json

    Train the two towers on the purchases before the ranker's requests begin, and index their items. A training that was
    ended goes on.
    """
    from models import training
    from models.paths import paths_of
    from models.requests import DEFAULT_SAMPLING

    settings = get_settings()
    cutoff_ms = DEFAULT_SAMPLING.start_ms(_until(settings, before))
    with progress() as bar:
        task = bar.add_task("towers", total=None)
        retriever = training.train_retriever(
            settings, _home(settings, data), cutoff_ms, passes,
            lambda done, total: bar.update(task, completed=done, total=total), user_tower,
        )  # fmt: skip
    emit(
        {
            "users": len(retriever.users), "items": len(retriever.items), "examples": retriever.provenance.examples,
            "cutoff_ms": cutoff_ms, "directory": str(paths_of(settings).retriever),
        },
        json_, "Retriever",
    )  # fmt: skip


@train.command("ranker")
def train_ranker(
    before: BeforeOption = None,
    service: ServiceOption = "recommend",
    rows: Annotated[Path | None, typer.Option(help="Training rows; the state folder's by default.")] = None,
    data: DataOption = None,
    promote: Annotated[bool, typer.Option("--promote", help="Serve the bundle at once.")] = False,
    repo: RepoOption = None,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater train ranker --promote --json

    Train the ranker on the training rows and publish a bundle.
    """
    from models import registry, training
    from models.ranking import importances

    settings = get_settings()
    with progress() as bar:
        task = bar.add_task("ranker", total=None)
        meta, fitted = training.train_ranker(
            settings, _service(settings, service, repo), _now_ms(settings), _until(settings, before), rows=rows,
            progress=lambda done, total: bar.update(task, completed=done, total=total), repo=repo,
            home=_home(settings, data),
        )  # fmt: skip
    if promote:
        registry.promote(settings, meta.version)
    page = _report(settings, meta.version, rows)
    strongest = {name: round(share, 4) for name, share in list(importances(fitted.ranker).items())[:10]}
    moved = {name: round(share, 4) for name, share in list(fitted.contributions.items())[:10]}
    emit(
        {
            "version": meta.version, "promoted": promote, "objectives": [head.name for head in fitted.heads],
            "metrics": meta.metrics, "strongest_features": strongest, "mean_contributions": moved,
            "report": page,
        },
        json_, "Bundle",
    )  # fmt: skip


@train.command("propensities")
def train_propensities(
    rows: Annotated[Path | None, typer.Option(help="Rows of what was shown; the training rows by default.")] = None,
    column: Annotated[str, typer.Option(help="Column that says what was clicked.")] = "click",
    randomised: Annotated[bool, typer.Option("--randomised", help="The order of all rows' lists was random.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater train propensities --rows training/shown --json

    Estimate how often each position is looked at, from what was clicked of rows that headwater training-set
    --from-impressions made: of items that the same user met at several positions, or of lists in random order. What is
    found is declared in objectives.toml, which the next training of the ranker reads.
    """
    from models.paths import paths_of
    from models.propensity import read_propensities

    found = read_propensities(rows or paths_of(get_settings()).rows, column, randomised)
    emit(
        {
            "propensities": list(found.known),
            "positions": [
                {"position": at, "value": value, "low": low, "high": high}
                for at, (value, low, high) in enumerate(found.rounded(), start=1)
            ],
            "declare": f"propensities = {list(found.known)}",
        },
        json_, "Propensities",
    )  # fmt: skip


def tune(
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier runs included.", min=1)] = 50,
    service: ServiceOption = "recommend",
    rows: Annotated[Path | None, typer.Option(help="Training rows; the state folder's by default.")] = None,
    repo: RepoOption = None,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater tune --trials 50 --json

    Search settings of the ranker on the training rows, whose later requests judge; the next training takes them.
    A search that was ended goes on.
    """
    from models import tuning
    from models.objectives import load_objectives
    from models.paths import paths_of
    from models.propensity import settled
    from models.ranking import read_rows
    from models.training import declared_config

    settings = get_settings()
    paths, read = paths_of(settings), _service(settings, service, repo)
    folder = rows or paths.rows
    base = declared_config(read, settled(load_objectives(repo or settings.repo), folder))
    table = read_rows(folder, read.feature_names, base.declared)
    with progress() as bar:
        task = bar.add_task("trials", total=trials)
        tuned = tuning.tune(
            table, read.feature_names, paths.studies, trials, base,
            progress=lambda done, total, told: bar.update(task, completed=done, total=total, description=told),
        )  # fmt: skip
    tuning.keep(tuned, paths.tuned, read.schema_hash)
    emit(asdict(tuned) | {"kept": str(paths.tuned)}, json_, "Tuning")


@feature.command("trial")
def trial(
    view: Annotated[str, typer.Argument(help="A view of the feature repository.")],
    service: ServiceOption = "recommend",
    rows: Annotated[Path | None, typer.Option(help="Training rows; the state folder's by default.")] = None,
    repo: RepoOption = None,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater feature trial user_category_activity --json

    Train the ranker with and without a view, and report the lift on the later requests with its interval, and what the
    view takes in the store: bytes, reading, tiles an event. What the store does not tell is left out.
    """
    from headwater.registry.manifest import load_plan
    from models.objectives import load_objectives
    from models.paths import paths_of
    from models.propensity import settled
    from models.ranking import read_rows
    from models.training import ranker_config
    from models.trial import Trial, features_of, lift

    settings = get_settings()
    plan, read, paths = load_plan(repo or settings.repo), _service(settings, service, repo), paths_of(settings)
    without = features_of(plan, service, view)
    folder = rows or paths.rows
    config = ranker_config(paths, read, settled(load_objectives(repo or settings.repo), folder))
    table = read_rows(folder, read.feature_names, config.declared)
    with progress() as bar:
        bar.add_task(f"with and without {view}", total=None)
        both, alone, gain, requests = lift(table, read.feature_names, without, config)
    found = Trial(view, without, round(both, 5), round(alone, 5), gain, requests, _cost(settings, plan, view))
    emit(found.as_dict(), json_, f"Trial of {view}")


def promote(
    version: VersionArgument, alias: str = "champion", repo: RepoOption = None, json_: JsonFlag = False
) -> None:
    """Example: headwater promote 3

    Let a bundle serve, or name it challenger.
    """
    from models import registry

    settings = get_settings()
    applied = _applied(settings, version, repo)
    registry.promote(settings, version, alias, applied.schema_hash, applied.feature_hashes)
    emit(registry.read_aliases(settings), json_, "Aliases")


def rollback(json_: JsonFlag = False) -> None:
    """Example: headwater rollback

    Serve the champion before the present one.
    """
    from models import registry

    settings = get_settings()
    registry.rollback(settings)
    emit(registry.read_aliases(settings), json_, "Aliases")


def compare(
    first: VersionArgument,
    second: VersionArgument,
    rows: Annotated[Path | None, typer.Option(help="Rows to judge by; the training rows by default.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater compare 2 3 --json

    Judge two bundles on the same labelled rows, request by request; new rows, or the later one is flattered.
    """
    from models.bundle import load_bundle
    from models.comparison import compare_rankers
    from models.paths import paths_of

    settings = get_settings()
    bundles = [load_bundle(settings.bundles_dir / version) for version in (first, second)]
    emit(compare_rankers(rows or paths_of(settings).rows, *bundles).as_dict(), json_, f"{second} over {first}")


def report(
    version: VersionArgument,
    against: Annotated[
        str | None, typer.Option("--against", help="Version to compare with; the champion if none.")
    ] = None,
    rows: Annotated[Path | None, typer.Option("--rows", help="Rows to judge by; the newest known if none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; beside the bundles if none.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater report 3 --out report.html

    Write one page about a bundle: quality by segment beside the champion and the rules, calibration, what its lists
    show, which features matter, where it comes from, and its gates. Also kept with its run in MLflow.
    """
    from models.evaluation.report import write_report

    path = write_report(get_settings(), version, against, rows, out)
    emit({"version": version, "report": str(path)}, json_, "Report")


def validate(before: BeforeOption = None, data: DataOption = None, json_: JsonFlag = False) -> None:
    """Example: headwater validate --before 2017-10-21T19:53:48 --json

    Score the rules that need no training, and retrieval alone, on what was bought after an instant.
    """
    from models.comparison import evaluate_rules

    settings = get_settings()
    if before is None:
        raise ConfigError("--before: missing. Name the instant at which the lists are made, in UTC.")
    emit(evaluate_rules(settings, _home(settings, data), _until(settings, before)), json_, "Rules")


def _until(settings: Settings, before: str | None) -> int:
    """Epoch milliseconds of an ISO instant in UTC, or just after the archive's newest event."""
    if before is None:
        from models.interactions import newest_ms

        return newest_ms(settings.events_dir) + 1
    try:
        instant = datetime.fromisoformat(before)
    except ValueError:
        raise ConfigError(f"--before: {before!r} is no instant. Write 2017-11-26T14:56:44.") from None
    from datetime import UTC

    return round(instant.replace(tzinfo=instant.tzinfo or UTC).timestamp() * 1000)


def _now_ms(settings: Settings) -> int:
    """Tell the platform's time, the wall clock's where no store answers."""
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.settings import addresses

    return StoredClock(connect(addresses(settings).redis, socket_connect_timeout=0.5)).now_ms()


def _home(settings: Settings, data: Path | None) -> Path:
    from headwater.datasets.complete_journey import home_of

    return data or home_of(settings)


def _service(settings: Settings, name: str, repo: Path | None) -> "Service":
    from headwater.registry.manifest import load_plan
    from models.training import Service

    plan = load_plan(repo or settings.repo)
    return Service(name, plan.service(name).names, plan.schema_hash(name), plan.feature_hashes(name))


def _cost(settings: Settings, plan: "FeaturePlan", view: str) -> "Cost | None":
    """What a view takes online; ``None`` where no store answers."""
    from headwater.clock import StoredClock
    from headwater.errors import UnavailableError
    from headwater.log import get_logger
    from headwater.online.connect import connect
    from headwater.online.reader import OnlineReader
    from headwater.settings import addresses
    from models.trial import cost_of

    try:
        client = connect(addresses(settings).redis, socket_connect_timeout=0.5)
        return cost_of(plan, view, client, OnlineReader(client, plan, StoredClock(client)))
    except (UnavailableError, OSError) as error:
        get_logger("models").warning("cost_unknown", reason=str(error))
        return None


def _report(settings: Settings, version: str, rows: Path | None) -> str | None:
    """Path of a new version's page; ``None``, with a line in the log, where its rows do not suffice for one."""
    from headwater.errors import HeadwaterError
    from headwater.log import get_logger
    from models.evaluation.report import write_report

    try:
        return str(write_report(settings, version, rows=rows))
    except HeadwaterError as error:
        get_logger("models").warning("report_left", version=version, reason=str(error))
        return None


def _applied(settings: Settings, version: str, repo: Path | None) -> "Service":
    """The service that a bundle reads, as it is applied."""
    from models.bundle import check_bundle

    return _service(settings, check_bundle(settings.bundles_dir / version).service, repo)
