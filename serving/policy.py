"""What a new policy would have earned, by the log of what was shown."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headwater.errors import ConfigError
from headwater.log import get_logger
from headwater.settings import Settings
from models.bundle import load_bundle
from models.evaluation.counterfactual import LoggedLists, estimate, logged_value, support
from models.evaluation.policies import Log, by_ranker, by_table, read_log
from models.requests import AT
from serving import aliases


def judge_policy(
    settings: Settings, policy: str, log: Path, reward: str, temperature: float, clip: float | None
) -> Mapping[str, Any]:
    """Value of a list under a policy, by every estimator, with its 95 % interval and what the log supports.

    ``learned_from`` is how many of the lists are not younger than the newest that a bundle learned from: it has made
    much of their chance, and is warned of.

    Raises
    ------
    ConfigError
        There is no such policy.
    DataError
        The log cannot be read, or does not support the policy.
    """
    lists, learned_from = _lists(settings, policy, log, reward, temperature)
    found = estimate(lists, clip)
    held = support(lists, clip)
    return {
        "policy": policy,
        "lists": len(lists.reward),
        "places": lists.reward.shape[1],
        "learned_from": learned_from,
        "reward": reward,
        "logged": _rounded(asdict(logged_value(lists))),
        "estimates": {name: _rounded(asdict(one)) for name, one in found.items()},
        "effective_lists": round(held.effective, 1),
        "unsupported": round(held.unsupported, 4),
        "clipped": round(held.clipped, 4),
    }


def _lists(settings: Settings, policy: str, log: Path, reward: str, temperature: float) -> tuple[LoggedLists, int]:
    held = read_log(log, reward)
    if (table := Path(policy)).is_file():
        return by_table(held, table), 0
    version = str(aliases.read(settings).get(policy, policy))
    folder = settings.bundles_dir / version
    if not folder.is_dir():
        raise ConfigError(
            f"{policy}: neither a Parquet file nor a bundle in {settings.bundles_dir}. Name a version, champion, "
            "challenger or a table of request_id, item_id and probability."
        )
    bundle = load_bundle(folder)
    if learned_from := _until(held, bundle.meta.learned_until_ms):
        remedy = "estimates lean towards what it made of their chance; judge it by lists of after its training"
        get_logger("serving").warning("policy_learned_from_the_log", version=version, lists=learned_from, remedy=remedy)
    return by_ranker(held, bundle.ranker, temperature), learned_from


def _until(held: Log, instant_ms: int | None) -> int:
    """Lists that were asked for at an instant or before it; none where the log or the bundle tells no time."""
    if instant_ms is None or AT not in held.table.column_names:
        return 0
    first = held.table[AT].take(pa.array(np.flatnonzero(held.place == 0)))
    return int((first.cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_numpy() <= instant_ms).sum())


def _rounded(told: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in told.items()}
