"""Card payments, as an acquirer would send them: a topic, an id, a time and a key of its own."""

from pathlib import Path

from feast import Entity, FileSource, KafkaSource, RequestSource, ValueType
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Float64, Int64

from headwater.settings import get_settings

_archive = Path(__file__).resolve().parents[2] / get_settings().state_dir / "archive" / "payments"

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING, description="A payment card.")
merchant = Entity(name="merchant", join_keys=["merchant_id"], value_type=ValueType.STRING, description="Who is paid.")
device = Entity(name="device", join_keys=["device_id"], value_type=ValueType.STRING, description="A phone or terminal.")
session = Entity(name="session", join_keys=["session"], value_type=ValueType.STRING, description="A visit to a shop.")

payments = KafkaSource(
    name="payments",
    topic="payments",
    kafka_bootstrap_servers="",  # the platform's own, from its settings
    timestamp_field="paidAt",
    message_format=JsonFormat(
        schema_json="paymentId bigint, paidAt bigint, card_id string, merchant_id string, device_id string, "
        "amount double, status string, country string, online boolean, attributes map<string,string>"
    ),
    batch_source=FileSource(name="payments_archive", path=str(_archive), timestamp_field="paidAt"),
    tags={"headwater.event_id": "paymentId", "headwater.key": "card_id"},
)

authorisation = RequestSource(
    name="authorisation", schema=[Field(name="request_time", dtype=Int64), Field(name="amount", dtype=Float64)]
)
