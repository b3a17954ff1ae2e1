"""Training the ranker: LambdaMART over requests, stopped by later ones.

References
----------
Burges, "From RankNet to LambdaRank to LambdaMART: an overview", Microsoft Research 2010.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
from sklearn.metrics import log_loss, roc_auc_score

from headwater.errors import DataError
from models import calibration
from models.calibration import Calibrator, expected_calibration_error
from models.evaluation.metrics import Floats, Ints, top_k_grouped
from models.evaluation.metrics import mean as mean_of
from models.evaluation.metrics import ndcg as ndcg_of
from models.ranker import Ranker
from models.requests import AT, LABEL, REQUEST, WEIGHT

Float32s = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
DEPTH = 10


@dataclass(frozen=True, slots=True)
class RankerConfig:
    """Chosen on the validation period (docs/models.md)."""

    learning_rate: float = 0.05
    leaves: int = 15
    least_in_leaf: int = 50
    rounds: int = 300
    patience: int = 20
    bins: int = 63
    feature_share: float = 0.6
    row_share: float = 0.8
    later_share: float = 0.25
    gap: timedelta = timedelta(days=2)
    threads: int = 1  # beside other work a second one waits more than it helps
    seed: int = 5

    def parameters(self) -> dict[str, Any]:
        """LightGBM's names for them."""
        return {
            "objective": "lambdarank", "metric": "ndcg", "eval_at": [DEPTH], "lambdarank_truncation_level": 2 * DEPTH,
            "learning_rate": self.learning_rate, "num_leaves": self.leaves, "min_data_in_leaf": self.least_in_leaf,
            "feature_fraction": self.feature_share, "bagging_fraction": self.row_share, "bagging_freq": 1,
            "max_bin": self.bins, "deterministic": True, "force_col_wise": True, "num_threads": self.threads,
            "seed": self.seed, "verbosity": -1,
        }  # fmt: skip


DEFAULT_RANKER = RankerConfig()


@dataclass(frozen=True)
class Rows:
    """Training rows, requests contiguous and by time.

    Attributes
    ----------
    features : (n, n_features) float32
    label, weight : (n,)
    group : (n,) int32
        Number of each row's request, ascending from 0.
    item : (n,) int32
        Number of each row's item among those of all rows.
    at_ms : (n_groups,)
    """

    features: Float32s
    label: npt.NDArray[np.int8]
    weight: Float32s
    group: Ints
    item: Ints
    at_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, groups: npt.NDArray[np.bool_]) -> "Rows":
        """Only the requests where ``groups`` (n_groups,) is true."""
        kept = groups[self.group]
        _, group = np.unique(self.group[kept], return_inverse=True)
        return Rows(
            self.features[kept], self.label[kept], self.weight[kept], group.astype(np.int32), self.item[kept],
            self.at_ms[groups],
        )  # fmt: skip

    def ndcg(self, scores: Float32s) -> Floats:
        """NDCG at 10 of each request among its own candidates (n_groups,); NaN where nothing was bought."""
        n = len(self.at_ms)
        lists = top_k_grouped(self.group, np.arange(len(self), dtype=np.int32), scores, n, DEPTH)
        hits = (lists >= 0) & (self.label[np.maximum(lists, 0)] > 0)
        return ndcg_of(hits, np.bincount(self.group, self.label > 0, minlength=n).astype(np.int32), DEPTH)

    def fingerprint(self) -> str:
        """Hex sha256 of all that is learned from."""
        digest = sha256()
        for array in (self.features, self.label, self.weight, self.group):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Fitted:
    """A ranker, its calibration, and how both did on later requests."""

    ranker: Ranker
    calibrator: Calibrator
    metrics: dict[str, float]


def read_rows(directory: Path, feature_names: Sequence[str]) -> Rows:
    """Read what the training set job wrote.

    Raises
    ------
    DataError
        There are no rows, or a column is missing.
    """
    if not any(directory.rglob("*.parquet")):
        raise DataError(f"{directory}: no training rows. Make them first: headwater training-set")
    source = ds.dataset(directory)
    missing = {REQUEST, AT, LABEL, WEIGHT, "item_id", *feature_names} - set(source.schema.names)
    if missing:
        raise DataError(
            f"{directory}: no column {', '.join(sorted(missing))}. Make the rows anew: headwater training-set"
        )
    table = source.to_table(columns=[REQUEST, "item_id", AT, LABEL, WEIGHT, *feature_names])
    if not table.num_rows:
        raise DataError(f"{directory}: no training rows. Make them first: headwater training-set")
    return _rows(table.sort_by([(AT, "ascending"), (REQUEST, "ascending"), ("item_id", "ascending")]), feature_names)


