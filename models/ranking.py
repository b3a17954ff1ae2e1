"""Training the ranker: LambdaMART over requests, stopped by later ones; one head for each objective that has labels.

References
----------
Burges, "From RankNet to LambdaRank to LambdaMART: an overview", Microsoft Research 2010.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import lightgbm
import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from headwater.errors import DataError
from headwater.log import get_logger
from models import calibration
from models.calibration import AnyCalibrator, Method, expected_calibration_error
from models.contributions import mean_contributions
from models.evaluation.metrics import mean as mean_of
from models.heads import Head
from models.objectives import DEFAULT_OBJECTIVES, Objective, Objectives
from models.position import list_by_yes, yes_weights
from models.ranker import PLACE, Float32s, Ranker, with_place
from models.rows import DEPTH as DEPTH
from models.rows import Rows as Rows
from models.rows import read_rows as read_rows

Progress = Callable[[int, int], None]
GRADES = (0.25, 0.5, 0.75)
"""Quantiles of the amounts above nought at which a graded label rises by one."""


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
    refit: bool = False
    threads: int = 1  # beside other work a second one waits more than it helps
    seed: int = 5
    declared: Objectives = DEFAULT_OBJECTIVES

    def parameters(self, learn: str = "lambdarank", feature_names: Sequence[str] = ()) -> dict[str, Any]:
        """LightGBM's names for them; constraints on features that are not among ``feature_names`` are left out."""
        rising = [self.declared.monotone.get(name, 0) for name in feature_names]
        constraints = {"monotone_constraints": rising} if any(rising) else {}
        return {
            "objective": "binary" if learn == "binary" else "lambdarank",
            "metric": "binary_logloss" if learn == "binary" else "ndcg", "eval_at": [DEPTH],
            "lambdarank_truncation_level": 2 * DEPTH,
            "learning_rate": self.learning_rate, "num_leaves": self.leaves, "min_data_in_leaf": self.least_in_leaf,
            "feature_fraction": self.feature_share, "bagging_fraction": self.row_share, "bagging_freq": 1,
            "max_bin": self.bins, "deterministic": True, "force_col_wise": True, "num_threads": self.threads,
            "seed": self.seed, "verbosity": -1, **constraints,
        }  # fmt: skip


DEFAULT_RANKER = RankerConfig()


@dataclass(frozen=True)
class Fitted:
    """Heads, the main one first, how they did on later requests, and what moved the main one's scores there."""

    heads: tuple[Head, ...]
    metrics: dict[str, float]
    contributions: Mapping[str, float]

    @property
    def ranker(self) -> Ranker:
        return self.heads[0].ranker

    @property
    def calibrator(self) -> AnyCalibrator:
        return self.heads[0].calibrator


def split(rows: Rows, config: RankerConfig) -> tuple[Rows, Rows]:
    """Earlier and later requests, never at random, with a gap between them that neither holds.

    Raises
    ------
    DataError
        One of them would be empty, or has nothing to tell apart.
    """
    border = int(np.quantile(rows.at_ms, 1 - config.later_share))
    earlier = rows.at_ms < border
    later = rows.at_ms >= border + config.gap // timedelta(milliseconds=1)
    if not earlier.any() or not later.any():
        raise DataError(
            f"training: {len(rows.at_ms)} requests cannot be parted by time with a gap of {config.gap}. "
            "Draw them from a longer span."
        )
    parts = rows.take(earlier), rows.take(later)
    for name, part in zip(("earlier", "later"), parts, strict=True):
        if not _tells(part):
            raise DataError(
                f"training: every label of the {len(part)} rows of {name} requests is "
                f"{'a yes' if part.label[0] > 0 else 'a no'}, so there is nothing to tell apart. Draw requests from a "
                "longer span, or label another outcome."
            )
    return parts


def fit_ranker(
    rows: Rows,
    feature_names: Sequence[str],
    config: RankerConfig = DEFAULT_RANKER,
    progress: Progress = lambda done, total: None,
) -> Fitted:
    """Train each head on the earlier requests, stop it by and calibrate it on the later ones.

    With ``refit`` as many trees are then grown of all requests, which is what serves: the newest quarter tells most of
    what is wanted now. Metrics and calibration stay those of the trees that had not seen the later requests.

    Raises
    ------
    ConfigError
        A constraint is on a feature that there is not.
    DataError
        The requests cannot be parted by time, the labels tell nothing apart, or a correction lacks positions.
    """
    declared = config.declared
    declared.require(feature_names)
    earlier, later = split(rows, config)
    heads, metrics = [], {"rows": float(len(rows)), "requests": float(len(rows.at_ms))}
    named = {name: declared.objectives[name] for name in (declared.main, *rows.outcomes)}
    for at, (name, objective) in enumerate(named.items()):
        learn, judge = (_told(part, name, declared, earlier) for part in (earlier, later))
        if not (_tells(learn) and _tells(judge)):  # never so for the main one
            get_logger("models").warning("objective_left", objective=name, reason="its labels tell nothing apart")
            continue

        def look(state: Any, before: int = at * config.rounds) -> None:
            progress(before + state.iteration + 1, len(named) * config.rounds)

        head, found = _fit_head(name, objective, learn, judge, feature_names, config, look)
        if config.refit:
            whole = _told(rows, name, declared, earlier)
            head = replace(head, ranker=_again(head.ranker, whole, feature_names, config, objective))
        heads.append(head)
        metrics |= found if name == declared.main else {f"{name}.{metric}": value for metric, value in found.items()}
    return Fitted(tuple(heads), metrics, mean_contributions(heads[0].ranker, later.features))


