"""What every retrieval model must hold, and each against a slow and obvious twin."""

import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headwater.errors import ModelError
from models.evaluation.metrics import PAD, top_k
from models.interactions import Interactions
from models.retrieval import choice, ease, neighbours
from models.retrieval.ease import Ease
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.newcomers import Welcoming, choose_rule, newcomers
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import best, profiles
from models.retrieval.selection import best_columns

N_USERS, N_ITEMS = 5, 8
EVERYONE = np.arange(N_USERS, dtype=np.int32)
MODELS = {
    "popularity": Popularity(), "recent popularity": Popularity(0.2), "itemknn": ItemNeighbours(), "ease": Ease(5.0),
    "welcoming": Welcoming(ItemNeighbours(), Popularity(0.2)),
}  # fmt: skip
models = pytest.mark.parametrize("name", MODELS)


def log_of(rows: list[tuple[int, int]], n_users: int = N_USERS, n_items: int = N_ITEMS) -> Interactions:
    user, item = (np.array([row[n] for row in rows], np.int32) for n in range(2))
    return Interactions(user, item, np.arange(len(rows), dtype=np.int64), n_users, n_items)


logs = st.lists(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), max_size=40).map(log_of)


@models
@given(log=logs, k=st.integers(1, N_ITEMS + 2), repeats=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_list_has_k_places_best_first_and_names_each_item_once(
    name: str, log: Interactions, k: int, repeats: bool
) -> None:
    lists = best(MODELS[name].fit(log), log, EVERYONE, k, repeats)
    assert lists.items.shape == lists.scores.shape == (N_USERS, k)
    for user, (items, scores) in enumerate(zip(lists.items, lists.scores, strict=True)):
        had = set(log.item[log.user == user].tolist())
        may = N_ITEMS if repeats else N_ITEMS - len(had)
        named = items[items != PAD].tolist()
        assert len(set(named)) == len(named) == min(k, may)
        assert repeats or not had & set(named)
        assert (items[len(named) :] == PAD).all()
        assert all(one >= other for one, other in pairwise(scores.tolist()))


@models
@given(log=logs, users=st.lists(st.integers(0, N_USERS - 1), max_size=4))
@settings(max_examples=30, deadline=None)
def test_each_user_is_answered_alone(name: str, log: Interactions, users: list[int]) -> None:
    scorer = MODELS[name].fit(log)
    some, all_ = (best(scorer, log, np.array(who, np.int32), 4, True).items for who in (users, range(N_USERS)))
    assert np.array_equal(some, all_[users])


@pytest.mark.parametrize("name", ["popularity", "itemknn", "ease"])
def test_who_has_no_history_is_shown_what_is_popular(name: str) -> None:
    log = log_of([(0, 3), (1, 3), (2, 3), (0, 5), (1, 5), (2, 1)])
    assert best(MODELS[name].fit(log), log, np.array([4], np.int32), 3, False).items.tolist() == [[3, 5, 1]]


@models
@given(log=logs, half_life=st.sampled_from([None, 0.2, 0.001]))
@settings(max_examples=30, deadline=None)
def test_the_rule_answers_new_users_and_the_model_all_others(
    name: str, log: Interactions, half_life: float | None
) -> None:
    rule, known = Popularity(half_life), set(log.user.tolist())
    found, by_model, by_rule = (
        best(model.fit(log), log, EVERYONE, N_ITEMS, False).items
        for model in (Welcoming(MODELS[name], rule), MODELS[name], rule)
    )
    for user in range(N_USERS):
        assert np.array_equal(found[user], by_model[user] if user in known else by_rule[user])


@given(log=logs, since=st.one_of(st.none(), st.integers(0, 40)))
def test_newcomers_are_those_whose_every_interaction_was_held_out(log: Interactions, since: int | None) -> None:
    held = choice.hold_out(log, since, repeats=True)
    before, expected = set(held.before.user.tolist()), set()
    for user, item in zip(log.user.tolist(), log.item.tolist(), strict=True):
        if user not in before:
            expected.add(user * N_ITEMS + item)
    new = newcomers(log, held)
    assert set(new.relevance.keys.tolist()) == expected
    assert set(new.users.tolist()) == {key // N_ITEMS for key in expected}


def tastes_that_change(n_new: int) -> Interactions:
    """Everybody wants items 0 to 3, later 4 to 7, and some come only when it is later."""
    rows = [(user, item) for user in range(40) for item in range(4)]
    rows += [(user, 4 + (user + step) % 4) for step in range(2) for user in range(4)]
    return log_of(rows + [(40 + user, 4 + user % 4) for user in range(n_new)], 40 + n_new)


def test_the_rule_is_what_suits_those_who_were_new_before() -> None:
    log = tastes_that_change(30)
    held = choice.hold_out(log, len(log) - 30, repeats=False)
    chosen = choice.choose([ItemNeighbours()], held, False, float("inf"))
    rule = choose_rule(chosen, log, held, False, traits=False)
    assert isinstance(rule, Popularity)
    assert rule.half_life is not None


def test_where_few_were_new_the_rule_is_what_suits_all_who_were_held_out() -> None:
    log = log_of([(user, item) for item in (0, 1, 2, 3) for user in range(30)], 30)
    held = choice.hold_out(log, None, repeats=True)
    chosen = choice.choose([ItemNeighbours()], held, True, float("inf"))
    assert (
        choose_rule(chosen, log, held, True, traits=False)
        == choice.choose(choice.popularities(), held, True, float("inf")).model
    )


def test_a_model_that_knows_new_users_by_their_traits_answers_them_itself() -> None:
    log = tastes_that_change(30)
    held = choice.hold_out(log, len(log) - 30, repeats=False)

    class Oracle(ItemNeighbours):
        def fit(self, log: Interactions) -> Any:
            return Wanted()

    class Wanted:
        def scores(self, users: Any) -> Any:
            return np.eye(N_ITEMS, dtype=np.float32)[4 + users % 4]

    chosen = choice.Choice(Oracle(), 1.0, {}, 0, held.before, Wanted())
    assert choose_rule(chosen, log, held, False, traits=True) is None
    assert choose_rule(chosen, log, held, False, traits=False) is not None


@given(
    scores=arrays(np.float32, (4, 9), elements=st.sampled_from([0.0, 1.0, -1.0, 2.5, -np.inf])), k=st.integers(1, 12)
)
def test_the_best_columns_are_those_of_a_stable_sort(scores: Any, k: int) -> None:
    assert np.array_equal(best_columns(scores, k), top_k(scores, k))


@given(log=logs, decay=st.sampled_from([1.0, 0.5]))
def test_a_profile_fades_by_what_came_since(log: Interactions, decay: float) -> None:
    expected = np.zeros((N_USERS, N_ITEMS), np.float32)
    for user in range(N_USERS):
        newest_first = list(dict.fromkeys(log.item[log.user == user][::-1].tolist()))
        for since, item in enumerate(newest_first):
            expected[user, item] = decay**since
    assert np.array_equal(profiles(log, decay).toarray(), expected)


def incidence(log: Interactions) -> Any:
    had = np.zeros((log.n_users, log.n_items))
    had[log.user, log.item] = 1
    return had


@given(log=logs, shrink=st.sampled_from([0.0, 2.0]))
@settings(deadline=None)
def test_neighbours_are_those_of_a_loop(log: Interactions, shrink: float) -> None:
    had, similar = incidence(log), np.zeros((N_ITEMS, N_ITEMS))
    for one in range(N_ITEMS):
        for other in range(N_ITEMS):
            both = (had[:, one] * had[:, other]).sum()
            if both and one != other:
                similar[one, other] = both / (np.sqrt(had[:, one].sum() * had[:, other].sum()) + shrink)
    expected = profiles(log, 0.8).toarray() @ similar
    found = ItemNeighbours(shrink=shrink).fit(log).scores(EVERYONE)
    assert np.allclose(np.maximum(found, 0), expected, atol=1e-5)
    assert (found[expected == 0] < 0).all()


def test_only_the_nearest_neighbours_count(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2), (3, 0)])
    whole = ItemNeighbours(shrink=0).fit(log)
    monkeypatch.setattr(neighbours, "ITEMS_AT_A_TIME", 3)
    assert (ItemNeighbours(shrink=0).fit(log).similar != whole.similar).nnz == 0
    one = ItemNeighbours(neighbours=1, shrink=0).fit(log).similar.toarray()
    assert np.flatnonzero(one[0]).tolist() == [1]


