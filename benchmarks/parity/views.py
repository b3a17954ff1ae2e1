"""Random feature definitions: plain Feast views over two topics, each beside what its projection means in Python."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from feast import Aggregation, Entity, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Array, Float64, String

from benchmarks.parity.events import ENVELOPE_COLUMNS, READING_COLUMNS, Fields, fixed, whole
from headwater.plan import LIFETIME, FeaturePlan, Service, ServiceFeature, View
from headwater.registry.compile import check_sources, compile_source, compile_view

HOPS_S = (7, 90, 300, 600, 1_800, 3_600, 10_800)
MULTIPLES = (1, 2, 3, 6, 12, 24)
LONGEST_S = 24 * 3_600
NUMBERS = ("sum", "mean", "min", "max", "stddev", "decayed_sum")
FUNCTIONS = (
    "count", "sum", "mean", "min", "max", "stddev", "approx_count_distinct", "last", "last_distinct", "members",
    "decayed_count", "decayed_sum",
)  # fmt: skip
AGGREGATES = 14
"""Features of a view, at least one of each function among three views."""
Holds = Callable[[Fields], bool]


@dataclass(frozen=True)
class Shape:
    """What views of one topic are drawn from.

    Attributes
    ----------
    filters
        SQL of a condition, and whether it holds of a record's fields.
    columns
        SQL of a projected column, and its value: an integer (millionths where fractional), a text or None.
    """

    source: str
    schema: str
    event_id: str
    event_time: str
    key: str
    joined: Sequence[tuple[str, ...]]
    filters: Mapping[str, Holds]
    columns: Mapping[str, tuple[str, Callable[[Fields], Any]]]


@dataclass(frozen=True)
class DrawnView:
    """A compiled view, and what its projection makes of a record."""

    view: View
    holds: Holds
    values: Mapping[str, Callable[[Fields], Any]]


def _step_sql(kind: str, quantity: str) -> str:
    text = f"COALESCE(CAST({quantity} AS STRING), 'none')"
    return (
        f"CASE WHEN {kind} = 'z' THEN 'clear' WHEN {kind} = 'x' THEN 'add:' || {text} "
        f"WHEN {kind} = 'y' THEN 'remove:' || {text} ELSE {kind} END"
    )


def _step(kind: str | None, quantity: int | None) -> str | None:
    text = "none" if quantity is None else str(quantity)
    return "clear" if kind == "z" else {"x": f"add:{text}", "y": f"remove:{text}"}.get(kind or "", kind)


def _above(value: float | None, bound: float) -> bool:
    return value is not None and value > bound


_KIND, _QUANTITY = "context['kind']", "TRY_CAST(context['quantity'] AS BIGINT)"
ENVELOPE = Shape(
    source="events", schema=ENVELOPE_COLUMNS, event_id="event_id", event_time="event_time", key="user_id",
    joined=(("user_id",), ("item_id",), ("user_id", "item_id"), ("session_id",), ("item_id", "session_id", "user_id")),
    filters={
        "": lambda of: True,
        "WHERE event_type = 'purchase'": lambda of: of["event_type"] == "purchase",
        "WHERE event_type IN ('purchase', 'view')": lambda of: of["event_type"] in ("purchase", "view"),
        "WHERE value > 0": lambda of: _above(of["value"], 0),
        "WHERE item_id IS NOT NULL AND value IS NOT NULL": lambda of: None not in (of["item_id"], of["value"]),
        f"WHERE {_KIND} <> 'y'": lambda of: of["context"].get("kind") not in (None, "y"),
    },
    columns={
        "amount": ("value", lambda of: fixed(of["value"])),
        "twice": ("COALESCE(value * 2, 0)", lambda of: fixed((of["value"] or 0.0) * 2)),
        "quantity": (_QUANTITY, lambda of: whole(of["context"].get("quantity"))),
        "kind": (_KIND, lambda of: of["context"].get("kind")),
        "when": ("event_time", lambda of: of["event_time"]),
        "step": (
            _step_sql(_KIND, _QUANTITY),
            lambda of: _step(of["context"].get("kind"), whole(of["context"].get("quantity"))),
        ),
    },
)  # fmt: skip
READINGS = Shape(
    source="readings", schema=READING_COLUMNS, event_id="reading", event_time="at", key="Sensor",
    joined=(("Sensor",), ("room",), ("Sensor", "room")),
    filters={
        "": lambda of: True,
        "WHERE faulty IS NULL OR faulty = FALSE": lambda of: not of["faulty"],
        "WHERE celsius BETWEEN -10 AND 30": lambda of: of["celsius"] is not None and -10 <= of["celsius"] <= 30,
        "WHERE NOT (count <= 2)": lambda of: _above(of["count"], 2),
        "WHERE labels['kind'] IN ('x', 'z')": lambda of: (of["labels"] or {}).get("kind") in ("x", "z"),
    },
    columns={
        "amount": ("celsius", lambda of: fixed(of["celsius"])),
        "quantity": ("count", lambda of: of["count"]),
        "kind": ("labels['kind']", lambda of: (of["labels"] or {}).get("kind")),
        "when": ("at", lambda of: of["at"]),
        "step": (
            _step_sql("labels['kind']", "count"), lambda of: _step((of["labels"] or {}).get("kind"), of["count"]),
        ),
    },
)  # fmt: skip
SHAPES = (ENVELOPE, READINGS)
_TEXTS, _FRACTIONS = ("kind",), ("amount", "twice")


def draw_plan(chance: random.Random, project: str) -> tuple[FeaturePlan, dict[str, DrawnView]]:
    """Three views of the envelope's shape and two of the other, on topics named after the project."""
    functions = [*FUNCTIONS * 10]
    chance.shuffle(functions)
    definitions: list[tuple[StreamFeatureView, Shape, str]] = []
    for shape, count in ((ENVELOPE, 3), (READINGS, 2)):
        for_ever = chance.random() < 0.5
        for keys in chance.sample(shape.joined, count):
            condition = chance.choice(list(shape.filters))
            name = f"{'_'.join(keys).lower()}_view"
            mine = [functions.pop() for _ in range(AGGREGATES)]
            topic = f"{project}_{shape.source}"
            definitions.append((_define(chance, shape, name, topic, keys, condition, mine, for_ever), shape, condition))
    drawn = {definition.name: _compiled(definition, shape, condition) for definition, shape, condition in definitions}
    views = tuple(one.view for one in drawn.values())
    sources = check_sources(compile_source(definition.to_proto().spec) for definition, _, _ in definitions)
    plan = FeaturePlan(
        project=project, registry_sha256="", repo=".", sources=sources, views=views, batch_views=(), on_demand=(),
        services=tuple(_service(shape.source, views) for shape in SHAPES),
    )  # fmt: skip
    return plan, drawn