def _rows(table: pa.Table, feature_names: Sequence[str]) -> Rows:
    codes = table[REQUEST].combine_chunks().dictionary_encode().indices.to_numpy()
    changed = np.append(True, codes[1:] != codes[:-1])
    features = np.empty((table.num_rows, len(feature_names)), np.float32)
    for column, name in enumerate(feature_names):
        features[:, column] = table[name].to_numpy()
    at_ms = table[AT].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy()
    return Rows(
        features, table[LABEL].to_numpy().astype(np.int8), table[WEIGHT].to_numpy().astype(np.float32),
        (np.cumsum(changed) - 1).astype(np.int32),
        table["item_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int32), at_ms[changed],
    )  # fmt: skip


def split(rows: Rows, config: RankerConfig) -> tuple[Rows, Rows]:
    """Earlier and later requests, never at random, with a gap between them that neither holds.

    Raises
    ------
    DataError
        One of them would be empty.
    """
    border = int(np.quantile(rows.at_ms, 1 - config.later_share))
    earlier = rows.at_ms < border
    later = rows.at_ms >= border + config.gap // timedelta(milliseconds=1)
    if not earlier.any() or not later.any():
        raise DataError(
            f"training: {len(rows.at_ms)} requests cannot be parted by time with a gap of {config.gap}. "
            "Draw them from a longer span."
        )
    return rows.take(earlier), rows.take(later)


def fit_ranker(
    rows: Rows,
    feature_names: Sequence[str],
    config: RankerConfig = DEFAULT_RANKER,
    progress: Progress = lambda done, total: None,
) -> Fitted:
    """Train on the earlier requests, stop by and calibrate on the later ones."""
    earlier, later = split(rows, config)
    ranker = grow(earlier, later, feature_names, config, lambda state: progress(state.iteration + 1, config.rounds))
    scores = ranker.score(later.features)
    metrics = {
        "ndcg@10": mean_of(later.ndcg(scores)), **_probabilities(later, scores),
        "trees": float(ranker.booster.num_trees()), "rows": float(len(rows)), "requests": float(len(rows.at_ms)),
    }  # fmt: skip
    return Fitted(ranker, calibration.fit(scores, later.label, later.weight), metrics)


def grow(
    earlier: Rows, later: Rows | None, feature_names: Sequence[str], config: RankerConfig, *watch: Callable[[Any], None]
) -> Ranker:
    """Grow trees on the earlier requests for as long as the later ones gain.

    Parameters
    ----------
    later
        Without them, all rounds.
    watch
        Called by LightGBM after each round, with its state.
    """
    learn = _dataset(earlier, feature_names)
    stop = [] if later is None else [lightgbm.early_stopping(config.patience, verbose=False)]
    judge = [] if later is None else [_dataset(later, feature_names, learn)]
    booster = lightgbm.train(
        config.parameters(), learn, config.rounds, valid_sets=judge, callbacks=[*stop, *watch]
    )  # fmt: skip
    trees = booster.best_iteration or booster.current_iteration()
    return Ranker(lightgbm.Booster(model_str=booster.model_to_string(num_iteration=trees)))


def importances(ranker: Ranker) -> dict[str, float]:
    """Share of the total gain that each feature's splits brought, greatest first."""
    gain = ranker.booster.feature_importance("gain")
    order = np.argsort(-gain, kind="stable")
    return {ranker.feature_names[n]: float(gain[n] / max(gain.sum(), 1e-12)) for n in order}


def _dataset(rows: Rows, feature_names: Sequence[str], reference: Any = None) -> Any:
    return lightgbm.Dataset(
        rows.features, rows.label, group=np.bincount(rows.group), feature_name=list(feature_names), reference=reference,
        params={"verbosity": -1},
    )  # fmt: skip


def _probabilities(later: Rows, scores: Float32s) -> dict[str, float]:
    """How well labels are told row by row: the order by AUC, probabilities by a fit on every other request."""
    odd = later.group % 2 == 1
    label, weight = later.label[~odd] > 0, later.weight[~odd]
    if not odd.any() or label.all() or not label.any():
        return dict.fromkeys(("auc", "log_loss", "calibration_error"), float("nan"))
    halves = calibration.fit(scores[odd], later.label[odd], later.weight[odd])
    told = halves(scores[~odd])
    return {
        "auc": float(roc_auc_score(label, scores[~odd], sample_weight=weight)),
        "log_loss": float(log_loss(label, told.astype(np.float64), sample_weight=weight)),
        "calibration_error": expected_calibration_error(told, label, weights=weight),
    }


def config_text(config: RankerConfig) -> str:
    """One line that names every choice."""
    return ", ".join(f"{name}={value}" for name, value in asdict(config).items())
