"""The published methods beside the slow reading of their papers, and beside cornac where it is installed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cornac_check import NEEDED, differences, require_cornac
from benchmarks.dual_ease import DualEase
from benchmarks.next_basket import TifuKnn, UpCf, nearest_rows
from headwater.errors import ConfigError
from models.interactions import Interactions
from models.retrieval.ease import Ease
from models.retrieval.protocol import pairs

N_USERS, N_ITEMS = 4, 6
EVERYONE = np.arange(N_USERS, dtype=np.int32)


def log_of(rows: list[tuple[int, int, int]], n_users: int = N_USERS, n_items: int = N_ITEMS) -> Interactions:
    """Of (instant, user, item)."""
    at_ms, user, item = (np.array([row[n] for row in sorted(rows)], np.int64) for n in range(3))
    return Interactions(user.astype(np.int32), item.astype(np.int32), at_ms, n_users, n_items)


def drawn(n: int, n_users: int, n_items: int) -> Interactions:
    random = np.random.default_rng(3)
    instants, users = random.integers(0, n // 8, n), random.integers(0, n_users, n)
    items = (random.integers(0, n_items, n) * random.random(n)).astype(int)
    return log_of(list(zip(instants.tolist(), users.tolist(), items.tolist(), strict=True)), n_users, n_items)


rows = st.tuples(st.integers(0, 12), st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1))
logs = st.lists(rows, min_size=1, max_size=60).map(log_of)


def baskets_of(log: Interactions, user: int) -> list[set[int]]:
    """Oldest first."""
    own = log.user == user
    return [set(log.item[own & (log.at_ms == at)].tolist()) for at in np.unique(log.at_ms[own])]


def tifu_vector(baskets: list[set[int]], model: TifuKnn) -> Any:
    """Section 4.1: the mean of each group's decayed baskets, then the mean of the decayed groups."""
    decayed = []
    for place, basket in enumerate(baskets):
        vector = np.zeros(N_ITEMS)
        vector[list(basket)] = model.within_decay ** (len(baskets) - 1 - place)
        decayed.append(vector)
    count = min(len(decayed), model.groups)
    sizes = [len(decayed) // count + (part >= count - len(decayed) % count) for part in range(count)] if count else []
    total = np.zeros(N_ITEMS)
    for part, size in enumerate(sizes):
        first = sum(sizes[:part])
        total += model.group_decay ** (model.groups - 1 - part) * np.mean(decayed[first : first + size], axis=0)
    return total / max(count, 1)


@given(log=logs, groups=st.integers(1, 5), own=st.sampled_from([0.0, 0.3, 1.0]), all_of_them=st.booleans())
@settings(max_examples=80, deadline=None)
def test_tifu_knn_is_a_users_vector_mixed_with_the_mean_of_the_nearest(
    log: Interactions, groups: int, own: float, all_of_them: bool
) -> None:
    """Nearest is the user alone, or everybody: in between, users who are as near as each other may be exchanged."""
    model = TifuKnn(N_USERS if all_of_them else 1, 0.8, 0.5, own, groups)
    vectors = np.array([tifu_vector(baskets_of(log, user), model) for user in range(N_USERS)])
    near = vectors.mean(0) if all_of_them else vectors
    np.testing.assert_allclose(model.fit(log).scores(EVERYONE), own * vectors + (1 - own) * near, rtol=1e-5, atol=1e-7)


@given(log=logs, k=st.integers(1, N_USERS))
@settings(max_examples=50, deadline=None)
def test_no_other_row_is_nearer_than_the_nearest(log: Interactions, k: int) -> None:
    vectors = TifuKnn().vectors(log)
    dense = vectors.toarray().astype(np.float64)
    distance = np.square(dense[:, None] - dense[None]).sum(-1)
    found = np.take_along_axis(distance, nearest_rows(vectors, k).astype(np.int64), 1)
    np.testing.assert_allclose(np.sort(found, 1), np.sort(distance, 1)[:, :k], atol=1e-6)


@given(log=logs, recency=st.integers(0, 4), asymmetry=st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=80, deadline=None)
def test_up_cf_is_what_alike_users_bought_in_their_latest_baskets(
    log: Interactions, recency: int, asymmetry: float
) -> None:
    """Equations 3 to 5."""
    baskets = [baskets_of(log, user) for user in range(N_USERS)]
    had = [set().union(*of_user) for of_user in baskets]
    wanted = np.zeros((N_USERS, N_ITEMS))
    for user in range(N_USERS):
        for other in range(N_USERS):
            if not had[user] & had[other]:
                continue
            norm = len(had[user]) ** asymmetry * len(had[other]) ** (1 - asymmetry)
            alike = (len(had[user] & had[other]) / norm) ** 3
            latest = baskets[other][-recency:] if recency else baskets[other]
            for item in range(N_ITEMS):
                wanted[user, item] += alike * sum(item in basket for basket in latest) / len(latest)
    np.testing.assert_allclose(UpCf(recency, 3, asymmetry).fit(log).scores(EVERYONE), wanted, rtol=1e-5, atol=1e-7)


@given(log=logs, regularization=st.sampled_from([1.0, 20.0]), decay=st.sampled_from([0.5, 1.0]))
@settings(max_examples=50, deadline=None)
def test_ease_by_users_is_ease_by_items(log: Interactions, regularization: float, decay: float) -> None:
    by_items = Ease(regularization, decay).fit(log).scores(EVERYONE)
    by_users = DualEase(regularization, decay).fit(log).scores(EVERYONE)
    np.testing.assert_allclose(by_users, by_items, atol=1e-5)


def test_both_methods_score_as_cornac_does() -> None:
    for name in NEEDED:
        pytest.importorskip(name)
    log = drawn(1_500, 25, 40)
    assert pairs(log).nnz < len(log)  # some items were had again
    for tifu, upcf in (
        (TifuKnn(5), UpCf(counted=True)),
        (TifuKnn(9, 0.95, 0.9, 0.3, 4), UpCf(0, 3.0, 0.75, counted=True)),
    ):
        found = differences(log, tifu, upcf)
        assert all(difference < 1e-5 for difference in found.values()), found


def test_without_cornac_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.cornac_check.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cornac and similaripy not installed.*pip install -e '\.\[baselines\]'"):
        require_cornac()
