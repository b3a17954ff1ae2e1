"""The towers: what they learn, that they learn it the same way twice, and that numpy computes the same."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.camps import two_camps

from models.encoder import UserEncoder
from models.evaluation.metrics import PAD
from models.interactions import Dataset
from models.trips import recent_items, shopping_trips
from models.two_tower import TowerConfig, Trainer, sampled_softmax

SMALL = TowerConfig(dim=16, hidden=16, n_recent=4, trips_per_batch=32, negatives=40, passes=7, least_steps=0, seed=3)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return two_camps()


@pytest.fixture(scope="module")
def trained(data) -> Trainer:
    return Trainer(data, SMALL, "cpu").fit()


def test_a_trip_knows_only_what_came_strictly_before(data):
    trips = shopping_trips(data.bought, 4)
    for trip in (0, 25, len(trips) - 1):
        before = [
            item
            for user, item, at in zip(data.bought.user, data.bought.item, data.bought.at_ms, strict=True)
            if user == trips.user[trip] and at < trips.at_ms[trip]
        ]
        newest_first = list(dict.fromkeys(reversed(before)))[:4]
        kept = trips.recent[trip][trips.recent[trip] != PAD].tolist()
        assert sorted(kept[:3]) == sorted(newest_first[:3])
        assert len(kept) == len(newest_first)


def test_a_trip_and_a_request_at_its_instant_see_the_same_past(data):
    trips = shopping_trips(data.bought, 4)
    for trip in (40, 333):
        seen = recent_items(data.bought, trips.user[trip : trip + 1], int(trips.at_ms[trip]), 4)
        assert seen[0].tolist() == trips.recent[trip].tolist()


def test_first_purchases_are_marked(data):
    trips = shopping_trips(data.bought, 4)
    assert trips.is_first.sum() == len(set(zip(data.bought.user.tolist(), data.bought.item.tolist(), strict=True)))


def test_sampled_softmax_is_the_formula():
    """One trip with two positives, three negatives, one of them hidden."""
    generator = torch.Generator().manual_seed(0)
    users, positives, negatives = (torch.randn(n, 4, generator=generator) for n in (1, 2, 3))
    hidden = torch.tensor([[False, True, False]])
    log_q = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4, 0.5])
    found = sampled_softmax(users, positives, torch.tensor([0, 0]), negatives, hidden, log_q, 0.5)
    for row in range(2):
        own = float(users[0] @ positives[row]) / 0.5 - float(log_q[0][row])
        others = [float(users[0] @ negatives[n]) / 0.5 - float(log_q[1][n]) for n in (0, 2)]
        expected = -math.log(math.exp(own) / sum(map(math.exp, [own, *others])))
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)


def test_households_are_led_to_their_own_camp(data, trained):
    encoder = trained.export()
    everyone = np.arange(20, dtype=np.int32)
    scores = encoder.encode(everyone, recent_items(data.bought, everyone, 10**12, 4)) @ encoder.items[:20].T
    best = np.argsort(-scores, axis=1)[:, :5] // 10
    assert (best == everyone[:, None] % 2).mean() > 0.95


def test_a_product_never_bought_stands_with_its_category(trained):
    vectors = trained.export().items
    assert vectors[20] @ vectors[:10].mean(0) > vectors[20] @ vectors[10:20].mean(0)


def test_numpy_computes_what_torch_does(data, trained):
    encoder = trained.export()
    users = np.array([-1, 0, 1, 7], np.int32)
    recent = np.array([[PAD] * 4, [1, 2, PAD, PAD], [11, 12, 13, 14], [3, PAD, PAD, PAD]], np.int32)
    with torch.no_grad():
        vectors = torch.from_numpy(encoder.items)[torch.from_numpy(recent).long().clamp_min(0)]
        expected = trained.users(torch.from_numpy(users).long(), vectors, torch.from_numpy(recent != PAD).float())
    assert np.allclose(encoder.encode(users, recent), expected.numpy(), atol=1e-6)
    again = UserEncoder.from_arrays(encoder.items, encoder.arrays())
    assert np.array_equal(again.encode(users, recent), encoder.encode(users, recent))


def test_vectors_have_length_one(data, trained):
    encoder = trained.export()
    assert np.allclose(np.linalg.norm(encoder.items, axis=1), 1, atol=1e-5)
    assert encoder.items.dtype == np.float32
    vector = encoder.encode(np.array([2], np.int32), np.array([[1, 2, 3]], np.int32))
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_bits(data, trained):
    again = Trainer(data, SMALL, "cpu").fit().export()
    assert np.array_equal(trained.export().items, again.items)
    assert np.array_equal(trained.export().user, again.user)
    other = Trainer(data, replace(SMALL, seed=4), "cpu").fit().export()
    assert not np.array_equal(again.items, other.items)


def test_training_goes_on_where_it_was_stopped(data, trained, tmp_path):
    class StoppedError(Exception):
        pass

    def stop_early(done, total):
        if done == 2:
            raise StoppedError

    checkpoint = tmp_path / "towers.pt"
    with pytest.raises(StoppedError):
        Trainer(data, SMALL, "cpu").fit(checkpoint, stop_early)
    resumed = Trainer(data, SMALL, "cpu").fit(checkpoint)
    assert resumed.epochs_done == resumed.epochs > 2
    assert np.array_equal(resumed.export().items, trained.export().items)


def test_a_checkpoint_of_another_training_is_left_alone(data, tmp_path):
    checkpoint = tmp_path / "towers.pt"
    Trainer(data, replace(SMALL, examples=1), "cpu").fit(checkpoint)
    other = Trainer(data, replace(SMALL, seed=9), "cpu")
    other._resume(checkpoint)
    assert other.epochs_done == 0
