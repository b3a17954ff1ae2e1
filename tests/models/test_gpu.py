"""Towers trained on a GPU against those trained on the CPU, wherever there is a GPU."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.camps import two_camps

from models.encoder import UserEncoder
from models.evaluation.metrics import PAD
from models.index import build
from models.index.building import exact, found_share, gpus
from models.interactions import Dataset
from models.trips import recent_history, recent_items
from models.two_tower import TowerConfig, Trainer, pick_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CONFIG = TowerConfig(dim=16, hidden=16, n_recent=4, trips_per_batch=32, negatives=40, passes=7, least_steps=0,
                     half_precision=False, seed=3)  # fmt: skip
EVERYONE = np.arange(20, dtype=np.int32)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return two_camps()


@pytest.fixture(scope="module")
def on_cpu(data: Dataset) -> UserEncoder:
    return Trainer(data, CONFIG, "cpu").fit().export()


@pytest.fixture(scope="module")
def on_gpu(data: Dataset) -> Trainer:
    trainer = Trainer(data, CONFIG)
    assert trainer.device == pick_device() == "cuda"
    return trainer.fit()


def _states(data: Dataset, encoder: UserEncoder) -> NDArray[np.float32]:
    return encoder.encode(EVERYONE, recent_items(data.bought, EVERYONE, 10**12, CONFIG.n_recent))


def test_both_learn_the_same_scores(data: Dataset, on_cpu: UserEncoder, on_gpu: Trainer) -> None:
    """Sums are rounded in another order, so scores (inner products of unit vectors) agree within a hundredth."""
    encoder = on_gpu.export()
    scores = [_states(data, one) @ one.items.T for one in (on_cpu, encoder)]
    assert np.abs(scores[0] - scores[1]).max() < 0.01
    assert np.abs(np.linalg.norm(encoder.items, axis=1) - 1).max() < 1e-5


def test_an_index_over_either_finds_the_same_products(data: Dataset, on_cpu: UserEncoder, on_gpu: Trainer) -> None:
    """Ten of twenty-two products have a household's taste; no other is found before them."""
    found = [build(one.items).search(_states(data, one), 10) for one in (on_cpu, on_gpu.export())]
    shared = [len(set(left) & set(right)) for left, right in zip(*found, strict=True)]
    assert np.mean(shared) >= 9.5


def test_numpy_computes_what_the_gpu_does(on_gpu: Trainer) -> None:
    encoder = on_gpu.export()
    users = np.array([-1, 0, 1, 7], np.int32)
    recent = np.array([[PAD] * 4, [1, 2, PAD, PAD], [11, 12, 13, 14], [3, PAD, PAD, PAD]], np.int32)
    with torch.no_grad():
        to = on_gpu._tensor
        vectors = to(encoder.items)[to(recent).clamp_min(0)]
        expected = on_gpu.towers.users(to(users), vectors, to(recent != PAD), to(np.zeros_like(recent)))
    assert np.allclose(encoder.encode(users, recent), expected.cpu().numpy(), atol=1e-5)


def test_a_training_begun_on_a_gpu_goes_on_without_one(data: Dataset, on_cpu: UserEncoder, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop_early(done: int, _: int) -> None:
        if done == 2:
            raise StoppedError

    checkpoint = tmp_path / "towers.pt"
    with pytest.raises(StoppedError):
        Trainer(data, CONFIG).fit(checkpoint, stop_early, saved_every_s=0)
    resumed, told = Trainer(data, CONFIG, "cpu"), []
    encoder = resumed.fit(checkpoint, lambda done, _: told.append(done)).export()
    assert told == [3, 4, 5, 6, 7]
    scores = [_states(data, one) @ one.items.T for one in (on_cpu, encoder)]
    assert np.abs(scores[0] - scores[1]).max() < 0.01


@pytest.mark.parametrize("user_tower", ["mean", "transformer"])
def test_in_half_precision_households_are_led_to_their_own_camp(data: Dataset, user_tower: str) -> None:
    config = replace(CONFIG, half_precision=True, user_tower=user_tower)
    trainer = Trainer(data, config)
    dtypes = set()
    trainer.towers.users.hidden.register_forward_hook(lambda module, given, made: dtypes.add(made.dtype))
    encoder = trainer.fit().export()
    assert dtypes == {torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32}
    history = recent_history(data.bought, EVERYONE, 10**12, CONFIG.n_recent)
    best = np.argsort(-(encoder.encode(EVERYONE, *history) @ encoder.items[:20].T), axis=1)[:, :5] // 10
    assert (best == EVERYONE[:, None] % 2).mean() > 0.9
    assert encoder.items.dtype == np.float32


def test_an_index_on_the_gpu_scores_as_one_on_the_cpu(data: Dataset, on_gpu: Trainer) -> None:
    if not gpus():
        pytest.skip("this FAISS has no GPU: install the extra gpu in place of cpu")
    encoder = on_gpu.export()
    asked = _states(data, encoder)
    exact = faiss.IndexFlatIP(encoder.dim)
    exact.add(encoder.items)
    moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, exact)
    (scores, found), (gpu_scores, gpu_found) = exact.search(asked, 10), moved.search(asked, 10)
    assert np.allclose(scores, gpu_scores, atol=1e-4)
    assert np.mean([len(set(left) & set(right)) for left, right in zip(found, gpu_found, strict=True)]) >= 9.9


def test_lists_whose_middles_a_gpu_found_find_as_much() -> None:
    if not gpus():
        pytest.skip("this FAISS has no GPU: install the extra gpu in place of cpu")
    drawn = np.random.default_rng(5).standard_normal((22_000, 16), dtype=np.float32)
    vectors, asked = drawn[2_000:], drawn[:200]
    index = build(vectors, kind="ivf_sq8", queries=drawn[:2_000], depth=50)
    assert found_share(index, asked, exact(vectors, asked, 50)) >= 0.95
