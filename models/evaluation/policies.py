"""A log of labelled impressions, and a new policy over it: a table of probabilities, or a bundle's ranker.

A ranker's policy draws each list as exploration does (Plackett and Luce: a place after the other, in proportion to
``exp(relevance / temperature)``, where relevance goes from 0 to 1) among the candidates that the log holds: the shown,
and the sampled others, each of which stands for as many as its sampling probability tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from headwater.errors import DataError
from models.draws import draw_weights
from models.evaluation.counterfactual import Floats, LoggedLists
from models.ranker import Scorer
from models.requests import REQUEST
from models.rows import POSITION, SHOWN

PROPENSITY, SAMPLED, PROBABILITY = "position_propensity", "sampling_probability", "probability"
MOST_PLACES = 1_000
_NEXT = "Make it from what was shown: headwater training-set --from-impressions"
Ints = npt.NDArray[np.int64]


class Named(Scorer, Protocol):
    """A ranker that says what it reads."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns, in the order in which it reads them."""
        ...


@dataclass(frozen=True)
class Log:
    """Rows of a log, the shown first and by list and place.

    Attributes
    ----------
    table
        All rows of lists that were shown.
    group : (n,)
        Number of each row's list.
    place : (n_shown,)
        From 0.
    reward : (n,)
    """

    table: pa.Table
    group: Ints
    place: Ints
    reward: Floats

    @property
    def n_lists(self) -> int:
        return int(self.group.max()) + 1

    @property
    def n_shown(self) -> int:
        return len(self.place)

    def by_list(self, values: npt.NDArray[Any]) -> Floats:
        """What each shown row has (n_shown,), by list and place (n_lists, places); NaN where there is no such place."""
        found = np.full((self.n_lists, int(self.place.max()) + 1), np.nan)
        found[self.group[: self.n_shown], self.place] = values
        return found

    def lists(
        self, target: npt.NDArray[Any], model: Floats | None = None, expected: Floats | None = None
    ) -> LoggedLists:
        """Judge a policy that has so much probability of each shown row (n_shown,)."""
        behaviour = self.table[PROPENSITY].to_numpy()[: self.n_shown]
        return LoggedLists(
            self.by_list(self.reward[: self.n_shown]),
            self.by_list(behaviour),
            self.by_list(target),
            None if model is None else self.by_list(model),
            None if expected is None else self.by_list(expected),
        )


def read_log(folder: Path, reward: str = "label") -> Log:
    """Read rows as ``headwater training-set --from-impressions`` writes them, or a file of such rows.

    Raises
    ------
    DataError
        There are none, a column is missing, or a list does not have each of its places once.
    """
    if not folder.exists():
        raise DataError(f"{folder}: there is no such log. {_NEXT}")
    return log_of(ds.dataset(folder, format="parquet").to_table(), str(folder), reward)


def log_of(table: pa.Table, folder: str, reward: str = "label") -> Log:
    """Rows of a table that came from a folder; raises as :func:`read_log` does."""
    wanted = {REQUEST, "item_id", POSITION, PROPENSITY, reward}
    if missing := sorted(wanted - set(table.column_names)):
        raise DataError(f"{folder}: no column {', '.join(missing)}. {_NEXT}")
    if SHOWN not in table.column_names:
        table = table.append_column(SHOWN, pc.is_valid(table[POSITION]))
    table = table.sort_by([(SHOWN, "descending"), (REQUEST, "ascending"), (POSITION, "ascending")])
    codes = table[REQUEST].combine_chunks().dictionary_encode().indices.to_numpy()
    n_shown = int(pc.sum(table[SHOWN]).as_py() or 0)
    if not n_shown:
        raise DataError(f"{folder}: no list was shown there. {_NEXT}")
    place = table[POSITION].slice(0, n_shown).cast(pa.int64()).to_numpy(zero_copy_only=False) - 1
    begins = np.flatnonzero(np.append(True, codes[1:n_shown] != codes[: n_shown - 1]))
    rank = np.arange(n_shown) - np.repeat(begins, np.diff(np.append(begins, n_shown)))
    if (wrong := place != rank).any() or place.max() >= MOST_PLACES:
        at = int(np.argmax(wrong))
        raise DataError(
            f"{folder}: list {table[REQUEST][at]} has no place {rank[at] + 1}, or has it twice; a list is judged "
            "whole. Do not drop rows of what was shown."
        )
    kept = codes < len(begins)  # candidates of requests that showed nothing are numbered after all others
    table, rewards = table.filter(pa.array(kept)), pc.fill_null(table[reward].cast(pa.float64()), 0.0)
    return Log(table, codes[kept].astype(np.int64), place, rewards.to_numpy()[kept])


