"""The whole funnel on a log of any origin: several models find items, trees put what they found in order.

The trees learn from what users did after the part of the log that the models had learned from; then the models learn
from all of it. LambdaMART (Burges, Microsoft Research 2010) as in :mod:`models.ranking`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import PAD, Floats, Ints, Relevance, mean, ndcg, top_k_grouped
from models.interactions import Interactions
from models.ranker import Ranker
from models.ranking import RankerConfig, Rows
from models.ranking import grow as grow_trees
from models.retrieval.checkpoint import Checkpoint
from models.retrieval.choice import JUDGED_BY, Choice, HeldOut, Progress, choose, judge_each, silent
from models.retrieval.facts import Facts
from models.retrieval.popularity import below_zero
from models.retrieval.protocol import ALL_OF_THEM, Float32s, Lister, Model, Scorer, users_at_a_time

FOUND = 100
"""Items that each model finds for a user, beside those the user has had where they may be shown again."""
FOLDS = 3
USERS_AT_A_TIME = 256
MOST_ROWS = 1_000_000
"""From which the trees learn; users beyond them are left out."""
LEAST_USERS = 50
"""With something to find, without whom no trees are grown."""
CONFIG = RankerConfig(leaves=31, rounds=400, patience=30)
SEED = 5


@dataclass(frozen=True)
class Found:
    """Candidates of some users, those of a user together: row of ``users``, item, and what is known of the two."""

    row: Ints
    item: Ints
    features: Float32s
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Made:
    """Scores of some users that have been made already (n_users, n_items)."""

    of_all: Float32s

    def scores(self, users: Ints) -> Float32s:
        return self.of_all[: len(users)]


@dataclass(frozen=True)
class Sources:
    """Models that have learned from a log, and what else the log tells."""

    scorers: Mapping[str, Scorer]
    log: Interactions
    codes: Mapping[str, Ints]
    repeats: bool

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.log, self.codes)

    @cached_property
    def lister(self) -> Lister:
        return Lister(self.log, self.repeats)

    def found(self, users: Ints) -> Found:
        """Everything that any model, or the users' own past, puts forward."""
        given = {name: _Made(scorer.scores(users)) for name, scorer in self.scorers.items()}
        lists = {name: self.lister.best(one, users, FOUND) for name, one in given.items()}
        among = np.zeros((len(users), self.log.n_items), bool)
        places = {}
        for name, found in lists.items():
            rows, at = np.nonzero(found.items != PAD)
            places[name] = np.full(among.shape, FOUND, np.int16)
            places[name][rows, found.items[rows, at]] = at
            among[rows, found.items[rows, at]] = True
        if self.repeats:
            among[self.lister.had[users].nonzero()] = True
        row, item = (part.astype(np.int32) for part in np.nonzero(among))
        told: dict[str, npt.NDArray[Any]] = {}
        for name, one in given.items():
            scores = one.of_all[row, item]
            told[f"{name}_score"], told[f"{name}_place"] = scores, places[name][row, item]
            told[f"{name}_below_first"] = lists[name].scores[row, 0] - scores
        told |= self.facts.of(users[row], item)
        return Found(row, item, np.column_stack([values.astype(np.float32) for values in told.values()]), tuple(told))

    def parts(self, users: Ints) -> Iterator[tuple[Ints, Found]]:
        """Users a few at a time, with their candidates."""
        step = min(users_at_a_time(self.log.n_items), USERS_AT_A_TIME)
        for begin in range(0, len(users), step):
            part = users[begin : begin + step]
            yield part, self.found(part)


@dataclass(frozen=True)
class Pipeline:
    """Models with their settings, and the trees that were grown on what they find."""

    sources: Mapping[str, Model]
    trees: Ranker = field(repr=False)
    codes: Mapping[str, Ints] = field(repr=False)
    repeats: bool = field(repr=False)
    patience: ClassVar[int] = ALL_OF_THEM

    def fit(self, log: Interactions) -> "_Scores":
        """Let every model learn from the log; the trees stay."""
        scorers = {name: model.fit(log) for name, model in self.sources.items()}
        return _Scores(Sources(scorers, log, self.codes, self.repeats), self.trees)

    def variants(self, log: Interactions) -> Iterator[tuple["Pipeline", "_Scores"]]:
        yield self, self.fit(log)


@dataclass(frozen=True)
class _Scores:
    sources: Sources
    trees: Ranker

    def scores(self, users: Ints) -> Float32s:
        """Above zero for what was found; the rest follows by popularity, below zero."""
        scores = np.repeat(below_zero(self.sources.log)[None], len(users), 0)
        done = 0
        for part, found in self.sources.parts(users):
            scores[done + found.row, found.item] = np.exp(np.clip(self.trees.score(found.features), -30, 30))
            done += len(part)
        return scores


