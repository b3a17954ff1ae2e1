"""The lists whose accuracy and variety are measured, against sorting; and the points that are drawn."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import frontier, pictures
from benchmarks.pipeline import Offered
from models.evaluation.metrics import PAD
from serving.rerank.arrange import METHODS


def offered(seed: int, n_users: int, most: int) -> Offered:
    """Candidates of users in no order, up to so many each; some have none, and some belong to nobody."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most + 1, n_users + 1)
    household = np.repeat(np.arange(-1, n_users), counts).astype(np.int32)
    item = np.concatenate([rng.permutation(most)[:count] for count in counts]).astype(np.int32)
    vectors = rng.normal(size=(most, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shuffled = rng.permutation(len(item))
    scores = rng.permutation(len(item)).astype(np.float32)
    return Offered(household[shuffled], item[shuffled], scores, vectors[item[shuffled]])


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 25))
@settings(deadline=None)
def test_without_diversity_a_list_is_the_order_of_the_scores(seed, n_users, most):
    held = offered(seed, n_users, most)
    made = frontier.lists(held, n_users, "mmr", 0.0)
    for user in range(n_users):
        mine = [at for at in np.argsort(-held.scores) if held.household[at] == user]
        wanted = held.item[mine][: frontier.DEPTH].tolist()
        assert made[user].tolist() == wanted + [PAD] * (frontier.DEPTH - len(wanted))


@given(st.integers(0, 2**32 - 1), st.sampled_from([*METHODS]), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_whatever_the_strength_a_list_is_full_and_of_the_household_s_own_candidates(seed, method, strength):
    held = offered(seed, 4, 25)
    for user, made in enumerate(frontier.lists(held, 4, method, strength)):
        own, shown = held.item[held.household == user], made[made != PAD]
        assert len(shown) == len(set(shown.tolist())) == min(frontier.DEPTH, len(own))
        assert set(shown.tolist()) <= set(own.tolist())


def test_every_point_that_was_measured_is_drawn():
    found = pictures.points(pictures.PERFORMANCE.read_text())
    assert set(found) == {pictures.PLAIN, "MMR", "DPP"}
    strengths = [f"{strength:g}" for strength in frontier.STRENGTHS]
    for method in ("MMR", "DPP"):
        assert [strength for strength, _, _ in found[method]] == strengths
