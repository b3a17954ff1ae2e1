"""Where the grocery features come from."""

from pathlib import Path

from feast import Entity, FileSource, KafkaSource, RequestSource, ValueType
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Int64

from headwater.settings import get_settings

# Feast runs this file with the repository as its working directory; the state folder lies beside the repository.
_state = Path(__file__).resolve().parents[1] / get_settings().state_dir
_data = _state / "data" / "complete_journey"

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A household.")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="A product.")
category = Entity(
    name="category", join_keys=["category"], value_type=ValueType.STRING, description="A product category."
)

events = KafkaSource(
    name="events",
    topic="events",
    kafka_bootstrap_servers="",  # the platform's own, from its settings
    timestamp_field="event_time",
    message_format=JsonFormat(
        schema_json="event_id string, event_type string, event_time bigint, user_id string, item_id string, "
        "session_id string, request_id string, position int, value double, context map<string,string>"
    ),
    batch_source=FileSource(
        name="events_archive", path=str(_state / "archive" / "events"), timestamp_field="event_time"
    ),
    tags={"headwater.event_id": "event_id", "headwater.key": "user_id"},
)

profiles = FileSource(
    name="household_profiles",
    path=str(_data / "household_profile.parquet"),
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
)
promotions = FileSource(
    name="item_promotions",
    path=str(_data / "item_promotion.parquet"),
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
)
request = RequestSource(name="request", schema=[Field(name="request_time", dtype=Int64)])
