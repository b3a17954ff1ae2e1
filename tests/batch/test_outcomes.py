"""Outcomes find their impressions: edge cases by name, and Spark against a loop over lists."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.archives import START, Stored, plan_with, write
from support.shown import Arrived, oracle, record, write_impressions
from support.views import every_function

from batch.impressions import read_impressions
from batch.objectives import Labelling
from batch.outcomes import attributed, labels_of, read_outcomes, retracted
from headwater.events import Event
from headwater.plan import DAY_MS, HOUR_MS
from headwater.settings import Settings

pytestmark = pytest.mark.integration
LABELLING = Labelling.model_validate({
    "label": "purchase",
    "keys": {"user": "user_id", "item": "item_id"},
    "objectives": {
        "click": {"events": ["click"], "window": "1h", "delay": "0s"},
        "purchase": {"events": ["purchase"], "window": "3h", "delay": "1h"},
        "value": {"events": ["purchase", "tip"], "fold": "sum", "window": "3h", "delay": "1h"},
    },
    "retractions": {"return": {"events": ["purchase"], "within": "5h", "names": "of"}},
})  # fmt: skip
CUT = START + DAY_MS
SHOWN = START + 10 * HOUR_MS


def event(kind: str, at: int, item: str | None = "a", request: str | None = None, **fields: Any) -> Event:
    """An event of user u at ``at``; ids are given by the case."""
    context = {"of": fields.pop("of")} if "of" in fields else {}
    return Event("", kind, at, "u", item, request_id=request, context=context, **fields)


def late(one: Event, arrival: int) -> tuple[Event, int]:
    return one, arrival


class Case:
    """Impressions and events of one user, and what should come of them."""

    def __init__(
        self,
        impressions: list[dict[str, Any]],
        events: list[Event | tuple[Event, int]],
        labels: dict[tuple[str, str], tuple[int, int, str]],
        fates: list[dict[str, str]],
    ) -> None:
        self.impressions, self.events, self.labels, self.fates = impressions, events, labels, fates


BOUGHT = {"purchase": "credited", "value": "credited"}


def both(fate: str) -> dict[str, str]:
    return {"purchase": fate, "value": fate}


CASES = {
    "a purchase in the window counts, with its value": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN + 1, value=2.5)],
        {("r", "a"): (0, 1, "2.5"), ("r", "b"): (0, 0, "0")}, [BOUGHT],
    ),
    "an impression without outcomes is all zeros": Case([record("r", SHOWN)], [], {("r", "a"): (0, 0, "0")}, []),
    "the very instant counts, the window's end does not": Case(
        [record("r", SHOWN)], [event("click", SHOWN), event("click", SHOWN + HOUR_MS, "b")],
        {("r", "a"): (1, 0, "0"), ("r", "b"): (0, 0, "0")}, [{"click": "credited"}, {"click": "past_window"}],
    ),
    "values add up exactly in millionths": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN + n, value=0.1) for n in range(3)],
        {("r", "a"): (0, 1, "0.3")}, [BOUGHT] * 3,
    ),
    "a value that is absent adds nothing": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN)], {("r", "a"): (0, 1, "0")}, [BOUGHT],
    ),
    "the newest impression before it wins": Case(
        [record("r1", SHOWN), record("r2", SHOWN + 60_000), record("r3", SHOWN + 120_000)],
        [event("purchase", SHOWN + 90_000, value=1.0)],
        {("r1", "a"): (0, 0, "0"), ("r2", "a"): (0, 1, "1"), ("r3", "a"): (0, 0, "0")}, [BOUGHT],
    ),
    "of one instant the greater request id wins": Case(
        [record("r2", SHOWN), record("r1", SHOWN)], [event("click", SHOWN + 5)],
        {("r1", "a"): (0, 0, "0"), ("r2", "a"): (1, 0, "0")}, [{"click": "credited"}],
    ),
    "a request that is named wins over a newer impression": Case(
        [record("r1", SHOWN), record("r2", SHOWN + 1)], [event("click", SHOWN + 5, request="r1")],
        {("r1", "a"): (1, 0, "0"), ("r2", "a"): (0, 0, "0")}, [{"click": "credited"}],
    ),
    "an outcome before the impression it names": Case(
        [record("r", SHOWN)], [event("click", SHOWN - 1, request="r")],
        {("r", "a"): (0, 0, "0")}, [{"click": "before_impression"}],
    ),
    "an outcome before the impression belongs to none": Case(
        [record("r", SHOWN)], [event("click", SHOWN - 1)], {("r", "a"): (0, 0, "0")},
        [{"click": "without_impression"}],
    ),
    "a named list that did not show the item": Case(
        [record("r", SHOWN, others=["c"])], [event("click", SHOWN + 1, "c", "r"), event("click", SHOWN + 1, None, "r")],
        {("r", "c"): (0, 0, "0")}, [{"click": "not_shown"}] * 2,
    ),
    "another item while a list was in its window": Case(
        [record("r", SHOWN)], [event("click", SHOWN + 1, "z"), event("click", SHOWN + HOUR_MS, "z")],
        {}, [{"click": "not_shown"}, {"click": "without_impression"}],
    ),
    "a request that was never logged": Case(
        [record("r", SHOWN)], [event("click", SHOWN + 1, request="gone")], {("r", "a"): (0, 0, "0")},
        [{"click": "without_impression"}],
    ),
    "an impression too young keeps its outcome from an older one": Case(
        [record("old", CUT - 5 * HOUR_MS), record("new", CUT - 4 * HOUR_MS + 1)],
        [event("purchase", CUT - 3 * HOUR_MS, value=1.0)],
        {("old", "a"): (0, 0, "0")}, [both("too_young")],
    ),
    "an impression of exactly the final age is used": Case(
        [record("r", CUT - 4 * HOUR_MS)], [event("purchase", CUT - 2 * HOUR_MS, value=1.0)],
        {("r", "a"): (0, 1, "1")}, [BOUGHT],
    ),
    "what arrives at the cut-off is not known": Case(
        [record("r", SHOWN)], [late(event("click", SHOWN + 1), CUT)], {("r", "a"): (0, 0, "0")}, [],
    ),
    "what arrives just before the cut-off is": Case(
        [record("r", SHOWN)], [late(event("click", SHOWN + 1), CUT - 1)], {("r", "a"): (1, 0, "0")},
        [{"click": "credited"}],
    ),
    "a return takes back the newest purchase, value too": Case(
        [record("r", SHOWN)],
        [event("purchase", SHOWN + 1, value=1.0), event("purchase", SHOWN + 2, value=2.0), event("return", SHOWN + 3)],
        {("r", "a"): (0, 1, "1")}, [BOUGHT, both("retracted")],
    ),
    "a return takes back the one it names": Case(
        [record("r", SHOWN)],
        [event("purchase", SHOWN + 1, value=1.0), event("purchase", SHOWN + 2, value=2.0),
         event("return", SHOWN + 3, of="0")],
        {("r", "a"): (0, 1, "2")}, [both("retracted"), BOUGHT],
    ),
    "what is named is taken first, though its return is later": Case(
        [record("r", SHOWN)],
        [event("purchase", SHOWN + 1, value=1.0), event("purchase", SHOWN + 2, value=2.0), event("return", SHOWN + 3),
         event("return", SHOWN + 4, of="1")],
        {("r", "a"): (0, 0, "0")}, [both("retracted")] * 2,
    ),
    "a return before the purchase takes nothing back": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN + 2, value=2.0), event("return", SHOWN + 1)],
        {("r", "a"): (0, 1, "2")}, [BOUGHT],
    ),
    "a return past its own window takes nothing back": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN, value=2.0), event("return", SHOWN + 5 * HOUR_MS + 1)],
        {("r", "a"): (0, 1, "2")}, [BOUGHT],
    ),
    "a return at the end of its window still does": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN, value=2.0), event("return", SHOWN + 5 * HOUR_MS)],
        {("r", "a"): (0, 0, "0")}, [both("retracted")],
    ),
    "two returns take two purchases, the third none": Case(
        [record("r", SHOWN)],
        [event("purchase", SHOWN, value=2.0), event("purchase", SHOWN + 1, value=2.0),
         *(event("return", SHOWN + n) for n in (2, 3, 4))],
        {("r", "a"): (0, 0, "0")}, [both("retracted")] * 2,
    ),
    "a return of another item takes nothing back": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN, value=2.0), event("return", SHOWN + 1, "b")],
        {("r", "a"): (0, 1, "2")}, [BOUGHT],
    ),
    "a return that arrives after the cut-off is not known": Case(
        [record("r", SHOWN)], [event("purchase", SHOWN, value=2.0), late(event("return", SHOWN + 1), CUT)],
        {("r", "a"): (0, 1, "2")}, [BOUGHT],
    ),
    "a type of one objective does not touch another": Case(
        [record("r", SHOWN)], [event("tip", SHOWN, value=1.0), event("view", SHOWN)],
        {("r", "a"): (0, 0, "1")}, [{"value": "credited"}],
    ),
    "an item that a record holds twice counts once": Case(
        [record("r", SHOWN, items=["a", "a"], others=["a"])], [event("click", SHOWN)],
        {("r", "a"): (1, 0, "0")}, [{"click": "credited"}],
    ),
}  # fmt: skip


def named(name: str, number: int) -> tuple[list[dict[str, Any]], list[Stored]]:
    """The case's records and events, under a user, requests and event ids of its own."""
    prefix = f"{number}:"
    records = [{**one, "user_id": prefix, "request_id": prefix + one["request_id"]} for one in CASES[name].impressions]
    stored = []
    for at, held in enumerate(CASES[name].events):
        one, arrival = held if isinstance(held, tuple) else (held, held.event_time)
        request = None if one.request_id is None else prefix + one.request_id
        context = {"of": prefix + one.context["of"]} if one.context else {}
        own = replace(one, event_id=f"{prefix}{at}", user_id=prefix, request_id=request, context=context)
        stored.append(Stored(own, arrival, 0, at))
    return records, stored