def _fit_head(
    name: str, objective: Objective, earlier: Rows, later: Rows, feature_names: Sequence[str], config: RankerConfig,
    look: Callable[[Any], None],
) -> tuple[Head, dict[str, float]]:  # fmt: skip
    ranker = grow(earlier, later, feature_names, config, look, objective=objective)
    scores = ranker.score(later.features)
    metrics = {"ndcg@10": mean_of(later.ndcg(scores)), "trees": float(ranker.booster.num_trees())}
    if objective.learn == "graded":  # an amount is no probability, and has no log loss
        return Head(name, ranker, calibration.fit(scores, later.outcomes[name], later.weight)), metrics
    yes, odd, declared = later.label > 0, later.group % 2 == 1, config.declared.calibration
    method = declared.method
    if method == "validated":
        method = calibration.better(scores, yes, later.weight, odd)
    calibrator = calibration.fitted(method, scores, yes, later.weight)
    return Head(name, ranker, calibrator), metrics | _probabilities(later, scores, method, declared.bins)


def _again(ranker: Ranker, rows: Rows, feature_names: Sequence[str], config: RankerConfig, how: Objective) -> Ranker:
    """As many trees, of these rows."""
    rounds = ranker.booster.num_trees()
    return grow(rows, None, feature_names, replace(config, rounds=rounds), objective=how) if rounds else ranker


def grow(
    earlier: Rows,
    later: Rows | None,
    feature_names: Sequence[str],
    config: RankerConfig,
    *watch: Callable[[Any], None],
    objective: Objective | None = None,
) -> Ranker:
    """Grow trees on the earlier requests for as long as the later ones gain.

    Parameters
    ----------
    later
        Without them, all rounds.
    watch
        Called by LightGBM after each round, with its state.
    objective
        What the rows' label is; the main one by default.

    Raises
    ------
    DataError
        A correction lacks positions.
    """
    kind = (objective or config.declared.objectives[config.declared.main]).learn
    learn = _dataset(earlier, feature_names, config, kind)
    stop = [] if later is None else [lightgbm.early_stopping(config.patience, verbose=False)]
    judge = [] if later is None else [_dataset(later, feature_names, config, kind, learn)]
    booster = lightgbm.train(
        config.parameters(kind, learn.feature_name), learn, config.rounds, valid_sets=judge, callbacks=[*stop, *watch]
    )
    trees = booster.best_iteration or booster.current_iteration()
    return Ranker(lightgbm.Booster(model_str=booster.model_to_string(num_iteration=trees)))


def importances(ranker: Ranker) -> dict[str, float]:
    """Share of the total gain that each feature's splits brought, greatest first."""
    gain = ranker.booster.feature_importance("gain")
    names, order = ranker.booster.feature_name(), np.argsort(-gain, kind="stable")
    return {names[n]: float(gain[n] / max(gain.sum(), 1e-12)) for n in order}


def _told(rows: Rows, name: str, declared: Objectives, earlier: Rows) -> Rows:
    """Rows whose label is an objective's; amounts are graded by the earlier ones' quarters."""
    if name == declared.main:
        return rows
    amounts = rows.outcomes[name]
    if declared.objectives[name].learn != "graded":
        return rows.told_by(amounts > 0)
    known = earlier.outcomes[name]
    edges = np.quantile(known[known > 0], GRADES) if (known > 0).any() else np.empty(0)
    return rows.told_by(np.where(amounts > 0, 1 + np.searchsorted(edges, amounts, side="right"), 0))


def _tells(rows: Rows) -> bool:
    """Whether there is both a yes and a no."""
    return bool((rows.label > 0).any() and (rows.label <= 0).any())


def _dataset(rows: Rows, feature_names: Sequence[str], config: RankerConfig, learn: str, reference: Any = None) -> Any:
    """LightGBM's rows, corrected for position."""
    declared, features, names, weight = config.declared.position, rows.features, list(feature_names), None
    if declared.correction != "none":
        if rows.position is None:
            raise DataError(
                f'training: rows have no column position, which [position] correction = "{declared.correction}" needs. '
                "Make them from impressions, headwater training-set --from-impressions, or correct nothing."
            )
        if declared.correction == "feature":
            features, names = with_place(features, rows.position), [*names, PLACE]
        else:
            weight = yes_weights(rows.position, rows.label > 0, declared)
            if learn != "binary":
                rows, weight = list_by_yes(rows, weight)
                features = rows.features
    return lightgbm.Dataset(
        features, rows.label, group=np.bincount(rows.group), feature_name=names, reference=reference, weight=weight,
        params={"verbosity": -1},
    )  # fmt: skip


def _probabilities(later: Rows, scores: Float32s, method: Method, bins: int) -> dict[str, float]:
    """How well labels are told row by row: the order by AUC, probabilities by a fit on every other request."""
    odd = later.group % 2 == 1
    label, weight = later.label[~odd] > 0, later.weight[~odd]
    if not odd.any() or label.all() or not label.any():
        return dict.fromkeys(("auc", "log_loss", "calibration_error"), float("nan"))
    halves = calibration.fitted(method, scores[odd], later.label[odd] > 0, later.weight[odd])
    told = halves(scores[~odd])
    return {
        "auc": float(roc_auc_score(label, scores[~odd], sample_weight=weight)),
        "log_loss": float(log_loss(label, told.astype(np.float64), sample_weight=weight)),
        "calibration_error": expected_calibration_error(told, label, bins, weight), "calibration_bins": float(bins),
    }  # fmt: skip
