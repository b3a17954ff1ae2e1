"""The user tower in numpy against the one in torch, and what bundles of before are read as."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bundles

from headwater.errors import ModelError
from models.bundle import load_bundle, write_bundle
from models.encoder import N_AGES, UserEncoder, age_buckets
from models.evaluation.metrics import PAD
from models.interactions import Ids, Items, Users
from models.tower_config import TowerConfig
from models.trip_log import Corpus, TripLog
from models.two_tower.towers import Towers

N_ITEMS, N_USERS, N_RECENT = 30, 5, 6
HOUR_MS = 3_600_000


def towers(kind: str, seed: int) -> Towers:
    """Towers whose every weight is drawn, so that none can be left out unnoticed."""
    torch.manual_seed(seed)
    config = TowerConfig(dim=16, hidden=8, n_recent=N_RECENT, user_tower=kind, blocks=2, heads=4)
    ids = Ids([f"i{n:02}" for n in range(N_ITEMS)])
    texts = {name: np.array([f"{name}{n % 4}" for n in range(N_ITEMS)], object) for name in ("department", "name")}
    items = Items(ids, texts | {"category": texts["name"], "brand": texts["name"]})
    traits = np.arange(2 * N_USERS, dtype=np.int32).reshape(N_USERS, 2) % 3
    users = Users(Ids([f"u{n}" for n in range(N_USERS)]), traits, ("a", "b"))
    made = Towers(Corpus(users, items, TripLog(0, 0, 0, 0, np.zeros(N_ITEMS), "", [])), np.zeros(N_ITEMS, "f"), config)
    with torch.no_grad():
        for weights in [*made.parameters(), *(table.rows for table in made.tables())]:
            weights += 0.3 * torch.randn_like(weights)
    return made


def in_torch(made: Towers, users: np.ndarray, recent: np.ndarray, age_ms: np.ndarray) -> np.ndarray:
    ages = age_buckets(np.where(recent == PAD, 0, age_ms))
    with torch.no_grad():
        places = torch.from_numpy(recent).long()
        vectors = made.items(places.clamp_min(0).ravel()).view(*recent.shape, -1)
        users_, ages_ = torch.from_numpy(users).long(), torch.from_numpy(ages).long()
        return made.users(users_, vectors, places != PAD, ages_).numpy()


pasts = st.lists(
    st.tuples(
        st.integers(-1, N_USERS - 1),
        st.lists(st.tuples(st.integers(0, N_ITEMS - 1), st.integers(0, 10**12)), max_size=N_RECENT),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["mean", "transformer"])
@given(past=pasts, seed=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_numpy_computes_what_torch_does(kind, past, seed):
    """Of states of any length, the empty one among them."""
    users = np.array([user for user, _ in past], np.int32)
    recent = np.full((len(past), N_RECENT), PAD, np.int32)
    age_ms = np.full((len(past), N_RECENT), -1, np.int64)
    for row, (_, held) in enumerate(past):
        recent[row, : len(held)] = [item for item, _ in held]
        age_ms[row, : len(held)] = [age for _, age in held]
    made = towers(kind, seed)
    encoder = made.export()
    found = encoder.encode(users, recent, age_ms)
    assert found.dtype == np.float32
    assert np.allclose(found, in_torch(made, users, recent, age_ms), atol=2e-5)
    again = UserEncoder.from_arrays(encoder.items, encoder.arrays())
    assert np.array_equal(again.encode(users, recent, age_ms), found)


def test_padding_changes_nothing():
    """Serving passes as many products as there are, training as many as may be."""
    encoder = towers("transformer", 1).export()
    users, recent, age_ms = np.array([2], np.int32), np.array([[4, 9]], np.int32), np.array([[HOUR_MS, 9 * HOUR_MS]])
    padded = np.pad(recent, ((0, 0), (0, 4)), constant_values=PAD), np.pad(age_ms, ((0, 0), (0, 4)))
    assert np.allclose(encoder.encode(users, recent, age_ms), encoder.encode(users, *padded), atol=1e-6)


def test_the_sequence_knows_order_and_time():
    encoder = towers("transformer", 1).export()
    users, ages = np.array([2], np.int32), np.array([[HOUR_MS, 9 * HOUR_MS]])
    vector = encoder.encode(users, np.array([[4, 9]], np.int32), ages)
    assert not np.allclose(vector, encoder.encode(users, np.array([[9, 4]], np.int32), ages), atol=1e-3)
    assert not np.allclose(vector, encoder.encode(users, np.array([[4, 9]], np.int32), 50 * ages), atol=1e-3)


def test_what_is_newer_is_not_seen_by_what_is_older():
    """A place of the sequence depends on itself and on what is older alone."""
    made = towers("transformer", 2)
    block = made.users.sequence.blocks[0]
    states = torch.randn(1, 4, 16)
    seen = torch.ones(1, 4, 4, dtype=torch.bool).triu()
    changed = states.clone()
    changed[:, 1] += 1
    with torch.no_grad():
        moved = (block(states, seen) - block(changed, seen)).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [True, True, False, False]


@given(st.integers(0, 2**45))
def test_ages_are_numbered_by_their_logarithm(age_ms):
    expected = 0
    while expected < N_AGES - 1 and age_ms >= HOUR_MS * 2**expected:
        expected += 1
    assert age_buckets(np.array([age_ms]))[0] == expected


def test_a_sequence_without_ages_is_refused():
    with pytest.raises(ModelError, match="how long ago"):
        towers("transformer", 1).export().encode(np.array([0], np.int32), np.array([[1]], np.int32))


def test_a_bundle_keeps_the_sequence_and_one_of_before_has_none(tmp_path):
    made = towers("transformer", 3).export()
    encoder = replace(bundles.encoder(), sequence=None)
    assert not any(name.startswith("sequence") for name in encoder.arrays())
    write_bundle(tmp_path / "7", bundles.trained(), bundles.parts(encoder=encoder))
    assert load_bundle(tmp_path / "7").encoder.sequence is None
    whole = UserEncoder(
        items=made.items[: bundles.N_ITEMS], user=made.user[: bundles.N_USERS + 1],
        traits=made.traits[: bundles.N_USERS + 1], trait=made.trait, hidden=made.hidden, hidden_bias=made.hidden_bias,
        out=made.out, out_bias=made.out_bias, sequence=made.sequence,
    )  # fmt: skip
    write_bundle(tmp_path / "8", bundles.trained(), bundles.parts(encoder=whole))
    asked = np.array([1], np.int32), np.array([[3, 5]], np.int32), np.array([[HOUR_MS, 40 * HOUR_MS]])
    assert np.array_equal(load_bundle(tmp_path / "8").encoder.encode(*asked), whole.encode(*asked))
