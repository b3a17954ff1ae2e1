"""Train one model on any interactions, write what it would show every test user, and say how good that is."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.evaluation.exposure import diversity, gini, novelty, popularity_shown
from models.evaluation.metrics import METRICS, PAD, Ints, Relevance, coverage, mean, ndcg, paired_bootstrap, recall
from models.interactions import Interactions, Items
from models.retrieval.checkpoint import Checkpoint, fingerprint
from models.retrieval.choice import JUDGED_BY, Progress, choose, hold_out, settings_of, silent
from models.retrieval.newcomers import Welcoming, choose_rule
from models.retrieval.pipeline import choose_pipeline
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import Lists, best, pairs
from models.retrieval.task import Task

DEPTHS = (10, 20, 50, 100)
SEED = 20171126
PIPELINE = "pipeline"
SOURCES = ("popularity", "itemknn", "ease", "retriever")
"""What the pipeline asks; the last takes longest."""


def checkpoint_of(task: Task, name: str, repeats: bool, minutes: float, folder: Path) -> Checkpoint:
    """What this very run has found so far, in a folder that others may use too."""
    told = name, repeats, minutes, task.timed, task.span_ms
    arrays = task.log.user, task.log.item, task.log.at_ms, task.words.numbers, task.words.ends, task.users.traits
    run = fingerprint(*told, task.users.ids.values, task.items.ids.values, *arrays, *task.items.codes.items())
    return Checkpoint(folder / run[:16])


def run(
    task: Task, name: str, repeats: bool, k: int, minutes: float, progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> tuple[Lists, dict[str, Any]]:  # fmt: skip
    """Choose the model's settings by what its own log ends with, train it on all of that, and judge its lists.

    Parameters
    ----------
    minutes
        Half of them may go into the choice, with those of the runs that the checkpoint is of.
    """
    checkpoint = checkpoint or Checkpoint()
    held = hold_out(task.log, None if task.span_ms is None else _validation_since(task.log, task.span_ms), repeats)
    until = checkpoint.began + 60 * minutes / 2
    settings = {one: settings_of(one, task, checkpoint.folder) for one in (SOURCES if name == PIPELINE else [name])}
    if name == PIPELINE:
        choice = choose_pipeline(settings, _kinds(task.items), held, repeats, until, progress, checkpoint)
    else:
        choice = choose(settings[name], held, repeats, until, progress, checkpoint)
    rule = choose_rule(choice, task.log, held, repeats, traits=task.users.traits.size > 0)
    model = choice.model if rule is None else Welcoming(choice.model, rule)
    lists = best(model.fit(task.log), task.log, task.test_users, k, repeats)
    popular = best(Popularity().fit(task.log), task.log, task.test_users, k, repeats)
    found = {
        "model": str(choice.model), "new_users_by": str(rule or choice.model),
        "validation_ndcg@10": round(choice.score, 5), "settings_tried": choice.tried,
        "settings_untried": choice.untried, "validation_users": len(held.users), **task.counts,
        **judged(task, lists.items), **exposed(task, lists.items),
        "segments": by_segment(task, lists.items), "seconds": round(time.monotonic() - checkpoint.began, 1),
    }  # fmt: skip
    gain = paired_bootstrap(_ndcg(task, lists.items), _ndcg(task, popular.items), SEED)
    found["ndcg@10_over_popularity"] = [round(gain.mean, 5), round(gain.low, 5), round(gain.high, 5)]
    return lists, found


def judged(task: Task, lists: Ints) -> dict[str, float]:
    """Every metric at every depth that the lists have, over the whole catalogue."""
    hits, sizes = task.wanted.hits(task.test_users, lists), task.wanted.sizes[task.test_users]
    depths = [depth for depth in DEPTHS if depth <= lists.shape[1]] or [lists.shape[1]]
    found = {
        f"{name}@{depth}": round(mean(metric(hits, sizes, depth)), 5)
        for depth in depths for name, metric in METRICS.items()
    }  # fmt: skip
    return found | {f"coverage@{depth}": round(coverage(lists, len(task.items), depth), 5) for depth in depths}


def exposed(task: Task, lists: Ints) -> dict[str, float]:
    """What the first places show: how new, popular, even and unlike it is."""
    depth, shape = min(JUDGED_BY, lists.shape[1]), (task.log.n_users, task.log.n_items)
    first = lists[:, :depth]
    buyers = pairs(task.log).getnnz(axis=0)
    found = {
        f"novelty@{depth}": novelty(first, buyers, shape[0]), f"gini@{depth}": gini(first, shape[1]),
        f"popularity@{depth}": popularity_shown(first, buyers),
    }  # fmt: skip
    for name, kinds in _kinds(task.items).items():
        found[f"diversity@{depth}_by_{name}"] = mean(diversity(first, kinds))
    return {name: round(value, 5) for name, value in found.items()}


def by_segment(task: Task, lists: Ints) -> dict[str, dict[str, float]]:
    """Number of users, NDCG and recall at 10 by who they are, and by whether they had what they wanted before.

    Light users did no more than the median of those who are not new.
    """
    depth = min(JUDGED_BY, lists.shape[1])
    did = np.bincount(task.log.user, minlength=task.log.n_users)[task.test_users]
    usual = np.median(did[did > 0]) if (did > 0).any() else 0
    known = Relevance.from_pairs(task.log.user, task.log.item, task.wanted.n_users, task.wanted.n_items)
    repeats, firsts = task.wanted.split(known)
    parts = {
        "new_users": (did == 0, task.wanted), "light_users": ((did > 0) & (did <= usual), task.wanted),
        "heavy_users": (did > usual, task.wanted), "repeats": (did >= 0, repeats), "first_time": (did >= 0, firsts),
    }  # fmt: skip
    found = {}
    for name, (who, wanted) in parts.items():
        users = task.test_users[who]
        hits, sizes = wanted.hits(users, lists[who]), wanted.sizes[users]
        if not (sizes > 0).any():
            continue
        scores = {"ndcg": mean(ndcg(hits, sizes, depth)), "recall": mean(recall(hits, sizes, depth))}
        told = {f"{metric}@{depth}": round(score, 5) for metric, score in scores.items()}
        found[name] = {"users": int((sizes > 0).sum()), **told}
    return found


def write(task: Task, lists: Lists, out: Path) -> None:
    """Write ``user_id, rank, item_id, score``, ranks from 1; whole or not at all."""
    rows, places = np.nonzero(lists.items != PAD)
    table = pa.table({
        "user_id": pa.array(task.users.ids.values[task.test_users[rows]], pa.string()),
        "rank": pa.array(places + 1, pa.int32()),
        "item_id": pa.array(task.items.ids.values[lists.items[rows, places]], pa.string()),
        "score": pa.array(lists.scores[rows, places], pa.float32()),
    })  # fmt: skip
    draft = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, draft)
    draft.replace(out)


def _kinds(items: Items) -> dict[str, Ints]:
    """Texts that some items have in common and others have not, as numbers."""
    return {name: code for name, code in items.codes.items() if 1 < int(code.max(initial=0)) + 1 < len(items) / 2}


def _validation_since(log: Interactions, span_ms: int) -> int:
    """As long before the log's end as the test took, but no more than a fifth of the interactions."""
    return max(int(log.at_ms[-1]) + 1 - span_ms, int(log.at_ms[len(log) * 4 // 5]))


def _ndcg(task: Task, lists: Ints) -> npt.NDArray[np.float64]:
    depth = min(JUDGED_BY, lists.shape[1])
    return ndcg(task.wanted.hits(task.test_users, lists), task.wanted.sizes[task.test_users], depth)
