"""What lists show beside how often they are right: how well known, how much alike, how evenly shared out it is.

``lists`` are (n_users, k) dense items padded with ``PAD``; ``buyers`` (n_items,) says how many users had each item.

References
----------
Vargas and Castells, "Rank and relevance in novelty and diversity metrics", RecSys 2011.
Abdollahpouri, Burke and Mobasher, "Managing popularity bias", FLAIRS 2019.
"""

import numpy as np

from models.evaluation.metrics import PAD, Floats, Ints


def novelty(lists: Ints, buyers: Ints, n_users: int) -> float:
    """Mean surprise of what is shown, bits: minus log2 of the share of users who had it, one more than did."""
    shown = lists[lists != PAD]
    return float(-np.log2((buyers[shown] + 1) / (n_users + 1)).mean()) if len(shown) else float("nan")


def popularity_shown(lists: Ints, buyers: Ints) -> float:
    """How many had what is shown, relative to what users chose: above 1, lists are more popular than their users'."""
    shown, total = lists[lists != PAD], float(buyers.sum())
    if not len(shown) or not total:
        return float("nan")
    return float(buyers[shown].mean() / ((buyers.astype(np.float64) ** 2).sum() / total))


def gini(lists: Ints, n_items: int) -> float:
    """How unevenly items are shown: 0 if all alike, near 1 if a few take everything."""
    times = np.sort(np.bincount(lists[lists != PAD], minlength=n_items)).astype(np.float64)
    if not times.sum():
        return float("nan")
    places = np.arange(1, n_items + 1)
    return float((2 * places - n_items - 1) @ times / (n_items * times.sum()))


def diversity(lists: Ints, kinds: Ints) -> Floats:
    """Share of the pairs in each list that are of different kinds (n_users,); NaN for a list of fewer than two."""
    found = np.full(len(lists), np.nan)
    for row, items in enumerate(lists):
        held = kinds[items[items != PAD]]
        pairs = len(held) * (len(held) - 1)
        if pairs:
            counts = np.unique(held, return_counts=True)[1]
            found[row] = 1 - (counts * (counts - 1)).sum() / pairs
    return found