@given(log=logs)
@settings(deadline=None)
def test_ease_is_what_its_paper_says(log: Interactions) -> None:
    had = incidence(log)
    inverse = np.linalg.inv(had.T @ had + 5 * np.eye(N_ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = profiles(log, 0.9).toarray() @ weights
    assert np.allclose(Ease(5.0, 0.9).fit(log).scores(EVERYONE), expected, atol=1e-4)


def test_ease_mixes_the_popular_items_of_a_large_catalogue_and_shows_others_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ease, "MOST_ITEMS", 3)
    log = log_of([(0, 1), (1, 1), (2, 1), (0, 4), (1, 4), (2, 6), (3, 6), (3, 2)])
    found = best(Ease(1.0).fit(log), log, EVERYONE, N_ITEMS, True).items
    assert {tuple(sorted(row[:3])) for row in found.tolist()} == {(1, 4, 6)}
    assert {row[3] for row in found.tolist()} == {2}


def test_too_little_regularization_is_named() -> None:
    with pytest.raises(ModelError, match="regularization of 0"):
        Ease(0.0).fit(log_of([(0, 1), (0, 2)]))


def test_what_is_held_out_is_each_user_s_last_or_all_from_a_time_on() -> None:
    log = log_of([(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 1), (2, 5)])
    held = choice.hold_out(log, None, repeats=False)
    assert held.before.item.tolist() == [1, 1, 2, 2]
    assert held.relevance.keys.tolist() == [3]  # user 1 had item 1 before, and user 2 has nothing left
    assert choice.hold_out(log, None, repeats=True).relevance.keys.tolist() == [3, N_ITEMS + 1]
    assert choice.hold_out(log, 4, repeats=True).before.at_ms.tolist() == [0, 1, 2, 3]


def test_the_best_setting_is_chosen_and_what_there_was_no_time_for_is_told() -> None:
    rng = np.random.default_rng(0)
    rows = [(user, (user * 3 + step + int(rng.random() < 0.1)) % 40) for step in range(12) for user in range(60)]
    log = log_of(rows, 60, 40)
    held, tried = choice.hold_out(log, None, repeats=False), [ItemNeighbours(shrink=shrink) for shrink in (10, 0, 3)]
    found = choice.choose(tried, held, False, float("inf"))
    assert found.untried == 0
    assert found.tried[str(found.model)] == max(found.tried.values()) > 0.3
    hurried = choice.choose(tried, held, False, 0.0)
    assert hurried.untried == len(tried) - 1
    assert len(hurried.tried) == 1
    assert set(hurried.tried.items()) <= set(found.tried.items())


def test_the_weights_of_one_setting_exist_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    plain = Ease.fit

    def fit(self: Ease, log: Interactions) -> Any:
        assert not any(one() is not None for one in made)
        scorer = plain(self, log)
        made.append(weakref.ref(scorer.weights))
        return scorer

    monkeypatch.setattr(Ease, "fit", fit)
    held = choice.hold_out(log_of([(user, item) for item in range(6) for user in range(4)]), None, repeats=False)
    found = choice.choose([Ease(1.0), Ease(2.0), Ease(3.0)], held, False, float("inf"))
    assert len(made) == 3
    assert choice.judge(found.scorer, held, False) == found.score


def test_variants_that_are_no_better_exhaust_a_model_s_patience() -> None:
    log = log_of([(user, item) for item in range(6) for user in range(4)])
    held = choice.hold_out(log, None, repeats=False)

    class Same(ItemNeighbours):
        patience = 2

    assert len(choice.choose([Same()], held, False, float("inf")).tried) == 3
