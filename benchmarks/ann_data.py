"""Vectors to find among: generated clusters, and what the two towers made of real purchases."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import journey
from models.trips import recent_items
from models.two_tower import TowerConfig, Trainer

Float32s = NDArray[np.float32]
QUERIES = 200
CENTRES, SPREAD = 4_000, 0.5
BLOCK = 100_000
ASIDE = 0.3
"""How far a copy of an item lies from it, as items that are much alike do."""


@dataclass(frozen=True)
class Case:
    """Items (n, dim), and users to ask for, of which an index may be tuned by some and is judged by others."""

    name: str
    items: Float32s
    tuned_by: Float32s
    asked: Float32s


def clusters(n: int, dim: int) -> Case:
    """Items and users alike around :data:`CENTRES` points."""
    items = np.concatenate([block for _, block in blocks(n, dim, seed=3)])
    users = np.concatenate([block for _, block in blocks(2 * QUERIES, dim, seed=4)])
    return Case("generated clusters", items, users[QUERIES:], users[:QUERIES])


def towers(n: int) -> Case:
    """Products as the item tower has them after a pass over Complete Journey, asked for with the user tower's vectors.

    Products are fewer than ``n``: the others are copies, each a little aside.
    """
    data, summary = journey.purchases()
    config = TowerConfig(passes=1, least_steps=0)
    encoder = Trainer(data, config, "cpu").fit().export()
    rng = np.random.default_rng(5)
    everyone = rng.permutation(len(data.users.ids)).astype(np.int32)
    users = encoder.encode(
        everyone, recent_items(data.bought, everyone, summary.test_start_ms, config.n_recent)
    ).astype(np.float32)
    items = np.empty((n, encoder.items.shape[1]), np.float32)
    for begin in range(0, n, BLOCK):
        number = np.arange(begin, min(begin + BLOCK, n))
        near = encoder.items[number % len(encoder.items)]
        copied = (number >= len(encoder.items))[:, None]
        items[number] = _units(near + copied * ASIDE * _drawn(rng, near.shape))
    return Case("products and users of two towers", items, users[QUERIES:], users[:QUERIES])


def blocks(n: int, dim: int, seed: int) -> Iterator[tuple[int, Float32s]]:
    """Unit vectors around the same points whatever the seed, a block at a time, after the number of its first."""
    centres = _units(_drawn(np.random.default_rng(0), (CENTRES, dim)))
    for begin in range(0, n, BLOCK):
        rng = np.random.default_rng([seed, begin])
        size = min(BLOCK, n - begin)
        yield begin, _units(centres[rng.integers(0, CENTRES, size)] + SPREAD * _drawn(rng, (size, dim)))


def _drawn(rng: np.random.Generator, shape: tuple[int, int]) -> Float32s:
    """Normal numbers whose rows are of length one, about."""
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[1] ** 0.5)


def _units(rows: Float32s) -> Float32s:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
