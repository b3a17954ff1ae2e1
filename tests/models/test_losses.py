"""The losses against their formulas, written out a number at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.two_tower.losses import against_shared, gbce_loss, softmax_loss

TEMPERATURE = 0.5


def drawn(seed: int, n_trips: int, n_negatives: int, n_positives: int):
    """Vectors of trips, negatives and positives, and each positive's trip."""
    generator = torch.Generator().manual_seed(seed)
    users, negatives, positives = (torch.randn(n, 4, generator=generator) for n in (n_trips, n_negatives, n_positives))
    hidden = torch.rand(n_trips, n_negatives, generator=generator) < 0.3
    trip = torch.randint(0, n_trips, (n_positives,), generator=generator)
    log_q = torch.randn(n_negatives, generator=generator), torch.randn(n_positives, generator=generator)
    return users, negatives, positives, hidden, trip, log_q


shapes = st.tuples(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))


def others(users, negatives, hidden, trip, row, correction):
    """Logits of the negatives that count for one positive."""
    who = int(trip[row])
    return [
        float(users[who] @ negatives[n]) / TEMPERATURE - float(correction[n])
        for n in range(len(negatives))
        if not hidden[who, n]
    ]


@given(shapes)
@settings(max_examples=40)
def test_sampled_softmax_is_the_formula(shape):
    users, negatives, positives, hidden, trip, (log_q, own_log_q) = drawn(*shape)
    own = (users[trip] * positives).sum(1) / TEMPERATURE - own_log_q
    found = softmax_loss(own, against_shared(users, negatives, hidden, log_q, TEMPERATURE), trip)
    for row in range(len(positives)):
        against = others(users, negatives, hidden, trip, row, log_q)
        share = math.exp(own[row]) / sum(map(math.exp, [float(own[row]), *against]))
        assert float(found[row]) == pytest.approx(-math.log(share), rel=1e-4, abs=1e-5)


@given(shapes, st.floats(0.001, 1), st.floats(0, 1))
@settings(max_examples=40)
def test_gbce_is_the_formula(shape, sampled, calibration):
    """Petrov and Macdonald 2023: beta = alpha (t (1 - 1/alpha) + 1/alpha), sigma(s+)^beta and 1 - sigma(s-)."""
    users, negatives, positives, hidden, trip, _ = drawn(*shape)
    own = (users[trip] * positives).sum(1) / TEMPERATURE
    none = torch.zeros(len(negatives))
    found = gbce_loss(own, against_shared(users, negatives, hidden, none, TEMPERATURE), trip, sampled, calibration)
    beta = sampled * (calibration * (1 - 1 / sampled) + 1 / sampled)
    for row in range(len(positives)):
        against = others(users, negatives, hidden, trip, row, none)
        right = math.log((1 / (1 + math.exp(-float(own[row])))) ** beta)
        wrong = sum(math.log(1 - 1 / (1 + math.exp(-logit))) for logit in against)
        assert float(found[row]) == pytest.approx(-(right + wrong) / (len(against) + 1), rel=1e-3, abs=1e-4)


def test_without_calibration_gbce_is_binary_cross_entropy():
    users, negatives, positives, hidden, trip, _ = drawn(1, 2, 5, 3)
    own = (users[trip] * positives).sum(1)
    against = against_shared(users, negatives, torch.zeros_like(hidden), torch.zeros(5), 1.0)
    found = gbce_loss(own, against, trip, 0.01, 0.0)
    logits = torch.cat([own[:, None], against[trip]], 1)
    wanted = torch.zeros_like(logits)
    wanted[:, 0] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    assert torch.allclose(found, expected, atol=1e-6)


@given(shapes, st.integers(1, 4))
@settings(max_examples=40)
def test_the_hardest_negatives_are_those_with_the_highest_logits(shape, hardest):
    users, negatives, _, hidden, _, (log_q, _) = drawn(*shape)
    every = against_shared(users, negatives, hidden, log_q, TEMPERATURE)
    kept = against_shared(users, negatives, hidden, log_q, TEMPERATURE, hardest)
    for row in range(len(users)):
        assert sorted(kept[row].tolist()) == sorted(every[row].tolist())[-min(hardest, len(negatives)) :]


def test_a_loss_with_hidden_negatives_alone_is_finite_and_has_gradients():
    users = torch.randn(2, 4, requires_grad=True)
    against = against_shared(users, torch.randn(3, 4), torch.ones(2, 3, dtype=torch.bool), torch.zeros(3), 0.1)
    trip = torch.tensor([0, 1])
    own = users.sum(1)
    for loss in (softmax_loss(own, against, trip), gbce_loss(own, against, trip, 0.5, 0.75)):
        loss.sum().backward(retain_graph=True)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(users.grad).all()
