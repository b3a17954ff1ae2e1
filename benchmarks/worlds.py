"""Small simulated worlds of which everything is known: who likes what, where people look, what any list is worth."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.draws import draw_weights

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NAMES = ("liked", "placed", "noise")
ALL_ALIKE = np.inf
"""Temperature of a draw that follows no score."""
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class World:
    """Situations with candidates each, of which lists show some.

    Attributes
    ----------
    features : (situations, items, 3)
    relevance : (situations, items)
        Probability of a click where one looks.
    examined : (places,)
        Probability that one looks.
    """

    features: Floats
    relevance: Floats
    examined: Floats

    @classmethod
    def drawn(cls, rng: np.random.Generator, situations: int, items: int, examined: Sequence[float]) -> "World":
        """Relevance follows one feature, and a little of what no feature tells."""
        features = rng.random((situations, items, len(NAMES)))
        relevance = 0.6 * features[..., 0] ** 2 + 0.2 * rng.random((situations, items))
        return cls(features, relevance, np.array(examined))

    def weights(self, leaning: Sequence[float], temperature: float) -> Floats:
        """Of a Plackett-Luce draw by the features' weighted sum (situations, items)."""
        n, items = self.relevance.shape
        if temperature == ALL_ALIKE:
            return np.ones((n, items))
        scores = (self.features @ np.array(leaning)).astype(np.float32).ravel()
        return draw_weights(scores, np.repeat(np.arange(n), items), n, temperature).reshape(n, items)

    def value(self, weights: Floats) -> float:
        """What a list drawn so earns: the mean over situations, over all lists that there are."""
        orders = np.array(list(itertools.permutations(range(weights.shape[1]), len(self.examined))))
        chance = chances(weights[:, None, :], orders[None]).prod(2)  # (situations, orders)
        earned = self.relevance[:, orders] @ self.examined
        return float((chance * earned).sum(1).mean())

    def best_value(self, scores: Floats) -> float:
        """What the list in the scores' order earns (situations, items)."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, : len(self.examined)]
        return float((np.take_along_axis(self.relevance, order, 1) @ self.examined).mean())

    def log(self, rng: np.random.Generator, n: int, weights: Floats) -> pa.Table:
        """Rows of ``n`` lists that were drawn, as training rows from impressions are; all candidates are logged."""
        situation = rng.integers(0, len(weights), n)
        items, places = weights.shape[1], len(self.examined)
        order = np.argsort(-(np.log(weights[situation]) + rng.gumbel(size=(n, items))), axis=1)
        shown = order[:, :places]
        propensity = chances(weights[situation], shown)
        clicked = rng.random((n, places)) < np.take_along_axis(self.relevance[situation], shown, 1) * self.examined
        position = np.where(np.arange(items) < places, np.arange(items) + 1, 0)
        features = np.take_along_axis(self.features[situation], order[..., None], 1).reshape(-1, len(NAMES))
        hidden = np.full((n, items - places), np.nan)
        label = np.column_stack([clicked, np.zeros_like(hidden)]).ravel()
        columns = {
            "request_id": pa.DictionaryArray.from_arrays(
                pa.array(np.repeat(np.arange(n), items), pa.int32()), [f"r{at:07}" for at in range(n)]
            ).cast(pa.string()),
            "item_id": pa.array(order.ravel()).cast(pa.string()),
            "user_id": pa.array(np.repeat(situation, items)).cast(pa.string()),
            "event_timestamp": pa.array(np.repeat(np.arange(n) * HOUR_MS, items), pa.timestamp("ms", "UTC")),
            "shown": np.tile(position > 0, n),
            "position": pa.array(np.tile(position, n), pa.int32(), mask=np.tile(position == 0, n)),
            "position_propensity": pa.array(np.column_stack([propensity, hidden]).ravel(), from_pandas=True),
            "sampling_probability": np.ones(n * items),
            "weight": np.ones(n * items, np.float32),
            "label": label.astype(np.int8),
        }
        return pa.table(columns | {name: features[:, at].astype(np.float32) for at, name in enumerate(NAMES)})


def chances(weights: Floats, orders: Ints) -> Floats:
    """Probability of each place's item given those above it: of weights (..., items) and orders (..., places)."""
    picked = np.take_along_axis(weights, orders, -1)
    above = np.cumsum(picked, -1) - picked
    return np.asarray(picked / (weights.sum(-1, keepdims=True) - above))
