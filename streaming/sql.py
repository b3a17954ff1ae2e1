"""A feature plan as Flink SQL: one linear job, whatever the number of views.

For each source ``kafka topic → clean → first of each event id → one row for each table that folds the event``; then,
for all sources together, ``GROUP BY table, keys, tile`` and one crossing into Python at the sink.

An event is fanned out with ``UNNEST`` of an array of rows, one a table, not with a UNION of one query a table: Flink
pushes each query's columns below the deduplication, so a UNION would keep its state, and its work, once a table.
Nothing here imports Flink; every text can be read with ``headwater stream plan``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import sqlglot
from sqlglot import exp, generator, tokens
from sqlglot.dialects.dialect import Dialect

from headwater.errors import DefinitionError
from headwater.events import MAX_ABS_VALUE, EventLimits
from headwater.online.codec import EMPTY_MAX, EMPTY_MIN
from headwater.plan import ColumnKind, FeaturePlan, Partial, Source, Table, View
from headwater.registry.projection import guard_casts
from streaming import reading
from streaming.reading import RecordReader
from streaming.reading import name as _name

TIME_DIGITS = 19
"""Of an event time in a list entry: int64, zero-padded, so that texts sort as numbers do."""
ID_DIGITS = 5
"""Of the length of the event id, which closes a list entry."""
_FOLDS = {"sum": "SUM", "count": "COUNT", "min": "MIN", "max": "MAX", "sumsq": "SUM"}
"""What folds a tile's values; squares are summed as ``DECIMAL(38, 0)``."""


class Flink(Dialect):  # type: ignore[misc]
    """The projection's portable subset as Flink spells it: backticks, quotes doubled within a text."""

    class Tokenizer(tokens.Tokenizer):  # type: ignore[misc]
        """Backticks quote names."""

        IDENTIFIERS = ["`"]  # noqa: RUF012

    class Generator(generator.Generator):  # type: ignore[misc]
        """STRING is the one type of another name, and a cast that fails gives NULL."""

        TYPE_MAPPING = {  # noqa: RUF012
            **generator.Generator.TYPE_MAPPING,
            exp.DataType.Type.TEXT: "STRING",
            exp.DataType.Type.VARCHAR: "STRING",
        }
        TRANSFORMS = {  # noqa: RUF012
            **generator.Generator.TRANSFORMS,
            # A text that is no number is NULL; as an error it would end the job, again at each restart.
            exp.RegexpLike: lambda self, node: f"REGEXP({self.sql(node, 'this')}, {self.sql(node, 'expression')})",
            exp.Cast: lambda self, node: f"TRY_CAST({self.sql(node, 'this')} AS {self.sql(node, 'to')})",
        }


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Where the topics are, as whom they are read, and what bounds a record."""

    bootstrap: str
    group: str
    max_clock_skew_ms: int = 300_000
    max_event_bytes: int = 65_536


@dataclass(frozen=True)
class Target:
    """One table of the plan as the sink addresses it: by its place in ``Program.targets``."""

    view: View
    table: Table

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Projected columns whose numbers the table folds; the i-th travels as ``v<i>``."""
        return tuple(dict.fromkeys(partial.column for partial in self.table.partials if partial.column is not None))

    def name_of(self, partial: Partial) -> str:
        """Return the folded column that holds a partial, such as ``sum_0``."""
        assert partial.column is not None
        return f"{partial.kind}_{self.columns.index(partial.column)}"


