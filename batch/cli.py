"""The batch room's commands; engines are imported when a command runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit, progress

if TYPE_CHECKING:
    from datetime import timedelta

    from batch.audit import Audit
    from batch.shown import Asked
    from batch.skew import Skew
    from headwater.plan import FeaturePlan
    from headwater.settings import Settings

ViewOption = Annotated[list[str] | None, typer.Option("--view", help="Only this view; may be given again.")]

Since = Annotated[int, typer.Option("--since", help="Impressions from then on, epoch ms.", metavar="MS")]
Until = Annotated[int, typer.Option("--until", help="Impressions before then, epoch ms.", metavar="MS")]


def backfill(
    materialize: Annotated[bool, typer.Option("--materialize", help="Write to the online store.")] = False,
    view: ViewOption = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater backfill --materialize.

    Fold history into tiles, and with --materialize put them, and the newest ready-made rows, into the online store,
    beneath what the stream writes: what was imported and, of a view that is newer than its topic, what the archive has
    of before the stream folded it. Run again, it ends in the same bytes.
    """
    from batch.backfill import backfill as run
    from batch.session import spark_session

    settings, plan = _begin(repo)
    with progress() as bar:
        task = bar.add_task("backfill", total=len(view or (*plan.views, *plan.batch_views)))
        done = run(
            spark_session(settings), settings, plan, _now(settings) if materialize else 2**62, view, materialize,
            report=lambda name: bar.update(task, advance=1, description=f"backfill {name}"),
        )  # fmt: skip
    emit(asdict(done), as_json, "Backfill")


def training_set(
    service: Annotated[str, typer.Option("--service", help="Feature service whose columns to join.")] = "recommend",
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Parquet: join keys, event_timestamp, others to pass on; past requests if none."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to replace; the ranker's if none.", metavar="DIR")
    ] = None,
    as_known: Annotated[
        bool, typer.Option("--as-known/--as-of", help="Without or with what arrived after the label's instant.")
    ] = True,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Column of --labels that is a label, may be given again; label, label_* if none."),
    ] = None,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Write it even where features know the label.")
    ] = False,
    from_impressions: Annotated[
        bool, typer.Option("--from-impressions", help="Label what was shown by what became of it.")
    ] = False,
    until: Annotated[
        str | None, typer.Option("--until", help="Impressions: know nothing from this UTC instant on; now if none.")
    ] = None,
    train_until: Annotated[
        str | None, typer.Option("--train-until", help="Impressions: where training rows end, a UTC instant.")
    ] = None,
    gap: Annotated[
        str | None, typer.Option("--gap", help="From there to validation, as in 7d; the longest window if none.")
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option("--items", help="Impressions: Parquet of other join keys by item_id."),
    ] = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater training-set --labels labels.parquet --service recommend --out training/mine.

    Join each label with its features as they were known at its instant: exactly one row a label. With
    --from-impressions, rows are what was shown, labelled by labels.toml. With neither, past requests are drawn with the
    candidates that serving would have shown, and labelled by what was bought. Features that know the label are refused.
    """
    from batch.session import spark_session
    from batch.shown import build_shown_rows
    from batch.training_set import LeakCheck, build_ranking_rows, build_training_set
    from models.paths import paths_of

    if from_impressions:
        if labels is not None:
            raise typer.BadParameter("either --labels or --from-impressions makes the rows, not both")
        if label is not None or not as_known:
            raise typer.BadParameter("with --from-impressions labels.toml names the labels, and features are as known")
        if gap is not None and train_until is None:
            raise typer.BadParameter("--gap needs --train-until, from where it counts")
    elif any(given is not None for given in (until, train_until, gap, items)):
        raise typer.BadParameter("--until, --train-until, --gap and --items belong to --from-impressions")
    settings, plan = _begin(repo)
    target = out or paths_of(settings).rows
    check = LeakCheck(label, allow=allow_leaks)
    spark = spark_session(settings)
    if from_impressions:
        asked = _asked(settings, until, train_until, gap, items)
        made = build_shown_rows(spark, settings, plan, service, asked, target, check)
    elif labels is None:
        made = build_ranking_rows(spark, settings, plan, service, _now(settings), out=target, check=check)
    else:
        made = build_training_set(spark, settings, plan, service, labels, target, as_known, check)
    emit(asdict(made), as_json, "Training set")


def _asked(
    settings: "Settings", until: str | None, train_until: str | None, gap: str | None, items: Path | None
) -> "Asked":
    from batch.shown import Asked, Split

    split = Split(None if train_until is None else _instant(train_until), None if gap is None else _span(gap))
    return Asked.of(settings, _now(settings) if until is None else _instant(until), split, items)


def _instant(text: str) -> int:
    """Epoch milliseconds of a UTC instant."""
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no instant. Write it as 2017-11-01T00:00:00") from None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _span(text: str) -> "timedelta":
    from datetime import timedelta

    from headwater.spans import parse_span

    try:
        return timedelta(milliseconds=parse_span(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def audit(
    fresh_s: Annotated[
        float, typer.Option("--fresh-s", min=0, help="Seconds an event may be on its way to a served value.")
    ] = 60.0,
    since: Since = 0,
    until: Until = 2**62,
    as_archived: Annotated[
        bool, typer.Option("--as-archived", help="Do not ask Kafka whether all is archived; it need not run.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Read values now, instead of those served.")] = False,
    cells: Annotated[
        int | None, typer.Option("--cells", min=1, help="With --fresh: how many values, at least.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="With --fresh: draws other entities and instants.")] = 0,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater audit --json.

    Compute every vector that was served again with Spark from the archive, from the events that its marks name, and
    compare bit for bit. A value that lacked events which had arrived within --fresh-s is in flight; one that differs,
    or lacked others, is mismatched. --fresh (or --cells) instead reads 10,000 values from the online store, spread
    over all windowed views, and compares these.
    """
    if fresh or cells is not None:
        _audit_fresh(cells or 10_000, seed, repo, as_json)
        return
    from batch.audit import audit as run
    from batch.report import keep
    from batch.session import spark_session
    from streaming.archive import catch_up

    settings, plan = _begin(repo)
    if not as_archived:
        catch_up(settings)
    found = run(
        spark_session(settings), settings, plan, fresh_s, since, until,
        archived=lambda: None if as_archived else catch_up(settings),
    )  # fmt: skip
    keep(settings, found)
    if as_json:
        emit(found.as_dict(), True)
    else:
        _show(found)


