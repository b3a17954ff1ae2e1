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


class Scorer(Protocol):
    """Anything that orders rows of features."""

    def score(self, features: Float32s) -> Float32s:
        """Higher is better (n,), from features (n, n_features)."""
        ...


@dataclass(frozen=True)
class Ranker:
    """The thin adapter where LightGBM's missing types stop."""

    booster: Any

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(self.booster.feature_name())

    @cached_property
    def trees(self) -> CompiledTrees | None:
        """The forest as it is scored; ``None``, with a line in the log, for one that LightGBM itself has to score."""
        try:
            return CompiledTrees.of(self.to_text())
        except NotCoveredError as error:
            get_logger("models").warning("ranker_not_compiled", reason=str(error))
            return None

    def score(self, features: Float32s) -> Float32s:
        if self.trees is not None:
            return self.trees.raw_scores(features).astype(np.float32)
        raw = self.booster.predict(np.ascontiguousarray(features), raw_score=True, num_threads=ONE_THREAD)
        return np.asarray(raw, np.float32)

    def contributions(self, features: Float32s) -> Float32s:
        """What each feature adds to the score, and the base in the last column (n, n_features + 1)."""
        shares = self.booster.predict(np.ascontiguousarray(features), pred_contrib=True, num_threads=ONE_THREAD)
        return np.asarray(shares, np.float32)

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
