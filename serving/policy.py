"""What a new policy would have earned, by the log of what was shown."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError
from headwater.settings import Settings
from models.bundle import load_bundle
from models.evaluation.counterfactual import LoggedLists, estimate, logged_value, support
from models.evaluation.policies import by_ranker, by_table, read_log
from serving import aliases


def judge_policy(
    settings: Settings, policy: str, log: Path, reward: str, temperature: float, clip: float | None
) -> Mapping[str, Any]:
    """Value of a list under a policy, by every estimator, with its 95 % interval and what the log supports.

    Raises
    ------
    ConfigError
        There is no such policy.
    DataError
        The log cannot be read, or does not support the policy.
    """
    lists = _lists(settings, policy, log, reward, temperature)
    found = estimate(lists, clip)
    held = support(lists, clip)
    return {
        "policy": policy,
        "lists": len(lists.reward),
        "places": lists.reward.shape[1],
        "reward": reward,
        "logged": _rounded(asdict(logged_value(lists))),
        "estimates": {name: _rounded(asdict(one)) for name, one in found.items()},
        "effective_lists": round(held.effective, 1),
        "unsupported": round(held.unsupported, 4),
        "clipped": round(held.clipped, 4),
    }


def _lists(settings: Settings, policy: str, log: Path, reward: str, temperature: float) -> LoggedLists:
    held = read_log(log, reward)
    if (table := Path(policy)).is_file():
        return by_table(held, table)
    version = str(aliases.read(settings).get(policy, policy))
    folder = settings.bundles_dir / version
    if not folder.is_dir():
        raise ConfigError(
            f"{policy}: neither a Parquet file nor a bundle in {settings.bundles_dir}. Name a version, champion, "
            "challenger or a table of request_id, item_id and probability."
        )
    return by_ranker(held, load_bundle(folder).ranker, temperature)


def _rounded(told: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in told.items()}
