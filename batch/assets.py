"""Retraining as Dagster assets on a schedule: ``dagster dev -m batch.assets``.

``bundle`` trains, ``judgement`` scores it beside the champion on newer requests, ``verdict`` names a challenger or
refuses. Their heavy parts come from the resource ``retraining``, which a test replaces.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")  # it would report to its makers; read as it is imported

import dagster as dg

from batch.retrain import JUDGED, Judgement, SparkSteps, Steps, Verdict, decide, known_until

SERVICE = "recommend"
NIGHTLY = "0 3 * * *"


@dataclass(frozen=True)
class Retraining:
    """The steps, and the end of what they may know."""

    steps: Steps
    until_ms: int


@dg.resource(description="Towers, features, ranker and registry of this state folder.")  # type: ignore[untyped-decorator]
def real_retraining(_: Any) -> Retraining:
    """Build the real steps from the process's settings."""
    from headwater.clock import StoredClock
    from headwater.datasets.complete_journey import home_of
    from headwater.online.connect import connect
    from headwater.registry.manifest import load_plan
    from headwater.settings import addresses, get_settings

    settings = get_settings()
    clock = StoredClock(connect(addresses(settings).redis))
    steps = SparkSteps(settings, load_plan(settings.repo), SERVICE, home_of(settings), clock.now_ms)
    return Retraining(steps, known_until(settings, clock.now_ms()))


@dg.asset(required_resource_keys={"retraining"}, description="A newly trained, registered bundle: its version.")  # type: ignore[untyped-decorator]
def bundle(context: dg.AssetExecutionContext) -> str:
    """Train on what was known before the judged period."""
    retraining: Retraining = context.resources.retraining
    return retraining.steps.train(retraining.until_ms - round(JUDGED.total_seconds() * 1000))


@dg.asset(required_resource_keys={"retraining"}, description="The bundle beside the champion on newer requests.")  # type: ignore[untyped-decorator]
def judgement(context: dg.AssetExecutionContext, bundle: str) -> dict[str, Any]:
    """Score both; without a champion there is nothing to score."""
    retraining: Retraining = context.resources.retraining
    champion = retraining.steps.champion()
    judged = None if champion is None else retraining.steps.judge(champion, bundle, retraining.until_ms)
    return {"champion": champion, "judged": None if judged is None else asdict(judged)}


@dg.asset(required_resource_keys={"retraining"}, description="Challenger or refused, and why.")  # type: ignore[untyped-decorator]
def verdict(context: dg.AssetExecutionContext, bundle: str, judgement: dict[str, Any]) -> dict[str, Any]:
    """Decide, and name the challenger."""
    retraining: Retraining = context.resources.retraining
    judged = None if judgement["judged"] is None else Judgement(**judgement["judged"])
    found: Verdict = decide(retraining.steps, bundle, judgement["champion"], judged)
    context.add_output_metadata({"decision": found.decision, "reason": found.reason})
    return asdict(found)


retraining_job = dg.define_asset_job("retrain", selection=dg.AssetSelection.assets(bundle, judgement, verdict))
nightly = dg.ScheduleDefinition(job=retraining_job, cron_schedule=NIGHTLY, execution_timezone="UTC")
defs = dg.Definitions(
    assets=[bundle, judgement, verdict],
    jobs=[retraining_job],
    schedules=[nightly],
    resources={"retraining": real_retraining},
)
