"""Each kind of expectation passes what it should and names what it should not."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.archives import plan_with

from headwater.errors import ConfigError
from headwater.expectations import Column, Finding, Tally, load_expectations
from headwater.plan import Service, ServiceFeature

PLAN = plan_with(services=(Service(name="all", features=(ServiceFeature(view="by_user", feature="n_3h"),)),))


def judged(kind: pa.DataType, held: list[Any], **expected: Any) -> tuple[list[Finding], list[list[str]]]:
    tally = Tally("events", {"column": Column(**expected)})
    reasons = tally.add(pa.table({"column": pa.array(held, kind)}))
    return list(tally.findings()), reasons


@pytest.mark.parametrize(
    ("kind", "passing", "failing", "expected"),
    [
        (pa.float64(), [0.0, 3.5, None], [-0.5, -math.inf], {"min": 0}),
        (pa.int64(), [10, -3, None], [11, 2**60], {"max": 10}),
        (pa.float32(), [math.nan, 1.0], [2.0], {"max": 1}),
        (pa.string(), ["view", "purchase", None], ["views", "", "VIEW"], {"values": ("view", "purchase")}),
        (pa.string(), ["a1", None], ["a", "xa1x", "a1\n", ""], {"matches": "[a-z][0-9]"}),
        (pa.string(), ["a", "b"], ["ab", "c"], {"matches": "a|b"}),
    ],
)
def test_rows_that_fail_are_told_apart_from_those_that_pass(kind, passing, failing, expected) -> None:
    findings, reasons = judged(kind, [*passing, *failing], **expected)
    assert [bool(one) for one in reasons] == [False] * len(passing) + [True] * len(failing)
    (found,) = findings
    assert (found.rows, found.failed, found.holds) == (len(passing) + len(failing), len(failing), False)
    assert len(found.examples) == len(failing)
    (fine,), _ = judged(kind, passing, **expected)
    assert fine.holds


@pytest.mark.parametrize(("values", "holds"), [([1.0, None, math.nan, 2.0], True), ([1.0, None, math.nan], False)])
def test_a_share_without_a_value_holds_up_to_what_is_allowed(values, holds) -> None:
    ((found,), reasons) = judged(pa.float32(), values, nulls=0.5)
    assert (found.failed, found.holds) == (2, holds)
    assert reasons == [[]] * len(values), "it is no single row that fails"


@given(st.lists(st.none() | st.floats(width=32), max_size=30), st.floats(-5, 5), st.integers(1, 7))
def test_tables_judged_one_by_one_are_the_whole_judged_at_once(values, least, size) -> None:
    """Against a loop over the values; -0.0 is not below 0.0, and NaN is no value."""
    tally = Tally("events", {"column": Column(min=least, nulls=0.1)})
    reasons = []
    for at in range(0, len(values), size):
        reasons += tally.add(pa.table({"column": pa.array(values[at : at + size], pa.float32())}))
    fails = [value is not None and value < least for value in values]
    nulls = sum(value is None or math.isnan(value) for value in values)
    assert [bool(one) for one in reasons] == fails
    counts = {found.expected.split()[0]: found.failed for found in tally.findings()}
    assert counts == ({"min": sum(fails)} if values else {}) | {"nulls": nulls}


def test_an_entry_of_a_map_is_judged_as_a_column() -> None:
    maps = pa.array([[("store", "1")], [("store", "x")], []], pa.map_(pa.string(), pa.string()))
    tally = Tally("events", {"context.store": Column(matches="[0-9]+", nulls=0.5)})
    assert tally.add(pa.table({"context": maps})) == [[], ["context.store: matches [0-9]+"], []]
    assert [(found.failed, found.holds) for found in tally.findings()] == [(1, False), (1, True)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[events", "not TOML"),
        ("[events.events]\nfreshness = '1h'", "events.events.freshness"),
        ("[events.orders]\nnewest_within = '1h'", "events.orders: no source is called so. There are events"),
        ("[events.events]\nnewest_within = 'soon'", "no duration"),
        ("[events.events.columns.price]\nmin = 0", "events.events.columns.price: not a column"),
        ("[events.events.columns.user_id]\nmin = 0", "user_id: is string"),
        ("[events.events.columns.value]\nmatches = 'a'", "value: is double"),
        ("[events.events.columns.user_id]\nmatches = '(?=a)b'", "no pattern that re2 reads"),
        ("[events.events.columns.value]\nmin = 3\nmax = 2", "min 3.0 lies above max 2.0"),
        ("[features.clicks]\nmin = 0", "features.clicks: no feature service has it. There are n_3h"),
        ("[features.n_3h]\nvalues = ['a']", "features.n_3h: features are numbers"),
        ("[features.n_3h]\nnulls = 2", "features.n_3h.nulls"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "expectations.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_expectations(PLAN.model_copy(update={"repo": str(tmp_path)}))
    assert told in str(refused.value)


def test_where_there_is_no_file_nothing_is_expected(tmp_path: Path) -> None:
    found = load_expectations(PLAN.model_copy(update={"repo": str(tmp_path)}))
    assert not found.events
    assert not found.features
