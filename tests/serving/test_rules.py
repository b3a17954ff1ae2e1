"""What people decide holds on every list, from the moment that it is to hold."""

import json
import os
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.errors import ConfigError
from headwater.plan import DAY_MS
from headwater.text import fold
from models.catalogue import Column
from serving.impressions import document
from serving.rulebook import POLICY, RuleBook, Ruled
from serving.rules import Rule, Rules

NOW = datetime.fromtimestamp(400 * DAY_MS / 1000, UTC)
GONE = redis.Redis(port=1)
ids = st.lists(st.integers(0, 70).map(lambda n: f"i{n}"), min_size=1, max_size=20)


def told(**fields):
    return {"name": "a rule", "items": ["i3"], **fields}


def ruled(shop, *rules, **policy):
    return Ruled.on(Rules.model_validate({"rules": rules, "policy": policy}), shop)


class Of:
    """A rule book that says one thing."""

    def __init__(self, held):
        self.held = held

    def now(self):
        return self.held


def ranked(funnel, held, **asked):
    whole = funnel(GONE, rules=Of(held))
    return whole.recommend(whole.request("u1", **asked))


def shown(funnel, held, **asked):
    return [item.item_id for item in ranked(funnel, held, **asked).items]


@given(hidden=ids, boosted=ids, pinned=ids, position=st.integers(1, 12), limit=st.integers(1, 70), exclude=ids)
@tries(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_laws_of_lists_under_rules(funnel, shop, hidden, boosted, pinned, position, limit, exclude):
    """Nothing hidden or excluded, nothing twice, as long as can be, and the pinned in its place if it may be shown."""
    held = ruled(
        shop, told(name="h", do="hide", items=hidden), told(name="b", do="boost", items=boosted),
        told(name="p", do="pin", items=pinned, position=position),
    )  # fmt: skip
    found = shown(funnel, held, limit=limit, exclude=exclude)
    allowed = set(shop.ids) - set(hidden) - set(exclude)
    assert set(found) <= allowed
    assert len(found) == len(set(found)) == min(limit, len(allowed))
    able = [item for item in pinned if item in allowed]
    if able and position <= limit:
        assert found[min(position, len(found)) - 1] == able[0]


def test_boosted_comes_before_and_buried_after_where_it_stood(funnel, shop):
    plain = shown(funnel, Ruled(), limit=60)
    up = shown(funnel, ruled(shop, told(do="boost", items=["i20"], by=2.0)), limit=60)
    down = shown(funnel, ruled(shop, told(do="bury", items=[plain[0]], by=2.0)), limit=60)
    assert up[0] == "i20"
    assert plain.index("i20") > 0
    assert down.index(plain[0]) > 20


def test_a_rule_holds_where_and_while_it_says(shop):
    rule = Rule.model_validate(told(do="hide", surfaces=["home"], since=NOW, until=NOW + timedelta(hours=1)))
    at = 400 * DAY_MS
    assert rule.holds("home", at)
    assert not rule.holds("discover", at)
    assert not rule.holds("home", at - 1)
    assert rule.holds("home", at + 3_599_999)
    assert not rule.holds("home", at + 3_600_000)


def test_the_platform_s_clock_decides(funnel, shop, clock):
    until = NOW + timedelta(minutes=1)
    held = ruled(shop, told(do="hide", items=["i0"], until=until))
    whole = funnel(GONE, rules=Of(held))
    assert "i0" not in [item.item_id for item in whole.recommend(whole.request("u1", limit=60)).items]
    clock.advance(60_000)
    assert "i0" in [item.item_id for item in whole.recommend(whole.request("u1", limit=60)).items]


def test_items_are_named_by_what_they_have_in_common(funnel, shop):
    held = ruled(shop, {"name": "no c2 or c4", "do": "hide", "where": {"category": ["c2", "c4"]}})
    found = ranked(funnel, held, limit=60)
    assert {item.attributes["category"] for item in found.items} == {"c0", "c1", "c3", "c5"}
    both = {"name": "one", "do": "hide", "where": {"category": "c2"}, "items": ["i2", "i3"]}
    assert set(shop.ids) - set(shown(funnel, ruled(shop, both), limit=60)) == {"i2"}


def test_what_each_rule_removed_is_counted(funnel, shop):
    whole = funnel(GONE, rules=Of(ruled(shop, told(do="hide", items=["i0", "i1"]))))
    whole.recommend(whole.request("u1"))
    count = whole.telemetry.registry.get_sample_value("headwater_removed_total", {"filter": "rule a rule"})
    assert count == 2


def test_the_impression_has_the_pinned_item_as_certain(funnel, shop):
    class Recorder:
        kept = ()

        def log(self, impression):
            self.kept = document(impression)

    seen = Recorder()
    whole = funnel(GONE, rules=Of(ruled(shop, told(do="pin", items=["i30"], position=3))), impressions=seen)
    whole.recommend(whole.request("u1"))
    third = json.loads(json.dumps(seen.kept))["items"][2]
    assert (third["item_id"], third["propensity"], third["sources"]) == ("i30", 1.0, ["pinned"])


@pytest.mark.parametrize(
    "written",
    ["Absinthe", "ABSINTHE", "ａｂｓｉｎｔｈｅ", "ábsínthe", "Absi\u0301nthe", "the absinthe, green", "𝐀bsinthe"],
)
def test_a_word_is_found_however_it_is_written(shop, written):
    class Named(type(shop)):
        def column(self, name):
            return Column.of([written, *["Item"] * 59])

    held = ruled(Named(), words=["absinthe"])
    assert held.removals("home", 0)[POLICY].tolist() == [True, *[False] * 59]


@pytest.mark.parametrize("written", ["absinthes", "crab sin the", ""])
def test_a_word_within_another_is_none(shop, written):
    class Named(type(shop)):
        def column(self, name):
            return Column.of([written] * 60)

    assert not ruled(Named(), words=["absinthe"]).removals("home", 0)[POLICY].any()


@given(st.text())
def test_folding_twice_is_folding_once_and_no_mark_is_left(text):
    assert not any(unicodedata.combining(letter) for letter in fold(text))
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"do": "hide", "items": []}, "names neither items nor where"),
        ({"do": "pin", "items": [], "where": {"category": "c1"}}, "pins"),
        ({"do": "throw"}, "do"),
        ({"do": "hide", "since": "2026-01-01T00:00:00"}, "since"),
        ({"do": "boost", "by": -1}, "by"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(tmp_path, shop, fields, named):
    with pytest.raises(ValueError, match=named):
        Rule.model_validate(told(**fields))


def test_an_attribute_that_there_is_not_is_refused(shop):
    class Bare(type(shop)):
        def column(self, name):
            raise KeyError(name)

    with pytest.raises(ConfigError, match=r"rule a rule.*'color'"):
        ruled(Bare(), {"name": "a rule", "do": "hide", "where": {"color": "red"}})


def test_the_file_is_followed_and_one_that_cannot_be_read_changes_nothing(rules, shop, monkeypatch):
    monkeypatch.setattr("serving.rulebook.POLL_S", -1)
    book = RuleBook(rules, shop)
    assert not book.now().rules
    rules.write_text('[[rules]]\nname = "one"\ndo = "hide"\nitems = ["i1"]\n')
    assert [rule.name for rule in book.now().rules] == ["one"]
    rules.write_text("[[rules]]\nname = ")
    with capture_logs() as logs:
        assert [rule.name for rule in book.now().rules] == ["one"]
        assert [rule.name for rule in book.now().rules] == ["one"]
    assert [line["event"] for line in logs] == ["rules_left_as_they_were"]
    os.unlink(rules)
    assert not book.now().rules
