"""Variants, settings and shadow as the server follows them: files change, bundles come, go and break."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from headwater.errors import ConfigError, ModelError
from models.variants import FILE, ramp
from serving import live as lives
from serving.bundled import LATER
from serving.live import Live
from serving.telemetry import Telemetry
from serving.tuning import Tuned

SOURCES = {"buy_it_again", "two_tower", "recent_neighbours", "popular", "trending", "bm25", "dense", "meant", *LATER}


@dataclass(frozen=True)
class Fake:
    """A bundle that knows its settings; ``made`` has every one of it that was read from disk."""

    version: str
    how: Tuned | None = None
    sources: frozenset[str] = frozenset(SOURCES)

    def tuned(self, how):
        for name, surface in how.surfaces.surfaces.items():
            if not set(surface.sources) <= self.sources:
                raise ConfigError(f"surfaces.{name}.sources: unknown.")
        return replace(self, how=how)

    def score(self, surface, features):
        return features[:, 0]


@dataclass
class Shelf:
    """Reads bundles; those in ``damaged`` cannot be read, those in ``poor`` lack a source."""

    read: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    poor: set[str] = field(default_factory=set)

    def build(self, plan, folder):
        if folder.name in self.damaged:
            raise ModelError(f"{folder.name}: a file was altered. Train anew.")
        self.read.append(folder.name)
        return Fake(folder.name, sources=frozenset(SOURCES - {"two_tower"} if folder.name in self.poor else SOURCES))


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def told():
    return Telemetry()


@pytest.fixture
def live(settings, shelf, told):
    made = Live(settings, shelf.build, telemetry=told)
    yield made
    lives._end(made.now.shadow)


@pytest.fixture
def experiment(settings):
    """``experiment(share, **fields)`` declares a challenger."""

    def write(share, more=""):
        text = f"experiment = 'e'\n[variants.champion]\n[variants.challenger]\nshare = {share}\nbundle = 'challenger'\n"
        _write(settings.repo / FILE, text + more)

    return write


def _write(path, text):
    """So that the change shows, however fast."""
    path.write_text(text)
    path.touch()


def versions(live, n=400):
    """What so many users see: variant, bundle and what is named as degraded."""
    seen = [live.of(f"u{n}") for n in range(n)]
    return {(one.how.variant, one.version, one.how.degraded) for one in seen}


def test_a_challenger_is_seen_by_its_share_and_ramped_without_a_restart(
    live, promote, experiment, settings, shelf, told
):
    experiment(10)
    promote("v1", challenger="v2")
    assert live.refresh()
    assert versions(live) == {("champion", "v1", ()), ("challenger", "v2", ())}
    few = {n for n in range(400) if live.of(f"u{n}").version == "v2"}
    ramp(settings.repo, {"challenger": 60})
    assert live.refresh()
    many = {n for n in range(400) if live.of(f"u{n}").version == "v2"}
    assert few < many
    assert shelf.read == ["v1", "v2"]  # once each
    assert told.registry.get_sample_value("headwater_variant_share", {"variant": "challenger"}) == 0.6
    ramp(settings.repo, {"challenger": 0})
    live.refresh()
    assert versions(live) == {("champion", "v1", ())}
    assert [version for _, version in live._bundles] == ["v1"]  # nobody sees the other, so it is not held


def test_items_that_come_are_added_to_both_bundles_while_both_are_seen(settings, promote, experiment, shelf):
    """No user of the challenger gets the champion meanwhile, for nothing is let go of."""
    came, seen = 0, []

    def build(plan, folder):
        if came:
            seen.append(versions(live))
        return shelf.build(plan, folder)

    live = Live(settings, build, arrivals=lambda: came)
    experiment(50)
    promote("v1", challenger="v2")
    live.refresh()
    before = live.recommender
    came = 1
    assert live.refresh()
    assert shelf.read == ["v1", "v2"] * 2
    assert seen == [{("champion", "v1", ()), ("challenger", "v2", ())}] * 2
    assert live.recommender is not before
    assert not live.refresh()


def test_promoting_the_challenger_reads_no_bundle(live, promote, experiment, shelf):
    experiment(10)
    promote("v1", challenger="v2")
    live.refresh()
    promote("v2")
    assert live.refresh()
    assert shelf.read == ["v1", "v2"]
    assert versions(live) == {("champion", "v2", ()), ("challenger", "v2", ("variant.challenger",))}


def test_a_damaged_challenger_is_the_champion_by_name_until_it_is_mended(live, promote, experiment, shelf, monkeypatch):
    monkeypatch.setattr(lives, "RETRY_S", 0.0)
    shelf.damaged.add("v2")
    experiment(50)
    promote("v1", challenger="v2")
    assert live.refresh()
    assert versions(live) == {("champion", "v1", ()), ("challenger", "v1", ("variant.challenger",))}
    assert live.refresh()  # tried again
    shelf.damaged.clear()
    live.refresh()
    assert versions(live) == {("champion", "v1", ()), ("challenger", "v2", ())}
    assert not live.refresh()


@pytest.mark.parametrize("others", [{}, {"challenger": "v2"}])
def test_a_challenger_that_is_missing_or_lacks_a_source_is_the_champion_by_name(
    live, promote, experiment, shelf, others
):
    shelf.poor.add("v2")
    experiment(50)
    promote("v1", **others)
    live.refresh()
    assert versions(live) == {("champion", "v1", ()), ("challenger", "v1", ("variant.challenger",))}


def test_two_bundles_are_in_memory_at_most(settings, promote, experiment):
    """Counted while each is read: the second is let go before the third is, and its users get the champion."""
    held = []

    def build(plan, folder):
        held.append((len(live._bundles), versions(live) if live.now.recommender else set()))
        return Fake(folder.name)

    live = Live(settings, build)
    experiment(50)
    promote("v1", challenger="v2")
    live.refresh()
    promote("v3", challenger="v4", shadow="v5")
    live.refresh()
    assert [before for before, _ in held] == [0, 1, 1, 1]
    assert [seen for _, seen in held] == [
        set(), everyone_on("v1"), everyone_on("v1"), everyone_on("v3"),
    ]  # fmt: skip
    assert versions(live) == {("champion", "v3", ()), ("challenger", "v4", ())}
    assert live.now.shadow is None


def everyone_on(version):
    """Users of the challenger too, who are told."""
    return {("champion", version, ()), ("challenger", version, ("variant.challenger",))}


def test_while_the_champion_is_damaged_the_one_before_follows_the_files(live, promote, experiment, settings, shelf):
    promote("v1")
    live.refresh()
    shelf.damaged.add("v2")
    promote("v2")
    assert not live.refresh()
    _write(settings.repo / "surfaces.toml", _surfaces(limit=7))
    assert not live.refresh()
    assert (live.now.behind, live.recommender.version) == (True, "v1")
    assert live.recommender.how.surfaces.surfaces["home"].limit == 7
    assert shelf.read == ["v1"]


def _surfaces(limit=10, source="popular"):
    from importlib.resources import files

    text = (files("serving") / "surfaces.toml").read_text()
    return text.replace("limit = 10", f"limit = {limit}").replace("popular = 40", f"{source} = 40")


OBJECTIVES = "[objectives.purchase]\ncolumn = 'label'\n[weights.home]\npurchase = {weight}\n"


def test_surfaces_and_weights_are_taken_while_the_server_answers(live, promote, settings, shelf):
    promote("v1")
    live.refresh()
    assert live.recommender.how.surfaces.surfaces["home"].limit == 10
    _write(settings.repo / "surfaces.toml", _surfaces(limit=7))
    assert live.refresh()
    assert live.recommender.how.surfaces.surfaces["home"].limit == 7
    _write(settings.repo / "objectives.toml", OBJECTIVES.format(weight=2.5))
    assert live.refresh()
    assert live.recommender.how.weights == {"home": {"purchase": 2.5}}
    assert shelf.read == ["v1"]
    assert not live.refresh()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("surfaces.toml", "[surfaces.home"),
        ("surfaces.toml", "[surfaces.home]\nlimit = 0\n"),
        ("surfaces.toml", _surfaces(source="popularr")),
        ("objectives.toml", OBJECTIVES.format(weight="nan")),
        ("objectives.toml", OBJECTIVES.format(weight=1).replace("weights.home", "weights.hone")),
        (FILE, "experiment = 'e'\n[variants.champion]\n[variants.a]\nshare = 300\n"),
        (FILE, "experiment = 'e'\n[variants.champion]\n[variants.a.surfaces.home]\ndiversity = 3\n"),
        (FILE, "experiment = 'e'\n[variants.champion]\n[variants.a.surfaces.hone]\ndiversity = 0.3\n"),
        (FILE, "experiment = 'e'\n[variants.champion]\n[variants.a.weights.home]\nclicks = 0.3\n"),
    ],
)
def test_a_bad_file_leaves_what_was_there_in_force(live, promote, settings, told, shelf, name, text, monkeypatch):
    def refused():
        return told.registry.get_sample_value("headwater_settings_refused")

    _write(settings.repo / "surfaces.toml", _surfaces(limit=7))
    promote("v1")
    live.refresh()
    logged = []
    monkeypatch.setattr(lives.log, "error", lambda event, **fields: logged.append(event))
    before = (settings.repo / name).read_text() if (settings.repo / name).is_file() else None
    _write(settings.repo / name, text)
    live.refresh()
    assert not live.refresh()  # said once
    assert logged == ["settings_left_as_they_were"]
    assert refused() == 1
    assert live.recommender.how.surfaces.surfaces["home"].limit == 7
    promote("v2")  # bundles go on being swapped
    assert live.refresh()
    assert (live.recommender.version, live.recommender.how.surfaces.surfaces["home"].limit) == ("v2", 7)
    (settings.repo / name).unlink() if before is None else _write(settings.repo / name, before)
    live.refresh()
    assert refused() == 0


def test_a_variant_has_settings_of_its_own_on_the_same_bundle(live, promote, settings, shelf):
    (settings.repo / "objectives.toml").write_text(OBJECTIVES.format(weight=2))
    (settings.repo / FILE).write_text(
        "experiment = 'e'\n[variants.champion]\n[variants.varied]\nshare = 50\n"
        "surfaces.home = { diversity = 0.5 }\nweights.home = { purchase = 9 }\n"
    )
    promote("v1")
    live.refresh()
    seen = {one.how.variant: one for one in (live.of(f"u{n}") for n in range(100))}
    assert {name: one.how.surfaces.surfaces["home"].diversity for name, one in seen.items()} == {
        "champion": 0.01, "varied": 0.5,
    }  # fmt: skip
    assert {name: one.how.weights["home"]["purchase"] for name, one in seen.items()} == {"champion": 2, "varied": 9}
    assert shelf.read == ["v1"]


def test_a_change_of_what_is_asked_of_the_features_reads_the_bundle_anew(live, promote, settings, shelf):
    promote("v1")
    live.refresh()
    _write(settings.repo / "surfaces.toml", _surfaces().replace("recent = 20", "recent = 10"))
    assert live.refresh()
    assert shelf.read == ["v1", "v1"]
    assert len(live._bundles) == 1


def test_a_shadow_is_held_beside_the_champion_and_ends_with_its_alias(live, promote, told, until):
    promote("v1", shadow="v2")
    live.refresh()
    shadow = live.now.shadow
    shade = shadow.ask("home", np.ones((3, 2), np.float32))
    assert shade.scores.result(20).tolist() == [1, 1, 1]
    assert {one[:2] for one in versions(live)} == {("champion", "v1")}
    promote("v1")
    live.refresh()
    assert live.now.shadow is None
    assert shadow._closed.is_set()


def test_a_shadow_that_does_not_fit_the_settings_is_left_out_and_they_are_taken(live, promote, shelf, told):
    shelf.poor.add("v2")
    promote("v1", shadow="v2")
    assert live.refresh()
    assert (live.recommender.version, live.now.shadow) == ("v1", None)
    assert told.registry.get_sample_value("headwater_settings_refused") == 0
