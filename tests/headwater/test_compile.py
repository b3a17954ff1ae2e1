from datetime import timedelta

import pytest
from feast.data_format import AvroFormat, ProtoFormat
from support.definitions import ENVELOPE, HOUR, aggregation, compiled, stream_view

from headwater.errors import DefinitionError
from headwater.plan import FeaturePlan, parse_function
from headwater.registry.compile import check_sources, compile_source

OWN = ENVELOPE.replace(", request_id string", "")


def test_aggregations_of_one_hop_share_a_table_and_lists_have_their_own():
    view = compiled(
        stream_view(
            [
                aggregation("n_1h", "count", window=HOUR),
                aggregation("n_6h", "count", window=6 * HOUR, hop=HOUR),
                aggregation("spend_6h", "mean", "value", 6 * HOUR, HOUR),
                aggregation("recent", "last(5)", "item_id", 6 * HOUR, HOUR),
                aggregation("recent_few", "last(2)", "item_id", HOUR),
                aggregation("ever", "count", window=None),
            ]
        )
    )
    tables = {(table.kind, table.hop_ms, table.keep, table.n) for table in view.tables}
    assert tables == {("fixed", 3_600_000, 6, None), ("last", 3_600_000, 6, 5), ("fixed", None, 0, None)}
    assert view.columns["value"] == "fixed"


def test_a_changed_definition_never_meets_the_bytes_of_the_old_one():
    before = compiled(stream_view([aggregation("n", "count")]))
    after = compiled(stream_view([aggregation("n", "count")], projection="SELECT user_id FROM events"))
    assert before.tables[0].id != after.tables[0].id


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ([aggregation("n", "count", window=HOUR, hop=timedelta(minutes=7))], "not a whole number"),
        ([aggregation("n", "median", "value")], "'median' is not one of"),
        ([aggregation("n", "last", "value")], "Write the parameter"),
        ([aggregation("n", "sum", "item_id")], "string column"),
        ([aggregation("n", "sum", "nobody")], "not in the projection"),
        ([aggregation("n", "sum")], "needs a column"),
        ([aggregation("n", "members")], "needs a column"),
        ([aggregation("n", "members", "value")], "which is no text"),
        ([aggregation("n", "members(1001)", "item_id")], "Write the parameter"),
        ([aggregation("n", "last_distinct", "item_id")], "Write the parameter"),
        ([aggregation("n", "last_distinct(3)", "item_id", window=None)], "needs a time_window"),
        ([aggregation("n", "members", "item_id", window=None)], "needs a time_window"),
        ([aggregation("n", "mean", "value", window=None)], "needs a time_window"),
        ([aggregation("n", "count"), aggregation("n", "sum", "value")], "name of its own"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_view_field_and_remedy(broken, said):
    with pytest.raises(DefinitionError, match="activity") as refusal:
        compiled(stream_view(broken))
    assert said in str(refusal.value)


def test_a_ttl_shorter_than_the_longest_window_is_refused():
    with pytest.raises(DefinitionError, match="ttl 0:30:00 is shorter"):
        compiled(stream_view([aggregation("n", "count", window=HOUR)], ttl=timedelta(minutes=30)))


def test_a_view_without_a_projection_is_refused():
    view = stream_view([aggregation("n", "count")])
    view.tags = {}
    with pytest.raises(DefinitionError, match=r"headwater\.projection"):
        compiled(view)


def test_a_join_key_must_be_projected_as_a_string():
    with pytest.raises(DefinitionError, match="'user_id' is missing"):
        compiled(stream_view([aggregation("n", "count")], projection="SELECT value FROM events"))


def source_of(schema_json: str, event_id: str = "id", key: str = "who", topic: str = "orders", name: str = "orders"):
    view = stream_view([aggregation("n", "count")], schema_json=schema_json)
    view.stream_source.name, view.stream_source.timestamp_field = name, "at"
    view.stream_source.tags = {"headwater.event_id": event_id, "headwater.key": key}
    view.stream_source.kafka_options.topic = topic
    return compile_source(view.to_proto().spec)


def test_a_topics_columns_keep_their_spelling_and_types_their_other_names():
    source = source_of("Id string, `at`: long, Who integer, tags map< string , string >, x float", "Id", "Who")
    assert dict(source.columns) == {
        "Id": "string", "at": "bigint", "Who": "int", "tags": "map<string,string>", "x": "double",
    }  # fmt: skip
    assert (source.event_id, source.event_time, source.key) == ("Id", "at", "Who")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_json": "id string, at bigint, who string, amount decimal(10,2)"}, "'amount decimal(10'"),
        ({"schema_json": "id string, at bigint, who string, lines array<string>"}, "'lines array<string>'"),
        ({"schema_json": "id string, at bigint, who string, user-name string"}, "'user-name string'"),
        ({"schema_json": "id string, at bigint, who string, WHO string"}, "does not tell apart"),
        ({"schema_json": "id string, at bigint, who string, partition int"}, "platform's own"),
        ({"schema_json": "id string, at bigint, who string, hw_time bigint"}, "platform's own"),
        ({"schema_json": "id double, at bigint, who string"}, "an id is a string or an integer"),
        ({"schema_json": "id string, at string, who string"}, "at must be bigint"),
        ({"event_id": "nobody"}, "the tag headwater.event_id"),
        ({"topic": "events"}, "platform's envelope"),
        ({"topic": "events.dead_letter"}, "written by the platform"),
    ],
)
def test_a_topic_that_no_engine_could_read_exactly_is_refused(changes, said):
    with pytest.raises(DefinitionError, match=r"^orders: ") as refusal:
        source_of(**{"schema_json": "id string, at bigint, who string"} | changes)
    assert said in str(refusal.value)


