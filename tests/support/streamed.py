"""Definitions, records and what counts of them: what the stream job is given, and the oracle's account of it."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from confluent_kafka import Message
from support.jobs import Job, Sent, read_all
from support.views import COLUMNS, every_function, step_sql, stepped

from benchmarks.oracle import Row
from headwater import avro, folds
from headwater.events import BadRecord, Event, EventLimits, parse_event
from headwater.forgotten import Tombstone
from headwater.plan import HOUR_MS, FeaturePlan, Source
from headwater.records import ENVELOPE, SourceRecord, parse_record
from headwater.runtime.ports import free_port
from headwater.settings import Settings

START = 1_700_000_000_000
HORIZON_MS = 4 * HOUR_MS
TOPIC, SENSORS, TRIPS = "stream_events", "stream_sensors", "stream_trips"
TRIP = json.dumps(
    {
        "type": "record",
        "name": "Trip",
        "namespace": "org.example",
        "fields": [
            {"name": "trip", "type": "string"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "rider", "type": ["null", "string"], "default": None},
            {"name": "mode", "type": {"type": "enum", "name": "Mode", "symbols": ["x", "y", "z", "bike"]}},
            {"name": "fare", "type": ["null", "float"]},
            {"name": "stops", "type": "int"},
            {
                "name": "route",
                "type": {
                    "type": "array",
                    "items": {"type": "record", "name": "Stop", "fields": [{"name": "lat", "type": "double"}]},
                },
            },
            {"name": "partition", "type": "bytes"},
        ],
    }
)


def stream_plan() -> FeaturePlan:
    """Every function by user, and by user and item, within a horizon; and for ever over a topic of another shape."""
    envelope = Source(
        name="events", topic=TOPIC, columns=tuple(ENVELOPE.items()), event_id="event_id",
        event_time="event_time", key="user_id",
    )  # fmt: skip
    sensors = Source(
        name="sensors", topic=SENSORS, columns=(("reading", "bigint"), ("at", "bigint"), ("Sensor", "string"),
        ("celsius", "double"), ("count", "int"), ("faulty", "boolean"), ("labels", "map<string,string>")),
        event_id="reading", event_time="at", key="Sensor",
    )  # fmt: skip
    schema, columns = avro.read_schema("trips", TRIP, "at")
    trips = Source(
        name="trips", topic=TRIPS, format="avro", avro_schema=schema,
        columns=tuple((name, kind) for name, kind in columns.items() if name != "partition"), event_id="trip",
        event_time="at", key="rider",
    )  # fmt: skip
    bounded = [
        bound(every_function(HORIZON_MS)),
        bound(every_function(HORIZON_MS, "by_item", ("user_id", "item_id"))),
        bound(every_function(HORIZON_MS, "by_session", ("session_id",))),
        bound(every_function(HORIZON_MS, "by_three", ("session_id", "user_id", "item_id"))),
    ]
    wide = every_function(0, "by_sensor", ("Sensor",)).model_copy(update={
        "source": "sensors",
        "projection": "SELECT Sensor, labels['kind'] AS kind, celsius AS amount, count AS quantity, "
        + step_sql("labels['kind']", "count")
        + " FROM sensors WHERE faulty IS NULL OR faulty = FALSE",
        "columns": {**COLUMNS, "Sensor": "string"},
    })  # fmt: skip
    ridden = every_function(0, "by_rider", ("rider",)).model_copy(update={
        "source": "trips",
        "projection": "SELECT rider, mode AS kind, fare AS amount, stops AS quantity, "
        + step_sql("mode", "stops") + " FROM trips",
        "columns": {**COLUMNS, "rider": "string"},
    })  # fmt: skip
    return FeaturePlan(
        project="streamed", registry_sha256="", repo=".", sources=(envelope, sensors, trips),
        views=(*bounded, wide, ridden),
        batch_views=(), on_demand=(), services=(),
    )  # fmt: skip


def bound(view):
    """Leave out what lasts for ever, so that an event can be too late."""
    kept = tuple(table for table in view.tables if table.hop_ms is not None)
    ids = {table.id for table in kept}
    return view.model_copy(update={"tables": kept, "aggregates": tuple(a for a in view.aggregates if a.table in ids)})


class Stream(Job):
    """The job on a repository of its own."""

    def __init__(self, folder: Path, kafka: str, valkey: str) -> None:
        settings = Settings(
            state_dir=folder / "state", repo=folder / "repo", kafka=kafka, redis=valkey, flink_heap_mb=700,
            stream_metrics_port=free_port(),
        )  # fmt: skip
        super().__init__(settings, folder / "stream.log")
        self.plan = stream_plan()
        self._save(folder / "repo")

    def _save(self, repo: Path) -> None:
        (repo / "data").mkdir(parents=True)
        (repo / "feature_store.yaml").write_text("project: streamed\nregistry: data/registry.db\n")
        (repo / "data" / "registry.db").write_bytes(b"registry")
        digest = hashlib.sha256(b"registry").hexdigest()
        self.plan.model_copy(update={"registry_sha256": digest}).save(self.settings.manifest_path)

    def send(self, records: Iterable[Sent], topic: str = TOPIC) -> None:
        super().send(records, topic)


NUMERALS = ["1", "2", "17", "many", "1.7", " 12 ", "+5", "\t7\n", "7\n", "2147483648", "9223372036854775808", "inf", ""]
"""Texts that are an integer, and such as are none, though an engine by itself may think so."""


def disorder(seed: int, n: int, first: int) -> list[tuple[bytes | None, bytes | None, int]]:
    """Events in disorder: some sent twice with other values, some ahead of the clock, some late, some too late."""
    draw, records = random.Random(seed), []
    for at in range(n):
        ingest = START + (first + at) * 5_000
        lead = draw.choice([0, 0, 0, -1_000, -50_000, -HOUR_MS, -5 * HOUR_MS, 200_000, 400_000])
        number = at if draw.random() > 0.2 else draw.randrange(at + 1)
        user = f"ü{number % 5}"  # copies of an event have one key
        event = Event(
            f"{seed}-{number}",
            draw.choice(["purchase", "purchase", "view"]), ingest + lead, user,
            draw.choice(["a", "b", None]), session_id=draw.choice(["s1", "s2", None]),
            value=draw.choice([None, draw.randrange(-10**6, 10**6) / 1000, 1e9 / 3]),
            context={"kind": draw.choice("xyz"), "quantity": draw.choice(NUMERALS)},
        )  # fmt: skip
        records.append((user.encode(), event.to_json(), ingest))
    return records


_records, _readings = count(1), count(10_001)
"""What is next of the ids of odd records."""


def record(**changes: object) -> bytes:
    """A record that would count, but for the changes; each its own event."""
    whole = {"event_id": f"odd{next(_records)}", "event_type": "purchase", "event_time": START, "user_id": "ü1"}
    return json.dumps({**whole, **changes}).encode()


ODD = [
    b"", b"{", b"[]", b"null", b'"text"', b"7", b"{}", b"\xef\xbb\xbf" + record(), record() + b" x",
    record() + record(), record() + b"," + record(), record() + b"] }", record() + b",0] {}", record() + b"}",
    b" \n" + record() + b"\t ", b"[" + record() + b"]",
    record()[:-1] + b',"note":NaN}',
    record(event_id=""), record(event_id=None), record(event_id=5), record(user_id=5), record(user_id=""),
    record(user_id=None), record(user_id="null"), record(event_type="Purchase!"), record(event_type="p" * 65),
    record(event_type=None), record(event_time="now"), record(event_time=str(START)), record(event_time=START + 0.0),
    record(event_time=-5), record(event_time=2**63), record(event_time=None), record(event_time=True),
    record(value="12"), record(value=True), record(value=9.3e12), record(value=-9.2e12), record(value=10**400),
    record(value=5e-324), record(value=1e-7), record(value=-0.0000005), record(value=0.1 + 0.2), record(value=2),
    record(value=None, item_id=None), record(item_id=5), record(item_id=""), record(item_id={"a": 1}),
    record(session_id=[]), record(request_id=1), record(position=1), record(position=1.5), record(position=2.0),
    record(position=2**31), record(position="1"), record(context=None), record(context={}), record(context=[]),
    record(context={"kind": 5}), record(context={"kind": None}), record(context={"kind": "x", "quantity": {"a": "b"}}),
    record(context={"kind": 'q"\\', "a\\": '":5,"', "quantity": "7"}), record(context={"kind": "é\u2028\U0001f600"}),
    record() + b',"hw_end"]', record(context={"kind": "?"}).replace(b"?", rb"\\ud83d\ude00"),
    record(user_id="ü1", note={"deep": [1, {"er": [[]]}]}), record(context={"kind": "\ud83d"}),
    record(context={"kind": "\\ud83d"}), record(context={"kind": "\\\ud83d"}),
    record(context={"kind": "\ud83d\\ude00"}), record(context={"kind": "\\\\ude00"}),
    record(context={"kind": "\\\U0001f600"}),
    record(context={"kind": "?"}).replace(b"?", "\ufffd".encode()),
    record(context={"kind": "?"}).replace(b"?", b"\xff"), record(context={"kind": "?"}).replace(b"?", b"\t"),
    record()[:-1] + b',"value":1,"value":2}', record(filler="x" * 70_000), record(event_id="null"),
    record(event_id="a\x00b\x1fc"), record(event_time=START + 300_000), record(event_time=START + 300_001),
    record(event_time=START - HORIZON_MS), record(event_time=START - HORIZON_MS - 1),
]  # fmt: skip
"""Records at the edge of what counts: the oracle says on which side of it each lies."""


def reading(**changes: object) -> bytes:
    """A sensor's record that would count, but for the changes; each its own."""
    return json.dumps({"reading": next(_readings), "at": START, "Sensor": "s1", **changes}).encode()


