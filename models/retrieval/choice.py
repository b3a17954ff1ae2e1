"""Which settings of a model suit a log: those that find best what its users had last."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.evaluation.metrics import Floats, Ints, Relevance, mean, ndcg
from models.interactions import Interactions, Items, Users
from models.retrieval.ease import Ease
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import Model, Scorer, best
from models.retrieval.sequence import Sequences, Words
from models.retrieval.towers import Towers

JUDGED_BY = 10
"""NDCG at so many places decides."""
USERS = 4_000
"""Users that are held out, at most: the interval of their mean is some .01 wide."""
LEAST_LEFT = 2
"""Interactions that a held-out user keeps."""


Progress = Callable[[str], None]


def silent(told: str) -> None:
    """Tell nobody."""


def popularities() -> Sequence[Popularity]:
    """All alike first, then those that forget ever faster."""
    return [Popularity(), *(Popularity(share) for share in (0.3, 0.1, 0.03, 0.01, 0.003))]


def settings_of(name: str, users: Users, items: Items, words: Words) -> Sequence[Model]:
    """What is learned with each setting and then asked in each variant, the usual first."""
    if name == "popularity":
        return popularities()
    if name == "itemknn":
        return [ItemNeighbours(shrink=shrink) for shrink in (10, 0, 3, 30, 100)]
    if name == "ease":
        return [Ease(least) for least in (200, 50, 800, 10, 3_000)]
    return [Towers(users, items), Sequences(words)]


@dataclass(frozen=True)
class Choice:
    """A model with the settings that were best, as it learned what came before what was held out.

    ``score`` is its NDCG, ``tried`` that of all settings, ``untried`` how many there was no time for.
    """

    model: Model
    scorer: Scorer
    score: float
    tried: Mapping[str, float]
    untried: int


@dataclass(frozen=True)
class HeldOut:
    """A log without what some users had last, and what that was."""

    before: Interactions
    users: Ints
    relevance: Relevance


def hold_out(log: Interactions, since: int | None, repeats: bool, seed: int = 7) -> HeldOut:
    """Take the last interaction of some users away, or all from a time on.

    Parameters
    ----------
    since
        Epoch milliseconds from which on everything is held out, as where what is judged lies after the whole log.
    """
    last = _last_of_each(log) if since is None else log.at_ms >= since
    kept = Interactions(log.user[~last], log.item[~last], log.at_ms[~last], log.n_users, log.n_items)
    user, item = log.user[last], log.item[last]
    if not repeats:
        had = np.isin(user.astype(np.int64) * log.n_items + item, kept.user.astype(np.int64) * log.n_items + kept.item)
        user, item = user[~had], item[~had]
    enough = np.bincount(kept.user, minlength=log.n_users)[user] >= LEAST_LEFT
    user, item = user[enough], item[enough]
    chosen = np.random.default_rng(seed).permutation(np.unique(user))[:USERS]
    among = np.isin(user, chosen)
    relevance = Relevance.from_pairs(user[among], item[among], log.n_users, log.n_items)
    return HeldOut(kept, relevance.users, relevance)


def choose(
    settings: Sequence[Model], held: HeldOut, repeats: bool, until: float,
    progress: Progress = silent,
) -> Choice:  # fmt: skip
    """Try a model's settings until the time is up, the usual ones at least, and return the best.

    Parameters
    ----------
    until
        Instant of ``time.monotonic`` after which no more is tried; a setting that took so long before is not begun.
    """
    tried: dict[str, float] = {}
    best_of_all: tuple[float, Model, Scorer] | None = None
    begun = 0
    for setting in settings:
        begun += 1
        began, best_here, worse = time.monotonic(), -1.0, 0
        for model, scorer in setting.variants(held.before):
            score = judge(scorer, held, repeats)
            tried[str(model)] = round(score, 5)
            progress(f"{model}: {score:.4f}")
            best_here, worse = (score, 0) if score > best_here else (best_here, worse + 1)
            if best_of_all is None or score > best_of_all[0]:
                best_of_all = score, model, scorer
            if worse >= setting.patience or time.monotonic() > until:
                break
        if 2 * time.monotonic() - began > until:
            break
        del scorer  # which may be large, while the next setting's is made
    assert best_of_all is not None
    score, model, scorer = best_of_all
    return Choice(model, scorer, score, tried, len(settings) - begun)


def judge(scorer: Scorer, held: HeldOut, repeats: bool) -> float:
    """Mean NDCG of what was held out; 0 if nothing was."""
    return mean(judge_each(scorer, held, held.users, repeats)) if len(held.users) else 0.0


def judge_each(scorer: Scorer, held: HeldOut, users: Ints, repeats: bool) -> Floats:
    """NDCG of what was held out of each of some users (len(users),)."""
    lists = best(scorer, held.before, users, JUDGED_BY, repeats).items
    return ndcg(held.relevance.hits(users, lists), held.relevance.sizes[users], JUDGED_BY)


def _last_of_each(log: Interactions) -> Any:
    """Whether each interaction is its user's last (n,)."""
    newest = np.full(log.n_users, -1)
    newest[log.user] = np.arange(len(log))  # of several assignments to a place the last stays
    last = np.zeros(len(log), bool)
    last[newest[newest >= 0]] = True
    return last
