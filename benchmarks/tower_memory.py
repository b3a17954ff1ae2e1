"""Peak memory, in MiB, of training on so many generated purchases, of which so many are in memory at once.

``python -m benchmarks.tower_memory FOLDER PURCHASES AT_ONCE``; users and products are as many whatever the purchases.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.events import ARCHIVE_SCHEMA
from models.tower_config import TowerConfig
from models.trip_stream import stream_trips

USERS, ITEMS = 2_000, 5_000
WRITTEN_AT_ONCE = 25_000
END_MS = 400 * 86_400_000


def generate(home: Path, n: int) -> None:
    """An archive of ``n`` purchases, four a trip, and a catalogue."""
    home.mkdir(parents=True)
    ids = [f"i{number}" for number in range(ITEMS)]
    pq.write_table(pa.table({"item_id": ids, "category": [f"c{number % 50}" for number in range(ITEMS)]}),
                   home / "items.parquet")  # fmt: skip
    for begin in range(0, n, WRITTEN_AT_ONCE):
        _write(
            home / "events" / "date=2020-01-01" / f"import-{begin:09}.parquet", begin, min(WRITTEN_AT_ONCE, n - begin)
        )


def _write(path: Path, begin: int, n: int) -> None:
    generator = np.random.default_rng(begin)
    trip = np.arange(n) // 4
    at_ms = generator.integers(0, END_MS, trip[-1] + 1)[trip]
    user = generator.integers(0, USERS, trip[-1] + 1)[trip]
    item = (ITEMS * generator.random(n) ** 2).astype(int)
    columns = {
        "event_id": [f"{begin + number:032x}" for number in range(n)], "event_type": ["purchase"] * n,
        "event_time": at_ms, "ingest_time": at_ms, "user_id": [f"u{number}" for number in user],
        "item_id": [f"i{number}" for number in item], "partition": np.full(n, -1), "offset": begin + np.arange(n),
    }  # fmt: skip
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(n, field.type)
        for field in ARCHIVE_SCHEMA
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=ARCHIVE_SCHEMA), path)


def train(home: Path, at_once: int) -> None:
    """A pass over what was generated."""
    from models.two_tower import Trainer

    config = TowerConfig(dim=16, hidden=16, negatives=128, passes=1, least_steps=0)
    Trainer(stream_trips(home / "events", home, END_MS, config.n_recent, home / "trips", at_once), config, "cpu").fit()


def peak_mb() -> float:
    """Resident memory of this process at the most, of which a parent's share is none."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    generate(folder, int(sys.argv[2]))
    train(folder, int(sys.argv[3]))
    print(round(peak_mb(), 1))