def written(**literals: str) -> bytes:
    """The same, with numbers written as given."""
    whole = reading(**dict.fromkeys(literals, 0))
    for name, literal in literals.items():
        whole = re.sub(rf'"{name}": \d+'.encode(), f'"{name}": {literal}'.encode(), whole)
    return whole


ODD_READINGS = [
    b"", b"{", b"[]", b"null", b"{}", b"\xff", reading() + b" x", reading() + reading(), b" " + reading() + b"\n",
    reading(reading=None), reading(reading=""), reading(reading="7"), reading(reading=-7), reading(reading=2**63),
    reading(at=-1), reading(at=None), reading(at="5"), reading(at=2**63), reading(at=START + 300_000),
    reading(at=START + 300_001), reading(at=START - 10**9), reading(Sensor=None), reading(Sensor=""), reading(Sensor=5),
    reading(Sensor="null"), reading(sensor="t"), reading(Sensor={"a": 1}), reading(Sensor="\u00e9\\\"x"),
    reading(celsius="5"), reading(celsius=True), reading(celsius=9.2e12), reading(celsius=9.3e12),
    reading(celsius=10**400), reading(celsius=-5e-324), reading(celsius=[1]), reading(celsius={}),
    reading(count=2**31 - 1), reading(count=2**31), reading(count=-(2**31)), reading(count="1"), reading(count=False),
    *(written(count=literal) for literal in ("5.0", "5.00", "5e0", "50e-1", "-0", "-0.0", "1.5", "0.000", "1E2")),
    *(written(count=f"1.{'0' * zeros}") for zeros in (37, 38, 39)),
    *(written(count=f"0.{'0' * zeros}") for zeros in (37, 38, 39)),
    *(written(at=literal) for literal in ("17.0", "1e3", "1700000000000.0")),
    *(written(celsius=literal) for literal in ("5e0", "1e400", "-0.0", "0.1000", "12345678901.2345678901234567890")),
    *(written(reading=literal) for literal in ("424242", "424242.0", "0424242")),
    reading(faulty=True), reading(faulty=False), reading(faulty="true"), reading(faulty=1), reading(labels={}),
    reading(labels={"kind": "x"}), reading(labels={"kind": 5}), reading(labels=[]), reading(labels={"kind": None}),
    reading(labels={"kind": 'q"\\', "a": ""}), reading(labels="kind"), reading(other=1.5, count=3, deep={"at": 1.5}),
    reading(labels={"kind": "\ud83d"}), reading()[:-1] + b',"count":1,"count":2}', reading(filler="x" * 70_000),
]  # fmt: skip
"""Records at the edge of what counts of a topic with columns of its own."""


