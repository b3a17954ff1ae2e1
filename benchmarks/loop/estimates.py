"""What the log foretells of a bundle's policy before it serves, beside what the simulated world knows it to be worth.

::

    training/rows ──► log, of the first places or all ──by_ranker──► estimates with intervals, or a refusal
                       └──► the same policy draws from the same candidates ──► World.value ──► truth

A policy that learned from the lists that judge it made much of their chance. So each half of them is put in order by
trees of the other half, as many as the bundle's: estimates and truth are of a bundle that learned from half of them.

All lists are the log, not only those that were drawn whole: the probabilities that serving logs are those of the
surface, which draws some lists and orders the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from headwater.errors import DataError
from headwater.settings import Settings
from models.bundle import load_bundle
from models.draws import PLACKETT_LUCE, draw_weights
from models.evaluation.counterfactual import Estimate, estimate
from models.evaluation.metrics import PAD
from models.evaluation.policies import SAMPLED, Log, Named, by_ranker, log_of, vectors
from models.objectives import load_objectives
from models.paths import paths_of
from models.propensity import settled
from models.ranking import grow, read_rows
from models.requests import REQUEST
from models.rows import POSITION, SHOWN
from models.training import Service, ranker_config
from simulation.fitted import Floats, Ints
from simulation.world import World

TEMPERATURE = 0.1
"""Of the surface that explores."""
DRAWS, CHUNK = 50, 2_000
"""Lists drawn for each logged one, and how many are drawn at once."""
SEED = 20171127
APART = "learned_apart"
PLACES = (1, 3, 10)
"""So many places from the top are judged. What is left to draw from is guessed from ten logged candidates of hundreds,
and what that is wrong by is multiplied from place to place: whole lists are mostly refused."""


@dataclass(frozen=True)
class Foretold:
    """Clicks a list, in its first places, of a policy that was not shown yet.

    Attributes
    ----------
    places, lists
        So many places are judged, and so many logged lists tell of them.
    truth
        Mean worth of lists that the policy draws for the same shoppers, days and candidates.
    estimates
        By estimator; none where the log does not support the policy, and ``refused`` says why.
    """

    places: int
    lists: int
    truth: float
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    refused: str = ""

    @property
    def held(self) -> dict[str, bool]:
        """Whether each estimator's interval holds the truth."""
        return {name: one.low <= self.truth <= one.high for name, one in self.estimates.items()}


def foretell(settings: Settings, world: World, lists: pd.DataFrame, version: str) -> Sequence[Foretold]:
    """Ask the lists that were learned from what such a bundle's policy would earn; nothing where none was drawn.

    Parameters
    ----------
    lists
        ``request_id, user_id, day`` of all that the simulator saw answered.
    """
    rows, seen = paths_of(settings).rows, pa.array(lists[REQUEST])
    table = ds.dataset(rows, format="parquet").to_table(filter=pc.field(REQUEST).isin(seen))
    if not pc.any(pc.equal(table["policy"], PLACKETT_LUCE)).as_py():
        return ()
    bundle = load_bundle(settings.bundles_dir / version)
    service = Service(bundle.meta.service, bundle.meta.feature_names, bundle.meta.feature_schema_hash)
    table, ranker = learned_apart(settings, table, service, bundle.ranker.booster.num_trees())
    truths = true_clicks(log_of(table, str(rows)), ranker, world, lists, PLACES)
    return [
        foretold(log_of(first_places(table, n), str(rows)), ranker, truth)
        for n, truth in zip(PLACES, truths, strict=True)
    ]


def learned_apart(settings: Settings, table: pa.Table, service: Service, trees: int) -> tuple[pa.Table, Named]:
    """The table with a score of each row by trees that grew on the other half of its requests, and what reads it."""
    paths, names = paths_of(settings), service.feature_names
    config = ranker_config(paths, service, load_objectives(settings.repo))
    config = replace(config, declared=settled(config.declared, paths.rows), rounds=trees)
    requests = pc.unique(table[REQUEST])
    half = pc.index_in(table[REQUEST], requests).to_numpy() % 2
    features = vectors(table, names)
    scores = np.empty(len(table), np.float32)
    for judged in (0, 1):
        others = pc.field(REQUEST).isin(requests.take(pa.array(range(1 - judged, len(requests), 2))))
        ranker = grow(read_rows(paths.rows, names, config.declared, others), None, names, config)
        scores[half == judged] = ranker.score(features[half == judged])
    return table.append_column(APART, pa.array(scores)), Apart((*names, APART))


