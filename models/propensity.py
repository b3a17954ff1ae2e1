"""How often each position of a list is looked at, over how often the first is, from what was clicked.

Under the examination model a click at position k of an item that is relevant with r has the probability
``propensity(k) * r``, so propensities are ratios of click rates wherever relevance cancels out: where positions were
drawn at random, and where the same item was shown to the same user at several.

References
----------
Joachims, Swaminathan and Schnabel, "Unbiased learning-to-rank with biased feedback", WSDM 2017 (random positions).
Agarwal, Zaitsev, Wang, Li, Najork and Joachims, "Estimating position bias without intrusive interventions", WSDM 2019
(swaps: intervention harvesting over all pairs of positions).
Joachims, Granka, Pan, Hembrooke and Gay, "Accurately interpreting clickthrough data as implicit feedback", SIGIR 2005
(what stands further up is looked at more).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.dataset as ds
from sklearn.isotonic import IsotonicRegression

from headwater.errors import DataError
from headwater.log import get_logger
from models.objectives import Objectives, Position
from models.rows import POSITION, SHOWN

Floats = npt.NDArray[np.float64]
RESAMPLES, LEVEL = 400, 0.95
ROUNDS = 500


@dataclass(frozen=True)
class Propensities:
    """Of positions 1 to n, the first being 1; what the data do not tell is NaN.

    Attributes
    ----------
    value, low, high : (n,)
        Estimate, and its 95 % interval from a bootstrap.
    """

    value: Floats
    low: Floats
    high: Floats

    @property
    def known(self) -> tuple[float, ...]:
        """Up to the first position that the data do not tell of."""
        end = int(np.argmax(np.append(np.isnan(self.value), True)))
        return tuple(round(float(value), 4) for value in self.value[:end])

    def rounded(self) -> list[tuple[float | None, float | None, float | None]]:
        """Value, low and high of each position; ``None`` where the data do not tell."""
        columns = zip(self.value.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        return [tuple(None if np.isnan(number) else round(number, 4) for number in row) for row in columns]  # type: ignore[misc]  # of three


def settled(declared: Objectives, directory: Path) -> Objectives:
    """The same with numbers, where propensities are to be estimated from the rows that are about to be learned from.

    Rows without positions, which are no impressions, have nothing to correct.

    Raises
    ------
    DataError
        The rows have positions and do not tell.
    """
    position = declared.position
    if position.correction != "weights" or position.estimated is None:
        return declared
    if not directory.is_dir() or POSITION not in ds.dataset(directory, format="parquet").schema.names:
        get_logger("models").info("position_not_corrected", reason="the rows have no positions", rows=str(directory))
        return declared.model_copy(update={"position": Position()})
    found = read_propensities(directory, position.clicks, position.estimated == "randomised")
    told = falling(found.known)
    get_logger("models").info("propensities_estimated", by=position.estimated, raw=found.known, propensities=told)
    numbers = position.model_copy(update={"propensities": told, "estimated": None})
    return declared.model_copy(update={"position": numbers})


def falling(values: Sequence[float]) -> tuple[float, ...]:
    """The closest propensities that do not rise from the first, which is 1, down the list, and of which none is 0.

    Lists are read from the top, so that what rises is chance, and so is a position at which nothing was clicked: it has
    that of the last one above it. From a hundred lists, estimates of 8, 11 and 0 were seen.
    """
    at = np.arange(len(values))
    smooth = IsotonicRegression(increasing=False, y_max=1).fit(at, values).predict(at).round(4)
    return tuple(np.where(smooth > 0, smooth, smooth[smooth > 0].min()).tolist())


def read_propensities(directory: Path, column: str, randomised: bool) -> Propensities:
    """Estimate from rows of what was shown: ``request_id, user_id, item_id, position``, ``shown`` and the column.

    Raises
    ------
    DataError
        There are no such rows, or they do not tell.
    """
    source = ds.dataset(directory, format="parquet") if directory.is_dir() else None
    wanted = ["request_id", "user_id", "item_id", POSITION, SHOWN, column]
    missing = [name for name in wanted if source is None or name not in source.schema.names]
    if source is None or missing:
        raise DataError(
            f"{directory}: no column {', '.join(missing)}. Make the rows from impressions: "
            "headwater training-set --from-impressions"
        )
    table = source.to_table(columns=wanted, filter=pc.field(SHOWN))
    if randomised:
        return from_randomised(table[POSITION].to_numpy(), table[column].to_numpy(), table["request_id"].to_numpy())
    user, item = (
        table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("user_id", "item_id")
    )
    pair = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    return from_swaps(table[POSITION].to_numpy(), table[column].to_numpy(), pair)


def from_randomised(
    position: npt.ArrayLike, clicked: npt.ArrayLike, request: npt.ArrayLike, seed: int = 5
) -> Propensities:
    """From lists whose order was drawn at random: click rate at each position over that at the first.

    Parameters
    ----------
    position, clicked, request : (n,)
        Of rows that were shown: from 1; yes or no; the list, by which rows are resampled.

    Raises
    ------
    DataError
        A position is none, or nothing was clicked at the first.
    """
    place, yes, group, n = _checked(position, clicked, request)
    clicks, shown = _table(group, place, yes, n), _table(group, place, np.ones(len(place)), n)

    def rates(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return _over_first((weights @ clicks) / (weights @ shown))

    return _with_interval(rates, len(clicks), seed)


def from_swaps(position: npt.ArrayLike, clicked: npt.ArrayLike, pair: npt.ArrayLike, seed: int = 5) -> Propensities:
    """From items that the same user met at several positions, as when models change or an order is explored.

    Of each pair of user and item, the click rate at each position that it was seen at; summed over the pairs that were
    seen at both k and k', the rates are as ``propensity(k)`` to ``propensity(k')``, whatever the pairs' relevance is.
    All pairs of positions together are the wins of a tournament, whose strengths (Bradley and Terry, 1952) are the
    propensities; Hunter's iteration finds them ("MM algorithms for generalized Bradley-Terry models", Annals of
    Statistics 2004).

    Parameters
    ----------
    position, clicked, pair : (n,)
        As in ``from_randomised``; the pair of user and item, by which rows are resampled.

    Raises
    ------
    DataError
        A position is none, or no pair that was clicked at the first was shown elsewhere too.
    """
    rate, seen = swapped(position, clicked, pair)
    return _with_interval(lambda weights: _over_first(bradley_terry(wins(rate, seen, weights))), len(rate), seed)


def swapped(position: npt.ArrayLike, clicked: npt.ArrayLike, pair: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Of pairs seen at several positions, the click rate at each, and whether they were seen there (n_pairs, n)."""
    place, yes, group, n = _checked(position, clicked, pair)
    shown = _table(group, place, np.ones(len(place)), n)
    rate = _table(group, place, yes, n) / np.maximum(shown, 1)
    several = (shown > 0).sum(1) > 1
    return rate[several], (shown[several] > 0).astype(np.float64)


