"""Read now, and only now: tiles merged at read, one round trip, decoded with numpy."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from headwater.assemble import REQUEST_TIME, Assembly
from headwater.clock import Clock
from headwater.errors import DataError, NotAnswerableError
from headwater.folds import Floats, Ints
from headwater.online import codec, merge
from headwater.online.entity import Entity
from headwater.online.fetch import Wanted, fetch
from headwater.online.keys import Key, Keys, entity_key, project_prefix
from headwater.online.replies import Blobs
from headwater.online.wire import Wire, pack
from headwater.plan import BatchView, FeaturePlan, OnDemandView, View

Values = Floats | list[list[Any] | None]
Entities = Mapping[str, Sequence[str]]
"""Join key to one value a row."""


@dataclass(frozen=True, slots=True)
class ViewRead:
    """Values of one view for distinct entities.

    ``values``: feature to float64 (n,), NaN where not found or null, or to a list per entity. ``found`` (n,): an event
    in [at - ttl, at). ``at`` (n,): the instant read. ``newest`` (n,): newest folded event, -1 where none. ``keys``: the
    entities. ``tell_marks``: by the id of each table of a windowed view, what tells the marks of some of them.
    """

    values: Mapping[str, Values]
    found: NDArray[np.bool_]
    at: Ints
    newest: Ints
    keys: Sequence[Key] = field(default=(), repr=False)
    tell_marks: Mapping[str, merge.TellMarks] = field(default_factory=dict, repr=False)

    @property
    def marks(self) -> dict[str, merge.Marks]:
        """What was folded into each table, by its id."""
        return self.marks_of(slice(None))

    def marks_of(self, places: merge.Places) -> dict[str, merge.Marks]:
        """The marks of some entities; computed when asked for, as only what is logged needs them."""
        return {table: tell(places) for table, tell in self.tell_marks.items()}


@dataclass(frozen=True, slots=True)
class Matrix:
    """``values`` float32 (n_rows, n_features) in the order of ``names``; per view: found, at and row's place."""

    values: NDArray[np.float32]
    names: tuple[str, ...]
    now: int
    views: Mapping[str, ViewRead] = field(repr=False)
    rows: Mapping[str, NDArray[np.intp]] = field(repr=False)

    @property
    def found(self) -> NDArray[np.bool_]:
        """True where every stored view knows the row's entity, bool (n_rows,)."""
        known = np.ones(len(self.values), np.bool_)
        for name, view in self.views.items():
            known &= view.found[self.rows[name]]
        return known


