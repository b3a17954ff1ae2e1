"""Retraining and the audit as Dagster assets on a schedule: ``dagster dev -m batch.assets``.

``enough_that_is_new`` starts a retraining between two nights where much was bought.

``bundle`` trains, ``judgement`` scores it beside the champion on newer requests, ``verdict`` names a challenger or
refuses. ``served_equals_offline`` audits what was served in the last two hours, every hour, so that each reply is in
two audits; it fails where a cell is mismatched. Their heavy parts come from the resources ``retraining`` and
``auditing``, which a test replaces.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")  # it would report to its makers; read as it is imported

import dagster as dg  # whose decorators have no types, so mypy is told to let them pass where they stand

from batch.audit import Audit
from batch.retrain import JUDGED, Judgement, SparkSteps, Steps, Verdict, decide, known_until
from models.gates import DEFAULT_RULES, Rules

if TYPE_CHECKING:
    from headwater.settings import Settings

SERVICE = "recommend"
NIGHTLY, HOURLY = "0 3 * * *", "17 * * * *"
AUDITED = timedelta(hours=2)
LOOKED_EVERY_S = 600
NEEDED = {"retraining"}
RETRIES = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL)
"""For what a server that is down makes fail; a refusal is no failure."""


@dataclass(frozen=True)
class Retraining:
    """The steps, and the end of what they may know."""

    steps: Steps
    until_ms: int
    rules: Rules = DEFAULT_RULES


@dg.resource(description="Towers, features, ranker and registry of this state folder.")  # type: ignore[untyped-decorator]
def real_retraining(_: Any) -> Retraining:
    """Build the real steps from the process's settings."""
    from headwater.clock import StoredClock
    from headwater.datasets.complete_journey import home_of
    from headwater.online.connect import connect
    from headwater.registry.manifest import load_plan
    from headwater.settings import addresses, get_settings
    from models.gates import load_rules

    settings = get_settings()
    clock = StoredClock(connect(addresses(settings).redis))
    steps = SparkSteps(settings, load_plan(settings.repo), SERVICE, home_of(settings), clock.now_ms)
    return Retraining(steps, known_until(settings, clock.now_ms()), load_rules(settings.repo))


@dataclass(frozen=True)
class News:
    """Purchases since the champion's training whose labels are final, and how many are wanted; ``None`` for never."""

    champion: str | None
    purchases: int
    wanted: int | None


@dg.resource(description="What was bought since the champion of this state folder was trained.")  # type: ignore[untyped-decorator]
def real_news(_: Any) -> Callable[[], News]:
    """Build it from the process's settings."""
    from headwater.settings import get_settings

    return lambda: count_news(get_settings())


def count_news(settings: "Settings") -> News:
    """Count what a retraining would learn from beside what the champion has.

    A label is final once its horizon has passed, so purchases that are newer do not count yet.
    """
    from models import registry
    from models.bundle import check_bundle
    from models.gates import load_rules
    from models.interactions import newest_ms, read_purchases
    from models.requests import DEFAULT_SAMPLING

    wanted, champion = load_rules(settings.repo).retraining.new_purchases, registry.champion(settings)
    if wanted is None or champion is None:
        return News(None if champion is None else champion.name, 0, wanted)
    horizon_ms = DEFAULT_SAMPLING.horizon // timedelta(milliseconds=1)
    bought = read_purchases(settings.events_dir, newest_ms(settings.events_dir) + 1 - horizon_ms)
    since = check_bundle(champion).training_end_ms - horizon_ms
    return News(champion.name, int((bought["event_time"] >= since).sum()), wanted)


@dg.asset(required_resource_keys=NEEDED, retry_policy=RETRIES, description="A newly trained bundle: its version.")  # type: ignore[untyped-decorator]
def bundle(context: dg.AssetExecutionContext) -> str:
    """Train on what was known before the judged period."""
    retraining: Retraining = context.resources.retraining
    return retraining.steps.train(retraining.until_ms - round(JUDGED.total_seconds() * 1000))