def wins(rate: Floats, seen: Floats, weights: Floats) -> Floats:
    """Sum of the rates at k of the pairs that were seen at both k and k' (n_positions, n_positions)."""
    found: Floats = (rate * weights[:, None]).T @ seen
    np.fill_diagonal(found, 0)
    return found


def bradley_terry(won: Floats) -> Floats:
    """Strengths (n,) of players with so many wins over each other (n, n); NaN for those not linked to the first."""
    linked = _linked(won + won.T)
    met, total = (won + won.T)[np.ix_(linked, linked)], won[linked].sum(1)
    strength = np.full(len(total), 1 / len(total))
    for _ in range(ROUNDS):
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(met > 0, met / (strength[:, None] + strength), 0).sum(1)
            after = np.where(shares > 0, total / shares, 0)
        after /= after.sum() or 1
        if np.abs(after - strength).max() < 1e-12:
            break
        strength = after
    found = np.full(len(won), np.nan)
    found[linked] = strength
    return found


def _linked(met: Floats) -> npt.NDArray[np.bool_]:
    """Positions that a chain of pairs leads to from the first (n,)."""
    reached = np.zeros(len(met), bool)
    reached[:1] = True
    while (wider := reached | (met[reached] > 0).any(0)).sum() > reached.sum():
        reached = wider
    return reached


def _over_first(rates: Floats) -> Floats:
    return rates / rates[0] if rates[0] > 0 else np.full(len(rates), np.nan)


def _with_interval(estimate: Any, n: int, seed: int) -> Propensities:
    """Estimate with all weights one, and its percentile interval over clusters drawn with replacement."""
    value = estimate(np.ones(n)) if n else np.array([np.nan])
    if np.isnan(value[0]):
        raise DataError(
            "propensities: nothing was clicked at the first position that tells it apart from others. Take more rows, "
            "or declare propensities that are known otherwise."
        )
    generator, tail = np.random.default_rng(seed), (1 - LEVEL) / 2
    drawn = np.array([estimate(generator.multinomial(n, np.full(n, 1 / n)).astype(float)) for _ in range(RESAMPLES)])
    low, high = np.full((2, len(value)), np.nan)
    told = ~np.isnan(value)
    low[told], high[told] = np.nanquantile(drawn[:, told], [tail, 1 - tail], axis=0)
    return Propensities(value, low, high)


def _table(group: npt.NDArray[np.int64], place: npt.NDArray[np.int64], amount: Floats, n: int) -> Floats:
    """Sums by group and position (n_groups, n)."""
    found = np.zeros((int(group.max()) + 1, n))
    np.add.at(found, (group, place), amount)
    return found


def _checked(
    position: npt.ArrayLike, clicked: npt.ArrayLike, cluster: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.int64], int]:
    at = np.asarray(position, np.float64)
    if not len(at) or not (np.isfinite(at).all() and (at >= 1).all()):
        raise DataError(
            f"propensities: {len(at)} rows, some without a position from 1 or none at all. Give shown rows."
        )
    _, group = np.unique(np.asarray(cluster), return_inverse=True)
    return at.astype(np.int64) - 1, (np.asarray(clicked) > 0).astype(np.float64), group, int(at.max())
