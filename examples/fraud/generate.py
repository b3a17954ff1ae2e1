"""Synthetic card payments, drawn from a seed: nothing in them was ever paid.

``python examples/fraud/generate.py --payments 20000 > payments.jsonl``
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

DAY_MS = 86_400_000
COUNTRIES = ("CH", "DE", "FR", "IT", "US")


def payments(count: int, seed: int, end_ms: int, days: float = 30, cards: int = 200) -> Iterator[dict[str, Any]]:
    """Payments in order of time over the days before ``end_ms``.

    A card has its usual amount, country, devices and merchants. Now and then a burst comes from one device that tries
    many cards.
    """
    draw = random.Random(seed)
    usual = [_holder(draw, card, cards) for card in range(cards)]
    times = sorted(end_ms - int(draw.random() * days * DAY_MS) for _ in range(count))
    for number, paid_at in enumerate(times):
        stolen = draw.random() < 0.05
        holder = draw.choice(usual)
        declined = draw.random() < (0.6 if stolen else 0.04)
        online = stolen or draw.random() < 0.5
        attributes = {"session": f"v{number // 4}"} if online else {}
        if declined:
            attributes["reason"] = draw.choice(("funds", "limit", "stolen"))
        yield {
            "paymentId": number,
            "paidAt": paid_at,
            "card_id": holder["card"],
            "merchant_id": f"m{draw.randrange(1 + cards // 5)}" if stolen else draw.choice(holder["merchants"]),
            "device_id": f"bot{draw.randrange(3)}" if stolen else draw.choice([*holder["devices"], None]),
            "amount": round(draw.lognormvariate(4 if stolen else holder["amount"], 0.7), 2),
            "status": "declined" if declined else draw.choice(("approved",) * 19 + ("refunded",)),
            "country": draw.choice(COUNTRIES) if stolen else holder["country"],
            "online": online,
            "attributes": attributes,
        }


def _holder(draw: random.Random, card: int, cards: int) -> dict[str, Any]:
    return {
        "card": f"c{card}",
        "amount": draw.uniform(1.5, 4.0),
        "country": draw.choice(COUNTRIES),
        "devices": [f"d{card}-{number}" for number in range(draw.randint(1, 3))],
        "merchants": [f"m{draw.randrange(1 + cards // 5)}" for _ in range(draw.randint(2, 6))],
    }


def main() -> None:
    """Write payments as JSON Lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payments", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cards", type=int, default=200)
    parser.add_argument("--end-ms", type=int, default=int(time.time() * 1000), help="the newest payment's time")
    asked = parser.parse_args()
    for payment in payments(asked.payments, asked.seed, asked.end_ms, cards=asked.cards):
        sys.stdout.write(json.dumps(payment) + "\n")


if __name__ == "__main__":
    main()
