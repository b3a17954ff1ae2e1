"""What serving logs is what the batch room reads; what is anything else is counted, not raised."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shown import record

from batch.impressions import _parser as parser_of
from batch.impressions import parse_record
from headwater.online.reader import Matrix, ViewRead
from serving.contracts import Ranked, RankedItem, Request
from serving.impressions import Impression, document
from serving.rerank import Arranged
from serving.sources import Candidates

ODD = np.array([[0.1, np.nan], [-0.0, 1e-45], [3.4028234e38, 16777217.0]], np.float32)
PROPOSED = np.array([[True, True], [True, False], [True, True]])


def served() -> dict[str, Any]:
    """A reply of two items, with one more candidate, as serving logs it."""
    at, newest = np.array([50, 50, 60]), np.array([49, 50, -1])
    views = {
        name: ViewRead({}, newest >= 0, at, newest, keys=[("a",), ("b",), ("c",)])
        for name in ("windowed", "ready_made")
    }
    rows = {name: np.arange(3) for name in views}
    items = [RankedItem(item, 0.5, place, (), (), {}) for place, item in enumerate("cb", start=1)]
    return document(
        Impression(
            at_ms=50,
            request=Request("u", "home", 2, context={"device": "phone"}),
            ranked=Ranked("r", items, (), "7"),
            service="all",
            schema_hash="ab",
            item_ids=["a", "b", "c"],
            candidates=Candidates(
                np.arange(3, dtype=np.int32), PROPOSED, np.zeros(3, np.float32), ("popular", "trending")
            ),
            scores=np.array([0.1, 0.2, 0.3], np.float32),
            shown=Arranged(np.array([2, 1]), np.array([0.5, 0.25])),
            features=Matrix(ODD, ("x", "y"), 50, views, rows),
        )
    )


def test_a_record_of_serving_is_read_bit_for_bit() -> None:
    row = parse_record(json.dumps(served()), {"windowed"})
    assert row is not None
    assert [item["item_id"] for item in row["items"]] == ["c", "b", "a"]
    assert [item["shown"] for item in row["items"]] == [True, True, False]
    assert [item["position"] for item in row["items"]] == [1, 2, None]
    assert [item["sampling_probability"] for item in row["items"]] == [1.0, 1.0, 1.0]
    assert [item["position_propensity"] for item in row["items"]] == [0.5, 0.25, None]
    assert row["propensity"] == 0.125
    told = np.array([item["features"] for item in row["items"]]).astype(np.float32)
    assert told.view(np.uint32).tolist() == ODD[[2, 1, 0]].view(np.uint32).tolist()
    assert row["items"][0]["sources"] == ["popular", "trending"]
    assert (row["request_id"], row["user_id"], row["time"], row["variant"]) == ("r", "u", 50, "champion")
    assert (row["feature_schema"], row["feature_names"]) == ("ab", ["x", "y"])


def test_only_a_ready_made_row_may_be_of_the_instant_it_is_read_at() -> None:
    row = parse_record(json.dumps(served()), {"windowed"})
    assert row is not None
    assert [item["newer"] for item in row["items"]] == [[], ["windowed"], []]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_a_record_holds_it_is_read_or_counted(data: st.DataObject) -> None:
    """Any field may be anything; no record ends the job."""
    whole = record("r", 5, others=["c"], vectors={"a": [1.0]})
    place: Any = whole
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [one for one in (place.values() if isinstance(place, dict) else place) if isinstance(one, dict | list)]
        if inner:
            place = data.draw(st.sampled_from(inner))
    if place:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        place[key] = data.draw(json_values)
    columns = {"value": [json.dumps(whole)], "ingest_time": [1], "partition": [0], "offset": [0]}
    (read,) = parser_of(frozenset())(iter([pa.record_batch(columns)]))
    assert read.num_rows == 1