class OnlineReader:
    """Reads the features of one plan from the online store."""

    def __init__(self, client: redis.Redis, plan: FeaturePlan, clock: Clock) -> None:
        self._wire = Wire(client)
        self._plan = plan
        self._clock = clock
        self._prefix = project_prefix(plan.project)
        self._views: dict[str, View | BatchView] = {view.name: view for view in plan.views}
        self._views.update({view.name: view for view in plan.batch_views})
        self._tables = {
            name: tuple((table.id, table.field) for table in (view.tables if isinstance(view, View) else (view,)))
            for name, view in self._views.items()
        }
        self._assemblies: dict[str, Assembly] = {}
        self._merges: dict[tuple[str, tuple[str, ...] | None], list[merge.Merge]] = {}

    def read_matrix(
        self,
        service: str,
        entities: Entities,
        at: int | None = None,
        request: Mapping[str, NDArray[Any]] | None = None,
        *,
        held: Entity | None = None,
        known: Mapping[str, ViewRead] | None = None,
    ) -> Matrix:
        """Features of a service for rows of entities, in one round trip, or none where an entity holds them all.

        Parameters
        ----------
        entities
            Join key to one value a row, all of the same length.
        at
            Epoch ms; by default now, or just after the entity's newest event if that is later.
        request : each (n_rows,)
            Inputs of request-time features.
        held
            Answers for what is stored under it.
        known
            Views that have been read, of each row's entity.

        Raises
        ------
        DataError
            A join key of the service is missing.
        NotAnswerableError
            ``at`` is at or before an entity's newest folded event.
        UnavailableError
            The store does not answer.
        """
        n = len(next(iter(entities.values()), ()))
        assembly = self._assembly(service)
        known = {} if known is None else known
        keys, rows = self._distinct([name for name in assembly.needed if name not in known], entities)
        reads = {**self.read_views(keys, at, held, assembly.needed), **known}
        rows |= dict.fromkeys(known, np.arange(n))
        now = self._clock.now_ms() if at is None else at
        columns = {}
        for view, features in assembly.needed.items():
            for feature in features:
                columns[view, feature] = _of_rows(_scalars(view, feature, reads[view]), rows[view])
        inputs = {REQUEST_TIME: np.full(n, now, np.int64), **(request or {})}
        return Matrix(assembly.matrix(columns, inputs, n), assembly.names, now, reads, rows)

    def _assembly(self, service: str) -> Assembly:
        if service not in self._assemblies:
            self._assemblies[service] = Assembly(self._plan, service)
        return self._assemblies[service]

    def read_entity(self, join_key: str, value: str) -> Entity:
        """Read all that is stored under an entity, in one round trip."""
        owner = entity_key(self._prefix, join_key, value)
        return Entity.of(join_key, value, self._wire.strings(pack((b"HGETALL", owner)), owner))

    def read_views(
        self,
        keys: Mapping[str, Sequence[Key]],
        at: int | None = None,
        held: Entity | None = None,
        features: Mapping[str, Collection[str]] | None = None,
    ) -> dict[str, ViewRead]:
        """Read several views for their own distinct entities, in one round trip.

        Parameters
        ----------
        held
            Answers for what is stored under it; nothing else is asked for.
        features
            By view, the windowed ones that are wanted; all by default.
        """
        replies = self._replies([self._wanted(name, wanted) for name, wanted in keys.items()], held)
        now = self._clock.now_ms()
        reads = {}
        for name in keys:
            view = self._view(name)
            if isinstance(view, View):
                wanted = None if features is None else features[name]
                reads[name] = self._windowed(view, keys[name], replies, now, at, wanted)
            else:
                reads[name] = _ready_made(view, keys[name], replies[name, view.id], now, at)
        return reads

    def read_rows(self, view: BatchView, keys: Sequence[Key]) -> list[tuple[int, list[Any]] | None]:
        """Event time (epoch ms) and values now of each key's row, as exact as they were written; texts are bytes.

        ``None`` where there is no row within the view's ttl.
        """
        blobs = fetch(self._wire, self._prefix, [self._wanted(view.name, keys)])[view.name, view.id].listed()
        rows = [None if blob is None else codec.decode_row(view, blob) for blob in blobs]
        event = np.array([-1 if row is None else row[0] for row in rows], np.int64)
        found = _within_ttl(view, event, np.maximum(self._clock.now_ms(), event))
        return [(row[0], row[2]) if row is not None and ok else None for row, ok in zip(rows, found, strict=True)]

    def partners(self, view: str, held: Entity) -> Keys:
        """Keys of a view that are stored under its first entity, such as every item a user had, in no order."""
        found = self._view(view)
        return held.partners(self._tables[view][0][1], len(found.join_keys))

    def _replies(self, wanted: Sequence[Wanted], held: Entity | None) -> Mapping[tuple[str, str], Blobs]:
        if held is None:
            return fetch(self._wire, self._prefix, wanted)
        here = [held.holds(one.join_keys, one.keys) for one in wanted]
        found = dict(fetch(self._wire, self._prefix, list(compress(wanted, np.invert(here)))))
        for one in compress(wanted, here):
            found |= {(one.view, table): blobs for table, blobs in held.blobs(one.tables, one.keys).items()}
        return found

    def _distinct(
        self, wanted: Sequence[str], entities: Entities
    ) -> tuple[dict[str, Sequence[Key]], dict[str, NDArray[np.intp]]]:
        keys: dict[str, Sequence[Key]] = {}
        rows: dict[str, NDArray[np.intp]] = {}
        done: dict[Key, tuple[Sequence[Key], NDArray[np.intp]]] = {}
        for name in wanted:
            view = self._view(name)
            missing = [key for key in view.join_keys if key not in entities]
            if missing:
                raise DataError(f"{name}: join key {missing[0]!r} is missing. Pass {', '.join(view.join_keys)}.")
            if view.join_keys not in done:
                done[view.join_keys] = _factorise([entities[join_key] for join_key in view.join_keys])
            keys[name], rows[name] = done[view.join_keys]
        return keys, rows

    def _view(self, name: str) -> View | BatchView:
        stored = self._views.get(name) or self._plan.view(name)
        assert not isinstance(stored, OnDemandView)
        return stored

    def _wanted(self, name: str, keys: Sequence[Key]) -> Wanted:
        return Wanted(name, self._view(name).join_keys, self._tables[name], keys)

    def _windowed(
        self,
        view: View,
        keys: Sequence[Key],
        replies: Mapping[tuple[str, str], Blobs],
        now: int,
        at: int | None,
        features: Collection[str] | None,
    ) -> ViewRead:
        tables = [(table, replies[view.name, table.id]) for table in view.tables]
        newest = codec.newest([blobs for _, blobs in tables])
        if at is not None and bool((newest >= at).any()):
            worst = int(np.argmax(newest))
            raise NotAnswerableError(
                f"{view.name} of {', '.join(keys[worst])}: at={at} is at or before its newest folded event "
                f"{int(newest[worst])}, and the online store holds now only. Ask for a later instant, or use "
                "get_historical_features for the past."
            )
        instants = np.maximum(now, newest + 1) if at is None else np.full(len(keys), at, np.int64)
        found = newest >= (0 if view.ttl_ms == 0 else instants - view.ttl_ms)
        found &= newest >= 0
        values: dict[str, Values] = {}
        marks: dict[str, merge.TellMarks] = {}
        for merging, (table, blobs) in zip(self._merges_of(view, features), tables, strict=True):
            merged, marks[table.id] = merging.of(blobs, instants, found)
            values.update(merged)
        return ViewRead(values, found, instants, newest, keys, marks)

    def _merges_of(self, view: View, features: Collection[str] | None) -> list[merge.Merge]:
        """How each table of a view gives some of its features, all by default."""
        asked = (view.name, None if features is None else tuple(features))
        if asked not in self._merges:
            wanted = [one for one in view.aggregates if features is None or one.feature in features]
            self._merges[asked] = [
                merge.Merge(table, [one for one in wanted if one.table == table.id]) for table in view.tables
            ]
        return self._merges[asked]