def choose_pipeline(
    settings: Mapping[str, Sequence[Model]], codes: Mapping[str, Ints], held: HeldOut, repeats: bool, until: float,
    progress: Progress = silent, checkpoint: Checkpoint | None = None,
) -> Choice:  # fmt: skip
    """Choose each model's settings, grow trees on what they find, and return the whole; or the best model, if better.

    Parameters
    ----------
    until
        Instant of ``time.monotonic`` after which no more is tried; each model but the last may take a fifth of what is
        left, since the last is the one that takes long.
    checkpoint
        What it holds is not tried again, and is added to; the trees are grown again.
    """
    choices: dict[str, Choice] = {}
    for at, (name, some) in enumerate(settings.items(), 1):
        now = time.monotonic()
        share = 1.0 if at == len(settings) else 0.2
        choices[name] = choose(some, held, repeats, now + share * max(until - now, 0.0), progress, checkpoint)
    tried = {setting: score for choice in choices.values() for setting, score in choice.tried.items()}
    untried = sum(choice.untried for choice in choices.values())
    single = max(choices.values(), key=lambda choice: choice.score)
    sources = Sources({name: choice.scorer for name, choice in choices.items()}, held.before, codes, repeats)
    users = np.random.default_rng(SEED).permutation(held.users)
    grown = grow(sources, users, held.relevance)
    if grown is None:
        return replace(single, tried=tried, untried=untried)
    judged = users[: len(grown.judged)]
    score, alone = mean(grown.judged), mean(judge_each(single.scorer, held, judged, repeats))
    progress(f"trees: {score:.4f}, {single.model} for the same users: {alone:.4f}")
    if score <= alone:
        return replace(single, tried=tried, untried=untried)
    model = Pipeline({name: choice.model for name, choice in choices.items()}, grown.trees, codes, repeats)
    tried |= {"trees": round(score, 5)}
    return Choice(model, score, tried, untried, held.before, _Scores(sources, grown.trees))


@dataclass(frozen=True)
class Grown:
    """Trees, and how well they put in order what was found for the first users of those given.

    ``judged`` (n,): NDCG at 10 by trees that had been grown without the user.
    """

    trees: Ranker
    judged: Floats


def grow(sources: Sources, users: Ints, wanted: Relevance) -> Grown | None:
    """Grow trees on what is found for users of whom it is known what they did next; ``None`` if too few tell anything.

    Parameters
    ----------
    users : (n,)
        In an order that says nothing: where they have too many candidates the last are left out.
    """
    if len(users) < LEAST_USERS:
        return None
    found, row, n_users, names = _rows(sources, users, wanted)
    if len(np.unique(row[found.label > 0])) < LEAST_USERS:
        return None
    of_user = np.random.default_rng(SEED).integers(0, FOLDS, n_users)
    fold = of_user[np.unique(row)]  # of those for whom anything was found
    scores, rounds = np.zeros(len(row), np.float32), []
    for held in range(FOLDS):
        trees = grow_trees(found.take(fold != held), found.take(fold == held), names, CONFIG)
        rounds.append(trees.booster.num_trees())
        out = of_user[row] == held
        scores[out] = trees.score(found.features[out])
    lists = top_k_grouped(row, np.arange(len(row), dtype=np.int32), scores, n_users, JUDGED_BY)
    hits = (lists >= 0) & (found.label[np.maximum(lists, 0)] > 0)
    judged = ndcg(hits, wanted.sizes[users[:n_users]], JUDGED_BY)
    return Grown(grow_trees(found, None, names, replace(CONFIG, rounds=max(1, int(np.mean(rounds))))), judged)


def _rows(sources: Sources, users: Ints, wanted: Relevance) -> tuple[Rows, Ints, int, tuple[str, ...]]:
    """What was found for the first users and whether it was wanted; each row's user, how many users, and features."""
    parts: list[tuple[Float32s, npt.NDArray[np.int8], Ints, Ints]] = []
    names: tuple[str, ...] = ()
    n_users, n_rows = 0, 0
    for part, found in sources.parts(users):
        keys = part[found.row].astype(np.int64) * wanted.n_items + found.item
        label = np.isin(keys, wanted.keys).astype(np.int8)
        parts.append((found.features, label, (found.row + n_users).astype(np.int32), found.item))
        n_users, n_rows, names = n_users + len(part), n_rows + len(label), found.names
        if n_rows > MOST_ROWS:
            break
    features, label, row, item = (np.concatenate(column) for column in zip(*parts, strict=True))
    who, group = np.unique(row, return_inverse=True)
    ones = np.ones(len(row), np.float32)
    rows = Rows(features, label, ones, group.astype(np.int32), item, np.zeros(len(who), np.int64))
    return rows, row, n_users, names
