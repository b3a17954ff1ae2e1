"""The ranker's examples before they have features: past trips, what would have been offered, what was bought."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from headwater.errors import DataError, ModelError
from headwater.settings import Settings
from models.candidates import SOURCES, Candidates, draw
from models.evaluation.metrics import Ints
from models.interactions import Ids, Interactions, Items, newest_ms, read_purchases
from models.paths import paths_of
from models.retriever import Retriever

Instants = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

REQUEST, AT, LABEL, NEXT, WEIGHT = "request_id", "event_timestamp", "label", "label_next", "weight"
VALUE = "value"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which trips are asked about, and what counts as bought.

    ``label`` is 1 where the product is bought in ``[t, t + horizon)``, the trip at t included, ``label_next`` where it
    is in that trip. Ranking by the next trip alone serves a list that is to hold for weeks worse than the rule it has
    to beat (docs/models.md has the figures).
    """

    horizon: timedelta = timedelta(days=28)
    span: timedelta = timedelta(days=42)
    requests: int = 3_200
    per_user: int = 2
    negatives_kept: float = 0.5
    seed: int = 11

    def end_ms(self, known_until_ms: int) -> int:
        """No trip is asked about whose horizon is not over."""
        return known_until_ms - _ms(self.horizon)

    def start_ms(self, known_until_ms: int) -> int:
        """Where the requests begin, and what retrieval may learn from ends."""
        return self.end_ms(known_until_ms) - _ms(self.span)


DEFAULT_SAMPLING = Sampling()


def draw_training_requests(settings: Settings, known_until_ms: int, sampling: Sampling = DEFAULT_SAMPLING) -> pa.Table:
    """Label rows for the point-in-time join, with the retriever in ``training/retriever``.

    A clock that is ahead of the archive says nothing of what was bought since, so the archive's end counts.

    Raises
    ------
    ModelError
        The retriever has learned from purchases that the requests are about.
    """
    retriever = Retriever.load(paths_of(settings).retriever)
    until_ms = min(known_until_ms, newest_ms(settings.events_dir) + 1)
    start_ms, cutoff_ms = sampling.start_ms(until_ms), retriever.provenance.cutoff_ms
    if cutoff_ms > start_ms:
        raise ModelError(
            f"retriever: has seen purchases up to {cutoff_ms}, but the requests begin at {start_ms}. "
            "Train it again: headwater train retriever"
        )
    return draw_requests(retriever, read_purchases(settings.events_dir, until_ms), until_ms, sampling)


def number(purchases: pd.DataFrame, users: Ids, items: Items) -> Interactions:
    """Purchases in a retriever's numbering: unknown users are -1, unknown products are left out."""
    return _numbered(purchases, users, items)[0]


def _numbered(purchases: pd.DataFrame, users: Ids, items: Items) -> tuple[Interactions, npt.NDArray[np.intp]]:
    """Interactions, and each one's row of ``purchases``."""
    user = users.dense(purchases["user_id"].to_numpy(object))
    item = items.ids.dense(purchases["item_id"].to_numpy(object))
    at_ms = purchases["event_time"].to_numpy(np.int64)
    order = np.lexsort((item, user, at_ms))
    order = order[item[order] >= 0]
    return Interactions(user[order], item[order], at_ms[order], len(users), len(items)), order


def sample_trips(bought: Interactions, start_ms: int, end_ms: int, sampling: Sampling) -> tuple[Ints, Instants]:
    """Users and instants of some trips in [start, end): at most ``per_user`` of each, by time.

    Users are drawn alike however often they shop, for every one of them will be served.

    Raises
    ------
    DataError
        There are none.
    """
    window = bought.between(start_ms, end_ms)
    known = window.user >= 0
    trips = np.unique(np.stack([window.at_ms[known], window.user[known]]), axis=1)
    if not trips.shape[1]:
        raise DataError(f"training: nobody known bought anything from {start_ms} to {end_ms}. Choose another cutoff.")
    generator = np.random.default_rng(sampling.seed)
    shuffled = trips[:, generator.permutation(trips.shape[1])]
    turn = pd.Series(shuffled[1]).groupby(shuffled[1]).cumcount().to_numpy()
    offered = shuffled[:, turn < sampling.per_user]
    chosen = offered[:, : sampling.requests]
    order = np.lexsort((chosen[1], chosen[0]))
    return chosen[1][order].astype(np.int32), chosen[0][order].astype(np.int64)


def bought_within(
    bought: Interactions, users: Ints, items: Ints, at_ms: Instants, span_ms: int
) -> npt.NDArray[np.bool_]:
    """Whether each (user, item) was bought in [at, at + span) (n,)."""
    _, low, high = _span(bought, users, items, at_ms, span_ms)
    return np.asarray(high > low)


def spent_within(
    bought: Interactions, values: Floats, users: Ints, items: Ints, at_ms: Instants, span_ms: int
) -> Floats:
    """Sum of the values of what each (user, item) bought in [at, at + span) (n,), to six decimals; nought if nothing.

    ``values`` (n_bought,): of each purchase, in order.
    """
    order, low, high = _span(bought, users, items, at_ms, span_ms)
    sums = np.append(0.0, np.cumsum(values[order]))
    return np.asarray(np.round(sums[high] - sums[low], 6))


