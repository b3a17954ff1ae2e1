"""What diversity costs on Complete Journey: accuracy against variety of the platform's lists, by MMR and by DPP.

One list of ten a household at the start of the validation period; relevant are the distinct products bought in it. The
sources and the ranker are those of :mod:`benchmarks.pipeline`, the re-ranking is what serves (:mod:`serving.rerank`).
Variety is the share of a list's pairs that are of different categories, which neither method looks at.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from benchmarks import pipeline
from benchmarks.journey_quality import task_of
from benchmarks.pipeline import Offered
from headwater.bench import Measure
from headwater.datasets.complete_journey import HOUSEHOLDS
from models.evaluation.exposure import diversity
from models.evaluation.metrics import PAD, Floats, Ints, Relevance, mean, ndcg, paired_bootstrap
from models.rows import DEPTH
from serving.rerank.arrange import METHODS, arrange

STRENGTHS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
SEED, LEAST = 20171126, 50
ACCURACY, VARIETY, PLAIN = "NDCG@10", "pairs of different categories", "order of the scores"


def measure(size: float) -> Sequence[Measure]:
    """NDCG@10 and variety at each strength of each method, beside the order of the scores."""
    with pipeline.journey(max(LEAST, int(HOUSEHOLDS * size))) as settings:
        task = task_of(settings, "validation")
        offered = pipeline.offered(settings, task.data, task.users, task.at_ms)
    kinds = task.data.items.codes["category"]
    plain = lists(offered, len(task.users), "mmr", 0.0)
    found: list[Measure] = []
    for method in METHODS:
        for strength in STRENGTHS:
            name = f"{method.upper()} {strength:g}"
            found += _beside(name, lists(offered, len(task.users), method, strength), plain, task.wanted, kinds)
    return found


def lists(offered: Offered, n_users: int, method: str, strength: float) -> Ints:
    """Everyone's list (n_users, DEPTH), padded, as serving would fill its places."""
    found = np.full((n_users, DEPTH), PAD, np.int32)
    order = np.argsort(offered.household, kind="stable")
    edges = np.searchsorted(offered.household[order], np.arange(n_users + 1))
    for user, (begin, end) in enumerate(pairwise(edges.tolist())):
        mine = order[begin:end]
        if not len(mine):
            continue
        shown = arrange(offered.scores[mine], offered.vectors[mine], DEPTH, method=method, diversity=strength).rows
        found[user, : len(shown)] = offered.item[mine[shown]]
    return found


def _beside(name: str, made: Ints, plain: Ints, wanted: Relevance, kinds: Ints) -> Sequence[Measure]:
    values: Mapping[str, tuple[Floats, Floats]] = {
        ACCURACY: (_accuracy(made, wanted), _accuracy(plain, wanted)),
        VARIETY: (diversity(made, kinds), diversity(plain, kinds)),
    }
    return [_measure(f"{name}, {label}", *both) for label, both in values.items()]


def _accuracy(made: Ints, wanted: Relevance) -> Floats:
    users = wanted.users
    return ndcg(wanted.hits(users, made), wanted.sizes[users], DEPTH)


def _measure(name: str, ours: Floats, plain: Floats) -> Measure:
    known = ~np.isnan(ours) & ~np.isnan(plain)
    gain = paired_bootstrap(ours[known], plain[known], SEED)
    value, before = mean(ours[known]), mean(plain[known])
    note = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over {known.sum():,} households"
    return Measure(name, round(value, 4), "", PLAIN, round(before, 4), round(value / before, 3), None, None, None, note)
