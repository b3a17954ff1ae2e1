"""The typed feature plan: what the registry's definitions mean, for every engine.

A plan is compiled from the Feast registry (:mod:`headwater.registry.compile`), stored as JSON and read by the Flink
compiler, the Spark backfill and the online reader. Nothing in it is code.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from headwater.errors import DefinitionError
from headwater.files import write_whole
from headwater.spans import UNITS

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FIXED_SCALE = 1_000_000
"""Fractions become integers of one millionth, once, in the projection; half rounds away from zero."""

ColumnKind = Literal["int", "fixed", "string"]
FunctionName = Literal[
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "stddev",
    "approx_count_distinct",
    "last",
    "last_distinct",
    "members",
    "decayed_count",
    "decayed_sum",
]
_CALL = re.compile(r"^(?P<name>[a-z_]+)(?:\((?P<argument>[^)]*)\))?$")
_LISTS = ("last", "last_distinct", "members")
_LONGEST = 1000
"""Entries of a list, and values of a set that a tile keeps."""
_DECAYED = ("decayed_count", "decayed_sum")
_PLAIN = ("count", "sum", "mean", "min", "max", "stddev", "approx_count_distinct")
LIFETIME = ("count", "sum", "min", "max", "last")


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Function(Frozen):
    """An aggregation function with its parameter."""

    name: FunctionName
    n: int | None = None
    half_life_ms: int | None = None

    def __str__(self) -> str:
        if self.n is not None:
            return f"{self.name}({self.n})"
        return self.name if self.half_life_ms is None else f"{self.name}({self.half_life_ms}ms)"


def parse_function(text: str, subject: str) -> Function:
    """Read ``count``, ``last(20)`` or ``decayed_count(7d)`` as Feast's ``Aggregation.function`` carries it.

    Raises
    ------
    DefinitionError
        The name is unknown or its parameter is missing or malformed; the message starts with ``subject``.
    """
    match = _CALL.match(text.strip())
    name: Any = match["name"] if match else text
    argument = match["argument"] if match else None
    if name in _PLAIN and argument is None:
        return Function(name=name)
    if name == "members" and argument is None:
        return Function(name=name, n=_LONGEST)
    if name in _LISTS and argument and argument.strip().isdigit() and 0 < int(argument) <= _LONGEST:
        return Function(name=name, n=int(argument))
    half_life = re.fullmatch(r"\s*(\d+)\s*(ms|s|m|h|d)\s*", argument or "")
    if name in _DECAYED and half_life and int(half_life[1]) > 0:
        return Function(name=name, half_life_ms=int(half_life[1]) * UNITS[half_life[2]])
    raise DefinitionError(
        f"{subject}: function {text!r} is not one of {', '.join(_PLAIN)}, last(n), last_distinct(n), members(n) with n "
        f"from 1 to {_LONGEST}, members, decayed_count(7d), decayed_sum(7d). Write the parameter inside the name."
    )


class Aggregate(Frozen):
    """One feature: a function of one projected column over one window."""

    feature: str
    function: Function
    column: str | None
    kind: ColumnKind
    window_ms: int | None
    hop_ms: int | None
    default: float | None = None
    table: str

    @property
    def is_list(self) -> bool:
        return self.function.name in _LISTS

    @property
    def tiles(self) -> int:
        """Age in hops of the oldest tile the window reads; 0 for a lifetime."""
        return 0 if self.window_ms is None or self.hop_ms is None else self.window_ms // self.hop_ms


class Partial(Frozen):
    """One number a tile keeps; ``sumsq`` takes two words, the others one."""

    kind: Literal["count", "sum", "sumsq", "min", "max"]
    column: str | None

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.column or 'all'}"


class Table(Frozen):
    """Tiles of one view and one hop: fixed-width partials, a sketch (``distinct``), or entries in total order."""

    id: str
    kind: Literal["fixed", "distinct", "last", "last_distinct", "members"]
    hop_ms: int | None
    keep: int
    partials: tuple[Partial, ...] = ()
    column: str | None = None
    column_kind: ColumnKind = "string"
    n: int | None = None

    @cached_property
    def field(self) -> bytes:
        return bytes.fromhex(self.id)


class View(Frozen):
    """A windowed stream view."""

    name: str
    join_keys: tuple[str, ...]
    source: str
    projection: str
    columns: dict[str, ColumnKind]
    ttl_ms: int
    aggregates: tuple[Aggregate, ...]
    tables: tuple[Table, ...]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(aggregate.feature for aggregate in self.aggregates)

    @property
    def horizon_ms(self) -> int | None:
        """How long after its time an event can still be read; ``None`` for ever."""
        if any(table.hop_ms is None for table in self.tables) or self.ttl_ms == 0:
            return None
        return max(self.ttl_ms, *((table.keep + 1) * (table.hop_ms or 0) for table in self.tables))

    def table(self, table_id: str) -> Table:
        return next(table for table in self.tables if table.id == table_id)


class Column(Frozen):
    """A ready-made feature of a batch view."""

    name: str
    dtype: str
    default: float | None = None


class BatchView(Frozen):
    """A batch feature view: the newest row of a Parquet source within its ttl."""

    name: str
    join_keys: tuple[str, ...]
    columns: tuple[Column, ...]
    path: str
    timestamp_field: str
    created_field: str | None
    ttl_ms: int
    id: str

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def field(self) -> bytes:
        return bytes.fromhex(self.id)


class OnDemandView(Frozen):
    """Request-time features: ``function`` is ``module:function``, vectorised over numpy columns."""

    name: str
    function: str
    inputs: tuple[tuple[str, str], ...]
    request: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


class Source(Frozen):
    """A Kafka topic and the columns the engine reads from it, as Spark SQL types."""

    name: str
    topic: str
    format: Literal["json", "avro"] = "json"
    columns: tuple[tuple[str, str], ...]
    event_id: str
    event_time: str
    key: str
    archive: str | None = None
    avro_schema: str | None = None


class ServiceFeature(Frozen):
    """A column of a service: which view it is read from and what it is called there."""

    view: str
    feature: str

    @property
    def name(self) -> str:
        return self.feature


class Service(Frozen):
    """What a model reads, in order."""

    name: str
    features: tuple[ServiceFeature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)


class FeaturePlan(Frozen):
    """Everything the engines need to know of a Feast project."""

    project: str
    registry_sha256: str
    repo: str
    sources: tuple[Source, ...]
    views: tuple[View, ...]
    batch_views: tuple[BatchView, ...]
    on_demand: tuple[OnDemandView, ...]
    services: tuple[Service, ...]

    def view(self, name: str) -> View | BatchView | OnDemandView:
        for view in self._all_views():
            if view.name == name:
                return view
        raise DefinitionError(
            f"{name}: no such view in project {self.project}. It has {', '.join(v.name for v in self._all_views())}."
        )

    def service(self, name: str) -> Service:
        for service in self.services:
            if service.name == name:
                return service
        raise DefinitionError(
            f"{name}: no such feature service in project {self.project}. "
            f"It has {', '.join(s.name for s in self.services) or 'none'}."
        )

    def source(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)

    def source_of_topic(self, topic: str) -> Source | None:
        """The one source that reads a topic."""
        return next((source for source in self.sources if source.topic == topic), None)

    def schema_hash(self, service: str) -> str:
        """Hash of all that decides what the service's columns mean, hex, 16 digits."""
        parts = [_meaning_of(self.view(feature.view), feature) for feature in self.service(service).features]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()

    def feature_hashes(self, service: str) -> dict[str, str]:
        """Hash of what each column of a service means, so that the one that changed can be named."""
        held = {
            feature.name: _meaning_of(self.view(feature.view), feature) for feature in self.service(service).features
        }
        return {name: hashlib.blake2b(told.encode(), digest_size=8).hexdigest() for name, told in held.items()}

    def horizon_ms(self, source: str) -> int | None:
        """Lateness past which no view of the source could read an event; ``None`` if one always can."""
        horizons = [view.horizon_ms for view in self.views if view.source == source]
        known = [horizon for horizon in horizons if horizon is not None]
        return max(known) if known and len(known) == len(horizons) else None

    def _all_views(self) -> Iterator[View | BatchView | OnDemandView]:
        yield from self.views
        yield from self.batch_views
        yield from self.on_demand

    def save(self, path: Path) -> None:
        """Write the manifest, whole or not at all."""
        write_whole(path, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> "FeaturePlan":
        return cls.model_validate_json(path.read_bytes())


def _meaning_of(view: View | BatchView | OnDemandView, feature: ServiceFeature) -> str:
    return f"{feature.view}:{feature.feature}:{_meaning(view, feature.feature)}"


def _meaning(view: View | BatchView | OnDemandView, feature: str) -> str:
    if isinstance(view, View):
        aggregate = next(found for found in view.aggregates if found.feature == feature)
        return f"{view.join_keys}{view.projection}{view.ttl_ms}{aggregate.model_dump_json()}"
    if isinstance(view, BatchView):
        return f"{view.join_keys}{view.path}{view.ttl_ms}{view.id}"
    return f"{view.function}{view.inputs}{view.request}"
