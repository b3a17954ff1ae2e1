"""What is learned from real purchases before the cut-off: where shoppers and products lie, prices, habits, rhythm."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

from headwater.plan import DAY_MS
from models.interactions import Dataset, Interactions, assemble, catalogue, read_purchases

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Texts = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Fitted:
    """The world as the data leave it; row u is shopper u of ``user_ids``, row i product i of ``item_ids``.

    Attributes
    ----------
    users : (n_users, dims)
        Where a shopper's taste lies: of length one, or zero.
    items : (n_items, dims)
        Likewise.
    own : (n_users, n_items) sparse
        How often each bought each.
    price : (n_items,)
        Median of what was paid; where nothing was, of the category, else of everything.
    spend : (n_users,)
        Mean of what was spent on a day with a purchase.
    rhythm : (n_users,)
        How much more often than the average one came; its mean is one.
    text : by name (n_items,)
        What the catalogue tells: ``category``, ``department``, ``brand``, ``name``.
    bought
        The purchases themselves.
    """

    user_ids: Texts
    item_ids: Texts
    users: Floats
    items: Floats
    own: Any
    price: Floats
    spend: Floats
    rhythm: Floats
    text: dict[str, Texts]
    bought: Interactions

    @cached_property
    def popularity(self) -> Floats:
        """Purchases of each product (n_items,)."""
        return np.bincount(self.bought.item, minlength=len(self.item_ids)).astype(np.float64)

    @cached_property
    def fingerprint(self) -> str:
        """Tells this fit from one of other data."""
        digest = hashlib.sha256()
        for column in (self.bought.user, self.bought.item, self.bought.at_ms, self.price, self.users):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]


def fit(events_dir: Path, data_dir: Path, until_ms: int, dimensions: int) -> Fitted:
    """Learn from the archived purchases before ``until_ms``.

    Raises
    ------
    DataError
        There are none, or the catalogue is missing.
    """
    purchases = read_purchases(events_dir, until_ms)
    return fit_purchases(purchases, assemble(purchases, *catalogue(data_dir)), dimensions)


def fit_purchases(purchases: pd.DataFrame, data: Dataset, dimensions: int) -> Fitted:
    """Learn from a frame ``user_id, item_id, event_time, value`` and the same in dense numbers."""
    bought, category = data.bought, data.items.codes["category"]
    pairs = csr_matrix((np.ones(len(bought)), (bought.user, bought.item)), shape=(bought.n_users, bought.n_items))
    users, items = factors(pairs, dimensions)
    user = data.users.ids.dense(purchases["user_id"].to_numpy(object))
    item = data.items.ids.dense(purchases["item_id"].to_numpy(object))
    spend, days = _shopping_days(user, purchases["event_time"].to_numpy(), purchases["value"].to_numpy())
    return Fitted(
        user_ids=data.users.ids.values,
        item_ids=data.items.ids.values,
        users=users,
        items=items,
        own=pairs,
        price=_prices(item, purchases["value"].to_numpy(), category),
        spend=spend / days,
        rhythm=days / days.mean(),
        text=data.items.text,
        bought=bought,
    )


def factors(counts: Any, dimensions: int) -> tuple[Floats, Floats]:
    """Directions of rows and columns by a truncated singular value decomposition of the log-damped counts.

    Rows have length one before it, so that who buys much weighs no more than others. The first direction, what
    everyone buys, is left out: popularity stands for it.

    Returns
    -------
    (n_rows, dimensions), (n_columns, dimensions), each row of length one or zero; a space that the matrix does not
    have is zeros.
    """
    damped = counts.log1p()
    length = np.sqrt(np.asarray(damped.multiply(damped).sum(1)).ravel())
    rows = diags(np.divide(1, length, out=np.zeros_like(length), where=length > 0)) @ damped
    rank = min(dimensions + 1, min(rows.shape) - 1)
    left, strength, right = svds(rows, k=rank, v0=np.ones(min(rows.shape)), solver="arpack")
    kept = np.argsort(-strength, kind="stable")[1:]
    sign = np.sign(right[kept, np.abs(right[kept]).argmax(1)])  # else the solver's choice
    missing = ((0, 0), (0, dimensions - len(kept)))
    found = (left[:, kept] * strength[kept] * sign, right[kept].T * sign)
    users, items = (unit(np.pad(each, missing)) for each in found)
    return users, items


def unit(vectors: Floats) -> Floats:
    """Rows of length one; a row of zeros stays one (n, dims)."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-12)


def _shopping_days(user: Ints, at_ms: npt.NDArray[np.int64], value: Floats) -> tuple[Floats, Floats]:
    """What each shopper spent, and on how many days (n_users,)."""
    shopper, _ = np.divmod(np.unique(user * np.int64(2**32) + at_ms // DAY_MS), 2**32)
    spent = np.bincount(user, np.nan_to_num(value)).astype(np.float64)
    return spent, np.bincount(shopper).astype(np.float64)


def _prices(item: Ints, value: Floats, category: Ints) -> Floats:
    """Median paid for each product, in whole cents and at least one (n_items,)."""
    paid = pd.Series(np.where(value > 0, value, np.nan))
    own = paid.groupby(item).median().reindex(range(len(category))).to_numpy()
    alike = pd.Series(own).groupby(category).transform("median").to_numpy()
    overall = float(np.nanmedian(own)) if np.isfinite(own).any() else 1.0
    known = np.where(np.isfinite(own), own, np.where(np.isfinite(alike), alike, overall))
    return np.asarray(np.maximum(np.round(known, 2), 0.01), np.float64)
