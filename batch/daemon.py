"""The process that Spark's Python workers are forked from, with what they all import imported once.

Spark's own daemon imports nothing, so each worker spends two seconds of a core on pandas, pyarrow and the fold.
"""

import gc
from importlib import import_module

from pyspark.daemon import manager

SHARED = ("pandas", "pyspark.sql.pandas.serializers", "pyspark.sql.pandas.types", "batch.cut", "batch.marked")
"""What workers need, with all that it imports."""

for name in SHARED:
    import_module(name)

if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # workers share these pages, and look through none of it after each task
    manager()
