"""Compile the Feast registry's protobuf into a :class:`~headwater.plan.FeaturePlan`.

Tags read: on a stream view ``headwater.projection``; on its Kafka source ``headwater.event_id`` and ``headwater.key``;
on an on-demand view ``headwater.function``; on a feature ``headwater.default``. UDFs are never rebuilt.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from headwater import avro
from headwater.avro import MAP
from headwater.errors import ConfigError, DefinitionError
from headwater.plan import (
    LIFETIME,
    Aggregate,
    BatchView,
    Column,
    ColumnKind,
    FeaturePlan,
    OnDemandView,
    Partial,
    Service,
    ServiceFeature,
    Source,
    Table,
    View,
    parse_function,
)
from headwater.records import ENVELOPE, INTEGERS, PLACE
from headwater.registry.lean import import_feast
from headwater.registry.manifest import registry_sha256
from headwater.registry.projection import check_projection
from headwater.topics import DEAD_LETTER, EVENTS, IMPRESSIONS

_NUMERIC = {"sum", "mean", "min", "max", "stddev", "decayed_sum"}
_PARTIALS: Mapping[str, tuple[Any, ...]] = {
    "count": ("count",),
    "sum": ("sum",),
    "mean": ("sum", "count"),
    "min": ("min",),
    "max": ("max",),
    "stddev": ("sum", "sumsq", "count"),
    "decayed_count": ("count",),
    "decayed_sum": ("sum",),
}
_COLUMN_TYPES = ("string", "bigint", "int", "double", "boolean", MAP)
_ALIASES = {"long": "bigint", "integer": "int", "float": "double"}
_RESERVED = {*PLACE, "date", "_digest", "_place"}
SHORTEST_HOP_MS = 1000
"""Tiles are numbered in int32."""
MOST_TILES = 10_000
"""Of one window, since a read merges all of them."""


def compile_repo(repo: Path) -> FeaturePlan:
    """Read the applied registry of a Feast repository.

    Raises
    ------
    ConfigError
        There is no ``feature_store.yaml``, or nothing has been applied.
    DefinitionError
        A view cannot be compiled exactly.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise ConfigError(f"{repo}: no feature_store.yaml there. Point --repo at a Feast repository.")
    store = import_feast().FeatureStore(repo_path=str(repo))
    proto = store.registry.proto()
    return compile_registry(proto, store.project, registry_sha256(repo), repo)


def compile_registry(proto: Any, project: str, fingerprint: str, repo: Path) -> FeaturePlan:
    """Compile a ``RegistryProto``; see :func:`compile_repo` for what is refused."""
    join_keys = {entity.spec.name: entity.spec.join_key for entity in proto.entities}
    views = [compile_view(view.spec, join_keys) for view in proto.stream_feature_views]
    sources = check_sources(compile_source(view.spec) for view in proto.stream_feature_views)
    return FeaturePlan(
        project=project,
        registry_sha256=fingerprint,
        repo=str(repo.resolve()),
        sources=sources,
        views=tuple(views),
        batch_views=tuple(compile_batch_view(view.spec, join_keys) for view in proto.feature_views),
        on_demand=tuple(_on_demand(view.spec) for view in proto.on_demand_feature_views),
        services=tuple(_service(service.spec) for service in proto.feature_services),
    )


