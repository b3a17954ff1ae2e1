"""The SQL as text, and the parts of it that SQLite reads alike."""

import json
import re
import sqlite3
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.definitions import HOUR, aggregation, plan_of, stream_view
from support.views import every_function, step_sql

from headwater.avro import read_schema
from headwater.errors import DefinitionError
from headwater.events import event_hash
from headwater.plan import FeaturePlan, Source
from streaming import reading, sql

KAFKA = sql.KafkaOptions("broker:9092", "group")


def program(*views):
    return sql.compile_program(plan_of(*views), KAFKA)


def source(**changes) -> Source:
    envelope = Source(
        name="events", topic="events", columns=tuple(reading.ENVELOPE.items()), event_id="event_id",
        event_time="event_time", key="user_id",
    )  # fmt: skip
    return envelope.model_copy(update=changes)


@given(st.text())
def test_the_hash_of_an_event_id_is_the_one_that_python_computes(event_id):
    with sqlite3.connect(":memory:") as database:
        database.create_function("ASCII", 1, ord)
        digest = md5(event_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
        (value,) = database.execute(f"SELECT {sql.event_hash('?1')}", (digest,)).fetchone()
    assert value == int(digest[:12], 16)


def test_the_hash_is_that_of_the_events_module():
    digest = md5(b"cj-17", usedforsecurity=False).hexdigest()
    assert int(digest[:12], 16) == event_hash("cj-17")


@given(st.integers(0, 2**63 - 1), st.text(max_size=200), st.text(max_size=200))
def test_an_entry_is_read_back_whatever_its_id_and_value_hold(event_time, event_id, value):
    entry = f"{event_time:0{sql.TIME_DIGITS}d}{event_id}{value}{len(event_id):0{sql.ID_DIGITS}d}"
    assert sql.split_entry(entry) == (event_time, event_id, value)


pieces = st.sampled_from(["\\\\", "\\ud83d", "\\uDE00", "\\u0041", "\\n", "u", "d83d", "a"])


@given(st.lists(pieces, max_size=8).map("".join))
def test_half_a_surrogate_pair_is_told_from_a_whole_one_and_from_a_backslash_before_its_name(text):
    """But for a whole second half behind the spelling of a first, which is documented."""
    try:
        json.loads(f'"{text}"').encode()
        whole = True
    except ValueError:
        whole = False
    if not re.search(r"\\\\ud83d\\uDE00", text):
        assert bool(re.search(reading._HALF_PAIR, text)) is not whole


def test_an_event_becomes_one_row_for_each_table_of_its_kind():
    view = every_function()
    plan = FeaturePlan(
        project="p", registry_sha256="", repo=".", sources=(source(),), views=(view,), batch_views=(), on_demand=(),
        services=(),
    )  # fmt: skip
    compiled = sql.compile_program(plan, KAFKA)
    for kind in ("fixed", "last", "distinct"):
        (fan_out,) = [text for text in compiled.folding if text.startswith(f"CREATE TEMPORARY VIEW `hw_{kind}`")]
        assert fan_out.count(" ELSE -1 END") == sum(sql._folded_as(t) == kind for t in view.tables)


def test_a_fraction_is_made_millionths_once_where_int64_holds_them_and_an_integer_is_left():
    fixed = sql._value("`value`", "fixed")
    assert "THEN CAST(ROUND(CAST(`value` AS DOUBLE) * 1E6) AS BIGINT) END" in fixed
    assert fixed.startswith("CASE WHEN ABS(CAST(`value` AS DOUBLE)) <= 9200000000000.0E0 ")
    assert sql._value("`n`", "int") == "CAST(`n` AS BIGINT)"


def test_the_projection_is_respelled_and_a_cast_that_fails_is_null():
    view = stream_view(
        [aggregation("n", "sum", "amount", hop=HOUR)],
        projection="SELECT user_id, CAST(context['amount'] AS DOUBLE) AS amount FROM events "
        'WHERE event_type = "it\'s" AND item_id IS NOT NULL',
    )
    columns, condition = sql.projected(program(view).targets[0].view, source())
    assert columns["amount"].endswith("THEN TRY_CAST(`context.amount` AS DOUBLE) END")
    assert columns["amount"].startswith("CASE WHEN REGEXP(`context.amount`, '^ *[+-]?")
    assert condition == "`event_type` = 'it''s' AND NOT `item_id` IS NULL"


def test_only_columns_that_a_view_reads_are_shuffled():
    text = "\n".join(program(stream_view([aggregation("n", "count", hop=HOUR)])).statements)
    first = next(line for line in text.splitlines() if "`hw_first_0`" in line)
    assert "`session_id`" in first
    assert "`position`" not in first.split("FROM")[0]


def test_the_platform_envelope_has_its_rules_and_a_foreign_source_those_of_its_columns():
    foreign = source(
        topic="sensors", columns=(("reading", "string"), ("at", "bigint"), ("sensor", "string")),
        event_id="reading", event_time="at", key="sensor",
    )  # fmt: skip
    own_rules = reading.clean("t", source(), ["event_id"], 300_000, 3_600_000)
    rules = reading.clean("t", foreign, ["reading"], 300_000, None)
    assert "`hw_keyed`" in own_rules
    assert "<= 3600000" in own_rules
    assert "`hw_keyed`" not in rules
    assert "`reading` NOT IN ('null', '\"\"') AND `sensor` NOT IN ('null', '\"\"')" in rules
    assert "`sensor` IS NULL OR `sensor` = 'null' OR `sensor` LIKE" in rules
    assert "REGEXP(`at`, '^-?[0-9]+$')" in rules


def test_avro_is_decoded_once_a_record_and_then_read_as_json_is():
    schema, columns = read_schema(
        "trips", '{"type": "record", "name": "T", "fields": [{"name": "id", "type": "string"}, '
        '{"name": "at", "type": "long"}]}', "at",
    )  # fmt: skip
    trips = source(
        name="trips", topic="trips", columns=tuple(columns.items()), event_id="id", event_time="at", key="id",
        format="avro", avro_schema=schema,
    )  # fmt: skip
    view = every_function(keys=("id",)).model_copy(
        update={
            "source": "trips",
            "projection": f"SELECT id, id AS kind, at AS amount, at AS quantity, {step_sql('id', 'at')} FROM trips",
        }
    )
    plan = FeaturePlan(
        project="p", registry_sha256="", repo=".", sources=(trips,), views=(view,), batch_views=(), on_demand=(),
        services=(),
    )  # fmt: skip
    compiled = sql.compile_program(plan, KAFKA)
    assert compiled.decoding == {"hw_avro_0": trips}
    assert sum(text.count("hw_avro_0(") for text in compiled.statements) == 1
    assert "FROM `hw_told_0` AS r" in compiled.reading[0]


def test_an_entry_of_a_map_is_a_column_of_its_own_and_its_key_a_text():
    read = "SELECT user_id, context['a key'] AS x FROM events WHERE context['kind'] <> 'y'"
    view = stream_view([aggregation("n", "count", "x", hop=HOUR)], projection=read)
    target = program(view).targets[0]
    assert sql.projected(target.view, source()) == (
        {"user_id": "`user_id`", "x": "`context.a key`"}, "`context.kind` <> 'y'",
    )  # fmt: skip
    by_column = target.view.model_copy(update={"projection": "SELECT user_id, context[item_id] AS x FROM events"})
    with pytest.raises(DefinitionError, match="Write the key as a text"):
        sql.projected(by_column, source())


def test_what_a_tile_lacks_is_neutral_and_never_null():
    partials = [aggregation(name, name, "value", hop=HOUR) for name in ("sum", "min", "max", "stddev")]
    insert = program(stream_view(partials)).insert
    assert "COALESCE(MIN(`v0`), 9223372036854775807)" in insert
    assert "COALESCE(MAX(`v0`), (-9223372036854775807 - 1))" in insert
    assert "* CAST(`v0` AS DECIMAL(19, 0))), CAST(0 AS DECIMAL(38, 0)))" in insert


@pytest.mark.parametrize("keys", [("user_id",), ("user_id", "item_id")])
def test_the_sink_is_given_as_many_keys_as_the_widest_view_has(keys):
    compiled = program(stream_view([aggregation("n", "count", hop=HOUR)], keys=keys))
    assert compiled.sink_columns[1 : 1 + len(keys)] == tuple(f"k{at}" for at in range(len(keys)))
    assert f"hw_sink({', '.join(f'`{name}`' for name in compiled.sink_columns)})" in compiled.insert
