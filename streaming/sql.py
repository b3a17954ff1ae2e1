"""A feature plan as Flink SQL: one linear job, whatever the number of views.

For each source ``kafka topic → clean → first of each event id → one row for each table that folds the event``; then,
for all sources together, ``GROUP BY table, keys, tile`` and one crossing into Python at the sink.

An event is fanned out with ``UNNEST`` of an array of rows, one a table, not with a UNION of one query a table: Flink
pushes each query's columns below the deduplication, so a UNION would keep its state, and its work, once a table.
Nothing here imports Flink; every text can be read with ``headwater stream plan``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from headwater.events import MAX_ABS_VALUE, EventLimits
from headwater.forgotten import KeyColumn, Tombstone, key_columns
from headwater.online.codec import EMPTY_MAX, EMPTY_MIN
from headwater.plan import ColumnKind, FeaturePlan, Partial, Source, Table, View
from streaming import reading
from streaming.layout import KINDS, Layout, folded_as, layout_of, value_columns
from streaming.projecting import columns_read, projected
from streaming.reading import RecordReader
from streaming.reading import name as _name

TIME_DIGITS = 19
"""Of an event time in a list entry: int64, zero-padded, so that texts sort as numbers do."""
ID_DIGITS = 5
"""Of the length of the event id, which closes a list entry."""
_FOLDS = {"sum": "SUM", "count": "COUNT", "min": "MIN", "max": "MAX", "sumsq": "SUM"}
"""What folds a tile's values; squares are summed as ``DECIMAL(38, 0)``."""


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Where the topics are, as whom they are read, and what bounds a record."""

    bootstrap: str
    group: str
    max_clock_skew_ms: int = 300_000
    max_event_bytes: int = 65_536


@dataclass(frozen=True)
class Target:
    """One table of the plan as state and sink address it: by its number in the layout.

    ``cut`` holds, by partition, the offset below which its events are the backfill's; of others all are folded.
    """

    view: View
    table: Table
    number: int
    cut: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Projected columns whose numbers the table folds; the i-th travels as ``v<i>``."""
        return value_columns(self.table)

    def name_of(self, partial: Partial) -> str:
        """Return the folded column that holds a partial, such as ``sum_0``."""
        assert partial.column is not None
        return f"{partial.kind}_{self.columns.index(partial.column)}"


@dataclass(frozen=True)
class Program:
    """The statements of a job, in order, and what the sink needs to know to read its rows."""

    plan: FeaturePlan
    targets: tuple[Target, ...]
    layout: Layout
    kafka: KafkaOptions
    forgotten: tuple[Tombstone, ...] = ()
    """Entities whose records up to the tombstones' offsets are not read: this state never held them."""
    barred: tuple[Tombstone, ...] = ()
    """Other entities that were forgotten before the job began: its state holds them, its sink does not write them."""

    @cached_property
    def by_number(self) -> dict[int, Target]:
        """The tables by their number."""
        return {target.number: target for target in self.targets}

    @property
    def sink_columns(self) -> tuple[str, ...]:
        """Arguments of the sink function, in order."""
        keys = (f"k{at}" for at in range(self.layout.n_keys))
        return ("tbl", *keys, "tile", "cnt", "newest", "ingest", "hash", *self.layout.partials, "entries")

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
        """Write what starts the job.

        The UNNEST of one value keeps Flink from pushing the sink below the UNION, into each fold's own thread, which
        would stand still while the sink waits for the store.
        """
        union = " UNION ALL ".join(self._fold(kind) for kind in self._kinds)
        number, *others = columns = [_name(column) for column in self.sink_columns]
        once = f"UNNEST(ARRAY[e.{number}]) AS f({number})"
        folded = f"SELECT f.{number}, {', '.join(others)} FROM ({union}) AS e CROSS JOIN {once}"
        return f"INSERT INTO hw_out SELECT hw_sink({', '.join(columns)}) FROM ({folded})"

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Kinds of tables there are or have been; each kind is folded by one operator."""
        return tuple(kind for kind in KINDS if any(kind in topic.kinds for topic in self.layout.topics))

    @property
    def _sources(self) -> list[Source]:
        read = {source.topic: source for source in self.plan.sources}
        return [read[topic.topic] for topic in self.layout.topics]

    @property
    def _numbered(self) -> list[tuple[int, Source]]:
        return list(enumerate(self._sources))

    def _reader(self, source: Source) -> RecordReader:
        limits = EventLimits(
            self.kafka.max_event_bytes, self.kafka.max_clock_skew_ms, self.plan.horizon_ms(source.name)
        )
        return RecordReader(source, tuple(self._columns_read(source)), limits, tuple(self._forgotten_of(source)))

    def _forgotten_of(self, source: Source) -> Iterator[tuple[KeyColumn, Tombstone]]:
        """Tombstones, each with every column of a source that may tell that a record is its entity's."""
        for tombstone in self.forgotten:
            if source.topic in tombstone.ends:
                places = key_columns(self.plan, source, tombstone.join_key)
                for place in sorted(places, key=lambda place: (place.column, place.entry or "")):
                    yield place, tombstone

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
                self._fan_out(f"hw_first_{number}", self._targets_of(source, kind))
                for number, source in self._numbered
                if kind in self.layout.topics[number].kinds
            )
        yield "CREATE TEMPORARY TABLE `hw_out` (`written` BIGINT) WITH ('connector' = 'blackhole')"

    def _columns_read(self, source: Source) -> list[str]:
        """Columns of a source that some view reads: no others are shuffled."""
        read: set[str] = set()
        for target in self.targets:
            if target.view.source == source.name:
                read |= columns_read(target.view)
        return sorted(read)

    def _targets_of(self, source: Source, kind: str) -> list[Target]:
        return [
            target for target in self.targets
            if target.view.source == source.name and folded_as(target.table) == kind
        ]  # fmt: skip

    def _fan_out(self, first: str, targets: Sequence[Target]) -> str:
        """Turn an event into a row for each table; those that do not fold it have ``tbl`` -1 and are dropped.

        Operators stay though their tables are gone: to those of a kind no table is left of, no row gets.
        """
        n_keys, n_values = self.layout.n_keys, self.layout.n_values
        rows = [_table_row(one, self.plan.source(one.view.source), n_keys, n_values) for one in targets]
        rows = rows or [_no_row(n_keys, n_values)]
        keys = [f"k{at}" for at in range(n_keys)]
        names = [_name(name) for name in ("tbl", *keys, "tile", *(f"v{at}" for at in range(n_values)), "entry")]
        picked = ", ".join(f"f.{name}" for name in names)
        return (
            f"SELECT {picked}, e.`hw_time`, e.`hw_ingest`, e.`hw_hash` FROM `{first}` AS e "
            f"CROSS JOIN UNNEST(ARRAY[{', '.join(rows)}]) AS f({', '.join(names)}) WHERE f.`tbl` >= 0"
        )

    def _fold(self, kind: str) -> str:
        """Fold all tables of one kind; what the kind does not have is NULL."""
        group = ", ".join(_name(name) for name in ("tbl", *(f"k{at}" for at in range(self.layout.n_keys)), "tile"))
        if kind == "fixed":
            partials = [_partial(name) for name in self.layout.partials]
            entries = "CAST(NULL AS ARRAY<STRING>)"
        else:
            partials = [f"{_nothing(name)} AS `{name}`" for name in self.layout.partials]
            distinct = "DISTINCT " if kind == "distinct" else ""
            entries = f"ARRAY_AGG({distinct}`entry`) FILTER (WHERE `entry` IS NOT NULL)"
        marks = "COUNT(*) AS `cnt`, MAX(`hw_time`) AS `newest`, MAX(`hw_ingest`) AS `ingest`, SUM(`hw_hash`) AS `hash`"
        folds = ", ".join([marks, *partials, f"{entries} AS `entries`"])
        return f"SELECT {group}, {folds} FROM `hw_{kind}` GROUP BY {group}"


