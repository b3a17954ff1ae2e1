"""What moves a ranker's scores: TreeSHAP contributions, summed up for a report or taken row by row for a reason.

References
----------
Lundberg and others, "From local explanations to global understanding with explainable AI for trees", Nature Machine
Intelligence 2020.
"""

import numpy as np

from models.ranker import Float32s, Ranker


def mean_contributions(ranker: Ranker, features: Float32s) -> dict[str, float]:
    """Mean absolute contribution of each feature to the scores of rows (n, n_features), greatest first."""
    shares = np.abs(ranker.contributions(features)[:, :-1]).mean(0)
    return {ranker.feature_names[at]: float(shares[at]) for at in np.argsort(-shares, kind="stable")}


def top_contributions(ranker: Ranker, features: Float32s, most: int = 3) -> list[list[tuple[str, float]]]:
    """For each row of features (n, n_features), at most so many features that moved its score most, greatest first.

    A contribution is in the score's unit, above nought where it raised the score; what moved nothing is left out.
    """
    shares = ranker.contributions(features)[:, :-1]
    order = np.argsort(-np.abs(shares), axis=1, kind="stable")[:, :most]
    names = ranker.feature_names
    return [[(names[at], float(row[at])) for at in best if row[at]] for row, best in zip(shares, order, strict=True)]
