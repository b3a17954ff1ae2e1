"""The served lists against what was bought afterwards, beside the rules that need no training.

One list per user, made by the very funnel that serves, at the platform's present instant; relevant are the distinct
products of the held-out period; the full catalogue, repeats allowed, nothing sampled.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from headwater.datasets.complete_journey import TEST_START, epoch_ms, home_of
from headwater.errors import DataError, UnavailableError
from headwater.settings import Settings
from models.baselines import BASELINES
from models.evaluation.metrics import PAD, Floats, Ints, Relevance, mean, ndcg, paired_bootstrap, recall
from models.interactions import Dataset, Ids, load_dataset
from serving.build import build_recommender
from serving.funnel import Funnel

DEPTH = 20
SEED = 20171126
CUTOFF_MS = epoch_ms(TEST_START)
OURS = "headwater"


@dataclass(frozen=True, slots=True)
class Lists:
    """Item ids per user, best first: as served, and as the two towers alone propose."""

    served: Sequence[Sequence[str]]
    retrieved: Sequence[Sequence[str]]


def judge(
    settings: Settings, lists_of: Callable[[Sequence[str]], Lists], holdout: Path | None = None
) -> dict[str, Any]:
    """Score the served lists once on the held-out period.

    Parameters
    ----------
    lists_of
        Makes the lists of users at the platform's present instant, such as :func:`in_processes`.

    Returns
    -------
    ``ndcg@10``, ``recall@20`` (also for repeats and first purchases apart) by method, ``ndcg@10_gain`` of the funnel
    over each other method as mean and 95 % interval (bootstrap over users), and the ``users`` judged.
    """
    data, wanted = held_out(settings, holdout)
    judged = wanted.users
    names = [str(name) for name in data.users.ids.values[judged]]
    made = lists_of(names)
    lists = {
        OURS: dense_lists(made.served, data.items.ids),
        "retrieval_only": dense_lists(made.retrieved, data.items.ids),
    }
    lists |= {name: make(data.bought).top_k(judged, CUTOFF_MS, DEPTH) for name, make in BASELINES.items()}
    return _scores(lists, wanted, _bought_before(data), judged) | {"users": names}


def held_out(settings: Settings, holdout: Path | None = None) -> tuple[Dataset, Relevance]:
    """What was bought before the test period, and what each user bought in it of the products that are known.

    Raises
    ------
    DataError
        There is no such file.
    """
    data = load_dataset(settings.events_dir, home_of(settings), CUTOFF_MS)
    return data, _relevance(holdout or home_of(settings) / "holdout.parquet", data)


def served_lists(funnel: Funnel, users: Sequence[str], depth: int) -> list[list[str]]:
    """Item ids of each user's list at the platform's present instant, best first.

    Raises
    ------
    UnavailableError
        A list was degraded: it would be judged unfairly.
    """
    ranked = funnel.rank_all(users, depth)
    worse = next((f"{user} ({', '.join(ranked[user].degraded)})" for user in users if ranked[user].degraded), None)
    if worse is not None:
        raise UnavailableError(
            f"evaluate: the list of {worse} was degraded, so it would be judged unfairly. Mend that."
        )
    return [[item.item_id for item in ranked[user].items] for user in users]


def in_processes(settings: Settings, users: Sequence[str]) -> Lists:
    """Make everyone's lists with the champion's funnel, the users shared out over the machine's cores.

    Raises
    ------
    UnavailableError
        A list was degraded: it would be judged unfairly.
    """
    workers = max(1, min(os.cpu_count() or 1, len(users) // 100))
    shares = [users[at::workers] for at in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(_lists_of, [settings] * workers, shares))
    order = {user: at for at, user in enumerate(user for share in shares for user in share)}
    served = [ids for part in made for ids in part.served]
    retrieved = [ids for part in made for ids in part.retrieved]
    return Lists([served[order[user]] for user in users], [retrieved[order[user]] for user in users])


def _lists_of(settings: Settings, users: Sequence[str]) -> Lists:
    funnel = build_recommender(settings)
    return Lists(served_lists(funnel, users, DEPTH), [funnel.proposed_by("two_tower", user, DEPTH) for user in users])


def _scores(lists: Mapping[str, Ints], wanted: Relevance, known: Relevance, judged: Ints) -> dict[str, Any]:
    repeats, first = wanted.split(known)
    per_user = {name: _metric(ndcg, 10, wanted, judged, found) for name, found in lists.items()}
    gains = {name: paired_bootstrap(per_user[OURS], values, SEED) for name, values in per_user.items() if name != OURS}
    report: dict[str, Any] = {"ndcg@10": {name: round(mean(values), 4) for name, values in per_user.items()}}
    for label, relevance in (("recall@20", wanted), ("recall@20_repeats", repeats), ("recall@20_first", first)):
        report[label] = {
            name: round(mean(_metric(recall, DEPTH, relevance, judged, found)), 4) for name, found in lists.items()
        }
    report["ndcg@10_gain"] = {
        name: {"mean": round(gain.mean, 4), "low": round(gain.low, 4), "high": round(gain.high, 4)}
        for name, gain in gains.items()
    }
    return report | {"judged_users": len(judged)}


def _metric(metric: Any, k: int, relevance: Relevance, judged: Ints, found: Ints) -> Floats:
    values: Floats = metric(relevance.hits(judged, found), relevance.sizes[judged], k)
    return values


def _relevance(path: Path, data: Dataset) -> Relevance:
    if not path.is_file():
        raise DataError(f"{path}: no held-out purchases. Run headwater data complete-journey first.")
    table = pq.read_table(path, columns=["user_id", "item_id"])
    users = data.users.ids.dense(table["user_id"].to_pylist())
    items = data.items.ids.dense(table["item_id"].to_pylist())
    kept = (users >= 0) & (items >= 0)
    return Relevance.from_pairs(users[kept], items[kept], len(data.users.ids), len(data.items))


def _bought_before(data: Dataset) -> Relevance:
    return Relevance.from_pairs(data.bought.user, data.bought.item, len(data.users.ids), len(data.items))


def dense_lists(lists: Sequence[Sequence[str]], items: Ids, depth: int = DEPTH) -> Ints:
    """Lists of item ids as rows of dense numbers (n_lists, depth), padded."""
    found = np.full((len(lists), depth), PAD, np.int32)
    for row, ids in enumerate(lists):
        found[row, : len(ids)] = items.dense(list(ids)) if ids else []
    return found
