"""Reading 1, 100 and 500 entities × 20 features in 3 views, beside Feast's SDK and simpler reads of the same."""

from collections.abc import Sequence
from typing import Any

from feast import FeatureStore
from feast.protos.feast.types.Value_pb2 import Value

from benchmarks.stores import Stores, stores
from benchmarks.windows import windowed_views, write_history
from headwater.bench import Measure, Sample, compare, interleaved
from headwater.clock import SystemClock
from headwater.online.keys import entity_key, project_prefix
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import BatchView, FeaturePlan, Service, ServiceFeature, View
from headwater.registry.compile import compile_batch_view

ENTITIES = 2_000
READ = (1, 100, 500)
AT_LEAST_MS = 30.0
FEAST_JAVA_P99_MS = {1: 0.8, 50: 7.3, 100: 17.0}
"""By rows, of Feast's Java server, as Feast publishes it: recorded, not run here."""


def measure(size: float) -> Sequence[Measure]:
    """CPU time of the client and of the server per read, and the bytes of an entity."""
    with stores(max(max(READ), int(ENTITIES * size))) as made:
        for name, frame in made.frames.items():
            made.feast.write_to_online_store(name, frame)
            made.ours.write_to_online_store(name, frame)
        ready = tuple(
            compile_batch_view(made.ours.get_feature_view(name).to_proto().spec, {"item": "item_id"})
            for name in made.frames
        )
        reader = OnlineReader(made.client, _plan("ours", ready), SystemClock())
        found = [measured for n in READ for measured in _ready_made(n, made, reader)]
        return [*found, *_bytes(made), _windowed(made), *_recorded()]


def _ready_made(n: int, made: Stores, reader: OnlineReader) -> list[Measure]:
    ids = [str(number) for number in range(n)]
    held = {f"raw:{project_prefix('raw').decode()}item_id={item}".encode(): b"x" * _payload(made, item) for item in ids}
    made.client.mset(held)
    hashes = _protobuf_hashes(made, ids)
    figures = interleaved({
        "ours": lambda: reader.read_matrix("all", {"item_id": ids}),
        "feast": lambda: _feast(made.feast, made.references, ids),
        "protobuf": lambda: _protobuf(made, hashes),
        "raw": lambda: made.client.mget(list(held)),
    }, at_least_ms=AT_LEAST_MS, server_ms=made.server_ms)  # fmt: skip
    last = n == max(READ)
    baselines = (
        ("feast", "get_online_features, Feast's Redis store", 100 if last else None),
        ("protobuf", "HMGET and protobuf", None),
        ("raw", "MGET of as many bytes, not decoded", 1 / 3 if last else None),
    )
    name = f"read_matrix, {n} entities"
    return [compare(name, "CPU ms", figures["ours"], told, figures[key], target) for key, told, target in baselines] + [
        compare(f"{name}, server", "server CPU ms", figures["ours"].of_server, told, figures[key].of_server, None)
        for key, told, _ in baselines
    ]


def _feast(store: FeatureStore, references: list[str], ids: list[str]) -> None:
    store.get_online_features(references, [{"item_id": item} for item in ids]).to_dict()


def _protobuf_hashes(made: Stores, ids: Sequence[str]) -> list[str]:
    """A hash an entity with each feature as a protobuf value, as a service of one's own would keep them."""
    for item in ids:
        values = {
            name: Value(float_val=float(frame[name].iloc[int(item)])).SerializeToString()
            for frame in made.frames.values()
            for name in frame.filter(regex="^f")
        }
        made.client.hset(f"protobuf:{item}", mapping=values)
    return [f"protobuf:{item}" for item in ids]


def _protobuf(made: Stores, hashes: Sequence[str]) -> list[list[float]]:
    names = [reference.split(":")[1] for reference in made.references]
    pipeline = made.client.pipeline(transaction=False)
    for key in hashes:
        pipeline.hmget(key, names)
    return [[Value.FromString(value).float_val for value in values] for values in pipeline.execute()]


def _payload(made: Stores, item: str) -> int:
    """Bytes of an entity's values in our store."""
    client: Any = made.client
    return sum(map(len, client.hvals(entity_key(project_prefix("ours"), "item_id", item))))


def _bytes(made: Stores) -> list[Measure]:
    """Bytes of one entity: its fields and values alone, and all that the server spends on it."""
    ours = entity_key(project_prefix("ours"), "item_id", "7")
    theirs = next(key for key in made.client.scan_iter(match="*theirs*") if made.client.type(key) == b"hash")
    payload, memory = {}, {}
    client: Any = made.client
    for name, key in (("ours", ours), ("feast", theirs)):
        held = client.hgetall(key)
        used = client.memory_usage(key, samples=0)
        payload[name] = Sample([float(sum(len(field) + len(value) for field, value in held.items()))])
        memory[name] = Sample([float(used)])
    return [
        compare(
            "an entity's fields and values", "bytes", payload["ours"], "Feast's Redis store", payload["feast"], 1.5
        ),
        compare("an entity, MEMORY USAGE", "bytes", memory["ours"], "Feast's Redis store", memory["feast"], 1.5),
    ]


def _windowed(made: Stores) -> Measure:
    n, now = max(READ), SystemClock().now_ms()
    ids, views = [str(number) for number in range(n)], windowed_views()
    tiles = write_history(OnlineWriter(made.client, "windows"), views, [(item,) for item in ids], now)
    reader = OnlineReader(made.client, _plan("windows", views), SystemClock())
    figures = interleaved({
        "ours": lambda: reader.read_matrix("all", {"item_id": ids}),
        "feast": lambda: _feast(made.feast, made.references, ids),
    }, at_least_ms=AT_LEAST_MS)  # fmt: skip
    return compare(
        f"windows merged at read, {n} entities, {tiles / n / len(views):.0f} tiles each in 3 views", "CPU ms",
        figures["ours"], "get_online_features of as many ready-made values", figures["feast"], 15,
    )  # fmt: skip


def _recorded() -> list[Measure]:
    """What others publish, beside our figures."""
    return [
        Measure(f"Feast's Java server, {n} rows, p99", value, "ms", "recorded, not run here", value, 1.0, None, None)
        for n, value in FEAST_JAVA_P99_MS.items()
    ]


def _plan(project: str, views: Sequence[View | BatchView]) -> FeaturePlan:
    features = tuple(ServiceFeature(view=view.name, feature=name) for view in views for name in view.features)
    return FeaturePlan(
        project=project, registry_sha256="", repo=".", sources=(), on_demand=(),
        views=tuple(view for view in views if isinstance(view, View)),
        batch_views=tuple(view for view in views if isinstance(view, BatchView)),
        services=(Service(name="all", features=features),),
    )  # fmt: skip
