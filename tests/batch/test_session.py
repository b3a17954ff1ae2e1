"""How Spark's JVM is started."""

from batch.session import FIRST_JARS, first_jars


def test_each_kind_of_jar_that_goes_first_is_one_that_spark_has() -> None:
    named = [jar.name for jar in first_jars()]
    assert all(any(name.startswith(begin) for name in named) for begin in FIRST_JARS)
    assert len(set(named)) == len(named)