FORGOTTEN = [
    Tombstone("session_id", "s2", START, {TOPIC: {0: 150, 1: 200}}),
    Tombstone("session_id", "s1'", START, {TOPIC: {0: 10, 1: 10}}),
    Tombstone("Sensor", "s2", START, {SENSORS: {0: 60, 1: 45}}),
    Tombstone("rider", "ü2", START, {TRIPS: {0: 30, 1: 25}}),
]
"""Whose records before these offsets do not count, in topics of each kind; all are forgotten before the job begins."""


HIDDEN: set[str] = set()
"""Join keys by which records were left out."""


def is_forgotten(message: Message, join_key: str, value: Any) -> bool:
    place = message.topic(), message.partition(), message.offset()
    found = any((one.join_key, one.value) == (join_key, value) and one.covers(*place) for one in FORGOTTEN)
    if found:
        HIDDEN.add(join_key)
    return found


def topic_rows(stream: Stream, kafka: str) -> list[Row]:
    """What counts of the topic, by the rules of headwater.events: the first copy of each event, in offset order.

    Keys are (user, item, session).
    """
    limits = EventLimits.of(stream.settings, stream.plan.horizon_ms("events"))
    rows, seen = [], set()
    for message in read_all(kafka, TOPIC):
        try:
            event = parse_event(message.value(), message.key(), message.timestamp()[1], limits)
        except BadRecord:
            continue
        if is_forgotten(message, "session_id", event.session_id) or event.event_id in seen:
            continue
        seen.add(event.event_id)
        if event.event_type == "purchase":
            quantity = event.context.get("quantity", "")
            number = int(quantity) if re.fullmatch(r" *[+-]?[0-9]+ *", quantity) else 2**63
            values = stepped(
                {
                    "kind": event.context.get("kind"),
                    "amount": None if event.value is None else int(folds.to_fixed(event.value)),
                    "quantity": number if number < 2**63 else None,
                }
            )
            key: Any = (event.user_id, event.item_id, event.session_id)
            rows.append(Row(event.event_id, event.event_time, message.timestamp()[1], key, values))
    return rows


