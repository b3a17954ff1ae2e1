"""An explanation says what happened to the item in the very list that is shown."""

import numpy as np
import pytest

from headwater.errors import DataError
from headwater.plan import DAY_MS

NOW = 400 * DAY_MS
pytestmark = pytest.mark.integration


@pytest.fixture
def whole(funnel, valkey_client, put, rules, monkeypatch):
    """A funnel for u1, who had i5 twice and i7 once."""
    monkeypatch.setattr("serving.rulebook.POLL_S", -1)
    put(valkey_client, "user_activity", {("u1",): 3})
    put(valkey_client, "user_item", {("u1", "i5"): 2, ("u1", "i7"): 1}, [NOW - 2 * DAY_MS, NOW - DAY_MS])
    put(valkey_client, "item_activity", {(f"i{n}",): 60 - n for n in range(60)})
    return funnel(valkey_client)


def test_every_item_stands_where_its_explanation_says(whole):
    asked = whole.request("u1")
    shown = [item.item_id for item in whole.recommend(asked).items]
    for item_id in whole.bundle.catalogue.ids:
        found = whole.explain(asked, item_id)
        assert found.position == (shown.index(item_id) + 1 if item_id in shown else 0)
        assert (found.stage == "shown") == (item_id in shown)


def test_one_that_is_shown_names_its_sources_places_and_what_moved_its_score(whole):
    found = whole.explain(whole.request("u1"), "i5")
    assert found.position == 1
    assert found.lines[0].startswith("sources: proposed by buy_it_again (its place 1), ")
    assert found.lines[1] == "filter: nothing removes it"
    assert found.lines[2].startswith("rank: score 2.550, place 1 of ")
    assert found.lines[3] == "rerank: place 1 of 10"
    assert found.moved[0].name == "user_item_purchases"
    assert (found.moved[0].value, found.moved[0].contribution) == (2.0, 2.0)
    assert sum(one.contribution for one in found.moved) == pytest.approx(2.55)


def test_one_that_no_source_proposes_says_what_they_would(whole):
    nobodys = next(
        item for item in whole.bundle.catalogue.ids if whole.explain(whole.request("u1"), item).stage == "sources"
    )
    found = whole.explain(whole.request("u1"), nobodys)
    assert found.lines == (
        "sources: none of those of home proposes it (buy_it_again 10, two_tower 10, popular 10, trending 5)",
        "filter: nothing would remove it",
    )


def test_one_that_is_removed_names_the_filter(whole, rules):
    rules.write_text('[[rules]]\nname = "no sevens"\ndo = "hide"\nitems = ["i7"]\n')
    found = whole.explain(whole.request("u1"), "i7")
    assert (found.stage, found.position) == ("filter", 0)
    assert found.lines[-1] == "filter: rule no sevens removes it"
    assert whole.explain(whole.request("u1", exclude=["i7"]), "i7").lines[-1] == "filter: excluded removes it"
    assert whole.explain(whole.request("u1", "discover"), "i5").lines[-1] == "filter: seen removes it"


def test_one_that_the_others_are_before_says_by_how_much(whole):
    asked = whole.request("u1", limit=3)
    low = whole.run(asked)
    last = whole.bundle.catalogue.ids[low.eligible.items[np.argmin(low.scores)]]
    found = whole.explain(asked, last)
    assert (found.stage, found.position) == ("rerank", 0)
    assert found.lines[-1].startswith("rerank: not among the 3 shown, whose lowest score is ")


def test_without_the_store_the_places_of_the_sources_are_told(whole, funnel):
    import redis

    alone = funnel(redis.Redis(port=1))
    found = alone.explain(alone.request("u1"), "i0")
    assert "the ranker did not answer" in found.lines[2]
    assert found.moved == ()


def test_nothing_is_logged_as_shown_and_an_unknown_item_is_refused(whole, funnel, valkey_client):
    class Never:
        def log(self, impression):
            raise AssertionError("shown")

    silent = funnel(valkey_client, impressions=Never())
    silent.explain(silent.request("u1"), "i5")
    with pytest.raises(DataError, match="item_id"):
        silent.explain(silent.request("u1"), "unheard of")
