"""The sample of the Open Bandit Dataset in PyPI's ``obp``: 10,000 impressions of each of two policies, real.

One policy (``bts``, Thompson sampling) chose by what had been clicked so far, the other (``random``) among the
campaign's 80 items evenly, at the same time in the same shop. What ``random`` earns is estimated from the log of
``bts`` and held to its own log. The other way round cannot be asked: ``bts`` changed while it ran, and its log tells no
probability of what it did not show.

References
----------
Saito, Aihara, Matsutani and Narita, "Open Bandit Dataset and Pipeline: towards realistic and reproducible off-policy
evaluation", NeurIPS 2021 (datasets and benchmarks).
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.csv as csv

from headwater.bench import Measure
from headwater.errors import UnavailableError
from models.evaluation.counterfactual import LoggedLists, estimate, logged_value, support

ITEMS = 80


def measure() -> Iterator[Measure]:
    """Click rate of the even policy by each estimator, beside what it earned itself; intervals are in the notes."""
    log, truth = lists("bts", target=1 / ITEMS), logged_value(lists("random"))
    held, found = support(log), estimate(log)
    for name in ("ips", "snips"):
        one = found[name]
        overlap = one.low <= truth.high and truth.low <= one.high
        yield Measure(
            f"Open Bandit sample, random from the log of bts, {name.upper()}", round(one.value, 5),
            "clicks/impression", "random's own log", round(truth.value, 5), None, None, overlap,
            note=f"[{one.low:.5f}, {one.high:.5f}] beside [{truth.low:.5f}, {truth.high:.5f}], whether they meet; a "
            f"small sample: {len(log.reward)} impressions worth {held.effective:.0f}, {int(log.reward.sum())} clicks",
        )  # fmt: skip


def lists(policy: str, target: float | None = None) -> LoggedLists:
    """Impressions of a policy as lists of one place each, judged as the policy that has this probability of each.

    Raises
    ------
    UnavailableError
        The package is not installed.
    """
    spec = find_spec("obp")
    if spec is None or spec.origin is None:
        raise UnavailableError("obp: not installed, and its sample is what is read. Install headwater[baselines].")
    file = Path(spec.origin).parent / "dataset" / "obd" / policy / "all" / "all.csv"
    table = csv.read_csv(file, convert_options=csv.ConvertOptions(include_columns=["click", "propensity_score"]))
    click, propensity = (table[name].to_numpy().astype(np.float64)[:, None] for name in table.column_names)
    return LoggedLists(click, propensity, propensity if target is None else np.full_like(propensity, target))
