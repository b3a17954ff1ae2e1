"""What shoppers do with what they are shown, and when they come."""

import math
import tomllib
from importlib.resources import files

import numpy as np
import pytest

from headwater.events import EventLimits, parse_event
from headwater.plan import DAY_MS
from models.evaluation.metrics import PAD
from simulation.shoppers import CART, CLICK, PURCHASE, RETURN, Deeds, Shown, Visit, budget, buy_unseen, react, visits
from simulation.world import World

NOW = 400 * DAY_MS


@pytest.fixture(scope="module")
def keen(fitted, changed) -> World:
    """A world in which much happens."""
    outcomes = {"click": 1.0, "cart": 0.9, "purchase": [0.5, 1.0], "returned": 0.5, "budget": 0.0}
    return World(fitted, changed(outcomes=outcomes, tastes={"base": 0.0}), days=5)


def shown_to(world: World, user: int, number: int = 0, day: int = 2) -> Shown:
    items = world.best_lists(np.array([user], np.int32), day, 6)[0]
    return Shown(Visit(day, number, user, 0, 1), 0, f"r{number}", items, [str(name) for name in world.item_ids[items]])


def all_acts(world: World, left: float = math.inf) -> list[tuple[Shown, Deeds]]:
    lists = [shown_to(world, user, number=user) for user in range(30)]
    return [(shown, react(world, shown, NOW, left)) for shown in lists]


def test_every_event_is_one_that_the_platform_takes_and_its_labels_know(keen):
    labels = tomllib.loads((files("batch") / "labels.toml").read_text())
    known = {kind for objective in labels["objectives"].values() for kind in objective["events"]}
    names = labels["retractions"]["return"]["names"]
    for shown, deeds in all_acts(keen):
        for event in deeds.now:
            assert event.event_type in known
            assert parse_event(event.to_json(), event.user_id.encode(), NOW, EventLimits()) == event
            assert shown.item_ids[event.position - 1] == event.item_id
            assert (event.request_id, event.session_id) == (shown.request_id, f"sim-1-2-{shown.visit.number}")
            assert event.context["category"] == keen.text["category"][keen.items_of([event.item_id])[0]]
        for later in deeds.later:
            assert later.event.event_type in labels["retractions"]
            bought = [event for event in deeds.now if event.event_id == later.event.context[names]]
            assert [(event.event_type, event.item_id) for event in bought] == [(PURCHASE, later.event.item_id)]
            assert shown.visit.day + 2 <= later.day <= shown.visit.day + 10


def test_each_step_follows_the_one_before_and_ids_are_each_ones_own(keen):
    ids = []
    for _, deeds in all_acts(keen):
        steps = {kind: {event.item_id for event in deeds.now if event.event_type == kind} for kind in (CLICK, CART)}
        bought = {event.item_id for event in deeds.now if event.event_type == PURCHASE}
        assert bought <= steps[CART] <= steps[CLICK]
        ids += [event.event_id for event in deeds.now] + [later.event.event_id for later in deeds.later]
    assert len(ids) == len(set(ids)) > 100


def test_a_shopper_does_the_same_again_with_the_same_list_and_other_things_on_another_day(keen):
    first, again = ([deeds for _, deeds in all_acts(keen)] for _ in range(2))
    assert first == again
    today, tomorrow = (
        [tuple(event.item_id for event in react(keen, shown_to(keen, user, day=day), NOW, math.inf).now)
         for user in range(30)] for day in (3, 4)
    )  # fmt: skip
    assert today != tomorrow


def test_about_as_much_comes_back_as_is_declared(keen):
    acts = [deeds for _, deeds in all_acts(keen)]
    bought = sum(deeds.count(PURCHASE) for deeds in acts)
    assert abs(sum(len(deeds.later) for deeds in acts) / bought - 0.5) < 4 * 0.5 / math.sqrt(bought)


