r"""From the bytes on a topic to the events that count, in Flink SQL.

The rules are those of :mod:`headwater.events` for the platform's envelope and of :mod:`headwater.records` for any other
topic, once more.

Flink's JSON format reads 5 as the text "5", "12" as the number 12 and two objects as the first of them, so the stream
would fold what the archive refuses. Here a record is parsed into a VARIANT and each field is taken as the JSON text
that it is, from which its type is plain: a text begins with a quote.

``CROSS JOIN UNNEST(ARRAY[x]) AS t(y)`` computes x once. Flink writes an expression out wherever it is used, so that a
record would else be parsed anew for each of its fields.
"""

from collections.abc import Mapping, Sequence

from headwater.avro import MAP
from headwater.events import EVENT_SCHEMA, EVENT_TYPE_PATTERN, MAX_ABS_VALUE
from headwater.plan import Source
from headwater.records import ENVELOPE, INTEGERS, is_envelope

_TYPES = {"string": "STRING", "bigint": "BIGINT", "int": "INT", "double": "DOUBLE", "boolean": "BOOLEAN"}
_BACKSLASH, _QUOTE, _LOST = "\\", '"', "\ufffd"
_END = '"hw_end"'
"""Put behind a record's object, as the second element of a list of two."""
_SPACE = r"[ \t\n\r]*"
_OBJECT = rf"^{_SPACE}\{{[\s\S]*\}}{_SPACE}$"
_FRACTION = rf'"(event_time|position)"{_SPACE}:{_SPACE}-?[0-9]+[.eE]'
_ESCAPE = r"(?<!\\)(?:\\\\)*\\u[dD]"
"""Of a surrogate: a backslash that is not itself escaped."""
_HALF_PAIR = (
    rf"{_ESCAPE}[89abAB][0-9a-fA-F]{{2}}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{{2}}){_ESCAPE}[c-fC-F]"
)
assert list(ENVELOPE) == EVENT_SCHEMA.names


def columns_of(source: Source) -> dict[str, str]:
    """Names and types that may be read of a source."""
    declared = dict(source.columns)
    return {**declared, **ENVELOPE} if is_envelope(source) else declared


def kafka_table(table: str, topic: str, bootstrap: str, group: str) -> str:
    """Declare a topic as a table of undecoded records."""
    options = {
        "connector": "kafka", "topic": topic, "properties.bootstrap.servers": bootstrap,
        "properties.group.id": group, "scan.startup.mode": "earliest-offset", "key.format": "raw",
        "key.fields": "hw_key", "value.format": "raw", "value.fields-include": "EXCEPT_KEY",
    }  # fmt: skip
    listed = ", ".join(f"{text(key)} = {text(value)}" for key, value in options.items())
    return (
        f"CREATE TEMPORARY TABLE `{table}` (`hw_key` BYTES, `hw_value` BYTES, "
        f"`hw_timestamp` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp') WITH ({listed})"
    )


def parsed(table: str, source: Source, entries: Sequence[tuple[str, str]], max_event_bytes: int | None) -> str:
    """Take each field of a record as JSON text; an absent field is NULL, a null one the text ``null``.

    Parameters
    ----------
    entries
        (map column, key) for each entry of a map that some view reads; it becomes the column ``column.key``.
    max_event_bytes
        Length above which a record is not read; ``None`` where that has been seen to.
    """
    fields = {column: f"JSON_STRING({_field(column)})" for column in columns_of(source)}
    held = {entry(column, key): _entry_of(column, key) for column, key in entries}
    decoded = "DECODE(`hw_value`, 'UTF-8')"
    if max_event_bytes is not None:
        decoded = f"CASE WHEN {_bytes('`hw_value`')} <= {max_event_bytes} THEN {decoded} END"
    lossless = f"(d.`text` NOT LIKE '%{_LOST}%' OR ENCODE(d.`text`, 'UTF-8') = r.`hw_value`)"
    # By itself, what follows an object would be ignored. Here it is an error, or the end is not where it was put.
    is_object = f"{_regexp('d.`text`', _OBJECT)} AND {lossless}"
    end = text(f",{_END}]")
    variant = f"CASE WHEN {is_object} THEN TRY_PARSE_JSON('[' || d.`text` || {end}, TRUE) END"
    whole = f"JSON_STRING(p.`j`[2]) = {text(_END)}"
    whole += f" AND NOT {_regexp('d.`text`', _HALF_PAIR)}"
    if is_envelope(source):
        whole += f" AND NOT {_regexp('d.`text`', _FRACTION)}"
    ingest = "EXTRACT(EPOCH FROM r.`hw_timestamp`) * 1000 + EXTRACT(MILLISECOND FROM r.`hw_timestamp`)"
    taken = _once(fields, "f") + (_once(held, "g") if held else "")
    columns = "f.*, g.*" if held else "f.*"
    return (
        f"SELECT {columns}, d.`hw_ingest`, (r.`hw_key` IS NOT NULL AND {_bytes('r.`hw_key`')} > 0) AS `hw_keyed` "
        f"FROM `{table}` AS r{_once({'text': decoded, 'hw_ingest': ingest}, 'd')}{_once({'j': variant}, 'p')}{taken} "
        f"WHERE {whole}"
    )


