"""What Feast asks of every online store in its universal suite, on the packed store; docs/feast.md lists it."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, FileSource, PushSource, RequestSource, ValueType
from feast.data_source import PushMode
from feast.errors import FeatureNameCollisionError
from feast.field import Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.online_response import TIMESTAMP_POSTFIX
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.repo_config import RepoConfig
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

from headwater.clock import SystemClock
from headwater.online.reader import OnlineReader
from headwater.registry.compile import compile_repo
from headwater.runtime.ports import free_port

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
NOW = datetime.now(UTC).replace(microsecond=0)
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
STORE = "headwater.online.feast_store.HeadwaterOnlineStore"


def feature_store(url, folder, project="shop"):
    return FeatureStore(
        config=RepoConfig(
            project=project, provider="local", registry=str(folder / f"{project}.db"), repo_path=folder,
            online_store={"type": STORE, "connection_string": url}, entity_key_serialization_version=3,
        )
    )  # fmt: skip


@pytest.fixture
def store(valkey, valkey_client, tmp_path):
    return feature_store(valkey, tmp_path)


def parquet_view(folder, name, frame, schema, entities=(DRIVER,), ttl=timedelta(days=1), **options):
    """Feature view over a frame that was written to Parquet."""
    path = folder / f"{name}.parquet"
    frame.to_parquet(path)
    created = {"created_timestamp_column": "created"} if "created" in frame else {}
    source = FileSource(name=f"{name}_source", path=str(path), timestamp_field="event_timestamp", **created)
    fields = [Field(name=column, dtype=dtype) for column, dtype in schema.items()]
    return FeatureView(name=name, entities=list(entities), ttl=ttl, source=source, schema=fields, **options)


def stats(folder, name="stats", ids=(1, 2), trips=(14, 5), at=NOW):
    frame = pd.DataFrame({
        "driver_id": list(ids), "trips": list(trips), "rate": [0.25 * n for n in ids],
        "event_timestamp": [at] * len(ids), "created": [at] * len(ids),
    })  # fmt: skip
    return frame, parquet_view(folder, name, frame, {"trips": Int32, "rate": Float32})


def read(store, features, rows, **options):
    return store.get_online_features(features, rows, **options).to_dict()


TYPES = {
    "int32": (Int32, [-7, 2**31 - 1]),
    "int64": (Int64, [2**53 + 1, -(2**62) - 1]),
    "float32": (Float32, [0.5, -1.25]),
    "float64": (Float64, [0.1, 1e300]),
    "bool": (Bool, [True, False]),
    "string": (String, ["", "Zürich"]),
    "bytes": (Bytes, [b"\x00\xff", b""]),
    "instant": (UnixTimestamp, [NOW, NOW - timedelta(days=400)]),
    "int64s": (Array(Int64), [[1, 2**60 + 1], [3]]),
    "float64s": (Array(Float64), [[0.1, 0.2], [0.3]]),
    "strings": (Array(String), [["a", "b"], ["c"]]),
    "bools": (Array(Bool), [[True, False], [True]]),
}


@pytest.mark.parametrize("together", [["int32", "int64", "float32", "float64", "bool", "instant"], list(TYPES)])
def test_every_type_comes_back_as_it_was_written(store, tmp_path, together):
    frame = pd.DataFrame({"driver_id": [1, 2], "event_timestamp": [NOW, NOW]} | {n: TYPES[n][1] for n in together})
    view = parquet_view(tmp_path, "typed", frame, {name: TYPES[name][0] for name in together})
    store.apply([DRIVER, view])
    store.write_to_online_store("typed", frame)
    got = read(store, [f"typed:{name}" for name in together], [{"driver_id": 2}, {"driver_id": 1}])
    for name in together:
        assert got[name] == TYPES[name][1][::-1], name


def test_null_is_kept_apart_from_zero_and_from_absent(store, tmp_path):
    frame = pd.DataFrame({
        "driver_id": [1, 2], "event_timestamp": [NOW, NOW], "ratio": [0.0, np.nan], "town": [None, "Bern"],
        "trips": pd.array([0, None], "Int64"),
    })  # fmt: skip
    view = parquet_view(tmp_path, "gaps", frame, {"ratio": Float64, "town": String, "trips": Int64})
    store.apply([DRIVER, view])
    store.materialize(NOW - timedelta(days=1), NOW)
    response = store.get_online_features(
        ["gaps:ratio", "gaps:town", "gaps:trips"], [{"driver_id": n} for n in (1, 2, 3)]
    )
    got = response.to_dict()
    assert got["ratio"] == [0.0, None, None]
    assert got["town"] == [None, "Bern", None]
    assert got["trips"] == [0, None, None]
    names = list(response.proto.metadata.feature_names.val)
    statuses = list(response.proto.results[names.index("trips")].statuses)
    assert statuses == [
        FieldStatus.PRESENT,
        FieldStatus.PRESENT,
        FieldStatus.NOT_FOUND,
    ]  # Feast's own never say NULL_VALUE


@pytest.mark.parametrize(
    ("kind", "ids"),
    [(ValueType.INT32, [1, 2]), (ValueType.INT64, [2**53 + 1, 2**53 + 2]), (ValueType.STRING, ["1", "ä:b=c"])],
)
def test_entities_of_each_type_are_told_apart(store, tmp_path, kind, ids):
    entity = Entity(name="thing", join_keys=["thing_id"], value_type=kind)
    frame = pd.DataFrame({"thing_id": ids, "n": [1, 2], "event_timestamp": [NOW, NOW]})
    view = parquet_view(tmp_path, "things", frame, {"n": Int64}, [entity])
    store.apply([entity, view])
    store.write_to_online_store("things", frame)
    assert read(store, ["things:n"], [{"thing_id": one} for one in reversed(ids)])["n"] == [2, 1]


def test_two_entities_are_a_key_together(store, tmp_path):
    frame = pd.DataFrame({
        "driver_id": [1, 11], "customer_id": ["11", "1"], "rides": [3, 4], "event_timestamp": [NOW, NOW],
    })  # fmt: skip
    view = parquet_view(tmp_path, "pairs", frame, {"rides": Int64}, [DRIVER, CUSTOMER])
    store.apply([DRIVER, CUSTOMER, view])
    store.write_to_online_store("pairs", frame)
    asked = [{"customer_id": "1", "driver_id": 11}, {"customer_id": "11", "driver_id": 1},
             {"customer_id": "1", "driver_id": 1}]  # fmt: skip
    assert read(store, ["pairs:rides"], asked)["rides"] == [4, 3, None]


@pytest.mark.parametrize("schema", [["customer_id", "driver_id"], ["customer_id"], []])
def test_the_hot_path_reads_what_feast_wrote_in_whatever_order_the_schema_names_the_keys(
    store, valkey_client, tmp_path, schema
):
    frame = pd.DataFrame({
        "driver_id": [1, 11], "customer_id": ["11", "1"], "rides": [3, 4], "event_timestamp": [NOW, NOW],
    })  # fmt: skip
    types = {"customer_id": String, "driver_id": Int64}
    named = {name: types[name] for name in schema}
    view = parquet_view(tmp_path, "pairs", frame, {**named, "rides": Int64}, [DRIVER, CUSTOMER])
    service = FeatureService(name="rides", features=[view])
    store.apply([DRIVER, CUSTOMER, view, service])
    store.write_to_online_store("pairs", frame)
    (tmp_path / "feature_store.yaml").write_text(
        f"project: shop\nprovider: local\nregistry: {tmp_path}/shop.db\nentity_key_serialization_version: 3\n"
        f"online_store:\n  type: {STORE}\n"
    )
    reader = OnlineReader(valkey_client, compile_repo(tmp_path), SystemClock())
    rows = {"driver_id": ["11", "1", "1"], "customer_id": ["1", "11", "1"]}
    assert reader.read_matrix("rides", rows).values[:, 0].tolist()[:2] == [4, 3]
    assert reader.read_matrix("rides", rows).found.tolist() == [True, True, False]


def test_a_view_without_entities_has_one_row_for_everyone(store, tmp_path):
    frame = pd.DataFrame({"rate": [0.5], "event_timestamp": [NOW]})
    view = parquet_view(tmp_path, "everyone", frame, {"rate": Float64}, [])
    numbers, numbered = stats(tmp_path)
    store.apply([DRIVER, view, numbered])
    store.write_to_online_store("stats", numbers)
    store.materialize(NOW - timedelta(days=1), NOW)
    got = read(store, ["everyone:rate", "stats:trips"], [{"driver_id": 1}, {"driver_id": 2}])
    assert got["rate"] == [0.5, 0.5]
    assert got["trips"] == [14, 5]


def test_an_older_row_never_replaces_a_newer_one(store, tmp_path):
    _, view = stats(tmp_path)
    store.apply([DRIVER, view])

    def write(trips, event, created):
        store.write_to_online_store(
            "stats", pd.DataFrame({
                "driver_id": [1], "trips": [trips], "rate": [0.0], "event_timestamp": [event], "created": [created],
            })
        )  # fmt: skip
        return read(store, ["stats:trips"], [{"driver_id": 1}])["trips"][0]

    minute = timedelta(minutes=1)
    assert write(1, NOW - minute, NOW - minute) == 1
    assert write(2, NOW - 2 * minute, NOW) == 1
    assert write(3, NOW - minute, NOW) == 3
    assert write(4, NOW - minute, NOW - minute) == 3
    assert write(5, NOW, NOW - minute) == 5
    assert write(6, NOW + minute, NOW) == 6


def test_the_instant_of_a_value_is_told(store, tmp_path):
    frame, view = stats(tmp_path)
    store.apply([DRIVER, view])
    store.write_to_online_store("stats", frame)
    got = store.get_online_features(["stats:trips"], [{"driver_id": 1}]).to_dict(include_event_timestamps=True)
    assert got["trips" + TIMESTAMP_POSTFIX] == [int(NOW.timestamp())]


def test_names_are_full_where_asked_and_refused_where_they_collide(store, tmp_path):
    first, one = stats(tmp_path, "one")
    _, two = stats(tmp_path, "two", trips=(1, 2))
    store.apply([DRIVER, one, two])
    store.write_to_online_store("one", first)
    both = ["one:trips", "two:trips"]
    with pytest.raises(FeatureNameCollisionError):
        read(store, both, [{"driver_id": 1}])
    got = read(store, both, [{"driver_id": 1}], full_feature_names=True)
    assert (got["one__trips"], got["two__trips"]) == ([14], [None])
    with pytest.raises(KeyError):
        read(store, ["one:speed"], [{"driver_id": 1}])


def test_a_service_joins_stored_features_with_those_of_the_request(store, tmp_path):
    frame, view = stats(tmp_path)

    @on_demand_feature_view(
        sources=[view, RequestSource(name="asked", schema=[Field(name="bonus", dtype=Int64)])],
        schema=[Field(name="trips_and_bonus", dtype=Int64)],
    )
    def sums(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"trips_and_bonus": inputs["trips"] + inputs["bonus"]})

    service = FeatureService(name="all", features=[view, sums])
    store.apply([DRIVER, view, sums, service])
    store.write_to_online_store("stats", frame)
    got = read(store, store.get_feature_service("all"), [{"driver_id": 2, "bonus": 10}])
    assert (got["trips"], got["trips_and_bonus"]) == ([5], [15])


def test_what_is_pushed_is_read(store, tmp_path):
    frame, view = stats(tmp_path)
    pushed = FeatureView(
        name="pushed", entities=[DRIVER], ttl=timedelta(days=1), schema=[Field(name="trips", dtype=Int32)],
        source=PushSource(name="push_stats", batch_source=view.batch_source),
    )  # fmt: skip
    store.apply([DRIVER, pushed])
    store.push("push_stats", frame[["driver_id", "trips", "event_timestamp", "created"]], to=PushMode.ONLINE)
    assert read(store, ["pushed:trips"], [{"driver_id": 1}])["trips"] == [14]


def test_materialising_goes_on_where_it_ended(store, tmp_path):
    frame, view = stats(tmp_path, at=NOW - timedelta(hours=3))
    store.apply([DRIVER, view])
    store.materialize_incremental(NOW - timedelta(hours=2))
    assert read(store, ["stats:trips"], [{"driver_id": 1}])["trips"] == [14]
    later = frame.assign(trips=[20, 21], event_timestamp=NOW - timedelta(hours=1), created=NOW)
    pd.concat([frame, later]).to_parquet(tmp_path / "stats.parquet")
    store.materialize_incremental(NOW)
    assert read(store, ["stats:trips"], [{"driver_id": 2}])["trips"] == [21]


def test_a_view_that_was_deleted_starts_empty(store, tmp_path):
    frame, view = stats(tmp_path)
    store.apply([DRIVER, view])
    store.write_to_online_store("stats", frame)
    store.apply([], objects_to_delete=[view], partial=False)
    store.apply([DRIVER, view])
    assert read(store, ["stats:trips"], [{"driver_id": 1}])["trips"] == [None]


def test_no_project_reaches_another_s_keys(store, valkey, tmp_path):
    neighbour = feature_store(valkey, tmp_path, "shopping")
    frame, view = stats(tmp_path)
    for one in (store, neighbour):
        one.apply([DRIVER, view])
        one.write_to_online_store("stats", frame)
    store.teardown()
    assert read(neighbour, ["stats:trips"], [{"driver_id": 1}])["trips"] == [14]


def test_many_entities_come_back_in_the_order_asked(store, tmp_path):
    frame, view = stats(tmp_path, ids=range(3_000), trips=range(3_000))
    store.apply([DRIVER, view])
    store.write_to_online_store("stats", frame)
    asked = [int(one) for one in np.random.default_rng(0).integers(0, 4_000, 500)]
    got = read(store, ["stats:trips"], [{"driver_id": one} for one in asked])["trips"]
    assert got == [one if one < 3_000 else None for one in asked]


def test_feast_serves_it_over_http(valkey, valkey_client, tmp_path):
    frame, view = stats(tmp_path)
    store = feature_store(valkey, tmp_path)
    store.apply([DRIVER, view])
    store.write_to_online_store("stats", frame)
    (tmp_path / "feature_store.yaml").write_text(
        f"project: shop\nprovider: local\nregistry: {tmp_path}/shop.db\nentity_key_serialization_version: 3\n"
        f"online_store:\n  type: {STORE}\n  connection_string: {valkey}\n"
    )
    port = free_port()
    feast = Path(sys.executable).with_name("feast")
    server = subprocess.Popen(
        [feast, "-c", tmp_path, "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"],
        env={**os.environ, "FEAST_USAGE": "False"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        got = _posted(f"http://127.0.0.1:{port}/get-online-features", server, {
            "features": ["stats:trips"], "entities": {"driver_id": [2, 1, 9]},
        })  # fmt: skip
    finally:
        server.terminate()
        server.wait(30)
    place = got["metadata"]["feature_names"].index("trips")
    assert got["results"][place]["values"] == [5, 14, None]
    assert got["results"][place]["statuses"] == ["PRESENT", "PRESENT", "NOT_FOUND"]


def _posted(url, server, body):
    """Post as soon as the server answers."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 90
    while True:
        try:
            with direct.open(request, timeout=30) as reply:
                return json.loads(reply.read())
        except urllib.error.URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
