"""What has passed the gates comes to serve step by step, as a Dagster job that a sensor starts.

::

    [rollout] of promotion.toml        shadow ─► 10 % ─► 50 % ─► champion
                                          └────────┴───────┴───► withdrawn, the champion serves on

A step lasts its time, and until it has made enough lists. It ends the rollout where the bundle surely fails too many of
them, or where surely less came of its lists than of the champion's: the 95 % interval of the share that fails (Wilson)
lies above what is borne, or that of the difference in declared outcomes a shopper (Welch) below zero. Shoppers are told
apart and not lists, for those of one shopper are alike.

``rollout.json`` beside the bundles says which step there is. It is written after aliases and shares, which can be
written again, so that what is killed in between begins its step again at the next look.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple

import dagster as dg  # whose decorators have no types, so mypy is told to let them pass where they stand
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pydantic import BaseModel, ConfigDict, ValidationError

from batch.served import impressions
from headwater.archive_files import date_at, live_files
from headwater.errors import ConfigError, DataError
from headwater.files import write_whole
from headwater.log import get_logger
from headwater.plan import HOUR_MS
from headwater.settings import Settings
from models import registry, variants
from models.evaluation.counterfactual import NORMAL
from models.gates import FILE as RULES
from models.gates import Rollout, Step, load_rules
from models.registry import CHALLENGER, CHAMPION

FILE = "rollout.json"
WAITS, MOVED, SERVES, WITHDRAWN = "waits", "moved on", "serves", "withdrawn"
LOOKED_EVERY_S = 300
RETRIES = dg.RetryPolicy(max_retries=2, delay=10)
LEAST_SHOPPERS = 30
"""On either side; of fewer nothing is said."""
MOST_READ = 200_000
"""Impressions of a step that are read, the first ones."""
log = get_logger(__name__)


class Standing(BaseModel):
    """The file: which bundle is at which step, from 0, since when on the platform's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    step: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Of a step: the bundle's lists, how they failed, and what came of them.

    Attributes
    ----------
    failed
        Share that at least (lower end of the interval) has no shadow's score, or in which a stage failed, less the
        share of the champion's lists.
    change
        Declared outcomes of a shopper's lists, on average, less the champion's: mean, and 95 % interval.
    """

    lists: int = 0
    failed: float = 0.0
    change: tuple[float, float, float] | None = None

    def against(self, rules: Rollout) -> str | None:
        """Why the rollout ends by it, if it does."""
        if self.failed > rules.most_failed:
            return f"it surely fails {self.failed:.1%} more of its lists, and {rules.most_failed:.1%} are borne"
        if self.change is not None and self.change[2] < 0:
            mean, low, high = self.change
            return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] {' or '.join(rules.outcomes)} a list"
        return None


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a rollout came to: ``step`` is where it is now, or was when it was withdrawn."""

    version: str
    result: str
    step: str
    why: str
    seen: Seen = Seen()


class _List(NamedTuple):
    """One that was shown during a step, made or scored by the bundle (``ours``) or not, and whether that failed."""

    request_id: str
    user_id: str
    ours: bool
    failed: bool


