"""Interrupt Flink while it writes a batch for Python, then close what wrote it: ``python interrupted_batch.py``.

Prints the Java exception of each, or ``nothing``. Which Flink it is, ``FLINK_LIB_DIR`` says, as for a job.
"""

from typing import Any

from py4j.protocol import Py4JJavaError
from pyflink.java_gateway import get_gateway


def main() -> None:
    gateway = get_gateway()
    jvm = gateway.jvm
    types = gateway.new_array(jvm.org.apache.flink.table.types.logical.LogicalType, 1)
    types[0] = jvm.org.apache.flink.table.types.logical.BigIntType()
    row = jvm.org.apache.flink.table.types.logical.RowType.of(types)
    writer = jvm.org.apache.flink.table.runtime.arrow.serializers.ArrowSerializer(row, row)
    writer.open(jvm.java.io.ByteArrayInputStream(b""), jvm.java.io.ByteArrayOutputStream())
    jvm.java.lang.Thread.currentThread().interrupt()  # py4j calls all of it in one thread
    print(thrown_by(writer.finishCurrentBatch))
    jvm.java.lang.Thread.interrupted()
    print(thrown_by(writer.close))


def thrown_by(call: Any) -> str:
    try:
        call()
    except Py4JJavaError as error:
        return str(error.java_exception.getClass().getSimpleName())
    return "nothing"


if __name__ == "__main__":
    main()
