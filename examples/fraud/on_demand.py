"""The ratios as Feast knows them: names and inputs here, the function in ``ratios``."""

import inspect

import pandas as pd
import ratios
from feast import OnDemandFeatureView
from feast.field import Field
from feast.transformation.pandas_transformation import PandasTransformation
from feast.types import Float64
from sources import authorisation
from views import card_activity, card_merchant_activity, card_refusals, merchant_activity


def _as_frame(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(dict(ratios.risk(frame)), index=frame.index)


payment_risk = OnDemandFeatureView(
    name="payment_risk",
    sources=[
        card_activity[
            [f"card_payments_{window}" for window in ("1h", "1d", "30d")]
            + ["card_mean_amount_30d", "card_amount_spread_30d"]
        ],
        card_refusals[["card_declines_30d"]],
        merchant_activity[["merchant_payments_30d", "merchant_declines_30d"]],
        card_merchant_activity[["card_merchant_payments_30d"]],
        authorisation,
    ],
    schema=[
        Field(name=name, dtype=Float64)
        for name in (
            "amount_over_card_mean",
            "amount_deviation",
            "card_decline_share_30d",
            "merchant_decline_share_30d",
            "card_merchant_share_30d",
            "card_burst",
        )
    ],
    feature_transformation=PandasTransformation(udf=_as_frame, udf_string=inspect.getsource(ratios.risk)),
    mode="pandas",
    tags={"headwater.function": "ratios:risk"},
    description="How unusual a payment is.",
    owner="fraud",
)
