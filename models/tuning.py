"""Settings of the ranker, searched by trials: Optuna's TPE, which gives up early what falls behind.

References
----------
Bergstra and others, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.
Akiba and others, "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna

from headwater.errors import DataError
from headwater.files import write_whole
from models.evaluation.metrics import Interval, mean, paired_bootstrap
from models.objectives import DEFAULT_OBJECTIVES, Objectives
from models.ranking import DEFAULT_RANKER, RankerConfig, Rows, grow, split

SEED = 5
LOOKED_EVERY = 10
"""Rounds between two looks at whether a trial falls behind."""
WARM_TRIALS, WARM_ROUNDS = 5, 30
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Tuned:
    """The best settings found, as they differ from the default, and both on the later requests.

    ``gain`` is flattered: the settings were chosen by these very requests.
    """

    settings: Mapping[str, Any]
    ndcg: float
    default_ndcg: float
    gain: Interval
    trials: int
    pruned: int


def suggested(trial: optuna.Trial, base: RankerConfig) -> RankerConfig:
    """The space that is searched."""
    return replace(
        base,
        learning_rate=trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        leaves=trial.suggest_int("leaves", 4, 127, log=True),
        least_in_leaf=trial.suggest_int("least_in_leaf", 5, 500, log=True),
        feature_share=trial.suggest_float("feature_share", 0.2, 1.0),
        row_share=trial.suggest_float("row_share", 0.4, 1.0),
    )


def tune(
    rows: Rows,
    feature_names: Sequence[str],
    study: Path,
    trials: int,
    base: RankerConfig = DEFAULT_RANKER,
    progress: Progress = lambda done, total, told: None,
) -> Tuned:
    """Search until the study of these very rows has so many finished trials, those of earlier runs included.

    The later requests judge, as they do in training; nothing later than the validation period is in the rows.

    Parameters
    ----------
    study
        SQLite file of all studies; one is known by its rows, features and what is declared of the main objective, and
        goes on where it was ended.

    Raises
    ------
    DataError
        The requests cannot be parted by time, their labels tell nothing apart, or the file of studies is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    earlier, later = split(rows, base)
    study.parent.mkdir(parents=True, exist_ok=True)
    held = _opened(study, _study_name(rows, base))
    if not held.trials:
        held.enqueue_trial({name: getattr(base, name) for name in _SEARCHED})  # the first is what there is

    def judged(trial: optuna.Trial) -> float:
        def look(state: Any) -> None:
            if state.iteration % LOOKED_EVERY == LOOKED_EVERY - 1:
                trial.report(state.evaluation_result_list[0][2], state.iteration)
                if trial.should_prune():
                    raise optuna.TrialPruned

        ranker = grow(earlier, later, feature_names, suggested(trial, base), look)
        return mean(later.ndcg(ranker.score(later.features)))

    while (done := len(_finished(held))) < trials:
        progress(done, trials, f"best {held.best_value:.4f}" if _complete(held) else "first trial")
        held.optimize(judged, n_trials=1)
    if not _complete(held):
        raise DataError(f"{study}: none of {trials} trials came to its end. Ask for more: --trials {2 * trials}")
    best = replace(base, **held.best_params)
    scores = {
        name: later.ndcg(grow(earlier, later, feature_names, config).score(later.features))
        for name, config in (("best", best), ("default", base))
    }
    return Tuned(
        held.best_params, mean(scores["best"]), mean(scores["default"]),
        paired_bootstrap(scores["best"], scores["default"], SEED), len(_finished(held)),
        len(_finished(held)) - len(_complete(held)),
    )  # fmt: skip


def keep(tuned: Tuned, path: Path, feature_schema_hash: str) -> None:
    """Write the settings where training finds them."""
    write_whole(path, json.dumps({"feature_schema_hash": feature_schema_hash, "settings": dict(tuned.settings)}))


_SEARCHED = ("learning_rate", "leaves", "least_in_leaf", "feature_share", "row_share")


def _opened(study: Path, name: str) -> optuna.Study:
    try:
        with closing(sqlite3.connect(study)) as held:
            (found,) = held.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise DataError(f"{study}: no file of trials, {found}. Delete it, and the search begins anew.")
    return optuna.create_study(
        study_name=name, storage=f"sqlite:///{study}", load_if_exists=True, direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=SEED),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_TRIALS, n_warmup_steps=WARM_ROUNDS),
    )  # fmt: skip


def _study_name(rows: Rows, base: RankerConfig) -> str:
    name, told = f"ranker-{rows.fingerprint()[:16]}", _growth(base.declared)
    return name if told == _growth(DEFAULT_OBJECTIVES) else f"{name}-{sha256(told.encode()).hexdigest()[:16]}"


def _growth(declared: Objectives) -> str:
    """What of the declared changes the main objective's trees."""
    return repr((declared.objectives[declared.main].learn, declared.monotone, declared.position))


def _finished(study: optuna.Study) -> list[Any]:
    """Trials that came to an end or were given up; one that was killed is tried again as another."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def _complete(study: optuna.Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
