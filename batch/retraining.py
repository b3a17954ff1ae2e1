"""Retraining as Dagster assets, one partition a day.

::

    archive ─► retriever ─► index ─► training_set ─► ranker ─► evaluation ─► promotion ─► report
    features ────────────────────────────┘

Partition D knows what the platform knew at the end of D in UTC, at most what its archive holds. Assets hand on
instants, paths and versions; the heavy parts come from the resource ``retraining``, which a test replaces. The champion
serves on whatever fails, for only ``promotion`` names another.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")  # it would report to its makers; read as it is imported

import dagster as dg  # whose decorators have no types, so mypy is told to let them pass where they stand

from batch.history import ONCE
from batch.retrain import Judgement, SparkSteps, Steps, Verdict, decide
from headwater.archive_files import date_at
from headwater.errors import ConfigError, HeadwaterError, ResourceError, UnavailableError
from headwater.plan import DAY_MS
from models.gates import DEFAULT_RULES, Rules

SERVICE = "recommend"
NIGHTLY_HOUR = 3
FIRST_DAY = "2010-01-01"
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY, timezone="UTC")
RETRIES = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL)
"""For what a server that is down makes fail; a refusal is no failure."""
ONE_AT_A_TIME = {"headwater/retraining": "one"}
"""They share the folder ``training``; ``batch.history`` limits runs of this tag to one."""

QUIET = {"console": {"config": {"log_level": "ERROR"}}}


@dataclass(frozen=True)
class Retraining:
    """The steps and the rules; ``retries`` false where somebody is waiting for the error."""

    steps: Steps
    rules: Rules = DEFAULT_RULES
    retries: bool = True

    def trained_until(self, known_ms: int) -> int:
        """Where training ends and what judges begins, of what is known until ``known_ms``."""
        return known_ms - self.rules.retraining.judged // timedelta(milliseconds=1)


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
    rules = load_rules(settings.repo)
    steps = SparkSteps(settings, load_plan(settings.repo), SERVICE, home_of(settings), clock.now_ms, rules.retraining)
    return Retraining(steps, rules)


def end_of(day: str) -> int:
    """Epoch milliseconds at which a UTC day is over.

    Raises
    ------
    ConfigError
        It is no day, or not a partition: before the first, or not over yet.
    """
    try:
        midnight = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    except ValueError:
        raise ConfigError(f"day: {day!r} is no day. Write it as 2017-11-26.") from None
    if not DAYS.has_partition_key(day):
        raise ConfigError(f"day: {day} is no day from {FIRST_DAY} to yesterday (UTC). Choose one that is over.")
    return round(midnight.timestamp() * 1000) + DAY_MS


def last_whole_day(until_ms: int) -> str:
    """The newest day of which all is known, of what is known until then."""
    return date_at((until_ms // DAY_MS - 1) * DAY_MS)


@contextmanager
def _step(context: dg.AssetExecutionContext) -> Iterator[Steps]:
    """Hand out the steps; what was refused is not tried again."""
    retraining: Retraining = context.resources.retraining
    try:
        yield retraining.steps
    except Exception as error:
        refused = isinstance(error, HeadwaterError) and not isinstance(error, UnavailableError | ResourceError)
        raise dg.Failure(str(error), allow_retries=retraining.retries and not refused) from error


def _asset(told: str) -> Callable[[Callable[..., Any]], Any]:
    asset: Callable[[Callable[..., Any]], Any] = dg.asset(
        partitions_def=DAYS, required_resource_keys={"retraining"}, retry_policy=RETRIES, group_name="retraining",
        description=told,
    )  # fmt: skip
    return asset


@_asset("Epoch ms until which the archive is known.")
def archive(context: dg.AssetExecutionContext) -> int:
    """Find the end of what this partition may know."""
    with _step(context) as steps:
        return steps.known(end_of(context.partition_key))


@_asset("Schema hash of the applied features.")
def features(context: dg.AssetExecutionContext) -> str:
    """Name the definitions that all of the run reads."""
    with _step(context) as steps:
        return steps.features()


@_asset("Folder of the towers.")
def retriever(context: dg.AssetExecutionContext, archive: int) -> str:
    """Train on what was bought before the first request."""
    with _step(context) as steps:
        return steps.retriever(context.resources.retraining.trained_until(archive))


@_asset("Share of the truly nearest items that the index finds.")
def index(context: dg.AssetExecutionContext, retriever: str) -> float:
    """Hold the index, which was built over the towers' items, to an exact search."""
    with _step(context) as steps:
        found = steps.index()
    context.add_output_metadata({"folder": retriever, "recall": found})
    return found


