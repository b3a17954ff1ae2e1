"""Who is to be forgotten, since when, and up to which record of each topic: the tombstones of ``headwater forget``.

A tombstone lies in two places, each read where the other cannot be: in the online store, for the stream's sinks
wherever they run, and in a file of the archive, for the archive writer and for a stream that begins with fresh state.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
import sqlglot
from sqlglot import exp

from headwater.files import write_whole
from headwater.plan import FeaturePlan, Source
from headwater.records import ENVELOPE, is_envelope

FILE = "_forgotten.json"
_VERSION = b"version"
"""A field of the store's hash that no entity has, since their names have an equals sign."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One entity: records before ``ends`` (topic, partition, next offset) are not its own any more.

    ``at_ms`` is the instant of forgetting on the platform's clock.
    """

    join_key: str
    value: str
    at_ms: int
    ends: Mapping[str, Mapping[int, int]]

    @property
    def name(self) -> str:
        return f"{self.join_key}={self.value}"

    def covers(self, topic: str, partition: int, offset: int) -> bool:
        """Whether a record is forgotten; all that was imported is."""
        return partition < 0 or offset < self.ends.get(topic, {}).get(partition, 0)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Tombstone":
        """Read one that JSON has kept, whose keys are texts."""
        ends = {topic: {int(number): end for number, end in parts.items()} for topic, parts in told["ends"].items()}
        return cls(told["join_key"], told["value"], told["at_ms"], ends)


def read_tombstones(archive: Path) -> tuple[Tombstone, ...]:
    """Tombstones of an archive, in the order of their names."""
    try:
        told = json.loads((archive / FILE).read_text())
    except FileNotFoundError:
        return ()
    return tuple(Tombstone.of(one) for one in told)


def save_tombstone(archive: Path, tombstone: Tombstone) -> None:
    """Add one to an archive's file; of two for one entity the later stays."""
    held = {one.name: one for one in read_tombstones(archive)} | {tombstone.name: tombstone}
    write_whole(archive / FILE, json.dumps([asdict(held[name]) for name in sorted(held)]))


class StoredTombstones:
    """Tombstones of a project in the online store: a hash by name, with a number that grows with each change."""

    def __init__(self, client: redis.Redis, project: str) -> None:
        self._client: Any = client
        self._key = f"hw1:forgotten:{project}"

    def save(self, tombstone: Tombstone) -> None:
        """Add one; of two for one entity the later stays."""
        self._client.hset(self._key, tombstone.name, json.dumps(asdict(tombstone)))
        self._client.hincrby(self._key, _VERSION, 1)

    def version(self) -> int:
        """Another number means that there is something new."""
        return int(self._client.hget(self._key, _VERSION) or 0)

    def read(self) -> tuple[Tombstone, ...]:
        """All of them."""
        held = self._client.hgetall(self._key)
        return tuple(Tombstone.of(json.loads(told)) for name, told in held.items() if name != _VERSION)


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """Where a source holds a join key: a column, or an entry of a map."""

    column: str
    entry: str | None = None


def key_columns(plan: FeaturePlan, source: Source, join_key: str) -> frozenset[KeyColumn]:
    """Every place of a source in which its views find a join key, and the column of that very name."""
    found = {_plain(expression) for expression in _expressions(plan, source, join_key)} - {None}
    columns = {**dict(source.columns), **(ENVELOPE if is_envelope(source) else {})}
    own = {KeyColumn(join_key)} if join_key in columns else set()
    return frozenset(own | {column for column in found if column is not None})


def computed_in(plan: FeaturePlan, join_key: str) -> tuple[str, ...]:
    """Views that compute a join key of what its source holds, so that no column tells whose a record is."""
    return tuple(
        view.name
        for view in plan.views
        if join_key in view.join_keys and _plain(_expression(view.projection, join_key)) is None
    )


def join_keys_of(plan: FeaturePlan) -> tuple[str, ...]:
    """All join keys of a plan, in the order of its views."""
    views: Sequence[Any] = (*plan.views, *plan.batch_views)
    return tuple(dict.fromkeys(key for view in views for key in view.join_keys))


def _expressions(plan: FeaturePlan, source: Source, join_key: str) -> Iterable[exp.Expression]:
    for view in plan.views:
        if view.source == source.name and join_key in view.join_keys:
            yield _expression(view.projection, join_key)


def _expression(projection: str, name: str) -> exp.Expression:
    tree = sqlglot.parse_one(projection, read="spark")
    return next(item.unalias() for item in tree.expressions if item.alias_or_name == name)


def _plain(expression: exp.Expression) -> KeyColumn | None:
    """The place that an expression is, ``None`` where it is more than that."""
    if isinstance(expression, exp.Cast) and expression.to.this == exp.DataType.Type.TEXT:
        expression = expression.this
    if isinstance(expression, exp.Column):
        return KeyColumn(expression.name)
    if isinstance(expression, exp.Bracket) and isinstance(expression.this, exp.Column):
        return KeyColumn(expression.this.name, expression.expressions[0].name)
    return None
