"""What is counted of the features read, against counting one value at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headwater.online.reader import ViewRead
from serving.freshness import BUCKETS_S, Freshness

NOW = 1_700_000_000_000
ages = st.one_of(st.integers(1, 10**11), st.sampled_from([1000 * bound + by for bound in BUCKETS_S for by in (0, 1)]))
entities = st.lists(
    st.tuples(st.none() | ages, st.none() | st.floats(allow_nan=False), st.none() | st.just(["a"])),
    min_size=1, max_size=8,
)  # fmt: skip
requests = st.lists(st.dictionaries(st.sampled_from(["user", "item", "pair"]), entities, max_size=3), max_size=4)


def view_read(held) -> ViewRead:
    """An age is None where the entity was not found, and then nothing has a value."""
    found = np.array([age is not None for age, *_ in held])
    number = np.array([np.nan if age is None or value is None else value for age, value, _ in held])
    newest = np.array([-1 if age is None else NOW - age for age, *_ in held], np.int64)
    texts = [None if age is None else text for age, _, text in held]
    return ViewRead({"number": number, "texts": texts}, found, np.full(len(held), NOW), newest)


def samples(*collectors) -> dict:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


@given(requests)
def test_the_metrics_are_those_of_counting_one_by_one(drawn):
    freshness = Freshness()
    for request in drawn:
        freshness.observe({view: view_read(held) for view, held in request.items()})
    told = samples(freshness)
    for view in {view for request in drawn for view in request}:
        held = [entity for request in drawn for entity in request.get(view, ())]
        known = [age for age, *_ in held if age is not None]
        for feature, at in (("number", 1), ("texts", 2)):
            place = (("feature", feature), ("view", view))
            assert told["headwater_feature_values_total", *place] == len(held)
            nulls = sum(entity[0] is None or entity[at] is None for entity in held)
            assert told["headwater_feature_nulls_total", *place] == nulls
        assert told["headwater_feature_age_seconds_count", ("view", view)] == len(known)
        assert told["headwater_feature_age_seconds_sum", ("view", view)] == pytest.approx(sum(known) / 1000)
        for bound in BUCKETS_S:
            place = (("le", str(float(bound))), ("view", view))
            assert told["headwater_feature_age_seconds_bucket", *place] == sum(age <= 1000 * bound for age in known)
