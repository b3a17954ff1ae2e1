"""Two bundles on the same rows, and the rules without training on the same period."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import ModelError
from headwater.settings import Settings
from models.baselines import BASELINES
from models.bundle import Bundle
from models.evaluation.metrics import Floats, Interval, Ints, Relevance, coverage, mean, ndcg, paired_bootstrap, recall
from models.interactions import load_dataset
from models.paths import paths_of
from models.ranking import Rows, read_rows
from models.retriever import Retriever
from models.trips import recent_history

SEED = 20171126
DEPTH = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """NDCG@10 over the same requests, and the second's gain over the first with its 95 % interval."""

    first: float
    second: float
    gain: Interval
    requests: int

    @property
    def is_better(self) -> bool:
        """The interval lies above zero."""
        return self.gain.low > 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_better": self.is_better}


def compare_rankers(rows: Path, first: Bundle, second: Bundle) -> Comparison:
    """Score the same labelled requests with both.

    Raises
    ------
    ModelError
        They read different features.
    """
    _require_alike(first, second)
    return compare_on(read_rows(rows, second.meta.feature_names), first, second)


def compare_on(table: Rows, first: Bundle, second: Bundle) -> Comparison:
    """As :func:`compare_rankers`, on rows that have been read."""
    _require_alike(first, second)
    values = [table.ndcg(bundle.ranker.score(table.features)) for bundle in (first, second)]
    gain = paired_bootstrap(values[1], values[0], SEED)
    return Comparison(mean(values[0]), mean(values[1]), gain, int((~np.isnan(values[0])).sum()))


def _require_alike(first: Bundle, second: Bundle) -> None:
    if first.meta.feature_schema_hash != second.meta.feature_schema_hash:
        raise ModelError(
            f"bundles {first.version} and {second.version}: trained on different feature schemas, "
            "so no rows suit both. Train both on the applied definitions."
        )


def evaluate_rules(settings: Settings, home: Path, at_ms: int) -> dict[str, Any]:
    """One list per user at ``at_ms``, judged by what was bought from then on; full catalogue, repeats allowed."""
    data = load_dataset(settings.events_dir, home, np.iinfo(np.int64).max)
    before, after = data.bought.before(at_ms), data.bought.between(at_ms, np.iinfo(np.int64).max)
    n_users, n_items = data.bought.n_users, data.bought.n_items
    wanted = Relevance.from_pairs(after.user, after.item, n_users, n_items)
    known = Relevance.from_pairs(before.user, before.item, n_users, n_items)
    users = wanted.users
    lists = {name: make(before).top_k(users, at_ms, DEPTH) for name, make in BASELINES.items()}
    if (paths_of(settings).retriever / "retriever.json").is_file():
        retriever = Retriever.load(paths_of(settings).retriever)
        if retriever.provenance.cutoff_ms <= at_ms and len(retriever.items) == n_items:
            ids = retriever.users.dense(data.users.ids.values[users])
            history = recent_history(before, users, at_ms, retriever.provenance.n_recent)
            lists["retrieval_only"] = retriever.index.search(retriever.encoder.encode(ids, *history), DEPTH)
    return {"users": len(users)} | {name: judge(found, users, wanted, known) for name, found in lists.items()}


def judge(lists: Ints, users: Ints, wanted: Relevance, known: Relevance) -> dict[str, float]:
    """NDCG@10, recall@20 in all and for repeats and first purchases apart, and coverage."""

    def depth_recall(relevance: Relevance) -> Floats:
        return recall(relevance.hits(users, lists), relevance.sizes[users], DEPTH)

    repeats, firsts = wanted.split(known)
    return {
        "ndcg@10": mean(ndcg(wanted.hits(users, lists), wanted.sizes[users], 10)),
        "recall@20": mean(depth_recall(wanted)),
        "recall@20_repeats": mean(depth_recall(repeats)),
        "recall@20_first": mean(depth_recall(firsts)),
        "coverage@20": coverage(lists, wanted.n_items, DEPTH),
    }
