"""Clean up in Flink as a job that fails does: ``python clean_ups.py``.

It is interrupted while it writes a batch for Python, what wrote it is closed, and a worker that nobody holds any more
is released once more. Prints the Java exception of each, or ``nothing``. Which Flink it is, ``FLINK_LIB_DIR`` says, as
for a job.
"""

from collections.abc import Callable
from typing import Any

from py4j.protocol import Py4JJavaError
from pyflink.java_gateway import get_gateway

from streaming.patches import WORKER


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
    release = release_of_a_worker(gateway)
    thrown_by(release)  # it would close what this one does not have
    print(thrown_by(release))


def release_of_a_worker(gateway: Any) -> Callable[[], Any]:
    of = gateway.jvm.java.lang.Class.forName(WORKER.removesuffix(".class").replace("/", "."))
    (make,) = of.getDeclaredConstructors()
    make.setAccessible(True)
    worker = make.newInstance(gateway.new_array(gateway.jvm.Object, 3))
    release = of.getDeclaredMethod("unref", gateway.new_array(gateway.jvm.Class, 0))
    release.setAccessible(True)
    return lambda: release.invoke(worker, gateway.new_array(gateway.jvm.Object, 0))


def thrown_by(call: Callable[[], Any]) -> str:
    try:
        call()
    except Py4JJavaError as error:
        thrown = error.java_exception
        return str((thrown.getCause() or thrown).getClass().getSimpleName())
    return "nothing"


if __name__ == "__main__":
    main()
