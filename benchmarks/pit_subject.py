"""One subject of the join benchmarks in a process of its own: ``python -m benchmarks.pit_subject NAME REPO DATA``.

It starts, says so, and then joins the labels named on each line of its input, answering with one line of JSON.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pit_data import TIMED, TTL_DAYS, Source

CORES = 2
Join = Callable[[Path, list[str] | None], pa.Table]


def feast_store(repo: Path, data: Path) -> Join:
    """``get_historical_features`` of whichever offline store the repository names, labels given as a data frame."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    references = [
        f"{view.name}:{field.name}" for view in store.list_feature_views() for field in view.features
        if field.name not in view.join_keys
    ]  # fmt: skip

    def join(labels: Path, features: list[str] | None) -> pa.Table:
        wanted = [one for one in references if features is None or one.partition(":")[2] in features]
        return store.get_historical_features(pq.read_table(labels).to_pandas(), features=wanted).to_arrow()

    return join


def feast(repo: Path, data: Path) -> Join:
    """Feast's Spark store, in a session with as many cores and as much heap as ours; the JVM otherwise as it comes."""
    from batch.session import prepare_java, scratch_of
    from headwater.settings import get_settings

    settings = get_settings()
    prepare_java(settings)
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{CORES}]")
    for key, value in {
        "spark.driver.memory": f"{settings.spark_heap_mb}m", "spark.ui.enabled": "false",
        "spark.driver.host": settings.host, "spark.driver.bindAddress": settings.host,
        "spark.driver.extraJavaOptions": "-Dio.netty.noUnsafe=false", "spark.local.dir": str(scratch_of(settings)),
        "spark.sql.session.timeZone": "UTC", "spark.sql.shuffle.partitions": str(2 * CORES),
        "spark.sql.execution.arrow.pyspark.enabled": "true", "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(scratch_of(settings) / "warehouse"),
    }.items():  # fmt: skip
        builder = builder.config(key, value)
    builder.getOrCreate().sparkContext.setLogLevel("ERROR")
    return feast_store(repo, data)


def ours(repo: Path, data: Path) -> Join:
    """Our store."""
    from batch.session import spark_session
    from headwater.settings import get_settings

    spark_session(get_settings())
    return feast_store(repo, data)


def duckdb(repo: Path, data: Path) -> Join:
    """DuckDB's ASOF join, in this process; a row older than the ttl counts as none."""
    import duckdb as engine

    database = engine.connect(config={"threads": CORES})

    def join(labels: Path, _: list[str] | None) -> pa.Table:
        database.register("asked", pq.read_table(labels))
        return database.sql(asof_sql(data, "asked", TIMED)).to_arrow_table()

    return join


def asof_sql(data: Path, labels: str, sources: tuple[Source, ...]) -> str:
    """Labels and each source's newest row at most as old as the ttl."""
    columns, joins = ["l.*"], []
    for source in sources:
        name = source.name
        alive = f"{name}.event_timestamp >= l.event_timestamp - INTERVAL {TTL_DAYS} DAYS"
        columns += [f"CASE WHEN {alive} THEN {name}.{feature} END AS {feature}" for feature in source.features]
        same = " AND ".join(f"l.{key} = {name}.{key}" for key in source.keys)
        joins.append(
            f"ASOF LEFT JOIN '{data / name}.parquet' {name} ON {same} AND l.event_timestamp >= {name}.event_timestamp"
        )
    return f"SELECT {', '.join(columns)} FROM {labels} l {' '.join(joins)}"


SUBJECTS = {"feast": feast, "ours": ours, "duckdb": duckdb}


def main() -> None:
    """Serve joins until the input ends."""
    warnings.simplefilter("ignore")
    name, repo, data = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    join = SUBJECTS[name](repo, data)
    _say({"ready": True})
    for line in sys.stdin:
        told = json.loads(line)
        began = time.monotonic()
        joined = join(Path(told["labels"]), told.get("features"))
        seconds = time.monotonic() - began
        if told.get("out"):
            pq.write_table(joined, told["out"])
        _say({"seconds": seconds, "rows": joined.num_rows})


def _say(told: dict[str, object]) -> None:
    print("\n@" + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