def by_table(log: Log, path: Path) -> LoggedLists:
    """Judge the policy of a Parquet table of ``request_id, item_id, probability``.

    The probability is that of the shown item at its place given those above it; an item that a list's rows lack has
    none. A list without any row is refused, since silence is no policy.
    """
    table = pq.read_table(path)
    if missing := sorted({REQUEST, "item_id", PROBABILITY} - set(table.column_names)):
        raise DataError(f"{path}: no column {', '.join(missing)}. A policy has request_id, item_id and probability.")
    shown = log.table.slice(0, log.n_shown).select([REQUEST, "item_id"])
    unknown = pc.sum(pc.invert(pc.is_in(shown[REQUEST], pc.unique(table[REQUEST])))).as_py()
    if unknown:
        raise DataError(
            f"{path}: {unknown} shown rows are of lists that it says nothing of. Give it a row of each list."
        )
    policy = table.select([REQUEST, "item_id", PROBABILITY]).group_by([REQUEST, "item_id"])
    policy = policy.aggregate([(PROBABILITY, "max"), (PROBABILITY, "count")])
    if (pc.max(policy[f"{PROBABILITY}_count"]).as_py() or 0) > 1:
        raise DataError(f"{path}: an item of a list has several probabilities. Give it the one of its logged place.")
    numbered = shown.append_column("_row", pa.array(np.arange(len(shown))))
    joined = numbered.join(policy, [REQUEST, "item_id"], join_type="left outer").sort_by("_row")
    return log.lists(pc.fill_null(joined[f"{PROBABILITY}_max"], 0.0).to_numpy().astype(np.float64))


def by_ranker(log: Log, ranker: Named, temperature: float, seed: int = 0) -> LoggedLists:
    """Judge the policy that draws from a ranker's order; a model of the reward is learned for ``dr``.

    Raises
    ------
    DataError
        The log lacks a feature of the ranker.
    """
    names = ranker.feature_names
    if missing := sorted({*names, SAMPLED} - set(log.table.column_names)):
        raise DataError(f"the log has no column {missing[0]}, which the ranker reads. Log with its feature service.")
    features = vectors(log.table, names)
    weights = draw_weights(ranker.score(features), log.group, log.n_lists, temperature)
    relevance, examined = reward_model(log, features, seed)
    stands_for = 1 / log.table[SAMPLED].to_numpy()
    left, left_worth = (_left(log, held, stands_for) for held in (weights, weights * relevance))
    shown = slice(log.n_shown)
    return log.lists(np.minimum(weights[shown] / left, 1.0), relevance[shown] * examined, left_worth / left * examined)


def vectors(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float32]:
    """Columns of a log as a ranker reads them, float32 (n, n_names)."""
    return np.column_stack([table[name].to_numpy() for name in names]).astype(np.float32)


def reward_model(log: Log, features: npt.NDArray[np.float32], seed: int = 0) -> tuple[Floats, Floats]:
    """What each row is worth where all look (n,), and how much of it a shown row's place lets through (n_shown,).

    Trees learn from one half of the lists what they say of the other, so that no row is told its own reward.
    """
    half = np.random.default_rng(seed).integers(0, 2, log.n_lists)[log.group]
    shown = np.arange(len(features)) < log.n_shown
    found = np.zeros(len(features))
    for one in (0, 1):
        taught, asked = shown & (half != one), half == one
        if taught.any() and asked.any():
            found[asked] = _trees(features[taught], log.reward[taught])(features[asked])
    n_places = int(log.place.max()) + 1
    earned = np.bincount(log.place, log.reward[shown], n_places)
    said = np.bincount(log.place, found[shown], n_places)
    return found, np.divide(earned, said, out=np.zeros(n_places), where=said > 0)[log.place]


def _trees(features: npt.NDArray[np.float32], reward: Floats) -> Callable[[npt.NDArray[np.float32]], Floats]:
    import lightgbm

    told = {"objective": "regression", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 50, "verbosity": -1,
            "num_threads": 1, "deterministic": True, "seed": 1}  # fmt: skip
    booster = lightgbm.train(told, lightgbm.Dataset(features, reward), 50)
    return lambda asked: np.maximum(np.asarray(booster.predict(asked, num_threads=1), np.float64), 0.0)


def _left(log: Log, held: Floats, stands_for: Floats) -> Floats:
    """Sum over the candidates of a list that are not above each shown row (n_shown,)."""
    whole = np.bincount(log.group, held * stands_for, log.n_lists)
    shown = slice(log.n_shown)
    running = np.cumsum(held[shown])
    begins = np.flatnonzero(log.place == 0)
    above = running - held[shown] - np.repeat(running[begins] - held[begins], np.diff(np.append(begins, log.n_shown)))
    return np.maximum(whole[log.group[shown]] - above, held[shown])  # what is left of a difference of like numbers
