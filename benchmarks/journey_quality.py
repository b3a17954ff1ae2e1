"""What lists are worth on Complete Journey: the whole pipeline and the towers, beside rules and published methods.

One list a household, made at the start of a period from what was known then; relevant are the distinct products bought
in it. Every setting was chosen on the validation period (docs/models.md), so that the test period is only scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from benchmarks import pipeline
from benchmarks.cornac_check import differences, require_cornac
from benchmarks.dual_ease import DualEase
from benchmarks.next_basket import TifuKnn, UpCf
from headwater.bench import Measure
from headwater.datasets.complete_journey import HOUSEHOLDS, TEST_START, VALID_START, epoch_ms, home_of
from headwater.errors import ConfigError
from headwater.settings import Settings
from models.baselines import OwnFrequency
from models.evaluation.metrics import Ints, Metric, Relevance, mean, ndcg, paired_bootstrap, recall
from models.interactions import Dataset, Interactions, load_dataset
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import Lister, Scorer
from models.retrieval.towers import Towers

LISTED, FOUND, SEED = 20, 100, 20171126
CHECKED_USERS = 30
LEAST = 1e-4  # of a baseline in a ratio: figures have four places
METRICS: Mapping[str, tuple[Metric, int]] = {
    "NDCG@10": (ndcg, 10), "recall@20": (recall, LISTED), f"recall@{FOUND}": (recall, FOUND),
}  # fmt: skip
OURS, TOWERS = "pipeline", "two-tower"
TO_BEAT = ("own decayed frequency", "TIFU-KNN", "UP-CF")
FIRST_TO_BEAT = ("EASE", "item-to-item")
FIND_NEW = (*FIRST_TO_BEAT, TOWERS, "popularity")
TIFU = TifuKnn(neighbours=100, within_decay=0.98, group_decay=0.9, own=0.5)
UPCF = UpCf(recency=0, locality=30.0)
EASE = DualEase(regularization=1_000, decay=0.99)
NEIGHBOURS = ItemNeighbours(neighbours=1_000, shrink=50, decay=0.9)


class Learner(Protocol):
    """What learns from a log."""

    def fit(self, log: Interactions) -> Scorer:
        """Learn; what is not in the log is not known."""
        ...


@dataclass(frozen=True)
class Task:
    """Purchases before ``at_ms``, and what was bought in the period that begins then."""

    data: Dataset
    before: Interactions
    wanted: Relevance
    at_ms: int

    @property
    def users(self) -> Ints:
        """Households that bought something in the period."""
        return self.wanted.users

    @property
    def first(self) -> Relevance:
        """What a household had never bought before."""
        return self.wanted.split(_pairs(self.before))[1]


def measure(size: float, *, period: str = "test") -> Sequence[Measure]:
    """NDCG@10 and recall@20 of all methods, and recall of first purchases by those that find new products."""
    require_cornac()
    with pipeline.journey(max(50, int(HOUSEHOLDS * size))) as settings:
        task = task_of(settings, period)
        every, new = lists_of(task)
        every[OURS] = pipeline.lists(settings, task.data, task.users, task.at_ms, LISTED)
    return [
        *_beside(OURS, every, task.wanted, TO_BEAT, "NDCG@10"),
        *_beside(TOWERS, new, task.first, FIRST_TO_BEAT, f"recall@{FOUND}"),
        *_checked(task.before),
    ]


def task_of(settings: Settings, period: str) -> Task:
    """What is known and what is wanted.

    Raises
    ------
    ConfigError
        There is no such period.
    """
    if period not in ("validation", "test"):
        raise ConfigError(f"bench journey: there is no period {period!r}. Choose validation or test.")
    data = load_dataset(settings.events_dir, home_of(settings), epoch_ms(TEST_START))
    shape = data.bought.n_users, data.bought.n_items
    if period == "validation":
        at_ms = epoch_ms(VALID_START)
        before = data.bought.before(at_ms)
        return Task(data, before, _pairs(data.bought.between(at_ms, epoch_ms(TEST_START))), at_ms)
    held_out = pq.read_table(home_of(settings) / "holdout.parquet", columns=["user_id", "item_id"])
    user = data.users.ids.dense(held_out["user_id"].to_pylist())
    item = data.items.ids.dense(held_out["item_id"].to_pylist())
    known = (user >= 0) & (item >= 0)
    return Task(data, data.bought, Relevance.from_pairs(user[known], item[known], *shape), epoch_ms(TEST_START))


def lists_of(task: Task) -> tuple[dict[str, Ints], dict[str, Ints]]:
    """Lists by method: of all products (len(users), LISTED), and of those new to a household (len(first.users), FOUND).

    The pipeline's are made apart.
    """
    before, users = task.before, task.users
    models: Mapping[str, Learner] = {
        "TIFU-KNN": TIFU, "UP-CF": UPCF, "EASE": EASE, "item-to-item": NEIGHBOURS, "popularity": Popularity(),
        TOWERS: Towers(task.data.users, task.data.items),
    }  # fmt: skip
    every_product, new_products = Lister(before, repeats=True), Lister(before, repeats=False)
    every = {"own decayed frequency": OwnFrequency(before).top_k(users, task.at_ms, LISTED)}
    new: dict[str, Ints] = {}
    for name, model in models.items():
        scorer = model.fit(before)
        every[name] = every_product.best(scorer, users, LISTED).items
        if name in FIND_NEW:
            new[name] = new_products.best(scorer, task.first.users, FOUND).items
    return every, new


def _beside(
    ours: str, lists: Mapping[str, Ints], wanted: Relevance, to_beat: Sequence[str], judged_by: str
) -> Iterator[Measure]:
    """Our lists beside each other method's; those to be beaten are, if the interval of the gain lies above zero."""
    users, sizes = wanted.users, wanted.sizes[wanted.users]
    hits = {name: wanted.hits(users, of_users) for name, of_users in lists.items()}
    told = "first purchases, " if ours == TOWERS else ""
    for label, (metric, k) in METRICS.items():
        if k > lists[ours].shape[1]:
            continue
        values = {name: metric(of_users, sizes, k) for name, of_users in hits.items()}
        for name in (each for each in values if each != ours):
            gain = paired_bootstrap(values[ours], values[name], SEED)
            target = name in to_beat and label == judged_by
            yield Measure(
                f"{told}{ours}, {label}", round(mean(values[ours]), 4), "", name, round(mean(values[name]), 4),
                round(mean(values[ours]) / max(mean(values[name]), LEAST), 3), 1 if target else None,
                gain.low > 0 if target else None,
                note=f"gain {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over {len(users):,} households",
            )  # fmt: skip


def _checked(before: Interactions) -> Iterator[Measure]:
    """The published methods against cornac's own code, on some households."""
    few = np.sort(np.random.default_rng(SEED).permutation(np.unique(before.user))[:CHECKED_USERS])
    own = np.isin(before.user, few)
    user = np.searchsorted(few, before.user[own]).astype(np.int32)
    log = Interactions(user, before.item[own], before.at_ms[own], len(few), before.n_items)
    tifu, upcf = replace(TIFU, neighbours=CHECKED_USERS // 3), replace(UPCF, counted=True)
    for name, difference in differences(log, tifu, upcf).items():
        yield Measure(
            f"{name}, largest difference from cornac's scores, in millionths of its largest",
            round(difference * 1e6, 2), "", f"{CHECKED_USERS} households", CHECKED_USERS, None, 10, difference <= 1e-5,
        )  # fmt: skip


def _pairs(bought: Interactions) -> Relevance:
    return Relevance.from_pairs(bought.user, bought.item, bought.n_users, bought.n_items)
