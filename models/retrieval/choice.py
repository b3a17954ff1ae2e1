"""Which settings of a model suit a log: those that find best what its users had last."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.evaluation.metrics import Floats, Ints, Relevance, mean, ndcg
from models.interactions import Interactions
from models.retrieval.checkpoint import DONE, TIME, Checkpoint
from models.retrieval.ease import Ease
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import ALL_OF_THEM, Model, Scorer, best
from models.retrieval.sequence import Sequences, suited
from models.retrieval.task import Task
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


def settings_of(name: str, task: Task, folder: Path | None = None) -> Sequence[Model]:
    """What is learned with each setting and then asked in each variant, the usual first.

    Parameters
    ----------
    folder
        Where those that take long keep the states of their training.
    """
    if name == "popularity":
        return popularities()
    if name == "itemknn":
        return [ItemNeighbours(shrink=shrink) for shrink in (10, 0, 3, 30, 100)]
    if name == "ease":
        return [Ease(least) for least in (200, 50, 800, 10, 3_000)]
    towers = Towers(task.users, task.items, checkpoint=folder)
    sequences = Sequences(task.words, suited(task.log), checkpoint=folder)
    return [towers, sequences, *([replace(sequences, gaps=True)] if task.timed else [])]


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


@dataclass(frozen=True)
class Choice:
    """A model with the settings that were best.

    ``score`` is its NDCG, ``tried`` that of all settings, ``untried`` how many there was no time for; ``before`` is
    what it learned, and ``made`` what came of it, if that was kept.
    """

    model: Model
    score: float
    tried: Mapping[str, float]
    untried: int
    before: Interactions = field(repr=False)
    made: Scorer | None = field(default=None, repr=False)

    @cached_property
    def scorer(self) -> Scorer:
        """The model as it learned what came before what was held out, learned again if that was not kept."""
        return self.model.fit(self.before) if self.made is None else self.made


def choose(
    settings: Sequence[Model], held: HeldOut, repeats: bool, until: float,
    progress: Progress = silent, checkpoint: Checkpoint | None = None,
) -> Choice:  # fmt: skip
    """Try a model's settings until the time is up, the usual ones at least, and return the best.

    Parameters
    ----------
    until
        Instant of ``time.monotonic`` after which no more is tried; a setting that took so long before is not begun.
    checkpoint
        What it holds is not tried again, and is added to.
    """
    checkpoint = checkpoint or Checkpoint()
    trials: list[_Trial] = []
    for setting in settings:
        began = time.monotonic()
        for trial in trials:
            if trial.model.patience >= ALL_OF_THEM:  # it is learned in one go, so again if it is asked for
                trial.made = None  # which may be large, while the next setting's is made
        trials.append(_try(setting, held, repeats, until, progress, checkpoint))
        if checkpoint.over(setting) is None:
            checkpoint.end(setting, DONE if 2 * time.monotonic() - began <= until else TIME)
        if checkpoint.over(setting) == TIME:
            break
    best_of_all = max(trials, key=lambda trial: trial.score)
    tried = {name: round(score, 5) for trial in trials for name, score in trial.tried.items()}
    left = len(settings) - len(trials)
    return Choice(best_of_all.model, best_of_all.score, tried, left, held.before, best_of_all.made)


@dataclass
class _Trial:
    """The best variant of a setting so far, and how many in a row were no better since."""

    model: Model
    score: float = -1.0
    made: Scorer | None = None
    worse: int = 0
    tried: dict[str, float] = field(default_factory=dict)

    def add(self, model: Model, score: float, made: Scorer | None) -> None:
        self.tried[str(model)] = score
        if score > self.score:
            self.model, self.score, self.made, self.worse = model, score, made, 0
        else:
            self.worse += 1


def _try(
    setting: Model, held: HeldOut, repeats: bool, until: float, progress: Progress, checkpoint: Checkpoint
) -> _Trial:
    trial = _Trial(setting)
    for model, score in checkpoint.tried(setting):
        trial.add(model, score, None)
    if checkpoint.over(setting) is not None:
        return trial
    for model, scorer in setting.variants(held.before):
        if trial.worse >= setting.patience:
            break
        if str(model) in trial.tried:
            continue
        score = judge(scorer, held, repeats)
        checkpoint.add(setting, model, score)
        trial.add(model, score, scorer)
        progress(f"{model}: {score:.4f}")
        if trial.worse >= setting.patience or time.monotonic() > until:
            break
    return trial


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
