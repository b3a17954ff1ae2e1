"""What Flink makes of programs of one layout: ``python -m support.graphs`` prints each one's graph and types as JSON.

In a process of its own, which the JVM ends with.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from pyflink.table import DataTypes, ExplainDetail
from pyflink.table.udf import udf
from support.definitions import HOUR, PURCHASES, aggregation, plan_of, stream_view

from headwater.runtime.jars import flink_jars
from headwater.settings import Settings
from streaming import flink, health, job, sql
from streaming.layout import layout_of

DAY = 24 * HOUR


def view(name: str, function: str, keys: tuple[str, ...], projection: str = PURCHASES, window: Any = DAY) -> Any:
    column = "" if function == "count" else "item_id" if function.startswith("last") else "value"
    one = aggregation("f", function, column, window, None if window is None else HOUR)
    return stream_view([one], keys, projection, name=name)


LISTS, SUMS = view("lists", "last(3)", ("user_id",)), view("sums", "sum", ("user_id", "item_id"))
NEVER_NULL = "SELECT COALESCE(user_id, 'x') AS user_id, COALESCE(value, 1.0) AS value, event_time FROM events"
ALL_ALIKE = "SELECT 'all' AS every, 1.0 AS value, event_time FROM events"
PLANS = {
    "lists and sums": (LISTS, SUMS),
    "another list": (LISTS, SUMS, view("more", "last(9)", ("item_id",))),
    "no lists": (SUMS,),
    "a lifetime alone": (view("ever", "count", ("user_id",), window=None),),
    "nothing can be null": (view("whole", "sum", ("user_id",), NEVER_NULL, None),),
    "one key for all, and nothing but literals": (view("all", "sum", ("every",), ALL_ALIKE, None),),
    "many": tuple(view(f"v{at}", name, ("user_id",)) for at, name in enumerate(("count", "min", "max", "mean"))),
}


def graph_of(program: sql.Program, options: dict[str, str]) -> dict[str, Any]:
    """Operators with what each is fed by, and the types of the columns that the folds are given."""
    environment = flink.prepare(program, options)
    for name in ("hw_sink", "hw_beat"):
        made = udf(lambda *columns: columns[0], result_type=DataTypes.BIGINT(), func_type="pandas", name=name)
        environment.create_temporary_function(name, made)
    environment.execute_sql(health.BEATS.format(workers=1))
    told = environment.explain_sql(flink.insert_with_beats(program), ExplainDetail.JSON_EXECUTION_PLAN)
    nodes = json.loads(told.partition("== Physical Execution Plan ==")[2])["nodes"]
    places = {node["id"]: place for place, node in enumerate(nodes)}
    views = [text.split("`")[1] for text in program.views if text.startswith("CREATE TEMPORARY VIEW `hw_")]
    folded = [view for view in views if view in ("hw_fixed", "hw_last", "hw_distinct")]
    return {
        "operators": [
            [re.sub(r"\[\d+\]", "", node["type"]),
             [[places[fed["id"]], fed["ship_strategy"]] for fed in node.get("predecessors", ())]]
            for node in nodes
        ],
        "types": {name: str(environment.from_path(name).get_resolved_schema()) for name in folded},
    }  # fmt: skip


def main(folder: str) -> None:
    settings = Settings(state_dir=Path(folder), flink_heap_mb=600)
    os.environ.update(job.jvm_environment(settings))
    options = job.cluster_options(settings) | {
        "pipeline.jars": ";".join(jar.resolve().as_uri() for jar in flink_jars())
    }
    layout = layout_of(plan_of(*PLANS["lists and sums"]))
    graphs = {}
    for name, views in PLANS.items():
        plan = plan_of(*views)
        tables = [table.id for one in plan.views for table in one.tables]
        numbered = layout.with_tables(tables)
        for cuts in ({}, {tables[-1]: {0: 5, 1: 7}}):
            program = sql.compile_program(plan, sql.KafkaOptions("nowhere:9092", "group"), numbered, cuts)
            graphs[name + (", cut" if cuts else "")] = graph_of(program, options)
    print(json.dumps(graphs))


if __name__ == "__main__":
    main(sys.argv[1])