def keyed(rows: list[Row], *places: int) -> list[Row]:
    """The rows that have all of these parts of the key, with no other."""
    return [
        replace(row, key=tuple(row.key[at] for at in places))
        for row in rows
        if all(row.key[at] is not None for at in places)
    ]


def counted(stream: Stream, kafka: str, name: str) -> Iterator[tuple[SourceRecord, int]]:
    """Records that count of a source, by the rules of headwater.records, each id once, and when they arrived."""
    limits, source = EventLimits.of(stream.settings, stream.plan.horizon_ms(name)), stream.plan.source(name)
    seen = set()
    for message in read_all(kafka, source.topic):
        try:
            record = parse_record(source, message.value(), message.timestamp()[1], limits)
        except BadRecord:
            continue
        if is_forgotten(message, source.key, record.values[source.key]):
            continue
        if record.values[source.event_id] not in seen:
            seen.add(record.values[source.event_id])
            yield record, message.timestamp()[1]


def row(
    record: SourceRecord, ingest_ms: int, event_id: str, key: str, kind: str | None, number: str, whole: str
) -> Row:
    """A record as ``every_function`` projects it."""
    values = record.values
    amount = None if values[number] is None else int(folds.to_fixed(values[number]))
    folded = stepped({"kind": kind, "amount": amount, "quantity": values[whole]})
    return Row(str(values[event_id]), record.event_time, ingest_ms, (values[key],), folded)


def sensor_rows(stream: Stream, kafka: str) -> list[Row]:
    return [
        row(one, ingest, "reading", "Sensor", (one.values["labels"] or {}).get("kind"), "celsius", "count")
        for one, ingest in counted(stream, kafka, "sensors")
        if not one.values["faulty"]
    ]


def trip_rows(stream: Stream, kafka: str) -> list[Row]:
    return [
        row(one, ingest, "trip", "rider", one.values["mode"], "fare", "stops")
        for one, ingest in counted(stream, kafka, "trips")
    ]


def trip(number: int, **changes: Any) -> bytes:
    """An Avro record; its fare has more digits than a float32."""
    whole = {
        "trip": f"t{number}", "at": START + number * 11, "rider": f"ü{number % 3}", "mode": "xyz"[number % 3],
        "fare": number / 7, "stops": number % 5, "route": [{"lat": 1.5}] * (number % 3), "partition": b"\xff",
    }  # fmt: skip
    return avro.encode(TRIP, whole | changes)


ODD_TRIPS = [
    b"", b"{}", b"\xff" * 30, trip(900)[:-1], trip(901) + b"\x00", trip(902) * 2, trip(903, rider=None),
    trip(904, rider=""), trip(905, trip=""), trip(906, fare=None), trip(907, fare=float("nan")), trip(908, fare=3e38),
    trip(909, fare=float("-inf")), trip(910, stops=-(2**31)), trip(911, at=-1), trip(912, at=2**63 - 1),
    trip(913, mode="bike"), trip(914, rider='"\\u\n\x00'), trip(915, rider="null"), trip(916, partition=b"x" * 66_000),
    trip(917, partition=b"x" * 65_000), trip(918).replace("ü0".encode(), b"\xc3\x28\x30"), trip(1),
]  # fmt: skip
"""Bytes that are one Avro record, and such as are none."""
