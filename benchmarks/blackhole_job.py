"""The stream job without its sink: the same query into a table that keeps nothing; ``python -m`` runs it."""

import sys
from collections.abc import Mapping
from typing import Any

from pyflink.table import TableDescriptor

from streaming import flink, job
from streaming.sql import Program


def start_without_sink(program: Program, redis_url: str, options: Mapping[str, str]) -> Any:
    """Submit the query that ``streaming.flink.start`` hands to the sink."""
    # Its progress is read from Flink's metrics, which would else be up to two seconds old.
    environment = flink.prepare(program, {**options, "metrics.fetcher.update-interval": "200"})
    _, _, folded = program.insert.partition(" FROM ")
    columns = ", ".join(f"`{name}`" for name in program.sink_columns)
    table = environment.sql_query(f"SELECT {columns} FROM {folded}")
    return table.execute_insert(TableDescriptor.for_connector("blackhole").build()).get_job_client()


if __name__ == "__main__":
    flink.start = start_without_sink
    job.UNWELL_S = float("inf")  # without a sink no worker leaves a sign of life
    sys.exit(job.main())
