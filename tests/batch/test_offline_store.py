"""Feast's own calls over the Spark point-in-time join."""

import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import redis
from support.archives import START, Stored, write

from headwater.events import Event
from headwater.plan import DAY_MS, HOUR_MS

pytestmark = pytest.mark.integration

DEFINITIONS = """
from datetime import timedelta
from feast import Aggregation, Entity, FeatureView, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Array, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
events = KafkaSource(
    name="events", topic="events", kafka_bootstrap_servers="", timestamp_field="event_time",
    message_format=JsonFormat(
        schema_json="event_id string, event_type string, event_time bigint, user_id string, item_id string"
    ),
    batch_source=FileSource(name="archive", path="archive/events", timestamp_field="event_time"),
)
pairs = StreamFeatureView(
    name="pairs", entities=[user, item], source=events, ttl=timedelta(0), timestamp_field="event_time",
    aggregations=[
        Aggregation(
            column="", function="count", time_window=timedelta(days=2), slide_interval=timedelta(hours=1),
            name="bought_2d",
        ),
        Aggregation(column="event_id", function="last(2)", name="last_ids"),
    ],
    schema=[Field(name="bought_2d", dtype=Int64), Field(name="last_ids", dtype=Array(String))],
    tags={"headwater.projection": "SELECT user_id, item_id, event_id FROM events"},
)
profile = FeatureView(
    name="profile", entities=[user], ttl=timedelta(days=30), schema=[Field(name="age", dtype=Int64)],
    source=FileSource(path="PROFILE", timestamp_field="event_timestamp", created_timestamp_column="created"),
)
"""


@pytest.fixture
def repo(tmp_path: Path, valkey: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An applied Feast repository with an archive beside it."""
    folder = tmp_path / "repo"
    folder.mkdir()
    profile = pd.DataFrame(
        [("1", 0, 0, 30), ("1", 1, 1, 31), ("1", 1, 2, 32), ("11", 2, 9, 40)],
        columns=["user_id", "event", "created", "age"],
    )
    for name, source in (("event_timestamp", "event"), ("created", "created")):
        profile[name] = pd.to_datetime(START + profile[source] * DAY_MS, unit="ms", utc=True)
    profile.drop(columns="event").to_parquet(tmp_path / "profile.parquet")
    (folder / "definitions.py").write_text(DEFINITIONS.replace("PROFILE", str(tmp_path / "profile.parquet")))
    (folder / "feature_store.yaml").write_text(
        textwrap.dedent(f"""\
        project: offline
        provider: local
        registry: data/registry.db
        offline_store:
          type: batch.offline_store.HeadwaterOfflineStore
        online_store:
          type: headwater.online.feast_store.HeadwaterOnlineStore
          connection_string: {valkey}
        entity_key_serialization_version: 3
        """)
    )
    (folder / "data").mkdir()
    applied = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "headwater.registry.lean", "-c", str(folder), "apply"],
        capture_output=True,
        text=True,
    )
    assert applied.returncode == 0, applied.stderr
    monkeypatch.setenv("HEADWATER_STATE_DIR", str(tmp_path))
    from headwater.settings import get_settings

    get_settings.cache_clear()
    yield folder
    get_settings.cache_clear()


@pytest.mark.filterwarnings("ignore")
def test_feast_reads_history_and_materializes(
    spark: Any, repo: Path, tmp_path: Path, valkey_client: redis.Redis
) -> None:
    """(1, 11) and (11, 1) keep their own values, late rows stay unknown, duplicates and strangers are one row each."""
    from feast import FeatureStore

    own = [_bought(0, "1", "11", 0), _bought(1, "1", "11", 1), _bought(3, "1", "11", 3, late=9)]
    write([*own, _bought(2, "11", "1", 2)], tmp_path / "archive" / "events")
    store = FeatureStore(repo_path=str(repo))
    day_two = datetime.fromtimestamp(START / 1000, UTC) + timedelta(days=2)
    asked = pd.DataFrame(
        [("1", "11", day_two, "a"), ("11", "1", day_two, "b"), ("1", "11", day_two, "a"), ("9", "9", day_two, "c")],
        columns=["user_id", "item_id", "event_timestamp", "kept"],
    )
    features = ["pairs:bought_2d", "profile:age", "pairs:last_ids"]
    told = store.get_historical_features(asked, features=features).to_df()
    assert list(told.columns) == ["user_id", "item_id", "event_timestamp", "kept", "bought_2d", "age", "last_ids"]
    assert told["kept"].tolist() == ["a", "b", "a", "c"]
    assert told["bought_2d"].fillna(-1).tolist() == [2, 1, 2, -1]
    assert told["age"].fillna(-1).tolist() == [32, -1, 32, -1]
    assert [None if ids is None else list(ids) for ids in told["last_ids"]] == [
        ["e1", "e0"],
        ["e2"],
        ["e1", "e0"],
        None,
    ]

    store.materialize(day_two - timedelta(days=5), day_two + timedelta(days=30), feature_views=["profile"])
    rows = valkey_client.keys(b"hw1:*")
    assert len(rows) == 2


def _bought(number: int, user: str, item: str, hours: int, late: int = 0) -> Stored:
    time = START + DAY_MS + hours * HOUR_MS
    return Stored(Event(f"e{number}", "purchase", time, user, item), time + late * DAY_MS, 0, number)