TRIP = (
    '{"type": "record", "name": "Trip", "fields": [{"name": "id", "type": "string"}, {"name": "at", "type": "long"}, '
    '{"name": "who", "type": ["null", "int"]}, {"name": "date", "type": "string"}, {"name": "cut", "type": "bytes"}]}'
)


def test_an_avro_topic_has_the_columns_of_its_schema_that_a_column_can_hold():
    view = stream_view([aggregation("n", "count")], topic="trips")
    view.stream_source.timestamp_field = "at"
    view.stream_source.tags = {"headwater.event_id": "id", "headwater.key": "who"}
    view.stream_source.kafka_options.message_format = AvroFormat(schema_json=TRIP)
    source = compile_source(view.to_proto().spec)
    assert (source.format, source.columns) == ("avro", (("id", "string"), ("at", "bigint"), ("who", "int")))
    view.stream_source.kafka_options.topic = "events"
    with pytest.raises(DefinitionError, match="carries JSON"):
        compile_source(view.to_proto().spec)
    view.stream_source.kafka_options.message_format = ProtoFormat(class_path="Trip")
    with pytest.raises(DefinitionError, match="neither JsonFormat"):
        compile_source(view.to_proto().spec)


def test_a_topic_has_one_definition_and_one_reader():
    schema = "id string, at bigint, who string"
    one, again, wider = source_of(schema), source_of(schema), source_of(schema + ", amount double")
    assert check_sources([one, again]) == (one,)
    with pytest.raises(DefinitionError, match="two views define this source differently"):
        check_sources([one, wider])
    with pytest.raises(DefinitionError, match="topic 'orders' is also read by source 'others'"):
        check_sources([one, source_of(schema, name="others")])


def test_a_column_that_changes_its_type_never_meets_the_bytes_of_the_old_one():
    counted = [aggregation("n", "sum", "value")]
    before = compiled(stream_view(counted, schema_json=OWN, name="v", topic="own"))
    after = compiled(
        stream_view(counted, schema_json=OWN.replace("value double", "value bigint"), name="v", topic="own")
    )
    assert before.tables[0].id != after.tables[0].id


@pytest.mark.parametrize(
    ("window", "hop"),
    [(timedelta(seconds=1), timedelta(milliseconds=500)), (timedelta(days=30), timedelta(minutes=1))],
)
def test_a_window_of_too_short_or_too_many_hops_is_refused(window, hop):
    with pytest.raises(DefinitionError, match=r"tiles\. Use a slide_interval of a second or more"):
        compiled(stream_view([aggregation("n", "count", window=window, hop=hop)]))


def test_parameters_are_read_from_the_functions_name():
    assert parse_function("last(20)", "v.f").n == 20
    assert parse_function("decayed_count(7d)", "v.f").half_life_ms == 7 * 86_400_000


def test_a_plan_survives_its_file(tmp_path):
    from support.definitions import plan_of

    plan = plan_of(stream_view([aggregation("n", "count"), aggregation("x", "last(3)", "item_id")]))
    plan.save(tmp_path / "manifest.json")
    assert FeaturePlan.read(tmp_path / "manifest.json") == plan
