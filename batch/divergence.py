"""How far two samples of one feature lie apart: population stability index and Kullback-Leibler divergence.

Both compare shares of bins, p of what was trained on and q of what was served. Bins are cut at the quantiles of the
training sample, so that each holds about as much of it; where a value is so frequent that quantiles coincide there are
fewer. A share is (n + 1/2) / (N + B/2) for n of N values in one of B bins (Krichevsky, Trofimov 1981), so that an empty
bin adds a large term and not an infinite one. What is absent is left out of the bins and told as a rate of its own.

References
----------
Kullback, Leibler, "On information and sufficiency", Annals of Mathematical Statistics 1951.
Siddiqi, "Credit risk scorecards", 2006: an index below 0.1 is no shift, above 0.25 a major one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10
MAJOR = 0.25
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Divergence:
    """``psi`` symmetric, ``kl`` of the served from the trained, nats; both None where a side has no value at all."""

    psi: float | None
    kl: float | None
    null_trained: float
    null_served: float
    bins: int


def divergence(trained: Floats, served: Floats, trained_weight: Floats, served_weight: Floats) -> Divergence:
    """Compare two samples of a feature.

    Parameters
    ----------
    trained, served : (n,), (m,)
        Values, NaN where there is none.
    trained_weight, served_weight : (n,), (m,)
        For how many rows each stands; only their proportions count, a sample weighs as many rows as it has.
    """
    p, q = np.isnan(trained), np.isnan(served)
    null_trained, null_served = _rate(p, trained_weight), _rate(q, served_weight)
    if p.all() or q.all():
        return Divergence(None, None, null_trained, null_served, 0)
    edges = quantile_edges(trained[~p], trained_weight[~p])
    before = shares(trained[~p], trained_weight[~p], edges)
    after = shares(served[~q], served_weight[~q], edges)
    ratio = np.log(after / before)
    psi, kl = float(((after - before) * ratio).sum()), float((after * ratio).sum())
    return Divergence(psi, kl, null_trained, null_served, len(before))


def quantile_edges(values: Floats, weight: Floats, bins: int = BINS) -> Floats:
    """Distinct inner quantiles, ascending; a bin holds what lies above one edge and up to the next.

    Where a quantile falls on the least value, what lies below that is a bin by itself.
    """
    order = np.argsort(values, kind="stable")
    held = np.cumsum(weight[order])
    wanted = held[-1] * np.arange(1, bins) / bins
    edges = np.unique(values[order][np.searchsorted(held, wanted)])
    least = values[order[0]]
    below = [np.nextafter(least, -np.inf)] if edges[0] == least else []
    return np.concatenate([below, edges])


def shares(values: Floats, weight: Floats, edges: Floats) -> Floats:
    """Smoothed share of each of the bins between the edges, (n_edges + 1,), adding up to 1."""
    place = np.searchsorted(edges, values, side="left")
    counts = np.bincount(place, weight, len(edges) + 1) * (len(values) / weight.sum())
    smoothed: Floats = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return smoothed


def _rate(absent: NDArray[np.bool_], weight: Floats) -> float:
    return float(weight[absent].sum() / weight.sum()) if len(weight) else 0.0
