"""What a model of fraud reads."""

from feast import FeatureService
from on_demand import payment_risk
from views import card_activity, card_merchant_activity, card_refusals, device_activity, merchant_activity


def _numbers(view):
    """All features of a view that are numbers: a list has no place in a model's row."""
    lists = ("card_last_amounts_30d", "card_last_reason_30d", "device_last_cards_1d")
    return view[[field.name for field in view.features if field.name not in lists]]


authorise = FeatureService(
    name="authorise",
    features=[
        _numbers(card_activity),
        _numbers(card_refusals),
        _numbers(merchant_activity),
        _numbers(card_merchant_activity),
        _numbers(device_activity),
        payment_risk,
    ],
    description="One payment, before it is authorised.",
    owner="fraud",
)
