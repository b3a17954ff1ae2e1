"""Why to retrain between two nights: much was bought that the champion does not know, or features have shifted."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch.retraining import last_whole_day, retraining_job

if TYPE_CHECKING:
    from headwater.settings import Settings

LOOKED_EVERY_S, SHIFT_LOOKED_EVERY_S = 600, 3_600


@dataclass(frozen=True)
class News:
    """Purchases since the champion's training whose labels are final, and how many are wanted; ``None`` for never.

    ``until_ms`` is the end of what is known.
    """

    champion: str | None
    purchases: int
    wanted: int | None
    until_ms: int = 0


@dataclass(frozen=True)
class Shift:
    """Features whose stability index is above 0.25, and how many are borne; ``None`` for any number."""

    champion: str | None
    shifted: tuple[str, ...]
    borne: int | None
    until_ms: int = 0


@dg.resource(description="What was bought since the champion of this state folder was trained.")  # type: ignore[untyped-decorator]
def real_news(_: Any) -> Callable[[], News]:
    """Build it from the process's settings."""
    from headwater.settings import get_settings

    return lambda: count_news(get_settings())


@dg.resource(description="How far the served features are from those of the last training.")  # type: ignore[untyped-decorator]
def real_shift(_: Any) -> Callable[[], Shift]:
    """Build it from the process's settings."""
    from headwater.settings import get_settings

    return lambda: find_shift(get_settings())


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
    horizon_ms, until_ms = DEFAULT_SAMPLING.horizon // timedelta(milliseconds=1), newest_ms(settings.events_dir) + 1
    bought = read_purchases(settings.events_dir, until_ms - horizon_ms)
    since = check_bundle(champion).training_end_ms - horizon_ms
    return News(champion.name, int((bought["event_time"] >= since).sum()), wanted, until_ms)


def find_shift(settings: "Settings") -> Shift:
    """Compare what was served since the champion's training with the rows of the last training (:mod:`batch.skew`).

    Where nothing of the service has been served yet, nothing has shifted.
    """
    from batch.skew import skew
    from headwater.errors import DataError
    from models import registry
    from models.bundle import check_bundle
    from models.gates import load_rules
    from models.interactions import newest_ms
    from models.paths import paths_of

    borne, champion = load_rules(settings.repo).retraining.shifted_features, registry.champion(settings)
    if borne is None or champion is None:
        return Shift(None if champion is None else champion.name, (), borne)
    until_ms = newest_ms(settings.events_dir) + 1
    try:
        found = skew(settings, paths_of(settings).rows, since_ms=check_bundle(champion).training_end_ms)
    except DataError:
        return Shift(champion.name, (), borne, until_ms)
    return Shift(champion.name, tuple(found.shifted), borne, until_ms)


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
    return dg.RunRequest(
        run_key=f"{found.champion}-{found.purchases // found.wanted}", partition_key=last_whole_day(found.until_ms)
    )


@dg.sensor(job=retraining_job, minimum_interval_seconds=SHIFT_LOOKED_EVERY_S)  # type: ignore[untyped-decorator]
def features_have_shifted(
    context: dg.SensorEvaluationContext, shift: dg.ResourceParam[Callable[[], Shift]]
) -> dg.RunRequest | dg.SkipReason:
    """Retrain once a champion where more features have shifted than promotion.toml bears."""
    found = shift()
    if found.borne is None:
        return dg.SkipReason("promotion.toml names no retraining.shifted_features")
    if found.champion is None or len(found.shifted) <= found.borne:
        return dg.SkipReason(f"{len(found.shifted)} features have shifted, {found.borne} are borne")
    context.log.info("shifted: %s", ", ".join(found.shifted))
    return dg.RunRequest(run_key=f"{found.champion}-shifted", partition_key=last_whole_day(found.until_ms))
