"""What a card, a merchant, a device and a visit have done lately. Names read key, quantity, window."""

from datetime import timedelta

from feast import Aggregation, StreamFeatureView
from feast.field import Field
from feast.types import Array, Float64, Int64, String
from sources import card, device, merchant, payments, session

SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
WINDOWS = {"1m": MINUTE, "10m": 10 * MINUTE, "1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
HOPS = {"1m": 10 * SECOND, "10m": MINUTE, "1h": MINUTE, "1d": HOUR, "7d": HOUR, "30d": HOUR}
ZERO = {"headwater.default": "0"}


def over(windows, name, function, column="", dtype=Float64, tags=None):
    """One aggregation and its field for each window, called ``<name>_<window>``."""
    return [
        (
            Aggregation(
                column=column, function=function, time_window=WINDOWS[window], slide_interval=HOPS[window],
                name=f"{name}_{window}",
            ),
            Field(name=f"{name}_{window}", dtype=dtype, tags=tags or {}),
        )
        for window in windows.split()
    ]  # fmt: skip


def view(name, entities, projection, parts, description):
    """A windowed view of the payments."""
    return StreamFeatureView(
        name=name,
        entities=entities,
        source=payments,
        ttl=30 * DAY,
        timestamp_field="paidAt",
        aggregations=[aggregation for part in parts for aggregation, _ in part],
        schema=[field for part in parts for _, field in part],
        tags={"headwater.projection": projection},
        description=description,
        owner="fraud",
    )


card_activity = view(
    "card_activity",
    [card],
    "SELECT card_id, merchant_id, device_id, country, amount FROM payments WHERE status = 'approved'",
    [
        over("1m 10m 1h 1d 7d 30d", "card_payments", "count", dtype=Int64, tags=ZERO),
        over("10m 1h 1d 30d", "card_amount", "sum", "amount", tags=ZERO),
        over("30d", "card_mean_amount", "mean", "amount"),
        over("30d", "card_max_amount", "max", "amount"),
        over("30d", "card_amount_spread", "stddev", "amount"),
        over("1d 30d", "card_devices", "approx_count_distinct", "device_id", Int64, ZERO),
        over("1d 30d", "card_merchants", "approx_count_distinct", "merchant_id", Int64, ZERO),
        over("7d", "card_countries", "approx_count_distinct", "country", Int64, ZERO),
        over("30d", "card_last_amounts", "last(5)", "amount", Array(Float64)),
        over("30d", "card_payments_decayed", "decayed_count(2d)", tags=ZERO),
    ],
    "How much, how often, where and with what a card pays.",
)

card_refusals = view(
    "card_refusals",
    [card],
    "SELECT card_id, attributes['reason'] AS reason FROM payments WHERE status = 'declined'",
    [
        over("10m 1d 30d", "card_declines", "count", dtype=Int64, tags=ZERO),
        over("1d", "card_decline_reasons", "approx_count_distinct", "reason", Int64, ZERO),
        over("30d", "card_last_reason", "last(1)", "reason", Array(String)),
    ],
    "How often, and why, a card is refused.",
)

card_merchants = view(
    "card_merchants",
    [card],
    "SELECT card_id, merchant_id, CASE WHEN attributes['reason'] = 'stolen' THEN 'clear' "
    "WHEN status = 'approved' THEN 'add:' || merchant_id WHEN status = 'refunded' THEN 'remove:' || merchant_id "
    "END AS step FROM payments",
    [
        over("30d", "card_open_merchants", "members", "step", Array(String)),
        over("7d", "card_merchants_lately", "last_distinct(3)", "merchant_id", Array(String)),
    ],
    "Merchants that were paid and have not paid back; none any more once the card is told to be stolen.",
)

merchant_activity = view(
    "merchant_activity",
    [merchant],
    "SELECT merchant_id, card_id, amount, CASE WHEN status = 'declined' THEN 1 ELSE 0 END AS declined FROM payments "
    "WHERE status IN ('approved', 'declined')",
    [
        over("1h 1d 30d", "merchant_payments", "count", dtype=Int64, tags=ZERO),
        over("1d 30d", "merchant_declines", "sum", "declined", Int64, ZERO),
        over("1d", "merchant_cards", "approx_count_distinct", "card_id", Int64, ZERO),
        over("30d", "merchant_mean_amount", "mean", "amount"),
        over("30d", "merchant_amount_spread", "stddev", "amount"),
    ],
    "What is usual at a merchant.",
)

card_merchant_activity = view(
    "card_merchant_activity",
    [card, merchant],
    "SELECT card_id, merchant_id, amount, paidAt FROM payments WHERE status = 'approved'",
    [
        over("1h 30d", "card_merchant_payments", "count", dtype=Int64, tags=ZERO),
        over("30d", "card_merchant_amount", "sum", "amount", tags=ZERO),
        over("30d", "card_merchant_last_paid", "max", "paidAt"),
    ],
    "Whether a card is known at a merchant.",
)

device_activity = view(
    "device_activity",
    [device],
    "SELECT device_id, card_id, CASE WHEN status = 'declined' THEN 1 ELSE 0 END AS declined FROM payments "
    "WHERE device_id IS NOT NULL AND online = TRUE",
    [
        over("1m 1h 1d", "device_payments", "count", dtype=Int64, tags=ZERO),
        over("1d 30d", "device_cards", "approx_count_distinct", "card_id", Int64, ZERO),
        over("1d", "device_declines", "sum", "declined", Int64, ZERO),
        over("1d", "device_last_cards", "last(3)", "card_id", Array(String)),
    ],
    "How many cards a device has tried.",
)

visit_activity = view(
    "visit_activity",
    [session, card, device],
    "SELECT attributes['session'] AS session, card_id, device_id, amount FROM payments "
    "WHERE attributes['session'] IS NOT NULL",
    [
        over("1h", "visit_attempts", "count", dtype=Int64, tags=ZERO),
        over("1h", "visit_max_amount", "max", "amount"),
    ],
    "What one card tried on one device within one visit.",
)
