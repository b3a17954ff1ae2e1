"""Users of whom a log tells nothing: shown what is popular, faded as suited those who came before them best."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import Ints, Relevance
from models.interactions import Interactions
from models.retrieval.choice import USERS, Choice, HeldOut, choose, judge, popularities
from models.retrieval.protocol import Float32s, Model, Scorer

LEAST_USERS = 20
"""New users without whom the rule is judged by all who were held out."""


@dataclass(frozen=True)
class _Scores:
    known: Scorer
    new: Scorer
    is_new: npt.NDArray[np.bool_]

    def scores(self, users: Ints) -> Float32s:
        is_new = self.is_new[users]
        found = self.known.scores(users)
        return np.where(is_new[:, None], self.new.scores(users), found) if is_new.any() else found


@dataclass(frozen=True)
class Welcoming:
    """A model, and the rule that answers users without an interaction in the log instead of it."""

    model: Model
    rule: Model

    @property
    def patience(self) -> int:
        return self.model.patience

    def fit(self, log: Interactions) -> _Scores:
        return self._scores(self.model.fit(log), log)

    def variants(self, log: Interactions) -> Iterator[tuple["Welcoming", _Scores]]:
        for model, scorer in self.model.variants(log):
            yield replace(self, model=model), self._scores(scorer, log)

    def _scores(self, scorer: Scorer, log: Interactions) -> _Scores:
        return _Scores(scorer, self.rule.fit(log), np.bincount(log.user, minlength=log.n_users) == 0)


def newcomers(log: Interactions, held: HeldOut, seed: int = 7) -> HeldOut:
    """Users who are new once something was held out of a log, and all that they did."""
    new = np.setdiff1d(log.user, held.before.user)
    among = np.isin(log.user, np.random.default_rng(seed).permutation(new)[:USERS])
    relevance = Relevance.from_pairs(log.user[among], log.item[among], log.n_users, log.n_items)
    return HeldOut(held.before, relevance.users, relevance)


def choose_rule(choice: Choice, log: Interactions, held: HeldOut, repeats: bool, traits: bool) -> Model | None:
    """What answers new users best, judged by those who were new when the rest was held out, if there are enough.

    Parameters
    ----------
    traits
        Whether anything is told of users beside what they had, so that the model may know new ones by it.

    Returns
    -------
    ``None`` if the model itself does better.
    """
    new = newcomers(log, held)
    if len(new.users) < LEAST_USERS:
        return choose(popularities(), held, repeats, float("inf")).model
    rule = choose(popularities(), new, repeats, float("inf"))
    return None if traits and judge(choice.scorer, new, repeats) > rule.score else rule.model
