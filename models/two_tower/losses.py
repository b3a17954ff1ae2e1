"""What a trip's products are told apart by: losses over a positive and the negatives that a batch shares."""

import torch
from torch import Tensor
from torch.nn import functional


def against_shared(
    users: Tensor, negatives: Tensor, hidden: Tensor, correction: Tensor, temperature: float, hardest: int = 0
) -> Tensor:
    """Logits (n_trips, n) of the negatives that count for each trip, ``-inf`` where one does not.

    Parameters
    ----------
    users : (n_trips, dim)
    negatives : (n_negatives, dim)
    hidden : (n_trips, n_negatives) bool
        Negatives that the trip did hold: no negatives for it.
    correction : (n_negatives,)
        Taken from each logit.
    hardest
        Keep so many of each trip's highest; 0 keeps all.
    """
    logits = (users @ negatives.T / temperature - correction).masked_fill(hidden, -torch.inf)
    return logits if not 0 < hardest < logits.shape[1] else torch.topk(logits, hardest, sorted=False).values


def softmax_loss(own: Tensor, against: Tensor, trip: Tensor) -> Tensor:
    """Negative log-likelihood of each positive among itself and its trip's negatives (n_positives,), nats.

    Parameters
    ----------
    own : (n_positives,)
        Logits. Like those of ``against`` less the log of how often the product is expected among the negatives
        (logQ: Yi et al., RecSys 2019).
    against : (n_trips, n_negatives)
    trip : (n_positives,)
        Row of ``against`` that each positive belongs to.
    """
    rest = torch.logsumexp(against, 1)[trip]
    return torch.logaddexp(own, rest) - own


def gbce_loss(own: Tensor, against: Tensor, trip: Tensor, sampled: float, calibration: float) -> Tensor:
    """Generalised binary cross-entropy (n_positives,), nats: the positive's probability is raised to beta.

    Parameters
    ----------
    own, against, trip
        As :func:`softmax_loss`, uncorrected.
    sampled
        Share of the other products that are negatives of each positive.
    calibration
        0 is binary cross-entropy; at 1 probabilities mean what they would without sampling.

    References
    ----------
    Petrov and Macdonald, "gSASRec: Reducing overconfidence in sequential recommendation trained with negative
    sampling", RecSys 2023, equations 9 to 11.
    """
    beta = sampled * (calibration * (1 - 1 / sampled) + 1 / sampled)
    here = against != -torch.inf
    wrong = functional.softplus(against.masked_fill(~here, 0)).masked_fill(~here, 0).sum(1)
    return (wrong[trip] - beta * functional.logsigmoid(own)) / (1 + here.sum(1)[trip])