@dataclass(frozen=True)
class Program:
    """The statements of a job, in order, and what the sink needs to know to read its rows."""

    plan: FeaturePlan
    targets: tuple[Target, ...]
    n_keys: int
    partials: tuple[str, ...]
    kafka: KafkaOptions

    @property
    def sink_columns(self) -> tuple[str, ...]:
        """Arguments of the sink function, in order."""
        keys = (f"k{at}" for at in range(self.n_keys))
        return ("tbl", *keys, "tile", "cnt", "newest", "ingest", "hash", *self.partials, "entries")

    @property
    def statements(self) -> tuple[str, ...]:
        """All of the job, to be read and to be compared with another."""
        readers = [
            f"-- {name} reads {reader.source.model_dump_json()} within {reader.limits}"
            for name, reader in self.readers.items()
        ]
        return (*readers, *self.views, self.insert)

    @property
    def readers(self) -> dict[str, RecordReader]:
        """Functions in Python that judge and type a source's records, by name."""
        return {f"hw_read_{number}": self._reader(source) for number, source in self._numbered}

    @property
    def views(self) -> tuple[str, ...]:
        """Tables of records, and views from them to what is folded."""
        return (*self._read(), *self._prepare())

    @property
    def insert(self) -> str:
        """Write what starts the job."""
        folded = " UNION ALL ".join(self._fold(kind) for kind in self._kinds)
        return f"INSERT INTO hw_out SELECT hw_sink({', '.join(map(_name, self.sink_columns))}) FROM ({folded})"

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Kinds of tables the plan has; each kind is folded by one operator."""
        held = {_folded_as(target.table) for target in self.targets}
        return tuple(kind for kind in ("fixed", "last", "distinct") if kind in held)

    @property
    def _sources(self) -> list[Source]:
        read = {target.view.source for target in self.targets}
        return [source for source in self.plan.sources if source.name in read]

    @property
    def _numbered(self) -> list[tuple[int, Source]]:
        return list(enumerate(self._sources))

    def _reader(self, source: Source) -> RecordReader:
        limits = EventLimits(
            self.kafka.max_event_bytes, self.kafka.max_clock_skew_ms, self.plan.horizon_ms(source.name)
        )
        return RecordReader(source, tuple(self._columns_read(source)), limits)

    def _read(self) -> Iterator[str]:
        for number, source in self._numbered:
            yield reading.kafka_table(f"hw_topic_{number}", source.topic, self.kafka.bootstrap, self.kafka.group)
            judged = reading.judged(f"hw_topic_{number}", f"hw_read_{number}")
            counted = reading.counted(f"hw_judged_{number}", tuple(self._reader(source).types))
            yield f"CREATE TEMPORARY VIEW `hw_judged_{number}` AS {judged}"
            yield f"CREATE TEMPORARY VIEW `hw_counted_{number}` AS {counted}"

    def _prepare(self) -> Iterator[str]:
        for number, source in self._numbered:
            first = first_of_each_id(f"hw_counted_{number}", self._columns_read(source))
            yield f"CREATE TEMPORARY VIEW `hw_first_{number}` AS {first}"
        for kind in self._kinds:
            yield f"CREATE TEMPORARY VIEW `hw_{kind}` AS " + " UNION ALL ".join(
                self._fan_out(f"hw_first_{number}", targets)
                for number, source in self._numbered
                if (targets := self._targets_of(source, kind))
            )
        yield "CREATE TEMPORARY TABLE `hw_out` (`written` BIGINT) WITH ('connector' = 'blackhole')"

    def _columns_read(self, source: Source) -> list[str]:
        """Columns of a source that some view reads: no others are shuffled."""
        read: set[str] = set()
        for target in self.targets:
            if target.view.source == source.name:
                read |= columns_read(target.view)
        return sorted(read)

    def _targets_of(self, source: Source, kind: str) -> list[tuple[int, Target]]:
        return [
            (at, target) for at, target in enumerate(self.targets)
            if target.view.source == source.name and _folded_as(target.table) == kind
        ]  # fmt: skip

    def _fan_out(self, first: str, targets: Sequence[tuple[int, Target]]) -> str:
        """Turn an event into a row for each table; those that do not fold it have ``tbl`` -1 and are dropped."""
        n_values = 1 + max((int(name.rpartition("_")[2]) for name in self.partials), default=-1)
        rows = ", ".join(
            _table_row(at, target, self.plan.source(target.view.source), self.n_keys, n_values)
            for at, target in targets
        )
        keys = [f"k{at}" for at in range(self.n_keys)]
        names = [_name(name) for name in ("tbl", *keys, "tile", *(f"v{at}" for at in range(n_values)), "entry")]
        picked = ", ".join(f"f.{name}" for name in names)
        return (
            f"SELECT {picked}, e.`hw_time`, e.`hw_ingest`, e.`hw_hash` FROM `{first}` AS e "
            f"CROSS JOIN UNNEST(ARRAY[{rows}]) AS f({', '.join(names)}) WHERE f.`tbl` >= 0"
        )

    def _fold(self, kind: str) -> str:
        """Fold all tables of one kind; what the kind does not have is NULL."""
        group = ", ".join(_name(name) for name in ("tbl", *(f"k{at}" for at in range(self.n_keys)), "tile"))
        if kind == "fixed":
            partials = [_partial(name) for name in self.partials]
            entries = "CAST(NULL AS ARRAY<STRING>)"
        else:
            partials = [f"{_nothing(name)} AS `{name}`" for name in self.partials]
            distinct = "DISTINCT " if kind == "distinct" else ""
            entries = f"ARRAY_AGG({distinct}`entry`) FILTER (WHERE `entry` IS NOT NULL)"
        marks = "COUNT(*) AS `cnt`, MAX(`hw_time`) AS `newest`, MAX(`hw_ingest`) AS `ingest`, SUM(`hw_hash`) AS `hash`"
        folds = ", ".join([marks, *partials, f"{entries} AS `entries`"])
        return f"SELECT {group}, {folds} FROM `hw_{kind}` GROUP BY {group}"


def compile_program(plan: FeaturePlan, kafka: KafkaOptions) -> Program:
    """Lay out all tables of a plan for one sink."""
    targets = tuple(Target(view, table) for view in plan.views for table in view.tables)
    return Program(
        plan=plan,
        targets=targets,
        n_keys=max((len(target.view.join_keys) for target in targets), default=1),
        partials=tuple(sorted({target.name_of(p) for target in targets for p in target.table.partials})),
        kafka=kafka,
    )


def first_of_each_id(events: str, needed: Sequence[str]) -> str:
    """Of copies sharing an event id the first to arrive, which never has to be taken back.

    Copies of an event have one key, so they lie in one partition, and arrive in the order of their offsets. A running
    COUNT says so rather than ROW_NUMBER: that one Flink takes for a Top-N, whose rows it thinks may be withdrawn, and
    then every fold after it would have to keep what it has folded.
    """
    columns = ", ".join(map(_name, (*reading.MARKS, *reading.PLACE, *needed)))
    return (
        f"SELECT {columns} FROM (SELECT *, COUNT(*) OVER (PARTITION BY `hw_id` "
        "ORDER BY `hw_arrival` ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS `hw_copy` "
        f"FROM (SELECT *, PROCTIME() AS `hw_arrival` FROM `{events}`)) "
        "WHERE `hw_copy` = 1"
    )


def projected(view: View, source: Source) -> tuple[dict[str, str], str | None]:
    """Return each column of a view's projection as a Flink expression, and its condition."""
    tree = _entries(view, guard_casts(_projection(view), reading.columns_of(source)))
    columns = {item.alias_or_name: _flink(item.unalias()) for item in tree.expressions}
    where = tree.args.get("where")
    return columns, _flink(where.this) if where else None


