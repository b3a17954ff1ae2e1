"""Request-time views: Feast keeps their names and inputs, the tag names the function that both sides import."""

import inspect

import pandas as pd
import request_features
from feast import OnDemandFeatureView
from feast.field import Field
from feast.transformation.pandas_transformation import PandasTransformation
from feast.types import Float64
from sources import request
from views import item_activity, user_activity, user_category_activity, user_item_activity


def on_demand(function, inputs, names, description):
    """A view whose function Feast and Headwater share."""

    def as_frame(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(dict(function(frame)), index=frame.index)

    return OnDemandFeatureView(
        name=f"request_{function.__name__}",
        sources=[*inputs, request],
        schema=[Field(name=name, dtype=Float64) for name in names],
        feature_transformation=PandasTransformation(udf=as_frame, udf_string=inspect.getsource(function)),
        mode="pandas",
        tags={"headwater.function": f"request_features:{function.__name__}"},
        description=description,
        owner="grocery",
    )


request_moment = on_demand(
    request_features.moment,
    [user_activity[["user_last_purchase"]]],
    ["hour", "weekday", "user_days_since_purchase"],
    "When the request is made.",
)
request_habit = on_demand(
    request_features.habit,
    [
        user_activity[["user_purchases_90d", "user_baskets_90d"]],
        item_activity[["item_purchases_7d", "item_purchases_30d", "item_first_purchase"]],
        user_category_activity[["user_category_purchases_90d", "user_category_last_purchase"]],
        user_item_activity[
            [
                "user_item_purchases_90d",
                "user_item_purchases_decayed_90d",
                "user_item_purchases_total",
                "user_item_first_purchase",
                "user_item_last_purchase",
            ]
        ],
    ],
    [
        "user_item_days_since_purchase",
        "user_item_days_since_first",
        "user_item_mean_gap_days",
        "user_item_due",
        "user_item_share_90d",
        "user_item_per_basket_90d",
        "user_category_days_since_purchase",
        "user_category_share_90d",
        "item_trend",
        "item_days_since_first",
    ],
    "Habits as ratios.",
)