def joined(
    spark: Any, folder: Path, held: list[Arrived], stored: list[Stored], cut: int, labelling: Labelling = LABELLING
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[Any], dict[str, int]]:
    """Spark's labels of the rows that have some, its outcomes with their fates, and records by status."""
    places = Settings(state_dir=folder)
    write_impressions(held, places.impressions_dir)
    write(stored, places.events_dir)
    found = read_impressions(spark, places, plan_with(every_function()), cut, labelling.final_ms).persist()
    _, outcomes = read_outcomes(spark, places, labelling, cut)
    distinct = found.where("status IN ('used', 'too_young')")
    placed = attributed(outcomes, retracted(outcomes, labelling), distinct, labelling, cut).persist()
    names = list(labelling.objectives)
    labels = {
        (row["request_id"], row["item_id"]): {name: row[name] for name in names}
        for row in labels_of(placed, labelling).collect()
    }
    rows = placed.collect()
    statuses = {row["status"]: row["count"] for row in found.groupBy("status").count().collect()}
    found.unpersist()
    placed.unpersist()
    return labels, rows, statuses


@pytest.fixture(scope="module")
def answers(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All cases in one archive, answered by one run."""
    parts = [named(name, number) for number, name in enumerate(CASES)]
    records = [one for records, _ in parts for one in records]
    held = [Arrived(json.dumps(one), one["time"], 0, at) for at, one in enumerate(records)]
    stored = [replace(one, offset=at) for at, one in enumerate(one for _, events in parts for one in events)]
    return joined(spark, tmp_path_factory.mktemp("cases"), held, stored, CUT)


@pytest.mark.parametrize("name", CASES)
def test_an_outcome_goes_to_its_impression(answers: Any, name: str) -> None:
    labels, rows, _ = answers
    prefix = f"{list(CASES).index(name)}:"
    for (request, item), (click, purchase, value) in CASES[name].labels.items():
        none = {"click": 0, "purchase": 0, "value": Decimal(0)}
        told = labels.get((prefix + request, item), none)
        assert told == {"click": click, "purchase": purchase, "value": Decimal(value)}
    own = sorted((row for row in rows if row["event_id"].startswith(prefix)), key=lambda row: row["event_id"])
    fates = [{name: row[f"fate_{name}"] for name in LABELLING.objectives if row[f"fate_{name}"]} for row in own]
    assert fates == CASES[name].fates


def test_the_cases_agree_with_the_oracle() -> None:
    """The loop over lists is held to the same cases."""
    for number, name in enumerate(CASES):
        records, stored = named(name, number)
        held = [Arrived(json.dumps(one), one["time"], 0, at) for at, one in enumerate(records)]
        labels, fates = oracle(held, stored, LABELLING, CUT)
        for (request, item), told in CASES[name].labels.items():
            assert tuple(labels[f"{number}:{request}", item].values()) == (*told[:2], Decimal(told[2])), name
        expected: dict[str, dict[str, int]] = {objective: {} for objective in LABELLING.objectives}
        for one in CASES[name].fates:
            for objective, fate in one.items():
                expected[objective][fate] = expected[objective].get(fate, 0) + 1
        assert fates == expected, name


TICK = 30 * 60_000
users, ticks, names = st.sampled_from("uv"), st.integers(0, 24), st.sampled_from("abc")
lists = st.lists(names, max_size=3, unique=True)
drawn_records = st.lists(st.tuples(users, ticks, lists, lists, st.integers(0, 2)), max_size=5)
kinds = st.sampled_from(["click", "purchase", "purchase", "return", "tip"])
drawn_events = st.lists(
    st.tuples(
        kinds, users, ticks, st.none() | names, st.none() | st.integers(0, 5), st.integers(0, 3), st.integers(0, 7),
        st.none() | st.sampled_from([0.1, -2.5, 1e-6, 9e12]),
    ),
    max_size=9,
)  # fmt: skip
worlds = st.lists(st.tuples(drawn_records, drawn_events), min_size=20, max_size=30)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=worlds)
def test_spark_agrees_with_a_loop_over_lists(
    spark: Any, tmp_path_factory: pytest.TempPathFactory, drawn: list[Any]
) -> None:
    """Copies, late arrivals, ties, returns and requests that are unknown; many small worlds in each run of Spark."""
    held: list[Arrived] = []
    stored: list[Stored] = []
    for world, (records, events) in enumerate(drawn):
        for at, (user, tick, shown, others, delay) in enumerate(records):
            one = record(f"{world}:r{at // 2 * 2 if delay == 2 else at}", START + tick * TICK, f"{world}:{user}", shown)
            one["others"] = record("", 0, items=[], others=others)["others"]
            held.append(Arrived(json.dumps(one), one["time"] + delay * TICK, delay, len(held)))
        for at, (kind, user, tick, item, request, delay, of, value) in enumerate(events):
            own = Event(
                f"{world}:e{at // 2 * 2 if delay == 3 else at}", kind, START + tick * TICK, f"{world}:{user}", item,
                request_id=None if request is None else f"{world}:r{request}", value=value,
                context={"of": f"{world}:e{of}"} if of < 4 else {},
            )  # fmt: skip
            stored.append(Stored(own, own.event_time + delay * TICK, delay, len(stored)))
    if not held or not stored:
        return
    cut = START + 20 * TICK
    labels, rows, _ = joined(spark, tmp_path_factory.mktemp("drawn"), held, stored, cut)
    expected, fates = oracle(held, stored, LABELLING, cut)
    given_labels = {key: told for key, told in expected.items() if any(told.values())}
    assert {key: told for key, told in labels.items() if any(told.values())} == given_labels
    counted: dict[str, dict[str, int]] = {name: {} for name in LABELLING.objectives}
    for row in rows:
        for name in LABELLING.objectives:
            fate = row[f"fate_{name}"]
            if fate is not None:
                counted[name][fate] = counted[name].get(fate, 0) + 1
    assert counted == fates