def compile_program(
    plan: FeaturePlan,
    kafka: KafkaOptions,
    layout: Layout | None = None,
    cuts: Mapping[str, Mapping[int, int]] | None = None,
    forgotten: Sequence[Tombstone] = (),
    barred: Sequence[Tombstone] = (),
) -> Program:
    """Lay out all tables of a plan for one sink.

    Parameters
    ----------
    layout
        Of the state to go on from; a fresh one by default.
    cuts
        By table, then by partition: offsets below which the stream leaves events to the backfill.
    forgotten, barred
        Forgotten entities whose older records the state never held, and others, as :class:`Program` has them.
    """
    layout, cuts = layout or layout_of(plan), cuts or {}
    numbers = {table: number for number, table in enumerate(layout.tables)}
    targets = (
        Target(view, table, numbers[table.id], cuts.get(table.id, {})) for view in plan.views for table in view.tables
    )
    return Program(plan, tuple(targets), layout, kafka, tuple(forgotten), tuple(barred))


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


def _table_row(target: Target, source: Source, n_keys: int, n_values: int) -> str:
    """Write what one table folds of an event.

    TRY_CAST says that a field may be NULL where Flink could prove that it is not: which types the state has must not
    depend on the views. A lifetime's tile is 0, told by the event, else an array of literals would make it a join.
    """
    columns, condition = projected(target.view, source)
    kinds = target.view.columns
    keys = [columns[key] for key in target.view.join_keys]
    needed = [*([f"({condition})"] if condition else []), *(f"({key}) IS NOT NULL" for key in keys)]
    needed += [_from(target.cut)] if target.cut else []
    values = [_value(f"({columns[column]})", kinds[column]) for column in target.columns]
    hop = target.table.hop_ms
    fields = [
        f"CASE WHEN {' AND '.join(needed)} THEN {target.number} ELSE -1 END",
        *(f"TRY_CAST({key} AS STRING)" for key in keys),
        *["CAST(NULL AS STRING)"] * (n_keys - len(keys)),
        "`hw_time` * 0" if hop is None else f"`hw_time` / {hop}",
        *(f"TRY_CAST({value} AS BIGINT)" for value in values),
        *["CAST(NULL AS BIGINT)"] * (n_values - len(values)),
        f"TRY_CAST({_entry(target, columns)} AS STRING)",
    ]
    return f"ROW({', '.join(fields)})"


def _no_row(n_keys: int, n_values: int) -> str:
    """Write a row that is dropped."""
    nothing = [*["CAST(NULL AS STRING)"] * n_keys, "`hw_time`", *["CAST(NULL AS BIGINT)"] * n_values]
    return f"ROW(-1, {', '.join(nothing)}, CAST(NULL AS STRING))"


def _from(cut: Mapping[int, int]) -> str:
    """Say that an event lies at or behind the cut of its partition; a partition without one is folded whole."""
    partition, offset = map(_name, reading.PLACE)
    offsets = " ".join(f"WHEN {number} THEN CAST({first} AS BIGINT)" for number, first in sorted(cut.items()))
    return f"{offset} >= CASE {partition} {offsets} ELSE CAST(0 AS BIGINT) END"


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
