"""What another policy's lists would have been worth, from the lists that one policy showed and what came of them.

A list is drawn place by place: the log has the probability of each place's item given those above it, and the new
policy gives its own of the same item at the same place. Their ratios, multiplied down to a place, weigh what was earned
there.

``ips``, ``snips``
    The whole list weighs as its last place does; ``snips`` divides by the weights' sum instead of the number of lists.
``ips_by_place``, ``snips_by_place``
    What was earned at a place weighs as that place does: what lies below cannot have changed it. Self-normalised place
    by place.
``dr``
    A model says what each place will earn, the weighted rest corrects it: right if either is, and of less variance.

References
----------
Swaminathan and Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015 (snips).
McInerney, Brost, Chandar, Mehrotra and Carterette, "Counterfactual evaluation of slate recommendations with sequential
reward interactions", KDD 2020 (by place).
Kiyohara, Saito, Matsuhiro, Narita, Shimizu and Yamamoto, "Doubly robust off-policy evaluation for ranking policies
under the cascade behavior model", WSDM 2022 (dr).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.errors import DataError

Floats = npt.NDArray[np.float64]
NORMAL = 1.959963985
"""97.5th percentile of the standard normal distribution."""
MOST_UNSUPPORTED = 0.05
LEAST_EFFECTIVE = 30.0


@dataclass(frozen=True)
class LoggedLists:
    """Lists that were shown, and how likely either policy was to fill each place so.

    Attributes
    ----------
    reward, behaviour, target : (n, places)
        What was earned at each place; the probability of its item given those above, under the policy that was logged
        and under the new one. NaN behind a list's end.
    model, expected : (n, places)
        What a model says of the item at each place, and of the items that the new policy would show there on average,
        given those above; absent where there is no model.
    """

    reward: Floats
    behaviour: Floats
    target: Floats
    model: Floats | None = None
    expected: Floats | None = None

    def __post_init__(self) -> None:
        there = ~np.isnan(self.reward)
        if not len(self.reward) or not there[:, 0].all():
            raise DataError(
                "policy: the log has no lists, or one without a first place. Log what is shown, and label it."
            )
        odd = there & ~((self.behaviour > 0) & (self.behaviour <= 1))
        if odd.any():
            found = self.behaviour[odd][0]
            raise DataError(
                f"policy: {odd.sum()} places were shown with a logged propensity of {found:g}, and a propensity lies "
                "in (0, 1]. Mend the log."
            )
        odd = there & ~((self.target >= 0) & (self.target <= 1))
        if odd.any():
            raise DataError(
                f"policy: {odd.sum()} places have a probability of {self.target[odd][0]:g} under the new policy, and "
                "one lies in [0, 1]. Mend its table."
            )

    def weights(self, clip: float | None = None) -> Floats:
        """Ratio of the probabilities of all places down to each (n, places), at most ``clip``."""
        there = ~np.isnan(self.reward)
        ratio = np.divide(self.target, self.behaviour, out=np.ones_like(self.reward), where=there)
        found = np.cumprod(ratio, axis=1)
        return np.asarray(found if clip is None else np.minimum(found, clip))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Value of a list, and its 95 % interval by the normal approximation."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Support:
    """How much of the new policy the log tells of.

    Attributes
    ----------
    unsupported
        Of what the new policy would show, the share that the log could not have shown: weights are one on average where
        all could, and fall short of it by this share.
    surely
        The least that share can be, at 97.5 %.
    effective
        Lists of the new policy's own that would tell as much as the weighted ones (Kish).
    clipped
        Share of lists whose weight was cut.
    """

    unsupported: float
    surely: float
    effective: float
    clipped: float


def support(lists: LoggedLists, clip: float | None = None) -> Support:
    """Of whole lists, by their weights as they are."""
    whole = lists.weights()[:, -1]
    short, error = 1 - whole.mean(), whole.std() / np.sqrt(len(whole))
    effective = float(whole.sum() ** 2 / max((whole**2).sum(), np.finfo(float).tiny))
    clipped = 0.0 if clip is None else float((whole > clip).mean())
    return Support(max(0.0, float(short)), max(0.0, float(short - NORMAL * error)), effective, clipped)


def estimate(lists: LoggedLists, clip: float | None = None) -> Mapping[str, Estimate]:
    """Value of a list under the new policy by each estimator that the log allows.

    Parameters
    ----------
    clip
        The most that a list may weigh: less variance, for a bias towards what the log earned least of.

    Raises
    ------
    DataError
        The log does not support the new policy: the share of it that could not have been shown is above 5 %, beyond
        chance, or fewer than 30 lists' worth of weight is left.
    """
    found = support(lists, clip)
    if found.surely > MOST_UNSUPPORTED or found.effective < LEAST_EFFECTIVE:
        raise DataError(
            f"policy: {found.unsupported:.1%} of what it would show has no support in the log, which is worth "
            f"{found.effective:.0f} of its own lists; no estimate is made. Explore more, or judge a policy nearer to "
            "the logged one."
        )
    weights, reward = lists.weights(clip), np.nan_to_num(lists.reward)
    whole, total = weights[:, -1:], reward.sum(1, keepdims=True)
    estimates = {
        "ips": _mean((whole * total)[:, 0]),
        "snips": _normalised(whole, total),
        "ips_by_place": _mean((weights * reward).sum(1)),
        "snips_by_place": _normalised(weights, reward),
    }
    if lists.model is not None and lists.expected is not None:
        estimates["dr"] = _mean(doubly_robust(lists, weights))
    return estimates


def doubly_robust(lists: LoggedLists, weights: Floats) -> Floats:
    """What the model says of the new policy's list, corrected by what was earned instead (n,)."""
    assert lists.model is not None
    assert lists.expected is not None
    above = np.column_stack([np.ones(len(weights)), weights[:, :-1]])
    told = weights * (lists.reward - lists.model) + above * lists.expected
    return np.asarray(np.nan_to_num(told).sum(1))


def logged_value(lists: LoggedLists) -> Estimate:
    """What the logged lists did earn."""
    return _mean(np.nan_to_num(lists.reward).sum(1))


def _mean(each: Floats) -> Estimate:
    return _around(float(each.mean()), each - each.mean())


def _normalised(weights: Floats, reward: Floats) -> Estimate:
    """Sum over columns of the weighted means; its error is that of the ratios' linear terms."""
    mass = np.maximum(weights.mean(0), np.finfo(float).tiny)
    value = (weights * reward).mean(0) / mass
    return _around(float(value.sum()), (weights * (reward - value) / mass).sum(1))


def _around(value: float, errors: Floats) -> Estimate:
    wide = NORMAL * float(np.sqrt((errors**2).mean() / max(len(errors) - 1, 1)))
    return Estimate(value, value - wide, value + wide)
