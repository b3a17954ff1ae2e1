"""What training makes small: how little each wanted item stands out among sampled ones."""

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -1e4
"""Score of a negative that is none. Not minus infinity, whose gradient is no number where all negatives are none."""


def softmax(own: Tensor, against: Tensor) -> Tensor:
    """Negative log-likelihood of each wanted item among itself and the negatives, nats (n,).

    Parameters
    ----------
    own : (n,)
        Scores of the wanted items.
    against : (n, n_negatives)
        Scores of others, ``NEVER`` for those that are none.
    """
    return torch.logaddexp(own, torch.logsumexp(against, 1)) - own


def gbce(own: Tensor, against: Tensor, rate: float, calibration: float) -> Tensor:
    """Generalized binary cross-entropy, which is not overconfident though few negatives are drawn (n,).

    Parameters
    ----------
    own, against
        As in :func:`softmax`.
    rate
        Share of all items but the wanted one that is drawn; more than 1 counts as 1.
    calibration
        t in [0, 1]; the wanted item's likelihood is raised to ``rate * (t * (1 - 1 / rate) + 1 / rate)``.

    References
    ----------
    Petrov and Macdonald, "gSASRec", RecSys 2023.
    """
    rate = min(rate, 1.0)
    power = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    against_all = functional.softplus(against).sum(1)
    return (against_all - power * functional.logsigmoid(own)) / (1 + (against > NEVER).sum(1))
