"""Plain Avro records, without a schema registry, as the JSON records that they tell: one table of rules judges both.

The stream job and the archive both decode here, with fastavro, so that no record counts for one of them alone. A
logical type is read as the type that carries it: a ``timestamp-millis`` is a ``long`` of epoch milliseconds.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import SchemaParseException, UnknownType

from headwater.errors import DefinitionError

MAP = "map<string,string>"
_KINDS = {"string": "string", "enum": "string", "long": "bigint", "int": "int", "double": "double", "float": "double",
          "boolean": "boolean"}  # fmt: skip
_OTHER_CLOCKS = ("timestamp-micros", "timestamp-nanos", "local-timestamp-micros", "local-timestamp-nanos")


def read_schema(source: str, text: str, event_time: str) -> tuple[str, dict[str, str]]:
    """Return a record's schema without logical types, and its fields that can be columns with their types.

    A field can be one whose type, but for null, is a string, an enum, a number, a boolean or a map of strings. Others
    are decoded and left.

    Raises
    ------
    DefinitionError
        The text is no Avro schema of a record, or its event time does not count milliseconds.
    """
    try:
        declared = json.loads(text)
        parse_schema(json.loads(text))
        fields = declared["fields"]
    except (ValueError, KeyError, TypeError, SchemaParseException, UnknownType) as error:
        reason = f"{type(error).__name__} {str(error)[:120]}"
        raise DefinitionError(
            f"{source}: schema_json is not the Avro schema of a record, {reason}. Give AvroFormat the record's schema."
        ) from None
    for field in fields:
        if field["name"] == event_time and (clock := _logical_type(field["type"])) in _OTHER_CLOCKS:
            raise DefinitionError(f"{source}: {event_time} is a {clock}. Send timestamp-millis, or a long of them.")
    kinds = {field["name"]: _kind(_physical(field["type"])) for field in fields}
    return json.dumps(_physical(declared)), {name: kind for name, kind in kinds.items() if kind is not None}


def decoder(schema: str, columns: tuple[str, ...]) -> Callable[[bytes], bytes | None]:
    """Return what reads one record's columns into JSON; ``None`` for bytes that are not one record and nothing else."""
    parsed = _parsed(schema)

    def decode(raw: bytes) -> bytes | None:
        stream = BytesIO(raw)
        try:
            record: Any = schemaless_reader(stream, parsed, None)
            if stream.tell() != len(raw):
                return None
            told = {name: record[name] for name in columns}
            return json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except Exception:  # whatever the bytes make of the decoder, they are no record
            return None

    return decode


def encode(schema: str, values: Mapping[str, Any]) -> bytes:
    """Write a record.

    Raises
    ------
    ValueError
        The schema asks for what the values do not have.
    """
    stream = BytesIO()
    try:
        schemaless_writer(stream, _parsed(schema), dict(values))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(str(error)) from None
    return stream.getvalue()


@lru_cache(maxsize=64)
def _parsed(schema: str) -> Any:
    return parse_schema(json.loads(schema))


def _physical(schema: Any) -> Any:
    """Leave out logical types, with what belongs to them."""
    if isinstance(schema, list):
        return [_physical(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _physical(held) for name, held in schema.items() if name not in ("logicalType", "doc")}


def _logical_type(schema: Any) -> str | None:
    options = schema if isinstance(schema, list) else [schema]
    return next((one["logicalType"] for one in options if isinstance(one, dict) and "logicalType" in one), None)


def _kind(schema: Any) -> str | None:
    if isinstance(schema, list):
        given = [one for one in schema if one != "null"]
        return _kind(given[0]) if len(given) == 1 else None
    name = schema["type"] if isinstance(schema, dict) else schema
    if name == "map":
        return MAP if _kind(schema["values"]) == "string" and not isinstance(schema["values"], list) else None
    return _KINDS.get(name) if isinstance(name, str) else _kind(name)