def _factorise(columns: Sequence[Sequence[str]]) -> tuple[Sequence[Key], NDArray[np.intp]]:
    """Distinct keys in order of appearance, and the place of each row's key among them."""
    n = len(columns[0])
    varies = [not n or column.count(column[0]) < n for column in columns]
    varying = list(compress(columns, varies))
    if not varying:
        return Keys([column[:1] for column in columns]), np.zeros(n, np.intp)
    keys: Sequence[Any] = varying[0] if len(varying) == 1 else list(zip(*varying, strict=True))
    if len(set(keys)) == n:
        return Keys(columns), np.arange(n)
    place = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    rows = np.fromiter(map(place.__getitem__, keys), np.intp, n)
    distinct = iter([list(place)] if len(varying) == 1 else list(zip(*place, strict=True)))
    told = zip(columns, varies, strict=True)
    return Keys([next(distinct) if other else [column[0]] * len(place) for column, other in told]), rows


def _of_rows(values: Floats, rows: NDArray[np.intp]) -> Floats:
    """Values of distinct entities for each row, whose places among them are given."""
    if len(values) == 1:
        return values.repeat(len(rows))
    return values if len(values) == len(rows) else values[rows]


def _ready_made(view: BatchView, keys: Sequence[Key], blobs: Blobs, now: int, at: int | None) -> ViewRead:
    columns: dict[str, Values] = {}
    if codec.is_fixed(view):
        event, floats = codec.decode_rows(view, blobs)
        instants = _instants(view, keys, event, now, at)
        found = _within_ttl(view, event, instants)
        if not found.all():
            for column in floats.values():
                column[~found] = np.nan
        columns.update(floats)
        return ViewRead(columns, found, instants, event, keys)
    rows = [None if blob is None else codec.decode_row(view, blob) for blob in blobs.listed()]
    event = np.array([-1 if row is None else row[0] for row in rows], np.int64)
    instants = _instants(view, keys, event, now, at)
    found = _within_ttl(view, event, instants)
    for index, name in enumerate(view.features):
        raw = [row[2][index] if row is not None and ok else None for row, ok in zip(rows, found, strict=True)]
        texts = any(isinstance(value, bytes) for value in raw)
        columns[name] = (
            [None if value is None else [value] for value in raw]
            if texts
            else np.array([np.nan if value is None else value for value in raw], np.float64)
        )
    return ViewRead(columns, found, instants, event, keys)


def _instants(view: BatchView, keys: Sequence[Key], event: Ints, now: int, at: int | None) -> Ints:
    """The instant of each row: now, or the row's own if its clock runs ahead; only the newest row is held."""
    if at is None:
        return np.maximum(now, event)
    if bool((event > at).any()):
        worst = int(np.argmax(event))
        raise NotAnswerableError(
            f"{view.name} of {', '.join(keys[worst])}: at={at} is before its newest row, {int(event[worst])}, and the "
            "online store holds now only. Ask for a later instant, or use get_historical_features for the past."
        )
    return np.full(len(event), at, np.int64)


def _within_ttl(view: BatchView, event: Ints, at: Ints) -> NDArray[np.bool_]:
    return (event >= 0) if view.ttl_ms == 0 else (event >= np.maximum(0, at - view.ttl_ms))


def _scalars(view: str, feature: str, read: ViewRead) -> Floats:
    values = read.values[feature]
    if isinstance(values, list):
        raise DataError(f"{view}:{feature} is a list and has no place in a matrix. Take it out of the service.")
    return values
