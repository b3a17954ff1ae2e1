"""The causal transformer: what it may see, what it is given, that it learns, and that it does so again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.errors import ModelError
from models.interactions import Interactions
from models.retrieval.protocol import best
from models.retrieval.sequence import SequenceConfig, Sequences, SequenceTowers, Training, Words, _windows

SMALL = SequenceConfig(length=6, dim=16, dropout=0.1, batch=16, negatives=20, learning_rate=0.01, threads=1)
NO_WORDS = Words.of([[] for _ in range(30)])


def walks(n_users: int = 60, steps: int = 9, n_items: int = 30) -> Interactions:
    """Users who walk along the items, each from where they begin."""
    first = np.random.default_rng(0).integers(0, n_items, n_users)
    user, step = np.tile(np.arange(n_users), steps), np.repeat(np.arange(steps), n_users)
    item = (first[user] + step) % n_items
    return Interactions(user.astype(np.int32), item.astype(np.int32), np.arange(len(user)), n_users, n_items)


def test_what_comes_later_changes_no_earlier_state() -> None:
    towers = SequenceTowers(30, NO_WORDS, SMALL).eval()
    items = towers.items(np.arange(30))
    one, other = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 9, 1]])
    states, changed = towers(one, items), towers(other, items)
    assert torch.equal(states[:, :2], changed[:, :2])
    assert not torch.allclose(states[:, 2:], changed[:, 2:])
    assert torch.allclose(towers(one[:, :2], items), states[:, :2], atol=1e-6)


def test_a_user_s_vector_does_not_depend_on_who_else_is_scored() -> None:
    log = walks()
    whole = Training(log, NO_WORDS, SMALL).export()
    short = log.user < 3
    fewer = Interactions(log.user[short], log.item[short], log.at_ms[short], 3, 30)
    assert np.allclose(Training(fewer, NO_WORDS, SMALL).export().users, whole.users[:3], atol=1e-6)


def test_stretches_hold_every_step_once_and_the_newest_are_whole() -> None:
    bounds = np.array([0, 1, 4, 4, 17])
    found = _windows(bounds, 6).tolist()
    assert found == [[1, 4], [11, 17], [6, 12], [4, 7]]
    steps = [(at, at + 1) for first, end in found for at in range(first, end - 1)]
    assert sorted(steps) == [(at, at + 1) for at in (1, 2, *range(4, 16))]


def test_an_epoch_passes_every_stretch_once_in_an_order_of_its_own() -> None:
    training = Training(walks(), NO_WORDS, SMALL)
    orders = []
    for number in range(2):
        orders.append(np.concatenate(list(training._batches(np.random.default_rng(number)))))
        assert sorted(orders[-1].tolist()) == list(range(len(training.windows)))
    assert orders[0].tolist() != orders[1].tolist()


def test_words_that_several_items_have_are_their_means() -> None:
    words = Words.of([["a", "b", "a"], [], ["a", "only here"], ["b"]])
    assert words.n_words == 2
    assert [part.tolist() for part in words.of_items(np.array([2, 1, 0]))] == [[0, 0, 1], [0, 1, 1, 3]]
    towers = SequenceTowers(4, words, SMALL)
    rows = towers.items(np.array([0, 1]))
    assert torch.allclose(rows[0], towers.own.weight[0] + towers.word.weight.mean(0), atol=1e-6)
    assert torch.equal(rows[1], towers.own.weight[1])


def test_it_learns_what_comes_next_and_learns_the_same_again() -> None:
    log = walks()
    known = log.before(60 * 8)
    model = Sequences(NO_WORDS, SMALL, epochs=30)
    scorer = model.fit(known)
    lists = best(scorer, known, np.arange(60, dtype=np.int32), 1, repeats=False).items[:, 0]
    assert (lists == log.item[60 * 8 :]).mean() > 0.9
    again = model.fit(known)
    assert np.array_equal(scorer.users, again.users)
    assert np.array_equal(scorer.items, again.items)


def test_variants_are_what_so_many_epochs_would_have_made() -> None:
    model = Sequences(NO_WORDS, SMALL, most_epochs=4, every=2)
    made = list(model.variants(walks()))
    assert [variant.epochs for variant, _ in made] == [2, 4]
    assert np.array_equal(made[0][1].users, made[0][0].fit(walks()).users)


def test_an_item_that_nobody_has_had_is_placed_by_its_words() -> None:
    rng = np.random.default_rng(1)
    user = np.tile(np.arange(90), 8)
    item = user % 3 * 10 + rng.integers(0, 10, len(user))  # a user keeps to one of three kinds of ten items
    log = Interactions(user.astype(np.int32), item.astype(np.int32), np.arange(len(user)), 90, 30)
    kinds = [[f"kind {one // 10}", f"kind {one // 10} too"] for one in range(31)]
    kinds[30] = kinds[4]
    with_new = Interactions(log.user, log.item, log.at_ms, log.n_users, 31)
    vectors = Sequences(Words.of(kinds), SMALL, epochs=20).fit(with_new).items
    likeness = vectors[:30] @ vectors[30]
    assert likeness[:10].mean() > max(likeness[10:20].mean(), likeness[20:].mean()) + 0.2


def test_users_without_a_past_and_a_log_without_a_step_are_scored() -> None:
    empty = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64), 2, 5)
    scores = Sequences(Words.of([[]] * 5), SMALL, epochs=2).fit(empty).scores(np.array([0, 1], np.int32))
    assert scores.tolist() == [[0.0] * 5] * 2


def test_a_loss_that_is_not_finite_is_named() -> None:
    training = Training(walks(), NO_WORDS, replace(SMALL, learning_rate=float("inf")))
    with pytest.raises(ModelError, match="loss of epoch 1 is nan"):
        training.epoch()