def test_nothing_is_done_with_what_the_world_does_not_know_or_nobody_looks_at(keen):
    unknown = Shown(Visit(2, 0, 1, 0, 1), 0, "r", np.full(6, PAD, np.int32), ["?"] * 6)
    assert react(keen, unknown, NOW, math.inf) == Deeds()
    long = np.arange(30, dtype=np.int32)
    deeds = react(keen, Shown(Visit(2, 0, 1, 0, 1), 0, "r", long, [f"i{at:02}" for at in long]), NOW, math.inf)
    assert deeds.now
    assert max(event.position for event in deeds.now) <= len(keen.config.lists.examined)


def test_the_budget_cuts_purchases_and_changes_nothing_else(keen):
    for (_, free), (_, bound) in zip(all_acts(keen), all_acts(keen, left=6.0), strict=True):
        assert bound.spent <= 6.0
        assert bound.cut + bound.count(PURCHASE) == free.count(PURCHASE)
        assert {event.event_id for event in bound.now} <= {event.event_id for event in free.now}
        assert bound.count(CART) == free.count(CART)
        assert {later.event.event_id for later in bound.later} <= {later.event.event_id for later in free.later}


def test_a_budget_is_so_many_times_what_the_shopper_spends_on_a_day(fitted, changed):
    world = World(fitted, changed(outcomes={"budget": 2.0}), days=1)
    assert budget(world, 3) == 2 * fitted.spend[3]
    assert budget(world, 30) == 2 * fitted.spend.mean()
    assert budget(World(fitted, changed(outcomes={"budget": 0.0}), days=1), 3) == math.inf


def test_shoppers_come_as_often_as_they_did_in_order_of_time(fitted, changed):
    world = World(fitted, changed(shoppers={"sessions_a_day": 2.0, "lists_a_session": 3.0}), days=60)
    days = [visits(world, day) for day in range(60)]
    for planned in days:
        assert [visit.number for visit in planned] == list(range(len(planned)))
        assert [visit.offset_ms for visit in planned] == sorted(visit.offset_ms for visit in planned)
        assert all(0 <= visit.offset_ms < DAY_MS for visit in planned)
    old = np.bincount([visit.user for planned in days for visit in planned if visit.user < 30], minlength=30)
    expected = 60 * 2.0 * fitted.rhythm
    assert (np.abs(old - expected) < 4.5 * np.sqrt(expected)).all()
    lists = [visit.lists for planned in days for visit in planned]
    assert min(lists) == 1
    assert np.mean(lists) == pytest.approx(3.0, abs=0.1)
    assert visits(world, 3) == days[3] != days[4]


def test_what_is_bought_unseen_names_no_list_and_is_mostly_ones_own(fitted, changed):
    world = World(fitted, changed(unseen={"a_session": 4.0, "own": 1.0}, outcomes={"budget": 0.0}), days=5)
    old = [buy_unseen(world, Visit(1, at, at % 30, 0, 1), NOW, math.inf) for at in range(300)]
    events = [event for deeds in old for event in deeds.now]
    assert {event.event_type for event in events} == {PURCHASE}
    assert {(event.request_id, event.position) for event in events} == {(None, None)}
    users, items = world.users_of([e.user_id for e in events]), world.items_of([e.item_id for e in events])
    assert (world.habits.count(users, items) > 0).all()
    assert len(events) / 300 == pytest.approx(4.0, abs=4.5 * 2 / math.sqrt(300))
    assert {later.event.event_type for deeds in old for later in deeds.later} <= {RETURN}


def test_what_everyone_buys_unseen_follows_popularity_and_the_trend(fitted, changed):
    world = World(fitted, changed(unseen={"a_session": 20.0, "own": 0.0}, outcomes={"budget": 0.0}), days=5)
    for day in (0, 2):
        events = [event for at in range(300) for event in buy_unseen(world, Visit(day, at, 0, 0, 1), NOW, math.inf).now]
        share = world.popularity * world.factor(day)
        expected = len(events) * share / share.sum()
        found = np.bincount(world.items_of([event.item_id for event in events]), minlength=len(expected))
        assert (np.abs(found - expected) <= 4.5 * np.sqrt(expected)).all()
