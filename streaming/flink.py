"""All that touches pyflink: the environment a job runs in, and the sink as a function of its SQL."""

import gc
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from py4j.protocol import Py4JError, Py4JJavaError
from pyflink.common import Configuration
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import DataTypes, StreamTableEnvironment
from pyflink.table.udf import ScalarFunction, udf
from pyflink.util.exceptions import JavaException

from headwater.errors import UnavailableError
from streaming.health import BEAT, BEATS, root_cause
from streaming.reading import RecordReader
from streaming.sink import TileSink
from streaming.sql import Program


class SinkFunction(ScalarFunction):  # type: ignore[misc]
    """Takes the columns of folded tiles as Arrow batches; runs in Flink's Python workers, one a slot."""

    def __init__(self, sink: TileSink) -> None:
        self._sink = sink

    def open(self, function_context: Any) -> None:
        """Keep collections, of which each batch's keys cause some, from looking at all that a worker has imported."""
        gc.freeze()

    def is_deterministic(self) -> bool:
        """Keep Flink from leaving out or repeating what is there for its effect."""
        return False

    def eval(self, *columns: Any) -> "pd.Series[Any]":
        """Write a batch; a column that is one constant, such as what a kind of table does not have, comes as it is."""
        given = dict(zip(self._sink.program.sink_columns, columns, strict=True))
        arrays = {name: column.to_numpy() for name, column in given.items() if isinstance(column, pd.Series)}
        return pd.Series(np.ones(self._sink.write(arrays), np.int64))


class BeatFunction(ScalarFunction):  # type: ignore[misc]
    """A row through each worker now and then: the first loads what the sink needs, all are signs of life."""

    def __init__(self, sink: TileSink) -> None:
        self._sink = sink

    def is_deterministic(self) -> bool:
        """Keep Flink from leaving out or repeating what is there for its effect."""
        return False

    def eval(self, beats: "pd.Series[Any]") -> "pd.Series[Any]":
        """Leave one sign for a batch."""
        return pd.Series(np.full(len(beats), self._sink.beat(self._sink.program.kafka.group), np.int64))


class ReadFunction(ScalarFunction):  # type: ignore[misc]
    """Records of a topic as typed rows, an Arrow batch at a time; nulls for what does not count."""

    def __init__(self, reader: RecordReader) -> None:
        self._reader = reader

    def eval(self, *records: Any) -> pd.DataFrame:
        """Read a batch of records: keys, values, ingest times, partitions, offsets."""
        columns = self._reader.read(*(column.tolist() for column in records))
        return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()}, copy=False)


def start(program: Program, redis_url: str, options: Mapping[str, str]) -> Any:
    """Submit a program; return its job client.

    Parameters
    ----------
    options
        Flink options by their full names.

    Raises
    ------
    UnavailableError
        Flink does not accept the job, such as for a checkpoint that it cannot read.
    """
    environment = prepare(program, options)
    sink = TileSink(program, redis_url)
    for name, function in (("hw_sink", SinkFunction(sink)), ("hw_beat", BeatFunction(sink))):
        environment.create_temporary_function(name, udf(function, result_type=DataTypes.BIGINT(), func_type="pandas"))
    environment.execute_sql(BEATS.format(workers=options.get("parallelism.default", "1")))
    try:
        return environment.execute_sql(insert_with_beats(program)).get_job_client()
    except JavaException as error:
        raise UnavailableError(f"flink: the job is not accepted, {root_cause(str(error))}.") from None


def insert_with_beats(program: Program) -> str:
    """What the job runs, as one graph that Flink starts again as a whole.

    Flink restarts alone what no exchange connects, and the tasks of a slot share its Python worker until the last of
    them has closed it: beats in a graph of their own would hand a dead worker on to the sink, which fails again.
    """
    return f"{program.insert} UNION ALL {BEAT}"


def prepare(program: Program, options: Mapping[str, str]) -> Any:
    """Make the tables and views of a program, all but what writes."""
    configuration = Configuration()
    for name, value in {"python.executable": sys.executable, **options}.items():
        configuration.set_string(name, value)
    environment = StreamTableEnvironment.create(StreamExecutionEnvironment.get_execution_environment(configuration))
    for name, reader in program.readers.items():
        read = udf(ReadFunction(reader), result_type=_row_type(reader), func_type="pandas")
        environment.create_temporary_function(name, read)
    for statement in program.views:
        environment.execute_sql(statement)
    return environment


def _row_type(reader: RecordReader) -> Any:
    kinds = {
        "STRING": DataTypes.STRING(), "BIGINT": DataTypes.BIGINT(), "INT": DataTypes.INT(),
        "DOUBLE": DataTypes.DOUBLE(), "BOOLEAN": DataTypes.BOOLEAN(),
    }  # fmt: skip
    return DataTypes.ROW([DataTypes.FIELD(name, kinds[kind]) for name, kind in reader.types.items()])


def job_id(client: Any) -> str:
    """Flink's id of a submitted job."""
    return str(client.get_job_id())


def failure(client: Any) -> str | None:
    """Why a submitted job has ended for good; ``None`` while it has not.

    The mini-cluster goes with its job, so that neither it nor REST can tell; the client holds the result.
    """
    try:
        result = client.get_job_execution_result()
        if not result.done():
            return None
        result.result()
    except (Py4JJavaError, JavaException) as error:
        return str(error)
    except (Py4JError, OSError):
        return (
            "the JVM has ended; the lines above or flink.log beside this log say why, unless it was killed. After an "
            "OutOfMemoryError set HEADWATER_FLINK_HEAP_MB to more, or HEADWATER_STATE_BACKEND=rocksdb"
        )
    return "the job has come to its end"
