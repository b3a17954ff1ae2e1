"""The towers: what they learn, that they learn it the same way twice, and that numpy computes the same."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from support.camps import in_blocks, two_camps
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from headwater.errors import ConfigError, ModelError
from models.encoder import age_buckets
from models.evaluation.metrics import PAD
from models.interactions import Dataset, assemble
from models.trips import recent_history, recent_items, shopping_trips
from models.two_tower import TowerConfig, Trainer
from models.two_tower.rows import Rows

TESTS = Path(__file__).parents[1]
DOOMED = str(TESTS / "support" / "doomed_towers.py")
PATHS = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
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
        seen, age_ms = recent_history(data.bought, trips.user[trip : trip + 1], int(trips.at_ms[trip]), 4)
        assert seen[0].tolist() == trips.recent[trip].tolist()
        assert age_buckets(age_ms)[0].tolist() == trips.ages[trip].tolist()
        assert trips.ages[trip].any()


def test_first_purchases_are_marked(data):
    trips = shopping_trips(data.bought, 4)
    assert trips.is_first.sum() == len(set(zip(data.bought.user.tolist(), data.bought.item.tolist(), strict=True)))


def test_households_are_led_to_their_own_camp(data, trained):
    encoder = trained.export()
    everyone = np.arange(20, dtype=np.int32)
    scores = encoder.encode(everyone, recent_items(data.bought, everyone, 10**12, 4)) @ encoder.items[:20].T
    best = np.argsort(-scores, axis=1)[:, :5] // 10
    assert (best == everyone[:, None] % 2).mean() > 0.95


def test_a_product_never_bought_stands_with_its_category(trained):
    vectors = trained.export().items
    assert vectors[20] @ vectors[:10].mean(0) > vectors[20] @ vectors[10:20].mean(0)


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


class StoppedError(Exception):
    pass


def stopped_after(n: int):
    def progress(done: int, total: int) -> None:
        if done == n:
            raise StoppedError

    return progress


@pytest.mark.parametrize("user_tower", ["mean", "transformer"])
def test_training_goes_on_where_it_was_stopped(data, tmp_path, user_tower):
    """In the middle of an epoch too: of two blocks the second is learned after the stop."""
    config = replace(SMALL, user_tower=user_tower, passes=3)
    whole = Trainer(in_blocks(data, config.n_recent), config, "cpu").fit().export()
    checkpoint = tmp_path / "towers.pt"
    with pytest.raises(StoppedError):
        Trainer(in_blocks(data, config.n_recent), config, "cpu").fit(checkpoint, stopped_after(3), saved_every_s=0)
    resumed = Trainer(in_blocks(data, config.n_recent), config, "cpu")
    told = []
    resumed.fit(checkpoint, lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (5, 6), (6, 6)]
    for name, array in whole.arrays().items():
        assert np.array_equal(array, resumed.export().arrays()[name]), name
    assert np.array_equal(whole.items, resumed.export().items)


def test_a_checkpoint_of_another_training_is_left_alone(data, tmp_path):
    checkpoint = tmp_path / "towers.pt"
    Trainer(data, replace(SMALL, examples=1), "cpu").fit(checkpoint, saved_every_s=0)
    assert checkpoint.exists()
    other = Trainer(data, replace(SMALL, seed=9, examples=1), "cpu")
    told = []
    other.fit(checkpoint, lambda done, total: told.append(done))
    assert told == [1]


def test_a_killed_training_goes_on_to_the_same_bits(data, tmp_path):
    """Killed in a step, and between writing a checkpoint and giving it its name."""
    config = replace(SMALL, passes=2)
    whole = Trainer(in_blocks(data, config.n_recent), config, "cpu").fit().export()
    for instant in ("step", "rename"):
        checkpoint = tmp_path / f"{instant}.pt"
        killed = subprocess.run([sys.executable, DOOMED, instant, str(checkpoint)], env=os.environ | PATHS)
        assert killed.returncode == -signal.SIGKILL
        assert checkpoint.exists()
        assert checkpoint.with_suffix(".partial").exists() == (instant == "rename")
        resumed = Trainer(in_blocks(data, config.n_recent), config, "cpu")
        told = []
        resumed.fit(checkpoint, lambda done, total, told=told: told.append(done))
        assert told[0] > 1
        assert np.array_equal(resumed.export().items, whole.items)
        assert np.array_equal(resumed.export().user, whole.user)


@pytest.mark.parametrize(
    "change",
    [
        {"user_tower": "transformer"}, {"loss": "gbce", "from_batch": 0.0}, {"hard_negatives": 8},
        {"item_inputs": ("own", "sides", "hashed", "words", "numbers")}, {"item_inputs": ("hashed", "sides")},
    ],
    ids=str,
)  # fmt: skip
def test_every_form_of_the_towers_leads_households_to_their_camp(data, change):
    encoder = Trainer(data, replace(SMALL, **change), "cpu").fit().export()
    everyone = np.arange(20, dtype=np.int32)
    scores = encoder.encode(everyone, *recent_history(data.bought, everyone, 10**12, 4)) @ encoder.items[:20].T
    best = np.argsort(-scores, axis=1)[:, :5] // 10
    assert (best == everyone[:, None] % 2).mean() > 0.9


def test_a_log_in_blocks_teaches_what_one_in_memory_does(data):
    encoder = Trainer(in_blocks(data, SMALL.n_recent), SMALL, "cpu").fit().export()
    everyone = np.arange(20, dtype=np.int32)
    scores = encoder.encode(everyone, recent_items(data.bought, everyone, 10**12, 4)) @ encoder.items[:20].T
    assert (np.argsort(-scores, axis=1)[:, :5] // 10 == everyone[:, None] % 2).mean() > 0.95


class TestRows:
    """A table of which only what was looked up moves."""

    def test_adagrad_is_the_formula(self):
        table = Rows(torch.arange(12.0).view(4, 3), rate=0.1)
        held, moved = table.rows.clone(), torch.zeros(4)
        for numbers in ([2, 0, 2], [2, 3]):
            weights = torch.randn(len(numbers), 3, generator=torch.Generator().manual_seed(len(numbers)))
            (table(torch.tensor(numbers)) * weights).sum().backward()
            table.step()
            for row in set(numbers):
                gradient = sum(weights[n] for n, number in enumerate(numbers) if number == row)
                moved[row] += gradient.square().mean()
                held[row] -= 0.1 * gradient / (moved[row].sqrt() + 1e-8)
        assert torch.allclose(table.rows, held, atol=1e-6)
        assert torch.equal(table.rows[1], torch.arange(12.0).view(4, 3)[1])

    def test_sums_are_of_weighted_rows(self):
        table = Rows(torch.randn(5, 3), rate=0.1)
        numbers, weights = torch.tensor([[0, 4], [4, 4]]), torch.tensor([[1.0, 0.5], [0.0, 2.0]])
        expected = (table.rows[numbers] * weights[..., None]).sum(1)
        assert torch.allclose(table(numbers, weights), expected)
        with torch.no_grad():
            assert torch.allclose(table(numbers, weights), expected)


class TestEdges:
    @pytest.mark.parametrize("n_items", [50, 1_000_000])
    def test_what_a_step_computes_does_not_grow_with_the_catalogue(self, n_items):
        """Parameters are what every step moves whole; of tables it moves the rows of its batch."""
        data = bought_of(n_items)
        trainer = Trainer(data, replace(SMALL, passes=1), "cpu")
        assert sum(weight.numel() for weight in trainer.towers.parameters()) == 16 * 3 * 16 + 16 + 16 * 16 + 16
        batch = next(trainer.sampler.epoch(0))
        assert len(batch.items) <= len(batch.positives) + SMALL.negatives + batch.recent.size
        before = trainer.towers.items.own.rows.clone()
        trainer.step(batch)
        changed = (trainer.towers.items.own.rows != before).any(1)
        assert set(torch.nonzero(changed)[:, 0].tolist()) <= set(batch.items.tolist())
        assert trainer.export().items.shape == (n_items, 16)

    def test_no_purchase_is_refused(self, data):
        nothing = Dataset(data.users, data.items, data.bought.before(0))
        with pytest.raises(ModelError, match="no purchase to learn from"):
            Trainer(nothing, SMALL, "cpu")

    def test_a_loss_that_is_not_finite_is_refused(self, data):
        with pytest.raises(ModelError, match="the loss is nan in epoch 1"):
            Trainer(data, replace(SMALL, row_learning_rate=1e38), "cpu").fit()

    def test_items_without_content_and_users_without_history_have_vectors(self):
        items = pa.table({"item_id": ["a", "b", "c"]})
        frame = pd.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "b"], "event_time": [1, 2]})
        config = replace(SMALL, item_inputs=("own", "sides", "words", "numbers"))
        encoder = Trainer(assemble(frame, items, None), config, "cpu").fit().export()
        vectors = encoder.encode(np.array([-1, 0], np.int32), np.full((2, 4), PAD, np.int32))
        assert np.isfinite(vectors).all()
        assert np.isfinite(encoder.items).all()

    def test_one_category_may_hold_all_items(self):
        encoder = Trainer(bought_of(12), SMALL, "cpu").fit().export()
        assert np.allclose(np.linalg.norm(encoder.items, axis=1), 1, atol=1e-5)
        assert len(np.unique(encoder.items.round(4), axis=0)) > 6

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"user_tower": "rnn"}, "user_tower: 'rnn' is unknown. Choose among mean, transformer"),
            ({"item_inputs": ("sides",)}, "could not be told apart"), ({"heads": 3}, "heads: 3 do not divide the 16"),
            ({"from_batch": 2.0}, "from_batch: 2.0 is no share"), ({"negatives": 0}, "negatives: 0 is not above zero"),
        ],
    )  # fmt: skip
    def test_settings_that_cannot_be_are_refused(self, change, told):
        with pytest.raises(ConfigError, match=re.escape(told)):
            replace(SMALL, **change)


def test_in_a_process_group_of_one_the_towers_learn_the_same(data, trained, tmp_path):
    """The loss is a module that is wrapped whole."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        together = Trainer(data, SMALL, "cpu")
        assert isinstance(together.loss, DistributedDataParallel)
        assert np.array_equal(together.fit().export().items, trained.export().items)
    finally:
        distributed.destroy_process_group()


def bought_of(n_items: int) -> Dataset:
    """A catalogue of one category, of which ten items were bought by five users."""
    frame = pd.DataFrame(
        {
            "user_id": [f"u{n % 5}" for n in range(200)],
            "item_id": [f"i{n * 7 % 10}" for n in range(200)],
            "event_time": range(200),
        }
    )
    items = pa.table({"item_id": [f"i{n}" for n in range(n_items)], "category": ["one"] * n_items})
    return assemble(frame, items, None)
