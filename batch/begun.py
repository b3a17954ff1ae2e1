"""Ready-made rows are written as they begin to hold, as a Dagster job that a sensor starts.

The online store holds one row an entity: the newest that had begun when it was last written. A row that is timed ahead,
such as a promotion's, is therefore served only once its view has been written after it began. The sensor looks for such
rows twice a minute; a file that is replaced meanwhile needs ``headwater backfill --materialize --view NAME``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg  # whose decorators have no types, so mypy is told to let them pass where they stand
import pyarrow as pa
import pyarrow.compute as pc

from batch.backfill import backfill
from batch.ready_made import open_parquet
from batch.session import spark_session
from headwater.online.codec import is_fixed
from headwater.plan import BatchView, FeaturePlan
from headwater.settings import Settings

LOOKED_EVERY_S = 30
RETRIES = dg.RetryPolicy(max_retries=2, delay=10)


@dataclass(frozen=True)
class ReadyMade:
    """Ready-made views whose columns are all numbers; Feast materializes the others."""

    settings: Settings
    plan: FeaturePlan
    now_ms: Callable[[], int]

    def begun(self, since_ms: int, until_ms: int) -> list[str]:
        """Views with a row whose event time lies in (``since_ms``, ``until_ms``].

        Raises
        ------
        DataError
            A view's Parquet file is not there.
        """
        views = [view for view in self.plan.batch_views if is_fixed(view)]
        return [view.name for view in views if _has_row(view, since_ms, until_ms)]

    def write(self, views: Sequence[str]) -> int:
        """Put the newest row of each entity that has begun by now into the online store; how many those are."""
        return backfill(spark_session(self.settings), self.settings, self.plan, self.now_ms(), views).rows


def _has_row(view: BatchView, since_ms: int, until_ms: int) -> bool:
    source, time = open_parquet(view.path), pc.field(view.timestamp_field)
    kind = source.schema.field(view.timestamp_field).type
    since, until = (pa.scalar(ms, pa.timestamp("ms")).cast(kind, safe=False) for ms in (since_ms, until_ms))
    return bool(source.count_rows(filter=(time > since) & (time <= until)))


@dg.resource(description="Ready-made views of this state folder.")  # type: ignore[untyped-decorator]
def real_ready_made(_: Any) -> ReadyMade:
    """Build it from the process's settings."""
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.registry.manifest import load_plan
    from headwater.settings import addresses, get_settings

    settings = get_settings()
    return ReadyMade(settings, load_plan(settings.repo), StoredClock(connect(addresses(settings).redis)).now_ms)


@dg.asset(  # type: ignore[untyped-decorator]
    required_resource_keys={"ready_made"}, config_schema={"views": [str]}, retry_policy=RETRIES,
    description="Ready-made rows that hold now.",
)  # fmt: skip
def ready_made_rows(context: dg.AssetExecutionContext) -> int:
    """Write the views named to the online store."""
    rows: int = context.resources.ready_made.write(context.op_execution_context.op_config["views"])
    return rows


ready_made_job = dg.define_asset_job("ready_made", selection=dg.AssetSelection.assets(ready_made_rows))


@dg.sensor(  # type: ignore[untyped-decorator]
    job=ready_made_job, minimum_interval_seconds=LOOKED_EVERY_S, default_status=dg.DefaultSensorStatus.RUNNING
)
def rows_have_begun(context: dg.SensorEvaluationContext, ready_made: dg.ResourceParam[ReadyMade]) -> dg.SensorResult:
    """Write the views of which a row has begun since the sensor last looked; the first time, since ever."""
    now_ms = ready_made.now_ms()
    views = ready_made.begun(int(context.cursor or 0), now_ms)
    if not views:
        return dg.SensorResult(skip_reason="no ready-made row has begun", cursor=str(now_ms))
    config = {"ops": {ready_made_rows.op.name: {"config": {"views": views}}}}
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=str(now_ms), run_config=config)], cursor=str(now_ms))
