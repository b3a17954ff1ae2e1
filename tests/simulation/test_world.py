"""What the world says a list is worth, against the formula written out, chance, and all lists that there are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from models.evaluation.metrics import PAD
from simulation.fitted import factors, unit
from simulation.shoppers import CART, CLICK, PURCHASE, Shown, Visit, react
from simulation.world import BLOCK, Value, World, highest

MEASURES = ("clicks", "purchases", "money")


def slow_odds(world: World, user: int, item: int, day: int) -> float:
    """The log-odds as docs/simulation.md has them."""
    asked, fitted = world.config.tastes, world.fitted
    taste = world._moved[day][user] / np.linalg.norm(world._moved[day][user])
    own = fitted.own[user, item] if user < len(fitted.user_ids) and item < len(fitted.item_ids) else 0
    heard = [math.log(1 + n) for n in world.popularity]
    usual = float(np.median([math.log(1 + n) for n in world.popularity if n > 0]))
    odds = asked.base + asked.affinity * float(taste @ world.vectors[item])
    odds += asked.popularity * (heard[item] - usual) + asked.habit * math.log(1 + own)
    for trend in world.config.trends:
        if trend.category == world.text["category"][item] and trend.from_day <= day <= trend.to_day:
            odds += math.log(trend.factor)
    new = item - len(fitted.item_ids)
    if new >= 0:
        if world.products.day[new] > day:
            return -math.inf
        odds += math.log(world.config.new_products.liked)
    return odds


def slow_value(world: World, user: int, items: list[int], day: int) -> tuple[float, float, float]:
    asked, seen = world.config.outcomes, world.config.lists.examined
    clicks = purchases = money = 0.0
    for place, item in enumerate(items):
        if item == PAD or place >= len(seen):
            continue
        liked = 1 / (1 + math.exp(-slow_odds(world, user, item, day)))
        click = seen[place] * asked.click * liked
        buy = click * asked.cart * (asked.purchase[0] + (asked.purchase[1] - asked.purchase[0]) * liked)
        clicks, purchases, money = clicks + click, purchases + buy, money + buy * world.price[item]
    return clicks, purchases, money


@pytest.mark.parametrize("day", [0, 2, 4])
def test_a_list_is_worth_what_the_formula_says(world, day):
    rng = np.random.default_rng(day)
    users = world.present(day)
    lists = np.stack([rng.permutation(len(world.item_ids))[:12] for _ in users]).astype(np.int32)
    lists[::3, 4:] = PAD
    found = world.value(users, lists, day)
    wanted = [slow_value(world, int(user), items.tolist(), day) for user, items in zip(users, lists, strict=True)]
    np.testing.assert_allclose(np.column_stack([found.of(name) for name in MEASURES]), wanted, rtol=1e-12)


def test_chance_comes_to_the_same_as_the_expected_value(fitted, changed):
    """Thousands of shoppers who look at one list, without a budget."""
    world = World(fitted, changed(outcomes={"budget": 0.0}), days=3)
    user, day, n = 3, 2, 6000
    items = world.best_lists(np.array([user], np.int32), day, 6)[0]
    ids = [str(name) for name in world.item_ids[items]]
    acts = [react(world, Shown(Visit(day, at, user, 0, 1), 0, "r", items, ids), 0, math.inf) for at in range(n)]
    expected = world.value(np.array([user]), items[None], day)
    seen = Value(
        np.array([deeds.count(CLICK) for deeds in acts]),
        np.array([deeds.count(PURCHASE) for deeds in acts]),
        np.array([deeds.spent for deeds in acts]),
    )
    for measure in MEASURES:
        drawn = seen.of(measure)
        assert abs(drawn.mean() - expected.of(measure)[0]) < 4 * drawn.std() / math.sqrt(n), measure
    carts = sum(deeds.count(CART) for deeds in acts) / sum(deeds.count(CLICK) for deeds in acts)
    assert abs(carts - world.config.outcomes.cart) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    examined=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    places=st.integers(1, 4),
    user=st.integers(0, 29),
    day=st.integers(0, 4),
    measure=st.sampled_from(MEASURES),
    kept=st.lists(st.integers(0, 45), min_size=5, max_size=6, unique=True),
)
def test_no_list_is_worth_more_than_the_best(fitted, changed, examined, places, user, day, measure, kept):
    """Of a few products, wherever one looks most; all others are made to be worth nothing."""
    world = World(fitted, changed(lists={"examined": examined}), days=5)
    nothing = np.setdiff1d(np.arange(len(world.item_ids)), kept)
    today = world._day(day)
    today.shared[nothing] = -np.inf
    users = np.array([user], np.int32)
    orders = np.array(list(itertools.permutations(kept, places)), np.int32)
    values = world.value(np.repeat(users, len(orders)), orders, day).of(measure)
    best = world.value(users, world.best_lists(users, day, places, measure), day).of(measure)[0]
    assert best == pytest.approx(values.max(), rel=1e-12, abs=1e-15)
    regret = world.regret(np.repeat(users, len(orders)), orders, day, measure)
    np.testing.assert_allclose(regret, best - values, atol=1e-15)


def test_best_lists_name_each_product_once_and_only_those_that_have_come(world):
    lists = world.best_lists(world.present(0), 0, 44)
    assert lists.shape == (len(world.present(0)), 44)
    assert all(len(set(row[row != PAD].tolist())) == (row != PAD).sum() == 40 for row in lists)
    assert (lists < len(world.fitted.item_ids)).all()


@pytest.mark.parametrize("columns", [3, 7, 5 * BLOCK, 5 * BLOCK + 1, 40 * BLOCK - 3])
def test_the_highest_scores_are_those_that_sorting_finds(columns):
    score = np.random.default_rng(columns).normal(size=(20, columns)).astype(np.float32)
    found = highest(score, 5)
    wanted = np.sort(-score, axis=1)[:, :5]
    np.testing.assert_array_equal(np.sort(-np.take_along_axis(score, found, 1), axis=1), wanted)


def test_a_trend_multiplies_the_odds_of_its_category_while_it_lasts(world, fitted, changed):
    calm = World(fitted, changed(trends=()), days=5)
    users, items = world.shoppers, np.tile(np.arange(40, dtype=np.int32), (len(world.shoppers), 1))
    candy = fitted.text["category"] == "CANDY"
    for day in range(5):
        times = np.exp(world.leaning(users, items, day) - calm.leaning(users, items, day))
        np.testing.assert_allclose(times[:, ~candy], 1)
        np.testing.assert_allclose(times[:, candy], 4 if 2 <= day <= 3 else 1)


def test_new_products_are_worth_nothing_before_their_day(world):
    new = np.arange(40, 46, dtype=np.int32)
    for day in range(5):
        relevance = world.relevance(world.shoppers, np.tile(new, (len(world.shoppers), 1)), day)
        assert ((relevance > 0) == (world.products.day <= day)).all()
    assert world.products.day.tolist() == [1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(np.linalg.norm(world.products.vectors, axis=1), 1)
    assert set(world.products.text["category"]) <= {"BREAD", "CANDY", "MILK", "SOUP"}


def test_tastes_drift_by_the_day_and_not_without_drift(fitted, changed):
    still, moving = (World(fitted, changed(tastes={"drift": drift}), days=30) for drift in (0.0, 0.1))
    first = still._day(0).tastes
    np.testing.assert_array_equal(still._day(29).tastes, first)
    near = [float((moving._day(day).tastes * first).sum(1).mean()) for day in (0, 5, 29)]
    assert near[0] == pytest.approx(1)
    assert near[0] > near[1] > near[2]
    np.testing.assert_allclose(np.linalg.norm(moving._day(29).tastes, axis=1), 1)


def test_asking_for_a_later_day_first_changes_nothing(fitted, config):
    ahead, behind = World(fitted, config, days=5), World(fitted, config, days=5)
    ahead.factor(4)
    for day in range(5):
        np.testing.assert_array_equal(ahead._day(day).tastes, behind._day(day).tastes)


def test_more_days_leave_the_first_ones_as_they_are(world, fitted, config):
    longer = World(fitted, config, days=9)
    n = len(world.user_ids)
    assert longer.user_ids[:n].tolist() == world.user_ids.tolist()
    for day in range(5):
        np.testing.assert_array_equal(longer._day(day).tastes[:n], world._day(day).tastes)
        np.testing.assert_array_equal(longer.present(day), world.present(day))


def test_newcomers_come_on_their_day_and_have_no_habits(world):
    for day in range(5):
        assert len(world.present(day)) == 30 + 2 * (day + 1)
    new = world.present(4)[30:]
    everything = np.tile(np.arange(40, dtype=np.int32), (len(new), 1))
    assert not world.habits.count(new[:, None], everything).any()
    assert len(set(world.user_ids)) == len(world.user_ids)


def test_another_seed_draws_another_world(world, fitted, config):
    other = World(fitted, config.seeded(2), days=5)
    assert not np.allclose(other._day(3).tastes[:30], world._day(3).tastes[:30])
    np.testing.assert_array_equal(other._day(0).tastes[:30], world._day(0).tastes[:30])


def test_what_the_data_do_not_have_is_refused(fitted, changed):
    trend = {"category": "CAVIAR", "from_day": 0, "to_day": 1, "factor": 2.0}
    with pytest.raises(ConfigError, match=r"trends\.0\.category: 'CAVIAR'.*BREAD, CANDY, MILK"):
        World(fitted, changed(trends=(trend,)), days=1)
    with pytest.raises(ConfigError, match=r"shoppers\.count: 31 of 30"):
        World(fitted, changed(shoppers={"count": 31}), days=1)
    assert len(World(fitted, changed(shoppers={"count": 7}), days=1).shoppers) == 7


def test_nothing_new_need_come(fitted, changed):
    world = World(fitted, changed(new_products={"count": 0}, shoppers={"new_a_day": 0}, trends=()), days=3)
    assert (len(world.user_ids), len(world.item_ids)) == (30, 40)
    assert world.best_lists(world.present(2), 2, 6).shape == (30, 6)


def test_habits_are_the_counts_of_the_data(world, fitted):
    users = np.arange(30, dtype=np.int32)
    items = np.arange(46, dtype=np.int32)
    dense = np.pad(fitted.own.toarray(), ((0, 0), (0, 6)))
    np.testing.assert_array_equal(world.habits.count(users[:, None], items[None]), dense)
    row, item, count = world.habits.rows(users[::-1])
    again = np.zeros_like(dense)
    again[29 - row, item] = count
    np.testing.assert_array_equal(again, dense)


def test_shoppers_of_one_taste_lie_near_each_other(fitted):
    near = fitted.users @ fitted.users.T
    even = np.arange(30) % 2 == 0
    assert near[np.ix_(even, even)].mean() > near[np.ix_(even, ~even)].mean() + 0.5


def test_the_factors_are_those_of_a_whole_decomposition(fitted):
    """But for the first, with each direction's sign made the same."""
    users, items = factors(fitted.own, 4)
    damped = np.log1p(fitted.own.toarray())
    left, strength, right = np.linalg.svd(damped / np.linalg.norm(damped, axis=1, keepdims=True))
    wanted = unit(left[:, 1:5] * strength[1:5]) @ unit(right[1:5].T).T
    np.testing.assert_allclose(users @ items.T, wanted, atol=1e-8)


def test_prices_are_medians_of_what_was_paid(fitted):
    bought = fitted.popularity > 0
    np.testing.assert_allclose(fitted.price[bought], (1 + np.arange(40) % 7 + 0.25)[bought])
    assert (fitted.price > 0).all()
