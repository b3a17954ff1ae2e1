"""Request-time features: numpy in, numpy out, the same code in training and in serving."""

import numpy as np


def risk(inputs):
    """How unusual this payment is for its card, and how often card, merchant and device are refused."""
    amount = np.asarray(inputs["amount"], np.float64)
    spread = np.maximum(inputs["card_amount_spread_30d"], 1.0)
    card_tries = inputs["card_payments_30d"] + inputs["card_declines_30d"]
    return {
        "amount_over_card_mean": amount / inputs["card_mean_amount_30d"],
        "amount_deviation": (amount - inputs["card_mean_amount_30d"]) / spread,
        "card_decline_share_30d": (inputs["card_declines_30d"] + 0.5) / (card_tries + 10.0),
        "merchant_decline_share_30d": (inputs["merchant_declines_30d"] + 0.5) / (inputs["merchant_payments_30d"] + 10),
        "card_merchant_share_30d": inputs["card_merchant_payments_30d"] / np.maximum(inputs["card_payments_30d"], 1.0),
        "card_burst": inputs["card_payments_1h"] * 24.0 / np.maximum(inputs["card_payments_1d"], 1.0),
    }
