"""The ranker: gradient-boosted trees over a feature service's columns."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headwater.errors import ModelError
from headwater.log import get_logger
from models.compiled_trees import CompiledTrees, NotCoveredError

Float32s = npt.NDArray[np.float32]
ONE_THREAD = 1  # scale by processes
PLACE = "shown_at_position"
"""Name of the last column of trees that learned from positions; no feature of a service."""
FIRST = 1


class Scorer(Protocol):
    """Anything that orders rows of features."""

    def score(self, features: Float32s) -> Float32s:
        """Higher is better (n,), from features (n, n_features)."""
        ...


@dataclass(frozen=True)
class Ranker:
    """The thin adapter where LightGBM's missing types stop.

    Trees that learned from positions (:mod:`models.position`) score every row as if it stood at the first.
    """

    booster: Any

    @property
    def feature_names(self) -> tuple[str, ...]:
        names = tuple(self.booster.feature_name())
        return names[:-1] if self.knows_place else names

    @cached_property
    def knows_place(self) -> bool:
        return bool(self.booster.feature_name()[-1] == PLACE)

    @cached_property
    def trees(self) -> CompiledTrees | None:
        """The forest as it is scored; ``None``, with a line in the log, for one that LightGBM itself has to score."""
        try:
            return CompiledTrees.of(self.to_text())
        except NotCoveredError as error:
            get_logger("models").warning("ranker_not_compiled", reason=str(error))
            return None

    def score(self, features: Float32s) -> Float32s:
        features = self._placed(features)
        if self.trees is not None:
            return self.trees.raw_scores(features).astype(np.float32)
        raw = self.booster.predict(np.ascontiguousarray(features), raw_score=True, num_threads=ONE_THREAD)
        return np.asarray(raw, np.float32)

    def contributions(self, features: Float32s) -> Float32s:
        """What each feature adds to the score, and the base in the last column (n, n_features + 1)."""
        placed = self._placed(features)
        shares = self.booster.predict(np.ascontiguousarray(placed), pred_contrib=True, num_threads=ONE_THREAD)
        if self.knows_place:  # the same for all rows, so it belongs to the base
            shares = np.column_stack([shares[:, :-2], shares[:, -2:].sum(1)])
        return np.asarray(shares, np.float32)

    def _placed(self, features: Float32s) -> Float32s:
        return with_place(features, FIRST) if self.knows_place else features

    def to_text(self) -> str:
        return str(self.booster.model_to_string())

    @classmethod
    def from_text(cls, path: Path) -> "Ranker":
        """Load LightGBM's text format.

        Raises
        ------
        ModelError
            The file holds no such model.
        """
        import lightgbm

        try:
            ranker = cls(lightgbm.Booster(model_str=path.read_text()))
        except lightgbm.basic.LightGBMError as error:
            raise ModelError(f"{path}: no ranker, {error}. Choose another bundle or train one.") from None
        _ = ranker.trees  # now, rather than when the first request waits for it
        return ranker


def with_place(features: Float32s, position: npt.ArrayLike) -> Float32s:
    """Features (n, n_features), and positions, one or (n,), as the last column."""
    return np.column_stack([features, np.broadcast_to(position, len(features))]).astype(np.float32)
