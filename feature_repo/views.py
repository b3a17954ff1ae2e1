"""Every grocery feature, once. Names read key, quantity, window."""

from datetime import timedelta

from feast import Aggregation, FeatureView, StreamFeatureView
from feast.field import Field
from feast.types import Array, Float64, Int64, String
from sources import category, events, item, profiles, promotions, user

DAY = timedelta(days=1)
WINDOWS = (1, 7, 30, 90)
FOREVER = timedelta(0)
ZERO = {"headwater.default": "0"}


def per_window(prefix, column, function, days, dtype=Int64):
    """One aggregation and its field for each window of whole days, cut at midnight."""
    names = [f"{prefix}_{window}d" for window in days]
    aggregations = [
        Aggregation(column=column, function=function, time_window=window * DAY, slide_interval=DAY, name=name)
        for window, name in zip(days, names, strict=True)
    ]
    return aggregations, [Field(name=name, dtype=dtype, tags=ZERO) for name in names]


def single(name, column, function, days=None, dtype=Int64, default="0"):
    """One aggregation and its field; no ``days`` means the entity's lifetime."""
    window = None if days is None else days * DAY
    aggregation = Aggregation(
        column=column, function=function, time_window=window, slide_interval=None if days is None else DAY, name=name
    )
    return [aggregation], [
        Field(name=name, dtype=dtype, tags={} if default is None else {"headwater.default": default})
    ]


def windowed(name, entities, projection, parts, description):
    """A windowed view of the purchases."""
    return StreamFeatureView(
        name=name,
        entities=entities,
        source=events,
        ttl=FOREVER,
        timestamp_field="event_time",
        aggregations=[aggregation for aggregations, _ in parts for aggregation in aggregations],
        schema=[field for _, fields in parts for field in fields],
        tags={"headwater.projection": projection},
        description=description,
        owner="grocery",
    )


user_activity = windowed(
    "user_activity",
    [user],
    "SELECT user_id, item_id, session_id, value, event_time FROM events WHERE event_type = 'purchase'",
    [
        per_window("user_purchases", "", "count", WINDOWS),
        per_window("user_spend", "value", "sum", WINDOWS, Float64),
        per_window("user_baskets", "session_id", "approx_count_distinct", WINDOWS),
        single("user_mean_value_90d", "value", "mean", 90, Float64),
        single("user_purchases_total", "", "count"),
        single("user_last_purchase", "event_time", "max", default=None),
        single("user_last_items", "item_id", "last(20)", 90, Array(String), default=None),
    ],
    "How much, how often and what a household buys.",
)

item_activity = windowed(
    "item_activity",
    [item],
    "SELECT item_id, value, event_time FROM events WHERE event_type = 'purchase'",
    [
        per_window("item_purchases", "", "count", WINDOWS),
        per_window("item_spend", "value", "sum", (7, 30), Float64),
        single("item_mean_value_90d", "value", "mean", 90, Float64),
        single("item_purchases_decayed_7d", "", "decayed_count(7d)", 30, Float64),
        single("item_purchases_total", "", "count"),
        single("item_first_purchase", "event_time", "min", default=None),
    ],
    "How popular a product is, and whether it is rising.",
)

user_category_activity = windowed(
    "user_category_activity",
    [user, category],
    "SELECT user_id, context['category'] AS category, value, event_time FROM events "
    "WHERE event_type = 'purchase' AND context['category'] IS NOT NULL",
    [
        per_window("user_category_purchases", "", "count", WINDOWS),
        single("user_category_spend_90d", "value", "sum", 90, Float64),
        single("user_category_purchases_decayed_30d", "", "decayed_count(30d)", 90, Float64),
        single("user_category_purchases_total", "", "count"),
        single("user_category_last_purchase", "event_time", "max", default=None),
    ],
    "What a household buys of a category.",
)

user_item_activity = windowed(
    "user_item_activity",
    [user, item],
    "SELECT user_id, item_id, value, event_time FROM events WHERE event_type = 'purchase'",
    [
        per_window("user_item_purchases", "", "count", WINDOWS),
        single("user_item_spend_90d", "value", "sum", 90, Float64),
        single("user_item_purchases_decayed_30d", "", "decayed_count(30d)", 360, Float64),
        single("user_item_purchases_decayed_90d", "", "decayed_count(90d)", 360, Float64),
        single("user_item_purchases_total", "", "count"),
        single("user_item_first_purchase", "event_time", "min", default=None),
        single("user_item_last_purchase", "event_time", "max", default=None),
    ],
    "Buys it again: how often and how lately a household bought this very product.",
)

household_profile = FeatureView(
    name="household_profile",
    entities=[user],
    source=profiles,
    ttl=FOREVER,
    schema=[
        Field(name=name, dtype=Int64, tags={"headwater.default": "-1"})
        for name in ("age", "income", "home_owner", "household_size", "kids", "married")
    ],
    description="Demographics, as ordinals; -1 where the household gave none.",
    owner="grocery",
)

item_promotion = FeatureView(
    name="item_promotion",
    entities=[item],
    source=promotions,
    ttl=7 * DAY,
    schema=[Field(name=name, dtype=Float64, tags=ZERO) for name in ("display_share", "mailer_share")],
    description="Share of stores that display or mail the product this week.",
    owner="grocery",
)
