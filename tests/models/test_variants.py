"""Who sees what: dealt evenly, the same everywhere, and kept while shares grow."""

import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from models.variants import ALONE, FILE, Experiment, load_experiment, point, ramp

USERS = [f"user {n}" for n in range(20_000)]


def experiment(name: str = "e", **shares: float) -> Experiment:
    variants = {"champion": {}} | {variant: {"share": share} for variant, share in shares.items()}
    return Experiment.model_validate({"experiment": name, "variants": variants})


def dealt_slowly(shares: dict[str, float], at: float) -> str:
    """The intervals as the module's docstring has them, found by walking from both ends."""
    left, right, low, high = [], [], 0.0, 1.0
    for number, (name, share) in enumerate(shares.items()):
        (right if number % 2 else left).append((name, share / 100))
    for name, width in left:
        if low <= at < low + width:
            return name
        low += width
    for name, width in right:
        if high - width <= at < high:
            return name
        high -= width
    return "champion"


@given(st.lists(st.integers(0, 100), max_size=6).filter(lambda shares: sum(shares) <= 100), st.text(min_size=1))
@settings(deadline=None)
def test_a_user_is_where_a_walk_from_both_ends_finds_them(drawn, user):
    shares = {f"v{n}": float(share) for n, share in enumerate(drawn)}
    held = experiment(**shares)
    assert held.variant_of(user) == dealt_slowly(shares, point("e", user))
    assert math.isclose(sum(held.shares.values()), 100)


@pytest.mark.parametrize("shares", [(10,), (1, 2.5), (25, 25, 25), (0, 100), (33.3, 33.3, 33.4)])
def test_shares_are_those_declared_within_what_chance_allows(shares):
    """Five standard deviations of a binomial count: once in two million."""
    held = experiment("shares", **{f"v{n}": share for n, share in enumerate(shares)})
    seen = [held.variant_of(user) for user in USERS]
    for name, percent in held.shares.items():
        share = percent / 100
        bound = 5 * math.sqrt(len(USERS) * share * (1 - share))
        assert abs(seen.count(name) - len(USERS) * share) <= bound


two = st.tuples(st.floats(0, 50), st.floats(0, 50))


@given(two, two, st.text(min_size=1))
@settings(deadline=None)
def test_who_sees_a_variant_goes_on_seeing_it_while_its_share_grows(before, after, user):
    """Whatever becomes of the other one, and in every order of ramping up and down."""
    old, new = (experiment(a=a, b=b) for a, b in (before, after))
    seen, sees = old.variant_of(user), new.variant_of(user)
    if seen != "champion" and new.variants[seen].share >= old.variants[seen].share:
        assert sees == seen
    if sees not in ("champion", seen):  # nobody is moved into a variant that did not grow
        assert new.variants[sees].share > old.variants[sees].share


def test_another_experiment_deals_users_independently():
    seen = [(experiment("one", a=50).variant_of(user), experiment("two", a=50).variant_of(user)) for user in USERS]
    both = seen.count(("a", "a"))
    assert abs(both - len(USERS) / 4) <= 5 * math.sqrt(len(USERS) * 3 / 16)


def test_a_user_is_dealt_alike_in_every_process_and_release():
    """A change of the hash would deal all users of a running experiment anew."""
    assert [round(point("e", user), 9) for user in ("u1", "", "ü", "\ud800")] == POINTS


POINTS = [0.1204263, 0.363028902, 0.245492764, 0.69501433]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("experiment = 'e'\n[variants.champion]\nshare = 90\n", "takes what the others leave"),
        ("experiment = 'e'\n[variants.champion]\n[variants.a]\nshare = 60\n[variants.b]\nshare = 41\n", "101 percent"),
        ("experiment = 'e'\n[variants.champion]\n[variants.a]\nshare = -1\n", "variants.a.share"),
        ("experiment = 'e'\n[variants.champion]\n[variants.a]\nbundle = 'shadow'\n", "variants.a.bundle"),
        ("experiment = 'e'\n[variants.champion]\n[variants.A]\n", "variants.A"),
        ("experiment = ''\n[variants.champion]\n", "experiment"),
        ("experiment = 'e'\nvariants = {}\n", "variants"),
        ("experiment = 'e\n", "not TOML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_field(tmp_path, text, told):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_experiment(tmp_path)


def test_without_a_file_everyone_sees_the_champion(tmp_path):
    assert load_experiment(tmp_path) is ALONE
    assert {ALONE.variant_of(user) for user in USERS[:100]} == {"champion"}


HELD = """# who sees what
experiment = "e"   # a salt

[variants.champion]

[variants.challenger]  # the new towers
share=10 # percent
bundle = "challenger"

[variants.bare]
[variants.bare.surfaces.home]
diversity = 0.5
"""


def test_a_ramp_changes_the_shares_and_nothing_else(tmp_path):
    (tmp_path / FILE).write_text(HELD)
    held = ramp(tmp_path, {"challenger": 25, "bare": 2.5})
    assert held.shares == {"champion": 72.5, "challenger": 25.0, "bare": 2.5}
    text = (tmp_path / FILE).read_text()
    changed = HELD.replace("share=10 #", "share = 25 #").replace("[variants.bare]\n", "[variants.bare]\nshare = 2.5\n")
    assert text == changed
    assert load_experiment(tmp_path) == held


@given(st.integers(0, 100), st.integers(0, 100))
@settings(deadline=None)
def test_a_ramp_is_read_back_as_it_was_asked_for(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("repo")
    ramp(folder, {"challenger": first})
    assert ramp(folder, {"challenger": second}).variants["challenger"].share == second
    assert tomllib.loads((folder / FILE).read_text())["variants"]["challenger"]["share"] == second


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"challengr": 5}, "'challengr' is not in the file. Choose from challenger, bare"),
        ({"champion": 50}, "takes what the others leave"),
        ({"challenger": 99, "bare": 2}, "101 percent"),
        ({"challenger": 120}, "challenger.share"),
    ],
)
def test_a_ramp_that_cannot_be_changes_nothing(tmp_path, shares, told):
    (tmp_path / FILE).write_text(HELD)
    with pytest.raises(ConfigError, match=told):
        ramp(tmp_path, shares)
    assert (tmp_path / FILE).read_text() == HELD


def test_a_ramp_makes_no_repository(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        ramp(tmp_path / "none", {"challenger": 1})
    assert not (tmp_path / "none").exists()