@dg.asset(required_resource_keys=NEEDED, retry_policy=RETRIES, description="The bundle beside the champion.")  # type: ignore[untyped-decorator]
def judgement(context: dg.AssetExecutionContext, bundle: str) -> dict[str, Any]:
    """Score both; without a champion there is nothing to score."""
    retraining: Retraining = context.resources.retraining
    champion = retraining.steps.champion()
    judged = None if champion is None else retraining.steps.judge(champion, bundle, retraining.until_ms)
    return {"champion": champion, "judged": None if judged is None else asdict(judged)}


@dg.asset(required_resource_keys=NEEDED, description="Challenger or refused, and why.")  # type: ignore[untyped-decorator]
def verdict(context: dg.AssetExecutionContext, bundle: str, judgement: dict[str, Any]) -> dict[str, Any]:
    """Decide, and name the challenger."""
    retraining: Retraining = context.resources.retraining
    judged = None if judgement["judged"] is None else Judgement(**judgement["judged"])
    found: Verdict = decide(retraining.steps, bundle, judgement["champion"], judged, retraining.rules)
    context.add_output_metadata({"decision": found.decision, "reason": found.reason})
    return asdict(found)


@dg.resource(description="The audit of this state folder; it keeps its report and metrics there.")  # type: ignore[untyped-decorator]
def real_auditing(_: Any) -> Callable[[], Audit]:
    """Build the audit from the process's settings."""
    from batch.audit import audit
    from batch.report import keep
    from batch.session import spark_session
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.registry.manifest import load_plan
    from headwater.settings import addresses, get_settings
    from streaming.archive import catch_up

    settings = get_settings()
    clock = StoredClock(connect(addresses(settings).redis))

    def run() -> Audit:
        since = clock.now_ms() - AUDITED // timedelta(milliseconds=1)
        catch_up(settings)
        plan = load_plan(settings.repo)
        found = audit(spark_session(settings), settings, plan, since_ms=since, archived=lambda: catch_up(settings))
        keep(settings, found)
        return found

    return run


@dg.asset(required_resource_keys={"auditing"}, description="Vectors served lately, compared with the archive's.")  # type: ignore[untyped-decorator]
def served_equals_offline(context: dg.AssetExecutionContext) -> dict[str, Any]:
    """Audit; a mismatch fails the run, after the report has been kept."""
    found: Audit = context.resources.auditing()
    counts = {name: getattr(found, name) for name in ("vectors", "cells", "mismatched", "in_flight", "unmarked")}
    context.add_output_metadata(counts)
    if found.mismatched:
        wrong = ", ".join(f"{name} {tally.mismatched}" for name, tally in found.by_feature.items() if tally.mismatched)
        raise dg.Failure(f"audit: {found.mismatched} of {found.cells} cells are mismatched ({wrong}).", metadata=counts)
    return counts


audit_job = dg.define_asset_job("audit", selection=dg.AssetSelection.assets(served_equals_offline))
hourly = dg.ScheduleDefinition(job=audit_job, cron_schedule=HOURLY, execution_timezone="UTC")
retraining_job = dg.define_asset_job("retrain", selection=dg.AssetSelection.assets(bundle, judgement, verdict))


@dg.sensor(job=retraining_job, minimum_interval_seconds=LOOKED_EVERY_S)  # type: ignore[untyped-decorator]
def enough_that_is_new(
    context: dg.SensorEvaluationContext, news: dg.ResourceParam[Callable[[], News]]
) -> dg.RunRequest | dg.SkipReason:
    """Retrain before the night where so much was bought since the champion's training as promotion.toml says."""
    found = news()
    if found.wanted is None:
        return dg.SkipReason("promotion.toml names no retraining.new_purchases")
    if found.champion is None or found.purchases < found.wanted:
        return dg.SkipReason(f"{found.purchases} of {found.wanted} purchases since the training of {found.champion}")
    return dg.RunRequest(run_key=f"{found.champion}-{found.purchases // found.wanted}")


nightly = dg.ScheduleDefinition(job=retraining_job, cron_schedule=NIGHTLY, execution_timezone="UTC")
defs = dg.Definitions(
    assets=[bundle, judgement, verdict, served_equals_offline],
    jobs=[retraining_job, audit_job],
    schedules=[nightly, hourly],
    sensors=[enough_that_is_new],
    resources={"retraining": real_retraining, "auditing": real_auditing, "news": real_news},
)