@_asset("Folder of past requests with their features and labels.")
def training_set(context: dg.AssetExecutionContext, archive: int, features: str, index: float) -> str:
    """Draw them with that retriever; every label is final."""
    with _step(context) as steps:
        return steps.training_set(context.resources.retraining.trained_until(archive))


@_asset("A newly trained bundle: its version.")
def ranker(context: dg.AssetExecutionContext, archive: int, features: str, training_set: str) -> str:
    """Train on them, unless the features were changed meanwhile."""
    with _step(context) as steps:
        if steps.features() != features:
            raise ConfigError(f"{training_set}: made with features {features}, others are applied now. Run it again.")
        version = steps.ranker(context.resources.retraining.trained_until(archive))
    context.add_output_metadata({"version": version})
    return version


@_asset("The bundle beside the champion, on newer requests.")
def evaluation(context: dg.AssetExecutionContext, archive: int, ranker: str) -> dict[str, Any]:
    """Score both; without a champion there is nothing to score."""
    with _step(context) as steps:
        champion = steps.champion()
        judged = None if champion is None else steps.judge(champion, ranker, archive)
    return {"champion": champion, "judged": None if judged is None else asdict(judged)}


@_asset("Challenger, champion or refused, and why.")
def promotion(context: dg.AssetExecutionContext, ranker: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Decide, and name what passes."""
    judged = None if evaluation["judged"] is None else Judgement(**evaluation["judged"])
    with _step(context) as steps:
        found: Verdict = decide(steps, ranker, evaluation["champion"], judged, context.resources.retraining.rules)
    context.add_output_metadata({"decision": found.decision, "reason": found.reason})
    return asdict(found)


@_asset("Path of the version's page.")
def report(context: dg.AssetExecutionContext, promotion: dict[str, Any]) -> str:
    """Write what is known of the version, refused or not."""
    with _step(context) as steps:
        path = steps.report(Verdict(**promotion))
    context.add_output_metadata({"page": dg.MetadataValue.path(path)})
    return path


ASSETS = [archive, features, retriever, index, training_set, ranker, evaluation, promotion, report]
retraining_job = dg.define_asset_job(
    "retrain", selection=dg.AssetSelection.groups("retraining"), partitions_def=DAYS, tags=ONE_AT_A_TIME
)
nightly = dg.build_schedule_from_partitioned_job(retraining_job, hour_of_day=NIGHTLY_HOUR)


def run_once(retraining: Retraining, day: str, home: Path) -> dict[str, Any]:
    """Run the job of one day in this process, kept in the history below ``home``: verdict, day and page.

    Raises
    ------
    HeadwaterError
        A step was refused; the champion serves on.
    """
    end_of(day)
    repository = dg.Definitions(ASSETS, jobs=[retraining_job], resources={"retraining": retraining})
    with dg.DagsterInstance.from_config(str(home), ONCE) as instance:
        try:
            done = repository.resolve_job_def("retrain").execute_in_process(
                instance=instance, partition_key=day, run_config={"loggers": QUIET}
            )
        except dg.Failure as failure:
            raise failure.__cause__ or failure from None
    verdict: dict[str, Any] = done.output_for_node("promotion")
    return {"day": day, **verdict, "report": done.output_for_node("report")}