def _compiled(definition: StreamFeatureView, shape: Shape, condition: str) -> DrawnView:
    spec = definition.to_proto().spec
    view = compile_view(spec, {entity: entity for entity in spec.entities})
    return DrawnView(view, shape.filters[condition], {name: meant for name, (_, meant) in shape.columns.items()})


def _service(source: str, views: Sequence[View]) -> Service:
    """All numbers of a source's views."""
    return Service(name=source, features=tuple(
        ServiceFeature(view=view.name, feature=one.feature)
        for view in views if view.source == source for one in view.aggregates if not one.is_list
    ))  # fmt: skip


def _define(
    chance: random.Random, shape: Shape, name: str, topic: str, keys: tuple[str, ...], condition: str,
    functions: Sequence[str], for_ever: bool,
) -> StreamFeatureView:  # fmt: skip
    windows = [_window(chance) for _ in range(2)]
    longest = max(window for window, _ in windows)
    ttl = timedelta(0) if for_ever and chance.random() < 0.5 else longest * chance.choice((1, 1, 2))
    aggregations = [
        _aggregation(chance, shape, f"{name}_{at}", function, [*windows, None] if for_ever else windows)
        for at, function in enumerate(functions)
    ]
    columns = ", ".join([*keys, *(f"{sql} AS {column}" for column, (sql, _) in shape.columns.items())])
    return StreamFeatureView(
        name=name, entities=[Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in keys],
        source=_source(shape, topic), ttl=ttl, timestamp_field=shape.event_time, aggregations=aggregations,
        schema=[_field(chance, one) for one in aggregations],
        tags={"headwater.projection": f"SELECT {columns} FROM {shape.source} {condition}"},
    )  # fmt: skip


def _source(shape: Shape, topic: str) -> KafkaSource:
    return KafkaSource(
        name=shape.source, topic=topic, kafka_bootstrap_servers="", timestamp_field=shape.event_time,
        message_format=JsonFormat(schema_json=shape.schema),
        batch_source=FileSource(path=topic, timestamp_field=shape.event_time),
        tags={"headwater.event_id": shape.event_id, "headwater.key": shape.key},
    )  # fmt: skip


def _field(chance: random.Random, aggregation: Aggregation) -> Field:
    """A list has no default; of numbers some have one."""
    lists = aggregation.function.startswith(("last", "members"))
    tags = {"headwater.default": "-1"} if not lists and chance.random() < 0.3 else {}
    return Field(name=aggregation.name, dtype=Array(String) if lists else Float64, tags=tags)


def _window(chance: random.Random) -> tuple[timedelta, timedelta]:
    hop = chance.choice(HOPS_S)
    many = chance.choice([multiple for multiple in MULTIPLES if hop * multiple <= LONGEST_S])
    return timedelta(seconds=hop * many), timedelta(seconds=hop)


def _aggregation(
    chance: random.Random, shape: Shape, name: str, function: str,
    windows: Sequence[tuple[timedelta, timedelta] | None],
) -> Aggregation:  # fmt: skip
    chosen = chance.choice(windows)
    window, hop = (None, None) if chosen is None else chosen
    if window is None and function not in LIFETIME:
        function = chance.choice(LIFETIME)
    return Aggregation(
        column=_column(chance, shape, function), function=_called(chance, function), name=name, time_window=window,
        slide_interval=hop,
    )  # fmt: skip


def _called(chance: random.Random, function: str) -> str:
    if function in ("last", "last_distinct"):
        return f"{function}({chance.choice((1, 2, 3, 10))})"
    if function == "members":
        return chance.choice(("members", "members(2)", "members(5)"))
    return f"{function}({chance.choice(('5m', '1h', '7h'))})" if function.startswith("decayed") else function


def _column(chance: random.Random, shape: Shape, function: str) -> str:
    numbers = [name for name in shape.columns if name not in (*_TEXTS, "step")]
    if function in ("count", "decayed_count"):
        return chance.choice(["", *shape.columns])
    if function == "members":
        return "step"
    if function in ("min", "max"):
        return chance.choice(numbers)
    if function in NUMBERS:
        return chance.choice([name for name in numbers if name != "when"])
    return chance.choice(list(shape.columns))
