"""Feast's own calls on the packed store."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, FileSource, ValueType
from feast.field import Field
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.repo_config import RepoConfig
from feast.types import Array, Int64, String
from support.definitions import ENVELOPE, HOUR, aggregation, stream_view
from support.tiles import write_all

from benchmarks.oracle import Row
from headwater.errors import DefinitionError
from headwater.online import codec
from headwater.online.writer import OnlineWriter
from headwater.registry.compile import compile_view

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def store(valkey, valkey_client, tmp_path):
    return FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            repo_path=tmp_path,
            online_store={"type": "headwater.online.feast_store.HeadwaterOnlineStore", "connection_string": valkey},
            entity_key_serialization_version=3,
        )
    )


@pytest.fixture
def profile(tmp_path):
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    path = tmp_path / "profile.parquet"
    pd.DataFrame(
        {
            "user_id": ["ann", "bob"],
            "age": [40, 7],
            "town": ["Bern", None],
            "tags": [["a", "b"], ["c"]],
            "event_timestamp": [NOW - timedelta(minutes=5), NOW - timedelta(hours=3)],
        }
    ).to_parquet(path)
    view = FeatureView(
        name="profile",
        entities=[user],
        ttl=HOUR,
        source=FileSource(path=str(path), timestamp_field="event_timestamp"),
        schema=[
            Field(name="age", dtype=Int64),
            Field(name="town", dtype=String),
            Field(name="tags", dtype=Array(String)),
            Field(name="user_id", dtype=String),
        ],
    )
    return user, view


def test_materialised_rows_come_back_typed_with_ttl_and_unknown_entities_told_apart(store, profile):
    store.apply(list(profile))
    store.materialize(NOW - timedelta(days=1), NOW)
    response = store.get_online_features(
        ["profile:age", "profile:town", "profile:tags"], [{"user_id": name} for name in ("ann", "nobody", "bob", "ann")]
    )
    got = response.to_dict()
    assert got["age"] == [40, None, None, 40]
    assert got["town"][0] == "Bern"
    assert got["tags"][0] == ["a", "b"]
    place = list(response.proto.metadata.feature_names.val).index("age")
    assert list(response.proto.results[place].statuses) == [
        FieldStatus.PRESENT,
        FieldStatus.NOT_FOUND,
        FieldStatus.NOT_FOUND,
        FieldStatus.PRESENT,
    ]


def test_a_windowed_view_is_read_through_feast_and_takes_no_ready_made_values(store, valkey_client):
    view = stream_view(
        [
            aggregation("n", "count", window=HOUR),
            aggregation("spend", "sum", "value", HOUR),
            aggregation("recent", "last(2)", "item_id", HOUR),
        ]
    )
    user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.STRING)
    store.apply([user, view])
    compiled = compile_view(view.to_proto().spec, {"user_id": "user_id"})
    moment = int(NOW.timestamp() * 1000) - 60_000
    rows = [
        Row(
            f"e{at}",
            moment + at,
            moment + at,
            ("ann",),
            {"value": 1_500_000, "item_id": f"i{at}", "event_time": moment, "user_id": "ann", "session_id": "s"},
        )
        for at in range(3)
    ]
    write_all(OnlineWriter(valkey_client, "shop"), compiled, rows, codec.LIVE)
    got = store.get_online_features(
        ["activity:n", "activity:spend", "activity:recent"], [{"user_id": "ann"}, {"user_id": "bob"}]
    ).to_dict()
    assert got["n"] == [3.0, None]
    assert got["spend"] == [4.5, None]
    assert got["recent"][0] == ["i2", "i1"]
    frame = pd.DataFrame({"user_id": ["ann"], "n": [9.0], "spend": [1.0], "recent": [["x"]], "event_time": [NOW]})
    with pytest.raises(DefinitionError, match="activity: a windowed view takes no ready-made values"):
        store.write_to_online_store("activity", frame)


def entities(*keys: str) -> list[Entity]:
    return [Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in keys]


def test_three_keys_are_found_whatever_the_order_of_a_requests_columns(store, valkey_client):
    keys = ("session_id", "user_id", "item_id")
    view = stream_view([aggregation("n", "count", window=HOUR)], keys=keys)
    store.apply([*entities(*keys), view])
    compiled = compile_view(view.to_proto().spec, {key: key for key in keys})
    moment = int(NOW.timestamp() * 1000) - 60_000
    write_all(
        OnlineWriter(valkey_client, "shop"), compiled, [Row("e", moment, moment, ("s", "ann", "i"), {})], codec.LIVE
    )
    for order in (keys, keys[::-1], ("user_id", "session_id", "item_id")):
        held = dict(zip(keys, ("s", "ann", "i"), strict=True))
        asked = {key: [held[key], "other"] for key in order}
        assert store.get_online_features(["activity:n"], asked).to_dict()["n"] == [1.0, None]


def test_two_sources_of_one_topic_are_refused_at_apply(store):
    one = stream_view([aggregation("n", "count", window=HOUR)])
    shorter = ENVELOPE.replace("position int, ", "")
    other = stream_view([aggregation("m", "count", window=HOUR)], name="other", schema_json=shorter)
    with pytest.raises(DefinitionError, match="events: two views define this source differently"):
        store.apply([*entities("user_id"), one, other])


def test_what_cannot_be_compiled_is_refused_at_apply_and_nothing_is_registered(store):
    user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.STRING)
    with pytest.raises(DefinitionError, match=r"activity\.n"):
        store.apply([user, stream_view([aggregation("n", "count", window=HOUR, hop=timedelta(minutes=7))])])
    assert not FeatureStore(config=store.config).list_stream_feature_views()


def test_a_removed_view_leaves_no_bytes(store, profile, valkey_client):
    user, view = profile
    store.apply([user, view])
    store.materialize(NOW - timedelta(days=1), NOW)
    assert valkey_client.keys()
    store.apply([], objects_to_delete=[view], partial=False)
    assert not valkey_client.keys()


def test_serving_never_imports_feast():
    program = "import sys, headwater.online.reader, headwater.registry.manifest; sys.exit('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ, check=False).returncode == 0
