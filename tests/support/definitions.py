"""Feast definitions for tests, compiled the way ``feast apply`` compiles them."""

from collections.abc import Sequence
from datetime import timedelta

from feast import Aggregation, Entity, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Array, Float64, String

from headwater.plan import FeaturePlan, View
from headwater.registry.compile import compile_source, compile_view

ENVELOPE = (
    "event_id string, event_type string, event_time bigint, user_id string, item_id string, session_id string, "
    "request_id string, position int, value double, context map<string,string>"
)
HOUR = timedelta(hours=1)
PURCHASES = "SELECT user_id, item_id, session_id, value, event_time FROM events WHERE event_type = 'purchase'"


def stream_view(
    aggregations: Sequence[Aggregation],
    keys: Sequence[str] = ("user_id",),
    projection: str = PURCHASES,
    ttl: timedelta = timedelta(0),
    name: str = "activity",
    schema_json: str = ENVELOPE,
    archive: str = "archive/events",
    topic: str = "events",
) -> StreamFeatureView:
    """A view on the default envelope."""
    source = KafkaSource(
        name="events",
        topic=topic,
        kafka_bootstrap_servers="",
        timestamp_field="event_time",
        message_format=JsonFormat(schema_json=schema_json),
        batch_source=FileSource(name="events_archive", path=archive, timestamp_field="event_time"),
    )
    return StreamFeatureView(
        name=name,
        entities=[Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in keys],
        source=source,
        ttl=ttl,
        timestamp_field="event_time",
        aggregations=list(aggregations),
        schema=[
            Field(name=a.resolved_name(), dtype=Array(String) if a.function.startswith("last") else Float64)
            for a in aggregations
        ],
        tags={"headwater.projection": projection},
    )


def aggregation(
    name: str, function: str, column: str = "", window: timedelta | None = 24 * HOUR, hop: timedelta | None = None
) -> Aggregation:
    return Aggregation(column=column, function=function, time_window=window, slide_interval=hop, name=name)


def compiled(view: StreamFeatureView, keys: Sequence[str] = ("user_id",)) -> View:
    return compile_view(view.to_proto().spec, {key: key for key in keys})


def plan_of(*views: StreamFeatureView, project: str = "test") -> FeaturePlan:
    """A plan of stream views whose entities are called after their join keys."""
    specs = [view.to_proto().spec for view in views]
    return FeaturePlan(
        project=project,
        registry_sha256="",
        repo=".",
        sources=(compile_source(specs[0]),),
        views=tuple(compile_view(spec, {entity: entity for entity in spec.entities}) for spec in specs),
        batch_views=(),
        on_demand=(),
        services=(),
    )
