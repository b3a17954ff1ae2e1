"""Request-time features: numpy in, numpy out, the same code in training and in serving."""

import numpy as np

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def moment(inputs):
    """Hour and weekday of the request (UTC; Monday is 0), and days since the household last bought anything."""
    now = np.asarray(inputs["request_time"], np.int64)
    return {
        "hour": (now // HOUR_MS % 24).astype(np.float64),
        "weekday": ((now // DAY_MS + 3) % 7).astype(np.float64),  # 1970-01-01 was a Thursday
        "user_days_since_purchase": (now - inputs["user_last_purchase"]) / DAY_MS,
    }


def habit(inputs):
    """Shares, smoothed ratios and how due a product is: days since it was bought over the usual days between."""
    now = np.asarray(inputs["request_time"], np.int64)
    bought = np.asarray(inputs["user_item_purchases_total"], np.float64)
    since = (now - inputs["user_item_last_purchase"]) / DAY_MS
    span = (inputs["user_item_last_purchase"] - inputs["user_item_first_purchase"]) / DAY_MS
    gap = np.where(bought > 1, span / np.maximum(bought - 1, 1), np.nan)
    return {
        "user_item_days_since_purchase": since,
        "user_item_days_since_first": (now - inputs["user_item_first_purchase"]) / DAY_MS,
        "user_item_mean_gap_days": gap,
        "user_item_due": since / np.maximum(gap, 1.0),
        "user_item_share_90d": inputs["user_item_purchases_decayed_90d"]
        / np.maximum(inputs["user_purchases_90d"], 1.0),
        "user_item_per_basket_90d": inputs["user_item_purchases_90d"] / np.maximum(inputs["user_baskets_90d"], 1.0),
        "user_category_days_since_purchase": (now - inputs["user_category_last_purchase"]) / DAY_MS,
        "user_category_share_90d": inputs["user_category_purchases_90d"]
        / np.maximum(inputs["user_purchases_90d"], 1.0),
        "item_trend": (inputs["item_purchases_7d"] + 1.0) / (inputs["item_purchases_30d"] * (7.0 / 30.0) + 1.0),
        "item_days_since_first": (now - inputs["item_first_purchase"]) / DAY_MS,
    }
