"""What the online benchmarks share: a Valkey of their own, Feast's store beside ours, the same values in both."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
from feast import Entity, FeatureStore, FeatureView, FileSource, ValueType
from feast.field import Field
from feast.repo_config import RepoConfig
from feast.types import Float32

from headwater.runtime import process, valkey
from headwater.runtime.ports import free_port

VIEWS, FEATURES = 3, (7, 7, 6)
NOW = datetime.now(UTC).replace(microsecond=0)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """URL of an empty Valkey that lives as long as the measurement."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        url = f"redis://127.0.0.1:{port}/0"
        started = process.spawn(valkey.command(Path(folder), "127.0.0.1", port), Path(folder) / "log")
        try:
            deadline = time.monotonic() + 30
            while not valkey.is_ready(url):
                if time.monotonic() > deadline:
                    raise TimeoutError("valkey did not answer within 30 s")
                time.sleep(0.05)
            yield url
        finally:
            process.end(started)


@dataclass(frozen=True)
class Stores:
    """The same views in Feast's Redis store and in ours."""

    feast: FeatureStore
    ours: FeatureStore
    client: redis.Redis
    frames: dict[str, pd.DataFrame]

    def server_ms(self) -> float:
        """CPU milliseconds the server has used so far."""
        used: Any = self.client.info("cpu")
        return 1000 * (float(used["used_cpu_user"]) + float(used["used_cpu_sys"]))

    @property
    def references(self) -> list[str]:
        return [f"{name}:{column}" for name, frame in self.frames.items() for column in frame.filter(regex="^f")]


@contextlib.contextmanager
def stores(entities: int) -> Iterator[Stores]:
    """Three views of 20 float32 features in all, ``entities`` rows each, applied but not written."""
    with server() as url, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
        frames, views = {}, []
        for at in range(VIEWS):
            frames[f"view{at}"] = _frame(at, entities)
            path = home / f"view{at}.parquet"
            frames[f"view{at}"].to_parquet(path)
            names = [f"f{at}_{number}" for number in range(FEATURES[at])]
            views.append(FeatureView(
                name=f"view{at}", entities=[item], ttl=timedelta(days=30),
                source=FileSource(path=str(path), timestamp_field="event_timestamp"),
                schema=[Field(name=name, dtype=Float32) for name in names],
            ))  # fmt: skip
        host = url.removeprefix("redis://").removesuffix("/0")
        kinds: dict[str, dict[str, Any]] = {
            "theirs": {"type": "redis", "connection_string": host},
            "ours": {"type": "headwater.online.feast_store.HeadwaterOnlineStore", "connection_string": url},
        }
        made = {}
        for project, online in kinds.items():
            made[project] = FeatureStore(config=RepoConfig(
                project=project, provider="local", registry=str(home / f"{project}.db"), repo_path=home,
                online_store=online, entity_key_serialization_version=3,
            ))  # fmt: skip
            made[project].apply([item, *views])
        yield Stores(made["theirs"], made["ours"], redis.Redis.from_url(url), frames)


def _frame(seed: int, entities: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((entities, FEATURES[seed]), np.float32)
    frame = pd.DataFrame(values, columns=[f"f{seed}_{number}" for number in range(FEATURES[seed])])
    return frame.assign(item_id=[str(number) for number in range(entities)], event_timestamp=NOW)