def columns_read(view: View) -> set[str]:
    """Columns of its source that a view's projection names; an entry of a map is ``column.key``."""
    return {column.name for column in _entries(view, _projection(view)).find_all(exp.Column)}


def _projection(view: View) -> exp.Expression:
    return sqlglot.parse_one(view.projection, read="spark")


def _entries(view: View, tree: exp.Expression) -> exp.Expression:
    """Make an entry of a map a column of its own: nothing else of the map is carried along."""

    def entry(node: exp.Expression) -> exp.Expression:
        if not isinstance(node, exp.Bracket):
            return node
        (key,) = node.expressions
        if not isinstance(node.this, exp.Column) or not (isinstance(key, exp.Literal) and key.is_string):
            raise DefinitionError(f"{view.name}: {node.sql('spark')} is not map['key']. Write the key as a text.")
        return exp.column(reading.entry(node.this.name, key.name), quoted=True)

    return tree.transform(entry)


def _table_row(place: int, target: Target, source: Source, n_keys: int, n_values: int) -> str:
    """Write what one table folds of an event."""
    columns, condition = projected(target.view, source)
    kinds = target.view.columns
    keys = [columns[key] for key in target.view.join_keys]
    needed = [*([f"({condition})"] if condition else []), *(f"({key}) IS NOT NULL" for key in keys)]
    values = [_value(f"({columns[column]})", kinds[column]) for column in target.columns]
    hop = target.table.hop_ms
    fields = [
        f"CASE WHEN {' AND '.join(needed)} THEN {place} ELSE -1 END",
        *(f"CAST({key} AS STRING)" for key in keys),
        *["CAST(NULL AS STRING)"] * (n_keys - len(keys)),
        "CAST(0 AS BIGINT)" if hop is None else f"`hw_time` / {hop}",
        *values,
        *["CAST(NULL AS BIGINT)"] * (n_values - len(values)),
        _entry(target, columns),
    ]
    return f"ROW({', '.join(fields)})"


