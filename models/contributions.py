"""What moves a ranker's scores: TreeSHAP contributions, summed up.

References
----------
Lundberg and others, "From local explanations to global understanding with explainable AI for trees", Nature Machine
Intelligence 2020.
"""

import numpy as np

from models.ranker import Float32s, Ranker

EXPLAINED = 1_000
"""Rows, evenly spaced, whose contributions are averaged."""


def mean_contributions(ranker: Ranker, features: Float32s) -> dict[str, float]:
    """Mean absolute contribution of each feature to the scores of :data:`EXPLAINED` rows at most, greatest first.

    ``features`` is (n, n_features), with n above 0.
    """
    some = features[:: -(-len(features) // EXPLAINED)]
    shares = np.abs(ranker.contributions(some)[:, :-1]).mean(0)
    return {ranker.feature_names[at]: float(shares[at]) for at in np.argsort(-shares, kind="stable")}
