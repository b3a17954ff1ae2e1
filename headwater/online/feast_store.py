"""Feast's view of the online store: ``type: headwater.online.feast_store.HeadwaterOnlineStore``.

Feast's own calls (``apply``, ``materialize``, ``get_online_features``, ``serve``) work on the bytes that the stream
writes and the server reads. Ready-made views are written through it; windowed views are written by the stream and the
backfill alone.
"""

import atexit
import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import redis
from feast import Entity, FeatureView, RepoConfig, StreamFeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import python_values_to_proto_values

from headwater.clock import StoredClock
from headwater.errors import DefinitionError, HeadwaterError
from headwater.online import codec
from headwater.online.connect import connect
from headwater.online.cuts import cuts_key
from headwater.online.keys import Key, project_prefix
from headwater.online.reader import OnlineReader, Values, ViewRead
from headwater.online.writer import OnlineWriter
from headwater.plan import BatchView, FeaturePlan, View
from headwater.registry.compile import (
    check_sources,
    compile_batch_view,
    compile_repo,
    compile_source,
    compile_view,
)
from headwater.settings import addresses, get_settings

Row = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]
Read = tuple[datetime | None, dict[str, ValueProto] | None]


class HeadwaterOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # feast is untyped
    """``connection_string`` is a Redis URL; by default the local runtime's, or ``HEADWATER_REDIS``."""

    type: Literal["headwater.online.feast_store.HeadwaterOnlineStore"] = (
        "headwater.online.feast_store.HeadwaterOnlineStore"
    )
    connection_string: str | None = None


@lru_cache(maxsize=8)
def _client(url: str) -> redis.Redis:
    return connect(url)


class HeadwaterOnlineStore(OnlineStore):  # type: ignore[misc]  # feast is untyped
    """Packed, versioned values on Redis or Valkey; see :mod:`headwater.online.codec`."""

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write ready-made rows; the newer by event time, then created time, stays.

        Raises
        ------
        DefinitionError
            The view is windowed: its values come from events, never from outside.
        """
        view = _compile(table)
        if isinstance(view, View):
            raise DefinitionError(
                f"{table.name}: a windowed view takes no ready-made values, since they could not equal its definition. "
                f"Send events to topic {compile_source(table.to_proto().spec).topic}, or run headwater backfill."
            )
        keys = [_key(entity, view.join_keys) for entity, *_ in data]
        rows = [_encode(view, values, event, created) for _, values, event, created in data]
        OnlineWriter(_connect(config), config.project).write_rows(view, keys, rows)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[Read]:
        """Values now; ``(None, None)`` for an entity with no event within the view's ttl."""
        if not entity_keys:
            return []
        view = _compile(table)
        keys = [_key(entity, view.join_keys) for entity in entity_keys]
        client = _connect(config)
        reader = OnlineReader(client, _plan_of(config.project, view), StoredClock(client))
        wanted = requested_features or list(view.features)
        if isinstance(view, View):
            return _windowed(table, wanted, reader.read_views({view.name: keys})[view.name])
        return [
            (None, None) if row is None else (_instant(row[0]), _row(table, view, wanted, row[1]))
            for row in reader.read_rows(view, keys)
        ]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Refuse what cannot be compiled exactly, before the registry commits; drop the bytes of removed views.

        Raises
        ------
        DefinitionError
            A view cannot be compiled; it names the view, the field, the reason and the remedy.
        """
        for table in tables_to_keep:
            _compile(table)
        windowed = (table for table in tables_to_keep if isinstance(table, StreamFeatureView))
        check_sources(compile_source(table.to_proto().spec) for table in windowed)
        # Feast commits its registry after this returns, so the plan is compiled as the process ends; where that does
        # not happen, the next command that needs it does.
        atexit.register(_save_manifest, Path(config.repo_path or "."))
        if tables_to_delete:
            OnlineWriter(_connect(config), config.project).drop(
                [field for table in tables_to_delete for field in _fields(_compile(table))]
            )

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Delete every key of this project, and of no other."""
        client = _connect(config)
        for key in client.scan_iter(match=project_prefix(config.project) + b"*", count=1000):
            client.unlink(key)
        client.unlink(cuts_key(config.project))


