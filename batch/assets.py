"""Retraining and the audit as Dagster assets on a schedule: ``dagster dev -m batch.assets``.

``retrain_schedule`` retrains each night on the day that has ended (:mod:`batch.retraining`), ``enough_that_is_new`` and
``features_have_shifted`` between two nights (:mod:`batch.news`). ``served_equals_offline`` audits what was served in
the last two hours, every hour, so that each reply is in two audits; it fails where a cell is mismatched.
``rows_have_begun`` has ready-made rows written when they begin to hold (:mod:`batch.begun`), and
``rollout_is_under_way`` brings what has passed to serve, step by step (:mod:`batch.rollout`). Heavy parts come from
resources, which a test replaces.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg  # whose decorators have no types, so mypy is told to let them pass where they stand

from batch.audit import Audit
from batch.begun import ready_made_job, ready_made_rows, real_ready_made, rows_have_begun
from batch.news import enough_that_is_new, features_have_shifted, real_news, real_shift
from batch.retraining import ASSETS, nightly, real_retraining, retraining_job
from batch.rollout import real_rollouts, rollout, rollout_is_under_way, rollout_job

HOURLY = "17 * * * *"
AUDITED = timedelta(hours=2)


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
defs = dg.Definitions(
    assets=[*ASSETS, served_equals_offline, ready_made_rows, rollout],
    jobs=[retraining_job, audit_job, ready_made_job, rollout_job],
    schedules=[nightly, hourly],
    sensors=[enough_that_is_new, features_have_shifted, rows_have_begun, rollout_is_under_way],
    resources={
        "retraining": real_retraining, "auditing": real_auditing, "news": real_news, "shift": real_shift,
        "ready_made": real_ready_made, "rollouts": real_rollouts,
    },
)  # fmt: skip
