"""Every draw has a generator of its own, so that none depends on how many were drawn before it, or in which order."""

from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What is drawn; a number is never given a second meaning."""

    SHOPPERS = 1
    DRIFT = 2
    NEW_SHOPPERS = 3
    NEW_PRODUCTS = 4
    VISITS = 5
    ACTS = 6
    UNSEEN = 7


def chance(seed: int, draw: Draw, *numbers: int) -> np.random.Generator:
    """Generator of one draw, such as that of day 3: ``chance(seed, Draw.VISITS, 3)``."""
    return np.random.default_rng([seed, draw, *numbers])
