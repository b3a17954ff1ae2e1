"""How far our next-basket methods are from PyPI's ``cornac``, whose own code scores one user at a time.

Its ``fit`` is called and its ``score`` followed line by line, but for what does not work in version 3.0:

- TIFU-KNN averages the neighbours' vectors over users *and* items. That adds one number to every score, so that the
  order is that of the user's own vector, ``TifuKnn(own=1)``. Here they are averaged over users, as in the paper.
- UP-CF hands similaripy 0.7 a product of a one-dimensional array, which ends the process. Here scipy multiplies.
- UP-CF compares a user's set of items with how often the others had theirs, where the paper compares sets. That is
  ``UpCf(counted=True)``, which is what is checked.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.next_basket import TifuKnn, UpCf
from headwater.errors import ConfigError
from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.trips import shopping_trips

Baskets = Sequence[Sequence[int]]
NEEDED = ("cornac", "similaripy")


def require_cornac() -> None:
    """Say how to install what is missing.

    Raises
    ------
    ConfigError
        The extra ``baselines`` is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"bench journey: {' and '.join(missing)} not installed, with which the published methods are compared. "
            "Run: pip install -e '.[baselines]'"
        )


def differences(log: Interactions, tifu: TifuKnn, upcf: UpCf) -> dict[str, float]:
    """Largest difference of any score of any user, relative to the largest score, by method.

    Parameters
    ----------
    log
        Of fewer than 100 users, since cornac's UP-CF looks at so many others.
    """
    users = np.unique(log.user)
    baskets = [_baskets_of(log, user) for user in users]
    return {
        "TIFU-KNN": _largest(_tifu_of_cornac(log, users, baskets, tifu), tifu.fit(log).scores(users)),
        "UP-CF": _largest(_upcf_of_cornac(log, users, baskets, upcf), upcf.fit(log).scores(users)),
    }


def _tifu_of_cornac(log: Interactions, users: Ints, baskets: Sequence[Baskets], ours: TifuKnn) -> Any:
    from cornac.models import TIFUKNN

    theirs = TIFUKNN(
        n_neighbors=min(ours.neighbours, len(users)), within_decay_rate=ours.within_decay,
        group_decay_rate=ours.group_decay, alpha=ours.own, n_groups=ours.groups,
    )  # fmt: skip
    # cornac takes a training user's last basket for the one to be predicted, so each gets one more.
    data = _dataset(log, users, [[*of_user, of_user[0]] for of_user in baskets])
    theirs.fit(data)
    vectors = np.zeros((len(users), log.n_items))
    columns = np.array([int(item) for item in data.iid_map])
    vectors[:, columns] = theirs.user_vectors
    _, nearest = theirs.tree.query(theirs.user_vectors, k=theirs.n_neighbors)
    return ours.own * vectors + (1 - ours.own) * vectors[nearest.reshape(len(users), -1)].mean(1)


def _upcf_of_cornac(log: Interactions, users: Ints, baskets: Sequence[Baskets], ours: UpCf) -> Any:
    from cornac.models import UPCF
    from similaripy import asymmetric_cosine

    theirs = UPCF(recency=ours.recency, locality=ours.locality, asymmetry=ours.asymmetry)
    data = _dataset(log, users, baskets)
    theirs.fit(data)
    scores = np.zeros((len(users), log.n_items))
    columns = np.array([int(item) for item in data.iid_map])
    for row, of_user in enumerate(baskets):
        history = [[data.iid_map[str(item)] for item in basket] for basket in of_user]
        items = sorted({item for basket in history for item in basket})
        own = sparse.csr_matrix((np.ones(len(items), np.float32), ([0] * len(items), items)), (1, len(columns)))
        everyone = sparse.vstack([own, theirs.user_item_matrix])
        alike = asymmetric_cosine(everyone, alpha=ours.asymmetry, target_rows=[0], verbose=False).tocsr()
        popular = sparse.vstack([theirs._get_user_wise_popularity(history), theirs.user_wise_popularity])
        scores[row, columns] = (alike.toarray()[:1] ** ours.locality) @ popular.toarray()
    return scores


def _dataset(log: Interactions, users: Ints, baskets: Sequence[Baskets]) -> Any:
    from cornac.data import BasketDataset

    lines = [
        (str(user), f"{user}-{at}", str(item), at)
        for user, of_user in zip(users, baskets, strict=True)
        for at, basket in enumerate(of_user)
        for item in basket
    ]
    return BasketDataset.from_ubit(lines)


def _baskets_of(log: Interactions, user: int) -> list[list[int]]:
    own = log.user == user
    trips = shopping_trips(Interactions(log.user[own], log.item[own], log.at_ms[own], log.n_users, log.n_items), 0)
    parts = np.split(trips.items, trips.bounds[1:-1])
    return [np.unique(part).tolist() for part in parts]


def _largest(theirs: Any, ours: Any) -> float:
    return float(np.abs(theirs - ours).max() / np.abs(theirs).max())
