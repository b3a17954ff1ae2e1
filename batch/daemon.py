"""The process that Spark's Python workers are forked from, with what they all import imported once.

Spark's own daemon imports nothing, so each worker spends two seconds of a core on pandas, pyarrow and the fold.
"""

import gc

import pandas  # noqa: F401
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401
import pyspark.sql.pandas.serializers
import pyspark.sql.pandas.types  # noqa: F401
from pyspark.daemon import manager

import batch.cut
import batch.marked
import batch.tiles  # noqa: F401

if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # workers share these pages, and look through none of it after each task
    manager()