def _save_manifest(repo: Path) -> None:
    with contextlib.suppress(HeadwaterError):
        compile_repo(repo).save(repo / "data" / "manifest.json")


def _connect(config: RepoConfig) -> redis.Redis:
    return _client(config.online_store.connection_string or addresses(get_settings()).redis)


def _compile(table: FeatureView) -> View | BatchView:
    spec = table.to_proto().spec
    join_keys = dict(zip(table.entities, table.join_keys, strict=False))
    if isinstance(table, StreamFeatureView):
        return compile_view(spec, join_keys)
    return compile_batch_view(spec, join_keys)


def _fields(view: View | BatchView) -> list[bytes]:
    return [table.field for table in view.tables] if isinstance(view, View) else [view.field]


def _plan_of(project: str, view: View | BatchView) -> FeaturePlan:
    """Wrap one view as a plan, for the reader."""
    windowed, ready = ((view,), ()) if isinstance(view, View) else ((), (view,))
    return FeaturePlan(
        project=project,
        registry_sha256="",
        repo="",
        sources=(),
        views=windowed,
        batch_views=ready,
        on_demand=(),
        services=(),
    )


def _key(entity: EntityKeyProto, join_keys: Sequence[str]) -> Key:
    """Values in the view's order, whatever the request's; ids are strings at every edge."""
    held = dict(zip(entity.join_keys, entity.entity_values, strict=True))
    values = (getattr(held[key], str(held[key].WhichOneof("val"))) for key in join_keys)
    return tuple(value.hex() if isinstance(value, bytes) else str(value) for value in values)


def _encode(view: BatchView, values: dict[str, ValueProto], event: datetime, created: datetime | None) -> bytes:
    row = [_plain(values.get(column.name)) for column in view.columns]
    return codec.encode_row(view, _epoch_ms(event), _epoch_ms(event if created is None else created), row)


def _plain(value: ValueProto | None) -> Any:
    which = None if value is None else value.WhichOneof("val")
    if value is None or which is None or which == "null_val":
        return None
    plain = getattr(value, which)
    return plain if isinstance(plain, bool | int | float) else value.SerializeToString()


def _epoch_ms(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)


def _instant(epoch_ms: int) -> datetime:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC)


def _row(table: FeatureView, view: BatchView, wanted: Sequence[str], values: Sequence[Any]) -> dict[str, ValueProto]:
    """Protos of a ready-made row: what is not packed as a number is one already."""
    held = dict(zip(view.features, values, strict=True))
    return {
        name: ValueProto() if held[name] is None else ValueProto.FromString(held[name])
        if isinstance(held[name], bytes) else _proto(_type(table, name), held[name])
        for name in wanted
    }  # fmt: skip


def _windowed(table: FeatureView, wanted: Sequence[str], read: ViewRead) -> list[Read]:
    columns = {name: _column(_type(table, name), read.values[name]) for name in wanted}
    return [
        (_instant(int(newest)), {name: column[at] for name, column in columns.items()}) if found else (None, None)
        for at, (found, newest) in enumerate(zip(read.found, read.newest, strict=True))
    ]


def _column(dtype: Any, values: Values) -> list[ValueProto]:
    if isinstance(values, list):
        return list(python_values_to_proto_values(values, dtype))
    return [ValueProto() if value != value else _proto(dtype, value) for value in values.tolist()]


def _type(table: FeatureView, name: str) -> Any:
    return next(field.dtype for field in table.features if field.name == name).to_value_type()


def _proto(dtype: Any, value: float) -> ValueProto:
    """A number as the feature's declared type."""
    convert: type = bool if dtype.name == "BOOL" else float if dtype.name in ("FLOAT", "DOUBLE") else int
    (proto,) = python_values_to_proto_values([convert(value)], dtype)
    return cast(ValueProto, proto)