@dataclass(frozen=True)
class Apart:
    """Ranker that reads its scores from the last of its features."""

    feature_names: tuple[str, ...]

    def score(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n,) of (n, n_features)."""
        return features[:, -1]


def first_places(table: pa.Table, n: int) -> pa.Table:
    """The log of lists that end at place ``n``: what stood below is a candidate that was not shown."""
    at = table.column_names.index(POSITION)
    position = pc.if_else(pc.greater(table[POSITION], n), pa.scalar(None, table[POSITION].type), table[POSITION])
    cut = table.set_column(at, POSITION, position)
    return cut.drop_columns([SHOWN] if SHOWN in cut.column_names else []).append_column(SHOWN, pc.is_valid(position))


def foretold(log: Log, ranker: Named, clicks: Floats) -> Foretold:
    """Estimates of what a ranker's policy earns by the lists of a log, and the truth, their clicks (n_lists,)."""
    places, truth = int(log.place.max()) + 1, float(clicks.mean())
    try:
        return Foretold(places, log.n_lists, truth, estimate(by_ranker(log, ranker, TEMPERATURE)))
    except DataError as error:
        return Foretold(places, log.n_lists, truth, refused=str(error))


def true_clicks(
    log: Log, ranker: Named, world: World, lists: pd.DataFrame, first: Sequence[int], draws: int = DRAWS
) -> Floats:
    """Expected clicks of the lists that a ranker's policy draws in place of each logged one (len(first), n_lists).

    A sampled candidate stands for as many like it as its sampling probability says, in whole numbers.

    Parameters
    ----------
    first
        So many places from the top are counted: the first places of a list are drawn as a list of them would be.
    """
    items, weights, places = _candidates(log, ranker, world)
    asked = lists.set_index(REQUEST).loc[pd.Index(_requests(log))]
    users, day = world.users_of(asked["user_id"].to_numpy(object)), asked["day"].to_numpy()
    rng = np.random.default_rng(SEED)
    found = np.empty((len(first), len(users)))
    for some in _chunks(day, max(1, CHUNK // draws)):
        each = np.repeat(some, draws)
        chosen = draw_lists(rng, items[each], weights[each], places[each])
        for row, n in zip(found, first, strict=True):
            clicks = world.value(users[each], chosen[:, :n], int(day[some[0]])).clicks
            row[some] = clicks.reshape(len(some), draws).mean(1)
    return found


def draw_lists(rng: np.random.Generator, items: Ints, weights: Floats, places: npt.NDArray[np.int64]) -> Ints:
    """A list of each row's candidates, place after place in proportion to what is left of the weights.

    Candidates in the order of log-weight plus Gumbel noise are drawn so (Gumbel top-k).

    Parameters
    ----------
    items, weights : (n, most)
        A weight of 0 is never drawn.
    places : (n,)
        How long each list is.

    Returns
    -------
    (n, longest), ``PAD`` behind a list's end.
    """
    k = min(int(places.max()), items.shape[1])
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + rng.gumbel(size=weights.shape)
    best = np.argpartition(-keys, k - 1, axis=1)[:, :k]
    order = np.take_along_axis(best, np.argsort(-np.take_along_axis(keys, best, 1), axis=1), 1)
    drawn = np.take_along_axis(items, order, 1)
    drawn[(np.arange(k) >= places[:, None]) | ~np.isfinite(np.take_along_axis(keys, order, 1))] = PAD
    return drawn


def _candidates(log: Log, ranker: Named, world: World) -> tuple[Ints, Floats, npt.NDArray[np.int64]]:
    """Candidates of each list and their weights (n_lists, most), and how many places it has (n_lists,)."""
    weight = draw_weights(ranker.score(vectors(log.table, ranker.feature_names)), log.group, log.n_lists, TEMPERATURE)
    copies = np.rint(1 / log.table[SAMPLED].to_numpy()).astype(np.int64)
    by_list = np.argsort(log.group, kind="stable")
    rows = np.repeat(by_list, copies[by_list])
    group = log.group[rows]
    sizes = np.bincount(group, minlength=log.n_lists)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    items = np.full((log.n_lists, sizes.max()), PAD, np.int32)
    weights = np.zeros(items.shape)
    items[group, place] = world.items_of(log.table["item_id"].to_numpy()[rows])
    weights[group, place] = weight[rows]
    return items, weights, np.bincount(log.group[: log.n_shown], minlength=log.n_lists)


def _requests(log: Log) -> npt.NDArray[np.object_]:
    """Id of each list (n_lists,)."""
    first = np.flatnonzero(log.place == 0)
    return np.asarray(log.table[REQUEST].to_numpy()[first], object)


def _chunks(day: npt.NDArray[np.int64], n: int) -> list[npt.NDArray[np.int64]]:
    """Places of at most ``n`` lists of one day."""
    found = []
    for one in np.unique(day):
        there = np.flatnonzero(day == one)
        found += [there[at : at + n] for at in range(0, len(there), n)]
    return found