def clean(view: str, source: Source, needed: Sequence[str], max_clock_skew_ms: int, horizon_ms: int | None) -> str:
    """Keep the records that count, their fields typed, a sender's lead over the arrival cut.

    Parameters
    ----------
    needed
        Columns to keep, entries of maps as ``column.key``.
    """
    kinds = columns_of(source)
    at, ingest = value(source.event_time, "bigint"), "`hw_ingest`"
    rules = [*(_is_filled(column) for column in (source.event_id, source.key)), f"{at} >= 0"]
    rules.append(f"{at} - {ingest} <= {max_clock_skew_ms}")
    if horizon_ms is not None:
        rules.append(f"{ingest} - {at} <= {horizon_ms}")
    rules += _envelope_rules() if is_envelope(source) else _column_rules(source)
    typed = {column: value(column, kinds.get(column, "string")) for column in needed}
    typed |= {"hw_ingest": ingest, "hw_time": f"LEAST({at}, {ingest})", "hw_id": _identifier(source, kinds)}
    typed["hw_md5"] = f"MD5({typed['hw_id']})"
    if source.event_time in needed:
        typed[source.event_time] = typed["hw_time"]
    columns = ", ".join(f"{expression} AS {name(column)}" for column, expression in typed.items())
    return f"SELECT {columns} FROM `{view}` WHERE {' AND '.join(rules)}"


def value(column: str, kind: str) -> str:
    """Type a field that is JSON text; what is of another type is NULL."""
    quoted = name(column)
    if kind == "string":  # few texts hold an escape, and only for those is the JSON parser needed
        plain = f"{quoted} LIKE '\"%' AND POSITION('{_BACKSLASH}' IN {quoted}) = 0"
        return (
            f"CASE WHEN {plain} THEN SUBSTRING({quoted}, 2, CHAR_LENGTH({quoted}) - 2) "
            f"WHEN {quoted} <> 'null' THEN JSON_UNQUOTE({quoted}) END"
        )
    return quoted if kind == MAP else f"TRY_CAST({quoted} AS {_TYPES[kind]})"


def entry(column: str, key: str) -> str:
    """Name the column of one entry of a map."""
    return f"{column}.{key}"


def name(column: str) -> str:
    """Quote an identifier."""
    return "`" + column.replace("`", "``") + "`"


def text(value: str) -> str:
    """Quote a literal."""
    return "'" + value.replace("'", "''") + "'"


def _identifier(source: Source, kinds: Mapping[str, str]) -> str:
    """Return the event id as text, an integer in its digits."""
    kind = kinds[source.event_id]
    typed = value(source.event_id, kind)
    return typed if kind == "string" else f"CAST({typed} AS STRING)"


def _column_rules(source: Source) -> list[str]:
    """Every declared column is null or of its type."""
    rules = {
        column: f"({name(column)} IS NULL OR {name(column)} = 'null' OR {_is_of(column, kind)})"
        for column, kind in source.columns
    }
    return list(rules.values())


def _is_of(column: str, kind: str) -> str:
    if kind == "string":
        return f"{name(column)} LIKE '\"%'"
    if kind == "double":
        return f"ABS({value(column, kind)}) <= {MAX_ABS_VALUE!r}E0"
    if kind == "boolean":
        return f"{name(column)} IN ('true', 'false')"
    if kind in INTEGERS:  # a fraction of zeros is left out by the parser, an exponent is written as a fraction
        return f"({_regexp(name(column), '^-?[0-9]+$')} AND {value(column, kind)} IS NOT NULL)"
    return _is_map_of_texts(column)


def _is_map_of_texts(column: str) -> str:
    """Tell an object whose values are all texts, by what is left of it without them."""
    unescaped = f"REPLACE(REPLACE({name(column)}, {text(_BACKSLASH * 2)}, ''), {text(_BACKSLASH + _QUOTE)}, '')"
    return _regexp(f"""REGEXP_REPLACE({unescaped}, '"[^"]*"', 's')""", r"^\{[s:,]*\}$")


def _envelope_rules() -> list[str]:
    given = {column: f"({name(column)} IS NULL OR {name(column)} = 'null' OR {{}})" for column in ENVELOPE}
    texts = [column for column, kind in ENVELOPE.items() if kind == "string"]
    return [
        "`hw_keyed`",
        *(given[column].format(f"{name(column)} LIKE '\"%'") for column in texts),
        *(f"{name(column)} LIKE '\"%'" for column in ("event_id", "event_type", "user_id")),
        _regexp(value("event_type", "string"), f"^{EVENT_TYPE_PATTERN}$"),
        given["position"].format(f"{value('position', 'int')} IS NOT NULL"),
        given["value"].format(f"ABS({value('value', 'double')}) <= {MAX_ABS_VALUE!r}E0"),
        given["context"].replace("{}", _is_map_of_texts("context")),
    ]


def _field(column: str) -> str:
    return f"p.`j`[1][{text(column)}]"


def _entry_of(column: str, key: str) -> str:
    """Take an entry of what is an object; to look for one in anything else is an error, and ends the job."""
    return f"CASE WHEN f.{name(column)} LIKE '{{%' THEN JSON_STRING({_field(column)}[{text(key)}]) END"


def _once(columns: Mapping[str, str], alias: str) -> str:
    """Compute columns once, to be used by name any number of times."""
    return f" CROSS JOIN UNNEST(ARRAY[ROW({', '.join(columns.values())})]) AS {alias}({', '.join(map(name, columns))})"


def _is_filled(column: str) -> str:
    return f"{name(column)} NOT IN ('null', '\"\"')"


def _bytes(column: str) -> str:
    return f"CHAR_LENGTH(DECODE({column}, 'ISO-8859-1'))"


def _regexp(expression: str, pattern: str) -> str:
    return f"REGEXP({expression}, {text(pattern)})"