def check_sources(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Distinct sources of a project's views: each name and each topic has one definition, so each topic is read once.

    Raises
    ------
    DefinitionError
        Two differ under one name, or read one topic.
    """
    by_name: dict[str, Source] = {}
    for source in sources:
        if by_name.setdefault(source.name, source) != source:
            raise DefinitionError(f"{source.name}: two views define this source differently. Share one KafkaSource.")
    for source in by_name.values():
        others = [other.name for other in by_name.values() if other.topic == source.topic and other is not source]
        if others:
            raise DefinitionError(
                f"{source.name}: topic {source.topic!r} is also read by source {others[0]!r}, and a topic is read and "
                "archived once. Let all views of the topic share one KafkaSource."
            )
    return tuple(by_name.values())


def compile_source(spec: Any) -> Source:
    """Read the Kafka source of a stream view: topic, columns, and which of them are id, time and key."""
    stream = spec.stream_source
    topic = stream.kafka_options.topic
    if not topic:
        raise DefinitionError(f"{spec.name}: its stream source is not a KafkaSource. Give it one with a topic.")
    if topic in (DEAD_LETTER, IMPRESSIONS):
        raise DefinitionError(f"{stream.name}: topic {topic!r} is written by the platform itself. Read another.")
    columns, avro_schema = _columns(stream)
    tags = dict(stream.tags)
    names = {
        "event_id": tags.get("headwater.event_id", "event_id"),
        "event_time": stream.timestamp_field,
        "key": tags.get("headwater.key", "user_id"),
    }
    _check_roles(stream.name, names, dict(columns))
    if topic == EVENTS:
        _check_envelope(stream.name, names, dict(columns), avro_schema)
    archive = spec.batch_source.file_options.uri or None
    given: Any = {"format": "json" if avro_schema is None else "avro", "avro_schema": avro_schema, **names}
    return Source(name=stream.name, topic=topic, columns=columns, archive=archive, **given)


def _columns(stream: Any) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Columns of a topic and, where it carries Avro, the schema to decode with."""
    message_format = stream.kafka_options.message_format
    if message_format.HasField("json_format"):
        return _parse_schema(stream.name, message_format.json_format.schema_json), None
    if not message_format.HasField("avro_format"):
        raise DefinitionError(
            f"{stream.name}: message_format is neither JsonFormat(schema_json=…) nor AvroFormat(schema_json=…). "
            "Declare the columns there."
        )
    schema, kinds = avro.read_schema(stream.name, message_format.avro_format.schema_json, stream.timestamp_field)
    usable = tuple((name, kind) for name, kind in kinds.items() if not _is_reserved(name))
    _check_names(stream.name, [name for name, _ in usable])
    return usable, schema


def _check_roles(source: str, names: Mapping[str, str], known: Mapping[str, str]) -> None:
    for role, name in names.items():
        if name not in known:
            tag = "its timestamp_field" if role == "event_time" else f"the tag headwater.{role}"
            raise DefinitionError(
                f"{source}: its {role.replace('_', ' ')} column {name!r} is not among {', '.join(known)}. "
                f"Name it with {tag} or add it to the schema."
            )
        if role != "event_time" and known[name] not in ("string", *INTEGERS):
            raise DefinitionError(f"{source}: {name} is {known[name]}, and an id is a string or an integer.")
    if known[names["event_time"]] != "bigint":
        raise DefinitionError(f"{source}: {names['event_time']} must be bigint, epoch milliseconds UTC.")


def _check_envelope(source: str, names: Mapping[str, str], known: Mapping[str, str], avro_schema: str | None) -> None:
    """The platform's own topic has the platform's columns: the archive keeps no others."""
    other = [name for name, kind in known.items() if ENVELOPE.get(name) != kind]
    if avro_schema is not None:
        raise DefinitionError(f"{source}: topic {EVENTS!r} carries JSON. Send Avro to a topic of your own.")
    if other or tuple(names.values()) != ("event_id", "event_time", "user_id"):
        raise DefinitionError(
            f"{source}: topic {EVENTS!r} carries the platform's envelope ({', '.join(ENVELOPE)}), keyed by user_id, "
            f"which {', '.join(other) or ', '.join(names.values())} is not of. Put it into context, or use a topic of "
            "your own."
        )


def _parse_schema(source: str, text: str) -> tuple[tuple[str, str], ...]:
    columns: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in re.split(r",(?![^<]*>)", text))):
        match = re.fullmatch(r"`?([A-Za-z_]\w*)`?\s*:?\s+(.+)", part, re.ASCII)
        kind = "" if match is None else re.sub(r"\s", "", match[2].lower())
        kind = _ALIASES.get(kind, kind)
        if match is None or kind not in _COLUMN_TYPES:
            raise DefinitionError(
                f"{source}: {part!r} in schema_json is not a column's name and one of {', '.join(_COLUMN_TYPES)}. "
                "Leave out what no view reads; records may have more than is declared."
            )
        columns.append((match[1], kind))
    if not columns:
        raise DefinitionError(f"{source}: schema_json {text!r} declares no columns. Write 'event_id string, …'.")
    _check_names(source, [name for name, _ in columns])
    return tuple(columns)


def _is_reserved(name: str) -> bool:
    return name.lower() in _RESERVED or name.lower().startswith("hw_")


def _check_names(source: str, names: list[str]) -> None:
    lowered = [name.lower() for name in names]
    for name, low in zip(names, lowered, strict=True):
        if _is_reserved(name):
            raise DefinitionError(
                f"{source}: a column called {name!r} would meet the platform's own of that name in the archive. "
                "Rename it where it is sent."
            )
        if lowered.count(low) > 1:
            raise DefinitionError(f"{source}: two columns are called {name!r}, which Spark does not tell apart.")


