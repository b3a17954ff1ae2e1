"""What models read."""

from feast import FeatureService
from on_demand import request_habit, request_moment
from views import (
    WINDOWS,
    household_profile,
    item_activity,
    item_promotion,
    user_activity,
    user_category_activity,
    user_item_activity,
)

recommend = FeatureService(
    name="recommend",
    features=[
        user_activity[
            [f"user_{quantity}_{window}d" for quantity in ("purchases", "spend", "baskets") for window in WINDOWS]
            + ["user_mean_value_90d", "user_purchases_total"]
        ],
        item_activity[
            [f"item_purchases_{window}d" for window in WINDOWS]
            + [
                "item_spend_7d",
                "item_spend_30d",
                "item_mean_value_90d",
                "item_purchases_decayed_7d",
                "item_purchases_total",
            ]
        ],
        user_category_activity[
            [f"user_category_purchases_{window}d" for window in WINDOWS]
            + ["user_category_spend_90d", "user_category_purchases_decayed_30d", "user_category_purchases_total"]
        ],
        user_item_activity[
            [f"user_item_purchases_{window}d" for window in WINDOWS]
            + [
                "user_item_spend_90d",
                "user_item_purchases_decayed_30d",
                "user_item_purchases_decayed_90d",
                "user_item_purchases_total",
            ]
        ],
        household_profile,
        item_promotion,
        request_moment,
        request_habit,
    ],
    description="The ranker's features of one household and one candidate.",
    owner="grocery",
)

user_state = FeatureService(
    name="user_state",
    features=[user_activity[["user_last_items", "user_purchases_90d"]]],
    description="What the two-tower model and the candidate sources read of a household.",
    owner="grocery",
)
