"""The causal transformer: what it may see, what it is given, that it learns, and that it does so again."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headwater.errors import ModelError
from models.interactions import Interactions
from models.retrieval.losses import NEVER, gbce, softmax
from models.retrieval.protocol import best
from models.retrieval.sequence import Sequences, Training, _windows, suited
from models.retrieval.transformer import SequenceConfig, SequenceTowers, Words, classes

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
    none = torch.zeros(1, 4, dtype=torch.long)
    states, changed = towers(one, items, none), towers(other, items, none)
    assert torch.equal(states[:, :2], changed[:, :2])
    assert not torch.allclose(states[:, 2:], changed[:, 2:])
    assert torch.allclose(towers(one[:, :2], items, none[:, :2]), states[:, :2], atol=1e-6)


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


def test_a_step_tells_about_as_much_whether_histories_are_short_or_long() -> None:
    usual = SequenceConfig()
    for steps, batch, dropout in ((2, 128, 0.5), (8, 128, 0.5), (21, 51, 0.5), (40, 26, 0.2), (501, 20, 0.2)):
        found = suited(walks(steps=steps))
        assert (found.batch, found.dropout) == (batch, dropout), steps
        assert replace(found, batch=usual.batch, dropout=usual.dropout) == usual
    nothing = np.zeros(0, np.int32)
    assert suited(Interactions(nothing, nothing, nothing.astype(np.int64), 3, 5)) == replace(usual, batch=1)
    assert suited(walks(steps=501), replace(usual, length=200, batch=128)).batch == 6


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


scores = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6)


@given(own=scores, drawn=st.lists(st.one_of(st.just(NEVER), st.floats(-10, 10)), min_size=1, max_size=6))
def test_the_softmax_is_that_of_the_wanted_item_among_those_that_are_negatives(
    own: list[float], drawn: list[float]
) -> None:
    found = softmax(torch.tensor(own, dtype=torch.float64), torch.tensor([drawn] * len(own), dtype=torch.float64))
    for one, loss in zip(own, found.tolist(), strict=True):
        others = sum(np.exp(score) for score in drawn if score != NEVER)
        assert loss == pytest.approx(-np.log(np.exp(one) / (np.exp(one) + others)), abs=1e-9)


@given(
    own=scores, drawn=st.lists(st.one_of(st.just(NEVER), st.floats(-10, 10)), min_size=1, max_size=6),
    rate=st.floats(0.01, 1), calibration=st.floats(0, 1),
)  # fmt: skip
def test_the_generalized_cross_entropy_is_that_of_its_paper(
    own: list[float], drawn: list[float], rate: float, calibration: float
) -> None:
    def sigma(score: float) -> float:
        return 1 / (1 + np.exp(-score))

    arrays = torch.tensor(own, dtype=torch.float64), torch.tensor([drawn] * len(own), dtype=torch.float64)
    found = gbce(*arrays, rate, calibration)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    negatives = [score for score in drawn if score != NEVER]
    for one, loss in zip(own, found.tolist(), strict=True):
        told = np.log(sigma(one) ** beta) + sum(np.log(1 - sigma(score)) for score in negatives)
        assert loss == pytest.approx(-told / (len(negatives) + 1), rel=1e-6, abs=1e-9)


def test_calibration_goes_from_plain_cross_entropy_to_the_rate() -> None:
    own, against = torch.tensor([0.3]), torch.full((1, 2), NEVER)
    plain, whole = (gbce(own, against, 0.2, t) for t in (0.0, 1.0))
    assert plain.item() == pytest.approx(np.log(1 + np.exp(-0.3)), abs=1e-6)
    assert whole.item() == pytest.approx(0.2 * plain.item(), abs=1e-6)


def test_the_time_before_each_interaction_falls_into_a_power_of_two() -> None:
    at_ms = np.array([5, 5, 6, 13, 2**50, 7, 8], np.int64)
    assert classes(at_ms, np.array([0, 5])).tolist() == [0, 1, 2, 4, 47, 0, 2]


def test_times_tell_what_the_order_does_not() -> None:
    """A user takes one step along the items after a short while, and two after a long one."""
    rng = np.random.default_rng(2)
    user, step = np.divmod(np.arange(80 * 10), 10)
    long = rng.random(len(user)) < 0.5
    item, at_ms = np.zeros(len(user), np.int64), np.zeros(len(user), np.int64)
    for n in range(len(user)):
        item[n] = rng.integers(30) if step[n] == 0 else (item[n - 1] + 1 + long[n - 1]) % 30
        at_ms[n] = 0 if step[n] == 0 else at_ms[n - 1] + (10**6 if long[n] else 10)
    order = np.lexsort((user, step))
    log = Interactions(user[order].astype(np.int32), item[order].astype(np.int32), at_ms[order], 80, 30)
    losses = []
    for gaps in (False, True):
        training = Training(log, NO_WORDS, replace(SMALL, gaps=gaps))
        losses.append([training.epoch() for _ in range(25)][-1])
    assert losses[1] < losses[0] - 0.2


@pytest.mark.parametrize("loss", ["softmax", "gbce"])
def test_all_interactions_of_one_item_are_learned_from(loss: str) -> None:
    log = Interactions(np.zeros(9, np.int32), np.full(9, 3, np.int32), np.arange(9), 1, 5)
    model = Sequences(Words.of([[]] * 5), replace(SMALL, loss=loss), epochs=3)
    scores = model.fit(log).scores(np.array([0], np.int32))
    assert np.isfinite(scores).all()


def test_other_losses_learn_what_comes_next_too() -> None:
    log = walks()
    known = log.before(60 * 8)
    for config in (replace(SMALL, loss="gbce"), replace(SMALL, sparse_from=30)):
        scorer = Sequences(NO_WORDS, config, epochs=30).fit(known)
        lists = best(scorer, known, np.arange(60, dtype=np.int32), 1, repeats=False).items[:, 0]
        assert (lists == log.item[60 * 8 :]).mean() > 0.9


def test_of_a_large_catalogue_a_step_moves_the_rows_that_it_met() -> None:
    few = replace(SMALL, negatives=3, sparse_from=1000)
    log = walks(n_users=4, steps=4)
    training = Training(Interactions(log.user, log.item, log.at_ms, 4, 1000), Words.of([[]] * 1000), few)
    before = training.towers.own.weight.detach().clone()
    training.epoch()
    moved = (training.towers.own.weight.detach() != before).any(1)
    assert moved[:30].sum() == len(np.unique(log.item))
    assert not moved[30:].any()


class Killed(Exception):
    """Stands for the end of a process."""


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(step=st.integers(0, 47), gaps=st.booleans(), sparse_from=st.sampled_from([1, 1000]))
def test_training_that_was_ended_goes_on_to_the_same_bits(step: int, gaps: bool, sparse_from: int) -> None:
    model = Sequences(NO_WORDS, replace(SMALL, sparse_from=sparse_from), epochs=6, gaps=gaps)
    whole = model.fit(walks())
    taken, plain = 0, Training._step

    def ended(self: Training, *given: Any) -> float:
        nonlocal taken
        taken += 1
        if taken == step + 1:
            raise Killed
        return plain(self, *given)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        kept = replace(model, checkpoint=Path(folder))
        patch.setattr(Training, "_step", ended)
        try:
            first = kept.fit(walks())
        except Killed:
            first = kept.fit(walks())
    assert taken <= 6 * 8 + 8  # six epochs of eight steps, one of which may be passed again
    assert np.array_equal(first.users, whole.users)
    assert np.array_equal(first.items, whole.items)


def test_a_state_of_other_data_settings_or_more_epochs_is_not_taken(tmp_path: Path) -> None:
    model = Sequences(NO_WORDS, SMALL, epochs=2, checkpoint=tmp_path)
    model.fit(walks())
    for other, log in (
        (model, walks(steps=8)),
        (replace(model, gaps=True), walks()),
        (replace(model, epochs=1), walks()),
    ):
        assert np.array_equal(other.fit(log).users, replace(other, checkpoint=None).fit(log).users)


def test_a_state_that_is_none_is_named(tmp_path: Path) -> None:
    model = Sequences(NO_WORDS, SMALL, epochs=1, checkpoint=tmp_path)
    model.fit(walks())
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="Delete it to begin anew"):
        model.fit(walks())
