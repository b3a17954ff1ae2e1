"""Training the two towers, beside the same towers with a full softmax over the batch and dense AdamW."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import journey
from benchmarks.dense_towers import DenseTrainer
from headwater.bench import Measure
from models.encoder import UserEncoder
from models.evaluation.metrics import Floats, Relevance, mean, paired_bootstrap, recall, top_k
from models.interactions import Dataset
from models.trips import recent_history
from models.two_tower import TowerConfig, Trainer

HOUSEHOLDS = 2_469
DEPTH, SEED = 100, 20171126
STREAMED, STREAMED_AT_ONCE = 100_000, 2**15
THREADS = os.cpu_count() or 1
"""Of dense training, as torch has it unless told otherwise; ours takes one."""


def measure(size: float) -> Sequence[Measure]:
    """Examples a second of both, trained as long, and recall of what was bought first in the validation period."""
    data, at_ms = purchases(size)
    before = Dataset(data.users, data.items, data.bought.before(at_ms))
    config = TowerConfig(least_steps=0)
    ours, dense = Trainer(before, config, "cpu"), DenseTrainer(before, config, THREADS)
    rates = {
        "ours": _trained(ours.epochs, len(before.bought), ours.sampler.epoch, ours.step),
        "dense": _trained(ours.epochs, len(before.bought), dense.epoch, dense.step),
    }
    found = {name: _recall(trainer.export(), data, at_ms) for name, trainer in (("ours", ours), ("dense", dense))}
    gain = paired_bootstrap(found["ours"], found["dense"], SEED)
    told = f"{len(before.bought):,} purchases of {len(before.items):,} products, {ours.epochs} passes"
    baseline = "full in-batch softmax, dense AdamW"
    return [
        Measure(
            f"two towers, {told}", round(rates["ours"][0]), "examples/s", baseline, round(rates["dense"][0]),
            round(rates["ours"][0] / rates["dense"][0], 2), 4, rates["ours"][0] >= 4 * rates["dense"][0],
        ),
        Measure(
            "CPU of both cores", round(rates["ours"][1], 4), "CPU ms an example", baseline, round(rates["dense"][1], 4),
            round(rates["dense"][1] / rates["ours"][1], 2), None, None,
        ),
        Measure(
            f"recall@{DEPTH} of first purchases", round(mean(found["ours"]), 4), "", baseline,
            round(mean(found["dense"]), 4), round(mean(found["ours"]) / mean(found["dense"]), 3), 1, gain.high >= 0,
            note=f"gain {gain.mean:.4f} [{gain.low:.4f}, {gain.high:.4f}] over households",
        ),
        _memory(max(2_000, int(STREAMED * size))),
    ]  # fmt: skip


def _memory(purchases: int) -> Measure:
    """Peak of a training that streams its trips, and of one on eight times as many; each in a process of its own."""
    few, many = (_peak_mb(n) for n in (purchases, 8 * purchases))
    return Measure(
        f"peak memory, {8 * purchases:,} generated purchases from the archive", round(many), "MiB",
        f"{purchases:,} purchases", round(few), round(many / few, 3), None, None, note=f"{many - few:.0f} MiB more",
    )  # fmt: skip


def _peak_mb(purchases: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"{folder}/home", str(purchases), str(STREAMED_AT_ONCE)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tower_memory", *arguments], capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def purchases(size: float) -> tuple[Dataset, int]:
    """Complete Journey before its test period, and the instant at which its validation period begins."""
    data, summary = journey.purchases(max(50, int(HOUSEHOLDS * size)))
    return data, summary.valid_start_ms


def _trained(
    epochs: int, examples: int, batches: Callable[[int], Any], step: Callable[[Any], Any]
) -> tuple[float, float]:
    """Train; examples a second, and CPU milliseconds an example."""
    began, used = time.monotonic(), time.process_time()
    for epoch in range(epochs):
        for batch in batches(epoch):
            step(batch)
    done = epochs * examples
    return done / (time.monotonic() - began), (time.process_time() - used) * 1000 / done


def _recall(encoder: UserEncoder, data: Dataset, at_ms: int) -> Floats:
    """Of what each household bought for the first time from an instant on, the share in its list of new products."""
    before, after = data.bought.before(at_ms), data.bought.between(at_ms, np.iinfo(np.int64).max)
    shape = data.bought.n_users, data.bought.n_items
    known = Relevance.from_pairs(before.user, before.item, *shape)
    wanted = Relevance.from_pairs(after.user, after.item, *shape).split(known)[1]
    users = wanted.users
    scores = encoder.encode(users, *recent_history(before, users, at_ms, TowerConfig().n_recent)) @ encoder.items.T
    row = np.full(shape[0], -1)
    row[users] = np.arange(len(users))
    had = row[before.user] >= 0
    scores[row[before.user[had]], before.item[had]] = -np.inf
    return recall(wanted.hits(users, top_k(scores, DEPTH)), wanted.sizes[users], DEPTH)