def compile_view(spec: Any, join_keys: Mapping[str, str]) -> View:
    """Compile one stream view."""
    source = compile_source(spec)
    projection = spec.tags.get("headwater.projection")
    if not projection:
        raise DefinitionError(
            f"{spec.name}: no tag headwater.projection. Add one such as SELECT user_id, value FROM {source.name} "
            "WHERE event_type = 'purchase'."
        )
    normal, kinds = check_projection(spec.name, projection, source.name, dict(source.columns))
    keys = _join_keys(spec, join_keys)
    for name in kinds:
        if name.startswith("_"):
            raise DefinitionError(f"{spec.name}: the projection's column {name!r} begins with _. Give it another name.")
    for key in keys:
        if kinds.get(key) != "string":
            raise DefinitionError(
                f"{spec.name}: join key {key!r} is {kinds.get(key, 'missing')} in the projection. Make it a string."
            )
    ttl = spec.ttl.ToTimedelta()
    defaults = {field.name: field.tags.get("headwater.default") for field in spec.features}
    drafts = [_aggregate(spec.name, proto, kinds, defaults) for proto in spec.aggregations]
    names = [draft.feature for draft in drafts]
    if not drafts or len(set(names)) != len(names):
        raise DefinitionError(f"{spec.name}: its aggregations are {names}; give at least one, each a name of its own.")
    longest = max((draft.window_ms or 0) for draft in drafts)
    if ttl and _ms(ttl) < longest:
        raise DefinitionError(
            f"{spec.name}: ttl {ttl} is shorter than its longest window {timedelta(milliseconds=longest)}, so a value "
            "would vanish while its window still holds events. Raise the ttl, or set it to 0 for none."
        )
    identity = f"{spec.name}|{','.join(keys)}|{source.topic}|{source.event_id}|{source.event_time}|{normal}|{kinds}"
    tables = _tables(identity, drafts)
    placed = tuple(draft.model_copy(update={"table": _home(draft, tables).id}) for draft in drafts)
    return View(
        name=spec.name,
        join_keys=keys,
        source=source.name,
        projection=normal,
        columns=kinds,
        ttl_ms=_ms(ttl),
        aggregates=placed,
        tables=tables,
    )


def _aggregate(view: str, proto: Any, kinds: Mapping[str, ColumnKind], defaults: Mapping[str, str | None]) -> Aggregate:
    name = proto.name or f"{proto.function}_{proto.column}"
    subject = f"{view}.{name}"
    function = parse_function(proto.function, subject)
    column = None if proto.column in ("", "*") else proto.column
    if column is None and function.name not in ("count", "decayed_count"):
        raise DefinitionError(f"{subject}: {function} needs a column of the projection: {', '.join(kinds)}.")
    if column is not None and column not in kinds:
        raise DefinitionError(f"{subject}: column {column!r} is not in the projection, which has {', '.join(kinds)}.")
    kind: ColumnKind = "int" if column is None else kinds[column]
    if function.name in _NUMERIC and kind == "string":
        raise DefinitionError(f"{subject}: {function} of the string column {column!r}. CAST it to BIGINT or DOUBLE.")
    if function.name == "members" and kind != "string":
        raise DefinitionError(f"{subject}: members of {column!r}, which is no text. Project 'add:' || x, 'clear', ….")
    window = _ms(proto.time_window.ToTimedelta()) if proto.HasField("time_window") else None
    hop = _ms(proto.slide_interval.ToTimedelta()) if proto.HasField("slide_interval") else window
    if window is None:
        hop = None
        if function.name not in LIFETIME:
            raise DefinitionError(
                f"{subject}: {function} needs a time_window; a lifetime allows {', '.join(LIFETIME)}."
            )
    elif not hop or window % hop:
        raise DefinitionError(
            f"{subject}: a window of {timedelta(milliseconds=window)} is not a whole number of "
            f"{timedelta(milliseconds=hop or 0)} hops, so batch and stream would cut it at different instants. Use a "
            "slide_interval that divides it, such as 0:05:00."
        )
    elif hop < SHORTEST_HOP_MS or window // hop > MOST_TILES:
        raise DefinitionError(
            f"{subject}: a window of {timedelta(milliseconds=window)} in hops of {timedelta(milliseconds=hop)} has "
            f"{window // hop} tiles. Use a slide_interval of a second or more, of which the window has at most "
            f"{MOST_TILES}."
        )
    default = defaults.get(name)
    return Aggregate(
        feature=name,
        function=function,
        column=column,
        kind=kind,
        window_ms=window,
        hop_ms=hop,
        default=None if default is None else float(default),
        table="",
    )