def _audit_fresh(cells: int, seed: int, repo: Path | None, as_json: bool) -> None:
    from batch.parity import compare
    from batch.session import spark_session

    settings, plan = _begin(repo)
    found = compare(spark_session(settings), settings, plan, cells, seed, fresh_after_ms=_now(settings) - 60_000)
    result = {
        "vectors": found.vectors,
        "cells": found.cells_compared,
        "mismatched": found.cells_mismatched,
        "in_flight": found.in_flight,
        "by_feature": found.by_feature,
        "first": None if found.first is None else asdict(found.first),
    }
    emit(result, as_json, "Audit")


def _show(found: "Audit") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("feature", "compared", "mismatched", "in flight", "first that differs", title="Served = offline?")
    for name, tally in found.by_feature.items():
        first = "" if tally.first is None else ", ".join(f"{key} {told}" for key, told in tally.first.items())
        table.add_row(name, f"{tally.compared:,}", f"{tally.mismatched:,}", f"{tally.in_flight:,}", first)
    console = Console()
    console.print(table)
    console.print(
        f"{found.vectors:,} vectors of {found.impressions:,} replies, {found.cells:,} cells: {found.mismatched:,} "
        f"mismatched, {found.in_flight:,} in flight (within {found.fresh_s:g} s)."
    )
    if found.unmarked:
        console.print(f"{found.unmarked:,} replies were logged without marks and could not be audited.")