def _span(
    bought: Interactions, users: Ints, items: Ints, at_ms: Instants, span_ms: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Purchases by user, item and time, and the part of them that each (user, item) bought in [at, at + span)."""
    order = np.lexsort((bought.at_ms, bought.item, bought.user))
    keys = bought.user[order].astype(np.int64) * bought.n_items + bought.item[order]
    pairs, first = np.unique(keys, return_index=True)
    # The first purchase at or after `at` of the pair, found in one sorted array of (pair, time) ranks.
    origin = int(bought.at_ms[0])
    width = int(bought.at_ms[-1]) - origin + 2
    times = np.repeat(np.arange(len(pairs)), np.diff(np.append(first, len(keys)))) * width
    times += bought.at_ms[order] - origin
    wanted = users.astype(np.int64) * bought.n_items + items
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    low = np.clip(at_ms - origin, 0, width - 1)
    high = np.clip(at_ms + span_ms - origin, 0, width - 1)
    begin, end = np.searchsorted(times, place * width + low), np.searchsorted(times, place * width + high)
    return order, begin, np.where(pairs[place] == wanted, end, begin)


def draw_requests(
    retriever: Retriever, purchases: pd.DataFrame, known_until_ms: int, sampling: Sampling = DEFAULT_SAMPLING
) -> pa.Table:
    """Label rows for the point-in-time join, by request, then item.

    Parameters
    ----------
    purchases
        ``user_id, item_id, event_time`` and, if known, ``value``, before ``known_until_ms``.

    Returns
    -------
    ``row_id`` int64, ``request_id``, ``user_id``, ``item_id``, ``category``, ``event_timestamp`` (UTC ms) and the same
    as ``request_time`` int64, ``label`` and ``label_next`` int8, ``from_<source>`` bool, ``retrieval_score`` and
    ``weight`` float32, and ``value`` float64, what was spent on the item within the label's horizon, if known.
    """
    bought, rows = _numbered(purchases, retriever.users, retriever.items)
    start_ms, end_ms = sampling.start_ms(known_until_ms), sampling.end_ms(known_until_ms)
    users, at_ms = sample_trips(bought, start_ms, end_ms, sampling)  # (n_requests,)
    drawn = draw(retriever, bought, users, at_ms)  # (n_candidates,)
    user, now = users[drawn.query], at_ms[drawn.query]
    label = bought_within(bought, user, drawn.item, now, _ms(sampling.horizon))
    kept = label | (np.random.default_rng(sampling.seed).random(len(drawn)) < sampling.negatives_kept)
    weight = np.where(label, 1.0, 1.0 / sampling.negatives_kept).astype(np.float32)
    following = bought_within(bought, user, drawn.item, now, 1)
    table = _table(retriever, drawn, user, now, label, following, weight)
    if VALUE in purchases:
        values = np.nan_to_num(purchases[VALUE].to_numpy(np.float64)[rows])
        spent = spent_within(bought, values, user, drawn.item, now, _ms(sampling.horizon))
        table = table.append_column(VALUE, pa.array(spent))
    return table.filter(pa.array(kept))


def instant_requests(retriever: Retriever, purchases: pd.DataFrame, users: Ints, at_ms: int) -> pa.Table:
    """As ``draw_requests`` without labels, all at one instant: what would be offered to ``users`` then."""
    bought = number(purchases, retriever.users, retriever.items)
    drawn = draw(retriever, bought, users, np.full(len(users), at_ms, np.int64))
    unknown = np.zeros(len(drawn), bool)
    now = np.full(len(drawn), at_ms, np.int64)
    return _table(retriever, drawn, users[drawn.query], now, unknown, unknown, np.ones(len(drawn), np.float32))


def _table(
    retriever: Retriever,
    drawn: Candidates,
    user: Ints,
    at_ms: Instants,
    label: npt.NDArray[np.bool_],
    following: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.float32],
) -> pa.Table:
    user_id = pa.array(retriever.users.values[user], pa.string())
    columns = {
        "row_id": pa.array(np.arange(len(drawn)), pa.int64()),
        REQUEST: pa.array([f"{who}@{at}" for who, at in zip(user_id.to_pylist(), at_ms.tolist(), strict=True)]),
        "user_id": user_id,
        "item_id": pa.array(retriever.items.ids.values[drawn.item], pa.string()),
        "category": pa.array(retriever.items.text["category"][drawn.item], pa.string()),
        AT: pa.array(at_ms, pa.timestamp("ms", tz="UTC")),
        "request_time": pa.array(at_ms, pa.int64()),
        LABEL: pa.array(label.astype(np.int8)),
        NEXT: pa.array(following.astype(np.int8)),
    }
    columns |= {f"from_{name}": pa.array(drawn.proposed[:, n]) for n, name in enumerate(SOURCES)}
    return pa.table(columns | {"retrieval_score": pa.array(drawn.score), WEIGHT: pa.array(weight)})


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
