import pytest

from headwater.errors import DefinitionError
from headwater.registry.projection import check_projection

COLUMNS = {
    "user_id": "string",
    "paid": "boolean",
    "value": "double",
    "event_time": "bigint",
    "context": "map<string,string>",
}


def test_the_kinds_of_a_projections_columns_are_inferred():
    text = (
        "SELECT user_id, context['shop'] AS shop, value * 2 AS doubled, "
        "CASE WHEN value > 1 THEN 1 ELSE 0 END AS big FROM e"
    )
    _, kinds = check_projection("v", text, "e", COLUMNS)
    assert kinds == {"user_id": "string", "shop": "string", "doubled": "fixed", "big": "int"}


def test_operations_on_a_set_are_texts_joined():
    joined = "CASE WHEN paid THEN 'clear' ELSE 'add:' || COALESCE(user_id, CAST(event_time AS STRING)) END"
    text, kinds = check_projection("v", f"SELECT user_id, {joined} AS step FROM e", "e", COLUMNS)
    assert kinds["step"] == "string"
    assert "'add:' || COALESCE(user_id, TRY_CAST(event_time AS STRING))" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SELECT user_id, value / 2 AS v FROM e", "value / 2"),
        ("SELECT user_id, nobody FROM e", "'nobody'"),
        ("SELECT user_id FROM other", "not its stream source"),
        ("SELECT user_id, COUNT(*) AS n FROM e GROUP BY user_id", "not a plain SELECT"),
        ("SELECT user_id, now() AS t FROM e", "NOW()"),
        ("SELECT user_id, CAST(value AS DECIMAL(10, 2)) AS v FROM e", "cast to BIGINT"),
        ("SELECT user_id, NULL AS nothing FROM e", "not clear"),
        ("SELECT user_id, value + 1 FROM e", "name of its own"),
        ("SELECT user_id, 'n' || event_time AS v FROM e", "|| joins strings only"),
        ("SELECT user_id, CAST(value AS STRING) AS v FROM e", "write a fraction differently"),
        ("SELECT user_id, CAST(paid AS STRING) AS v FROM e", "write a boolean differently"),
        ("SELECT user_id, paid AS v FROM e", "not clear"),
        ("SELECT user_id FROM e WHERE context['n'] > 5", "CAST one side"),
        ("SELECT user_id FROM e WHERE value IN (1, 'two')", "CAST one side"),
        ("SELECT user_id FROM e WHERE event_time BETWEEN 1 AND '2'", "CAST one side"),
        ("SELECT user_id FROM e WHERE paid = 'true'", "CAST one side"),
        ("SELECT user_id, context['n'] + context['m'] AS v FROM e", "counts with a string"),
        ("SELECT user_id FROM e WHERE -user_id IS NULL", "counts with a string"),
        ("SELECT user_id FROM e WHERE user_id LIKE 'a\\\\_%'", "the engines escape differently"),
        ("SELECT user_id FROM e WHERE user_id LIKE context['p']", "the engines escape differently"),
        ("SELECT FROM WHERE", "projection"),
    ],
)
def test_what_the_engines_would_read_differently_is_refused_by_name(text, said):
    with pytest.raises(DefinitionError, match=r"v: ") as refusal:
        check_projection("v", text, "e", COLUMNS)
    assert said in str(refusal.value)


def test_a_cast_that_fails_is_null_in_every_engine():
    text, kinds = check_projection("v", "SELECT user_id, CAST(context['n'] AS BIGINT) AS n FROM e", "e", COLUMNS)
    assert "TRY_CAST(context['n'] AS BIGINT)" in text
    assert kinds["n"] == "int"
    assert check_projection("v", text, "e", COLUMNS)[0] == text