def _tables(identity: str, drafts: Iterable[Aggregate]) -> tuple[Table, ...]:
    """One fixed-width table a hop, and one a hop and column for each kind of list."""
    fixed: dict[int | None, list[Aggregate]] = {}
    lists: dict[tuple[int | None, Any, str], list[Aggregate]] = {}
    for draft in drafts:
        if draft.function.name in _PARTIALS:
            fixed.setdefault(draft.hop_ms, []).append(draft)
        else:
            lists.setdefault((draft.hop_ms, _table_kind(draft), draft.column or ""), []).append(draft)
    tables = []
    for hop, group in fixed.items():
        partials = sorted(
            {(kind, draft.column) for draft in group for kind in _PARTIALS[draft.function.name]},
            key=lambda pair: (pair[0], pair[1] or ""),
        )
        kept = tuple(
            Partial(kind=kind, column=column) for kind, column in partials if (kind, column) != ("count", None)
        )
        keep = max(draft.tiles for draft in group)
        tables.append(Table(id=_digest(identity, hop, keep, kept), kind="fixed", hop_ms=hop, keep=keep, partials=kept))
    for (hop, kind, column), group in lists.items():
        longest = max((draft.function.n or 0) for draft in group) or None
        keep = max(draft.tiles for draft in group)
        tables.append(
            Table(
                id=_digest(identity, hop, keep, (kind, column, longest)),
                kind=kind,
                hop_ms=hop,
                keep=keep,
                column=column,
                column_kind=group[0].kind,
                n=longest,
            )
        )
    return tuple(tables)


def _table_kind(draft: Aggregate) -> Any:
    if draft.function.name in _PARTIALS:
        return "fixed"
    return "distinct" if draft.function.name == "approx_count_distinct" else draft.function.name


def _home(draft: Aggregate, tables: Iterable[Table]) -> Table:
    wanted = _table_kind(draft)
    return next(
        table
        for table in tables
        if table.kind == wanted and table.hop_ms == draft.hop_ms and (wanted == "fixed" or table.column == draft.column)
    )


def _digest(*parts: object) -> str:
    return hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


def _join_keys(spec: Any, join_keys: Mapping[str, str]) -> tuple[str, ...]:
    """In the order of the view's entity columns: the schema's, where it names them, else that of its entities.

    Feast's calls on a store are given those columns and not which entity each belongs to.
    """
    named = tuple(join_keys[entity] for entity in spec.entities if entity in join_keys)
    columns = tuple(column.name for column in spec.entity_columns)
    return columns if set(columns) == set(named) else named


def compile_batch_view(spec: Any, join_keys: Mapping[str, str]) -> BatchView:
    """Read a batch feature view: its columns, file and clocks."""
    from feast.types import from_value_type
    from feast.value_type import ValueType

    columns = tuple(
        Column(
            name=field.name,
            dtype=str(from_value_type(ValueType(field.value_type))).lower(),
            default=float(field.tags["headwater.default"]) if "headwater.default" in field.tags else None,
        )
        for field in spec.features
    )
    keys = _join_keys(spec, join_keys)
    return BatchView(
        name=spec.name,
        join_keys=keys,
        columns=columns,
        path=spec.batch_source.file_options.uri,
        timestamp_field=spec.batch_source.timestamp_field,
        created_field=spec.batch_source.created_timestamp_column or None,
        ttl_ms=_ms(spec.ttl.ToTimedelta()),
        id=_digest(spec.name, keys, columns),
    )


def _on_demand(spec: Any) -> OnDemandView:
    function = spec.tags.get("headwater.function", "")
    if not re.fullmatch(r"[\w.]+:\w+", function):
        raise DefinitionError(
            f"{spec.name}: tag headwater.function is {function!r}. Name a vectorised function as module:function."
        )
    inputs: list[tuple[str, str]] = []
    request: list[str] = []
    for source in spec.sources.values():
        if source.HasField("request_data_source"):
            request.extend(field.name for field in source.request_data_source.request_data_options.schema)
        else:
            projection = source.feature_view_projection
            inputs.extend((projection.feature_view_name, field.name) for field in projection.feature_columns)
    return OnDemandView(
        name=spec.name,
        function=function,
        inputs=tuple(inputs),
        request=tuple(request),
        columns=tuple(Column(name=field.name, dtype="float64") for field in spec.features),
    )


def _service(spec: Any) -> Service:
    features = tuple(
        ServiceFeature(view=projection.feature_view_name, feature=column.name)
        for projection in spec.features
        for column in projection.feature_columns
    )
    repeated = {feature.feature for feature in features if [f.feature for f in features].count(feature.feature) > 1}
    if repeated:
        raise DefinitionError(f"{spec.name}: {', '.join(sorted(repeated))} comes from two views. Rename one of them.")
    return Service(name=spec.name, features=features)


def main() -> None:
    """``python -m headwater.registry.compile REPO``: write the repository's manifest."""
    from headwater.errors import HeadwaterError

    repo = Path(sys.argv[1])
    try:
        compile_repo(repo).save(repo / "data" / "manifest.json")
    except HeadwaterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