def skew(
    rows: Annotated[
        Path | None, typer.Option("--rows", help="Training set to compare with; the ranker's by default.")
    ] = None,
    since: Since = 0,
    until: Until = 2**62,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater skew --json.

    Compare the features of the training rows with those of the vectors served: population stability index,
    Kullback-Leibler divergence, and how many are absent. The result is kept in the state folder, under skew.
    """
    from batch.skew import keep
    from batch.skew import skew as run
    from headwater.clock import wall_ms
    from headwater.settings import get_settings
    from models.paths import paths_of

    settings = get_settings()
    found = run(settings, rows or paths_of(settings).rows, since, until)
    keep(settings, found, wall_ms())
    if as_json:
        emit(found.as_dict(), True)
    else:
        _show_skew(found)


def _show_skew(found: "Skew") -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{found.trained_rows:,} training rows and {found.served_vectors:,} served vectors of {found.service}"
    table = Table("feature", "PSI", "KL", "absent in training", "absent when served", title=title)
    for name, one in sorted(found.features.items(), key=lambda held: -(held[1].psi or 0.0)):
        psi, kl = ("" if value is None else f"{value:.3f}" for value in (one.psi, one.kl))
        table.add_row(name, psi, kl, f"{one.null_trained:.1%}", f"{one.null_served:.1%}")
    Console().print(table)


def retrain(
    once: Annotated[bool, typer.Option("--once", help="Now, in this process, instead of on the schedule.")] = False,
    day: Annotated[
        str | None,
        typer.Option(
            "--day", help="With --once: know what is known at its end, UTC, as 2017-11-26; the last whole day."
        ),
    ] = None,
    service: Annotated[str, typer.Option("--service", help="Feature service that the ranker reads.")] = "recommend",
    data: Annotated[Path | None, typer.Option("--data", help="Folder with items.parquet and users.parquet.")] = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater retrain --once --json.

    Make a new training set, train on it, and compare with the champion on newer requests: the new version becomes the
    challenger, or is refused by a gate of the repository's promotion.toml, saying which. Promoting it is up to you,
    unless that file says otherwise. Its page is written beside the bundles (headwater report). Without --once, show how
    the schedule and its web page are started, which keep the same history of runs.
    """
    from batch.history import dagster_home
    from batch.retrain import SparkSteps, known_until
    from headwater.datasets.complete_journey import home_of
    from headwater.settings import get_settings
    from models.gates import load_rules

    if not once:
        started = f"DAGSTER_HOME={dagster_home(get_settings())} dagster dev -m batch.assets"
        emit({"schedule": started, "once": "headwater retrain --once"}, as_json, "Retraining")
        return
    from batch.retraining import ASSETS, Retraining, last_whole_day, run_once

    settings, plan = _begin(repo)
    rules = load_rules(settings.repo)
    chosen = day or last_whole_day(known_until(settings, _now(settings)))
    with progress() as bar:
        task = bar.add_task("retrain", total=len(ASSETS))
        steps = SparkSteps(
            settings, plan, service, data or home_of(settings), lambda: _now(settings), rules.retraining,
            progress=lambda step: bar.update(task, advance=1, description=step),
        )  # fmt: skip
        emitted = run_once(Retraining(steps, rules, retries=False), chosen, dagster_home(settings))
    emit(emitted, as_json, "Retrained")


def rollout(
    version: Annotated[str | None, typer.Argument(help="Begin with this bundle.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Withdraw what is under way.")] = False,
    service: Annotated[str, typer.Option("--service", help="Feature service that the ranker reads.")] = "recommend",
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater rollout 7

    Bring a bundle to serve by the steps of promotion.toml: its scores first, then some of the users, then all. Without
    a version, look at the rollout that is under way: it moves on where a step is over, and ends where the bundle
    fails. Dagster looks every five minutes (headwater retrain).
    """
    from batch.rollout import rollouts_of

    settings, plan = _begin(repo)
    rollouts = rollouts_of(settings, plan.schema_hash(service), lambda: _now(settings))
    if version is not None:
        rollouts.begin(version)
    found = rollouts.stop() if stop else rollouts.look()
    emit({"result": "none is under way"} if found is None else asdict(found), as_json, "Rollout")


def _begin(repo: Path | None) -> tuple["Settings", "FeaturePlan"]:
    from headwater.registry.manifest import load_plan
    from headwater.settings import get_settings

    settings = get_settings()
    if repo is not None:
        settings = settings.model_copy(update={"repo": repo})
    return settings, load_plan(settings.repo)


def _now(settings: "Settings") -> int:
    """Tell the platform's time, which a replay moves."""
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.settings import addresses

    with connect(addresses(settings).redis) as client:
        return StoredClock(client).now_ms()