@dataclass(frozen=True)
class Rollouts:
    """The rollout of a state folder; there is one at a time.

    ``schema_hash`` is that of the features that are applied.
    """

    settings: Settings
    rules: Rollout
    schema_hash: str
    now_ms: Callable[[], int]

    def begin(self, version: str) -> None:
        """Let a registered bundle take the first step; one that is under way makes room for it.

        Raises
        ------
        ModelError
            The bundle is refused, or not registered.
        ConfigError
            It serves already, or is to be seen at once and ``variants.toml`` has no challenger.
        """
        if registry.read_aliases(self.settings).get(CHAMPION) == version:
            raise ConfigError(f"rollout: {version} is champion already. Name another version.")
        held = self.standing()
        if held is not None and held.version != version:
            self.stop(f"{version} takes its place")
        self._enter(version, 0)

    def standing(self) -> Standing | None:
        """Where the rollout is; ``None`` where there is none.

        Raises
        ------
        DataError
            The file is damaged.
        """
        path = self.settings.bundles_dir / FILE
        try:
            return Standing.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise DataError(f"{path}: not where a rollout stands. Delete it, and begin again.") from None

    def look(self) -> Look | None:
        """Move on, end, or wait, by what has been shown so far; ``None`` where there is no rollout."""
        held = self.standing()
        if held is None:
            return None
        steps, step, now_ms = self.rules.steps, self._step(held), self.now_ms()
        named = {name for name, version in registry.read_aliases(self.settings).items() if version == held.version}
        if CHAMPION in named:
            return self._end(held.version, SERVES, "it was named champion", CHAMPION)
        if not named:
            return self.stop("another bundle was named instead of it")
        if step.alias not in named:  # what went on to the next step was killed
            self._enter(held.version, held.step)
        seen = self._seen(held, step)
        if why := seen.against(self.rules):
            return self._end(held.version, WITHDRAWN, why, str(step), seen)
        left_ms = max(0, held.since_ms + step.length // timedelta(milliseconds=1) - now_ms)
        if left_ms or seen.lists < self.rules.least_lists:
            why = f"{left_ms / HOUR_MS:.1f} h left, {seen.lists} of at least {self.rules.least_lists} lists"
            return Look(held.version, WAITS, str(step), why, seen)
        if held.step + 1 < len(steps):
            self._enter(held.version, held.step + 1)
            return Look(held.version, MOVED, str(steps[held.step + 1]), f"{step} is over", seen)
        return self._end(held.version, SERVES, f"{step} is over", CHAMPION, seen)

    def stop(self, why: str = "it was stopped") -> Look | None:
        """Withdraw what is under way; the champion serves on."""
        held = self.standing()
        return None if held is None else self._end(held.version, WITHDRAWN, why, str(self._step(held)))

    def _step(self, held: Standing) -> Step:
        return self.rules.steps[min(held.step, len(self.rules.steps) - 1)]  # the file may have got shorter

    def _enter(self, version: str, number: int) -> None:
        step = self.rules.steps[number]
        registry.promote(self.settings, version, step.alias, self.schema_hash)
        if step.share is not None:
            variants.ramp(self.settings.repo, {CHALLENGER: step.share})
        standing = Standing(version=version, step=number, since_ms=self.now_ms())
        write_whole(self.settings.bundles_dir / FILE, standing.model_dump_json())
        log.info("rollout_step", version=version, step=str(step))

    def _end(self, version: str, result: str, why: str, step: str, seen: Seen = Seen()) -> Look:
        """Nobody is dealt the challenger any more; then the bundle serves all, or has no alias left."""
        if CHALLENGER in variants.load_experiment(self.settings.repo).variants:
            variants.ramp(self.settings.repo, {CHALLENGER: 0})
        if result == SERVES:
            registry.promote(self.settings, version, CHAMPION, self.schema_hash)
        else:
            registry.withdraw(self.settings, version)
        registry.annotate(self.settings, version, {"rollout": f"{result}: {why}"})
        (self.settings.bundles_dir / FILE).unlink(missing_ok=True)
        log.info("rollout_ended", version=version, result=result, reason=why)
        return Look(version, result, step, why, seen)

    def _seen(self, held: Standing, step: Step) -> Seen:
        shown = list(self._shown(held, step))
        ours, theirs = ([one.failed for one in shown if one.ours == side] for side in (True, False))
        failed = max(0.0, _surely(ours) - sum(theirs) / max(1, len(theirs)))
        change = None if step.share is None else self._change(shown, held.since_ms)
        return Seen(len(ours), round(failed, 6), change)

    def _shown(self, held: Standing, step: Step) -> Iterator[_List]:
        """Lists of the step; those that the bundle was to make while no server had it in memory are no one's."""
        for told in islice(self._impressions(held.since_ms), MOST_READ):
            shadow, dealt = told["shadow"] or {}, told["variant"] == CHALLENGER
            if step.share is None and shadow.get("bundle_version") == held.version:
                yield _List(told["request_id"], told["user_id"], True, shadow["items"] is None)
            elif step.share is not None and dealt == (told["bundle_version"] == held.version):
                yield _List(told["request_id"], told["user_id"], dealt, bool(told["degraded"]))

    def _impressions(self, since_ms: int) -> Iterator[dict[str, Any]]:
        try:
            yield from (told for told in impressions(self.settings, since_ms) if told["time"] >= since_ms)
        except DataError:  # none is archived yet
            return

    def _change(self, shown: list[_List], since_ms: int) -> tuple[float, float, float] | None:
        """Outcomes a list of each shopper, the bundle's less the others'; None with few shoppers on either side."""
        if not self.rules.outcomes or not shown:
            return None
        came = self._outcomes(since_ms)
        by_user: defaultdict[tuple[bool, str], list[int]] = defaultdict(list)
        for one in shown:
            by_user[one.ours, one.user_id].append(came[one.request_id])
        ours, theirs = (
            np.array([np.mean(counts) for (is_ours, _), counts in by_user.items() if is_ours == side])
            for side in (True, False)
        )
        if min(len(ours), len(theirs)) < LEAST_SHOPPERS:
            return None
        mean = float(ours.mean() - theirs.mean())
        error = float(np.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs)))
        return round(mean, 6), round(mean - NORMAL * error, 6), round(mean + NORMAL * error, 6)

    def _outcomes(self, since_ms: int) -> Counter[str]:
        """Declared events by the request that they name."""
        files = live_files(self.settings.events_dir, since=date_at(since_ms))
        if not files:
            return Counter()
        wanted = pc.field("event_type").isin(self.rules.outcomes) & pc.field("request_id").is_valid()
        events = ds.dataset([str(file) for file in files], format="parquet").to_table(
            ["request_id", "event_id"], wanted
        )
        once = dict(zip(events["event_id"].to_pylist(), events["request_id"].to_pylist(), strict=True))
        return Counter(once.values())


