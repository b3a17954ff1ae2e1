"""The SQL as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.definitions import HOUR, aggregation, plan_of, stream_view
from support.views import every_function

from headwater.errors import DefinitionError
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


@given(st.integers(0, 2**63 - 1), st.text(max_size=200), st.text(max_size=200))
def test_an_entry_is_read_back_whatever_its_id_and_value_hold(event_time, event_id, value):
    entry = f"{event_time:0{sql.TIME_DIGITS}d}{event_id}{value}{len(event_id):0{sql.ID_DIGITS}d}"
    assert sql.split_entry(entry) == (event_time, event_id, value)


def test_an_event_becomes_one_row_for_each_table_of_its_kind():
    view = every_function()
    plan = FeaturePlan(
        project="p", registry_sha256="", repo=".", sources=(source(),), views=(view,), batch_views=(), on_demand=(),
        services=(),
    )  # fmt: skip
    compiled = sql.compile_program(plan, KAFKA)
    for kind in ("fixed", "last", "distinct"):
        (fan_out,) = [text for text in compiled.views if text.startswith(f"CREATE TEMPORARY VIEW `hw_{kind}`")]
        assert fan_out.count(" ELSE -1 END") == sum(sql.folded_as(t) == kind for t in view.tables)


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


def test_each_source_is_read_by_one_function_with_the_columns_that_views_read():
    compiled = program(stream_view([aggregation("n", "count", hop=HOUR)]))
    assert list(compiled.readers) == ["hw_read_0"]
    (called,) = [text for text in compiled.views if "hw_read_0(" in text]
    assert called.startswith("CREATE TEMPORARY VIEW `hw_judged_0` AS SELECT hw_read_0(`hw_key`, `hw_value`, ")
    reader = compiled.readers["hw_read_0"]
    assert reader.needed == ("event_time", "event_type", "item_id", "session_id", "user_id", "value")
    (counted,) = [text for text in compiled.views if "VIEW `hw_counted_0`" in text]
    for column in reader.types:
        assert f"r.`hw_read`.`{column}` AS `{column}`" in counted


def test_another_limit_or_another_column_type_is_another_program():
    view = stream_view([aggregation("n", "count", hop=HOUR)])
    wider = sql.compile_program(plan_of(view), sql.KafkaOptions("broker:9092", "group", max_event_bytes=70_000))
    assert program(view).statements != wider.statements
    (told,) = [text for text in program(view).statements if text.startswith("-- hw_read_0 reads ")]
    assert '["event_time","bigint"]' in told
    assert "max_event_bytes=65536" in told


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


def test_a_table_with_a_cut_folds_what_lies_behind_it_and_others_all():
    views = [stream_view([aggregation("n", "count", hop=HOUR)], name=name) for name in ("old", "new")]
    plan = plan_of(*views)
    whole = sql.compile_program(plan, KAFKA)
    new = plan.views[1].tables[0].id
    cut = sql.compile_program(plan, KAFKA, whole.layout, {new: {1: 7, 0: 5}})
    (fan_out,) = [text for text in cut.views if text.startswith("CREATE TEMPORARY VIEW `hw_fixed`")]
    old_row, new_row = fan_out.split(" ELSE -1 END")[:2]
    assert "hw_offset" not in old_row
    assert new_row.endswith(
        "AND `hw_offset` >= CASE `hw_partition` WHEN 0 THEN CAST(5 AS BIGINT) WHEN 1 THEN CAST(7 AS BIGINT) "
        "ELSE CAST(0 AS BIGINT) END THEN 1"
    )
    assert cut.layout == whole.layout


def test_the_sink_knows_a_table_by_its_number():
    plan = plan_of(*(stream_view([aggregation("n", "count", hop=HOUR)], name=name) for name in ("a", "b")))
    layout = sql.layout_of(plan)
    turned = layout.model_copy(update={"tables": (layout.tables[1], "gone", layout.tables[0])})
    compiled = sql.compile_program(plan, KAFKA, turned)
    assert {number: target.view.name for number, target in compiled.by_number.items()} == {2: "a", 0: "b"}