def _value(expression: str, kind: ColumnKind) -> str:
    """A number to fold: millionths of a fraction, once and for all; of a text only whether there is one.

    A fraction whose millionths int64 does not hold is no value, as in Spark.
    """
    if kind == "string":
        return f"CASE WHEN {expression} IS NULL THEN CAST(NULL AS BIGINT) ELSE CAST(1 AS BIGINT) END"
    if kind == "fixed":
        wide = f"CAST({expression} AS DOUBLE)"
        return f"CASE WHEN ABS({wide}) <= {MAX_ABS_VALUE!r}E0 THEN CAST(ROUND({wide} * 1E6) AS BIGINT) END"
    return f"CAST({expression} AS BIGINT)"


def _folded_as(table: Table) -> str:
    """Return the operator that folds a table: all lists in total order are gathered by one and cut at the sink."""
    return table.kind if table.kind in ("fixed", "distinct") else "last"


def _entry(target: Target, columns: dict[str, str]) -> str:
    """Write the text a list table keeps: of ``distinct`` as it is, else with its place in the total order."""
    table = target.table
    if table.kind == "fixed" or table.column is None:
        return "CAST(NULL AS STRING)"
    expression = f"({columns[table.column]})"
    text = f"CAST({expression if table.column_kind == 'string' else _value(expression, table.column_kind)} AS STRING)"
    if table.kind == "distinct":
        return text
    length = f"LPAD(CAST(CHAR_LENGTH(`hw_id`) AS STRING), {ID_DIGITS}, '0')"
    return f"LPAD(CAST(`hw_time` AS STRING), {TIME_DIGITS}, '0') || `hw_id` || {text} || {length}"


def _partial(name: str) -> str:
    kind, _, place = name.partition("_")
    wide = f"CAST(`v{place}` AS DECIMAL(19, 0))"
    value = f"{wide} * {wide}" if kind == "sumsq" else f"`v{place}`"
    return f"COALESCE({_FOLDS[kind]}({value}), {_nothing(name)}) AS `{name}`"


def _nothing(name: str) -> str:
    """What a partial is where no value was folded; never NULL, since pandas would read such a column as floats."""
    kind = name.partition("_")[0]
    if kind == "sumsq":
        return "CAST(0 AS DECIMAL(38, 0))"
    return {"min": str(EMPTY_MIN), "max": f"({EMPTY_MAX + 1} - 1)"}.get(kind, "CAST(0 AS BIGINT)")


def _flink(node: exp.Expression) -> str:
    return str(node.sql(dialect=Flink, identify=True))


def split_entry(entry: str) -> tuple[int, str, str]:
    """Read an entry in total order back: event time, event id, value."""
    body, length = entry[:-ID_DIGITS], int(entry[-ID_DIGITS:])
    return int(body[:TIME_DIGITS]), body[TIME_DIGITS : TIME_DIGITS + length], body[TIME_DIGITS + length :]


def describe(program: Program) -> Sequence[dict[str, object]]:
    """What is kept for each table: its key, hop, columns and state."""
    return [
        {
            "table": target.table.id, "view": target.view.name, "kind": target.table.kind,
            "key": list(target.view.join_keys), "hop_ms": target.table.hop_ms,
            "columns": [partial.name for partial in target.table.partials] or [target.table.column],
            "state": "marks and partials" if target.table.kind == "fixed" else "marks and every entry of a tile",
        }
        for target in program.targets
    ]  # fmt: skip