def _surely(flags: list[bool]) -> float:
    """Share that is set at least, by the lower end of Wilson's 95 % interval."""
    from scipy.stats import binomtest  # half a second, where there is a rollout

    return float(binomtest(sum(flags), len(flags)).proportion_ci(method="wilson").low) if flags else 0.0


def rollouts_of(settings: Settings, schema_hash: str, now_ms: Callable[[], int]) -> Rollouts:
    """By the rules of the settings' repository.

    Raises
    ------
    ConfigError
        They declare no rollout.
    """
    rules = load_rules(settings.repo).rollout
    if rules is None:
        raise ConfigError(f"{settings.repo / RULES}: no table [rollout]. Write one: docs/models.md, Rollout.")
    return Rollouts(settings, rules, schema_hash, now_ms)


@dg.resource(description="The rollout of this state folder; None where the repository declares none.")  # type: ignore[untyped-decorator]
def real_rollouts(_: Any) -> Rollouts | None:
    """Build it from the process's settings."""
    from batch.retraining import SERVICE
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.registry.manifest import load_plan
    from headwater.settings import addresses, get_settings

    settings = get_settings()
    rules = load_rules(settings.repo).rollout
    if rules is None:
        return None
    schema_hash = load_plan(settings.repo).schema_hash(SERVICE)
    return Rollouts(settings, rules, schema_hash, StoredClock(connect(addresses(settings).redis)).now_ms)


@dg.asset(required_resource_keys={"rollouts"}, retry_policy=RETRIES, description="Where what has passed stands.")  # type: ignore[untyped-decorator]
def rollout(context: dg.AssetExecutionContext) -> dict[str, Any]:
    """Look at it, which moves it on."""
    found: Look | None = context.resources.rollouts.look()
    told = {} if found is None else asdict(found)
    context.add_output_metadata({name: str(value) for name, value in told.items()})
    return told


rollout_job = dg.define_asset_job("rollout", selection=dg.AssetSelection.assets(rollout))


@dg.sensor(  # type: ignore[untyped-decorator]
    job=rollout_job, minimum_interval_seconds=LOOKED_EVERY_S, default_status=dg.DefaultSensorStatus.RUNNING
)
def rollout_is_under_way(rollouts: dg.ResourceParam[Rollouts]) -> dg.SensorResult:
    """Look again and again while there is one."""
    held = None if rollouts is None else rollouts.standing()
    if held is None:
        return dg.SensorResult(skip_reason="no rollout is under way")
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=f"{held.version} {held.step} {rollouts.now_ms()}")])
