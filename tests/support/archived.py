"""Events as the archive holds them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.events import ARCHIVE_SCHEMA


def archive(directory: Path, frame: pd.DataFrame, name="import-0", event_type="purchase", late_ms=0) -> None:
    """Write events as the archive holds them, by day."""
    n = len(frame)
    table = pa.table(
        {
            "event_id": [f"{name}-{number}" for number in range(n)], "event_type": [event_type] * n,
            "event_time": frame["event_time"], "user_id": frame["user_id"], "item_id": frame["item_id"],
            "session_id": pa.nulls(n, pa.string()), "request_id": pa.nulls(n, pa.string()),
            "position": pa.nulls(n, pa.int32()), "value": pa.nulls(n, pa.float64()),
            "context": pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
            "ingest_time": frame["event_time"] + late_ms, "partition": pa.array([-1] * n, pa.int32()),
            "offset": pa.array(range(n), pa.int64()),
        },
        schema=ARCHIVE_SCHEMA,
    )  # fmt: skip
    days = pd.to_datetime(frame["event_time"], unit="ms").dt.strftime("%Y-%m-%d").to_numpy()
    for day in np.unique(days):
        (directory / f"date={day}").mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.array(days == day)), directory / f"date={day}" / f"{name}.parquet")
