"""A bundle on its way to serve: steps by the clock and by lists, what ends it, and who else may end it."""

import shutil
from itertools import count
from pathlib import Path

import pytest
from support import bundles
from support.archives import Stored, write
from support.impressions import archive_impressions
from support.shown import record

from batch.rollout import FILE, MOVED, SERVES, WAITS, WITHDRAWN, Rollouts, rollouts_of
from headwater.clock import ManualClock
from headwater.errors import ConfigError, DataError, ModelError
from headwater.events import Event
from headwater.plan import HOUR_MS
from headwater.settings import Settings
from models import registry, variants
from models.gates import Rollout, load_rules

pytestmark = pytest.mark.filterwarnings("ignore")
RULES = Rollout.model_validate(
    {"shadow": "1h", "ramp": [10, 50], "each": "2h", "least_lists": 40, "most_failed": 0.1, "outcomes": ["click"]}
)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A state folder with three bundles; MLflow's tables take seconds to make."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("template"))
    for number in ("1", "2", "3"):
        bundles.write(settings.bundles_dir / number)
        registry.register(settings, settings.bundles_dir / number)
    registry.promote(settings, "1")
    return settings.state_dir


class Shop:
    """A state folder whose lists are written by hand."""

    def __init__(self, template: Path, folder: Path) -> None:
        (folder / "repo").mkdir()
        self.settings = Settings(state_dir=shutil.copytree(template, folder / "state"), repo=folder / "repo")
        self.clock, self.lists, self.number = ManualClock(0), [], count()
        self.rollouts = Rollouts(self.settings, RULES, bundles.SCHEMA_HASH, self.clock.now_ms)

    def show(self, n: int, clicks: int = 0, shadow: str | None = None, users: int = 40, **fields) -> None:
        """Archive so many lists of now, each followed by so many clicks, each of which arrives twice."""
        now, events = self.clock.now_ms(), []
        for at in range(n):
            name = f"r{next(self.number)}"
            scored = None if shadow is None else {"bundle_version": shadow, "items": fields.get("scores", [0.5, 0.5])}
            who = f"{fields.get('variant', 'champion')}-{at % users}"
            self.lists.append(record(name, now, who, bundle_version=fields.get("by", "1"), shadow=scored,
                                     variant=fields.get("variant", "champion"),
                                     degraded=fields.get("degraded", [])))  # fmt: skip
            events += [
                Event(event_id=f"{name}-{click}", event_type="click", event_time=now, user_id=who, item_id="a",
                      request_id=name)
                for click in range(clicks + at % 2)
            ]  # fmt: skip
        archive_impressions(self.settings, self.lists)
        stored = [Stored(event, now, copy, next(self.number)) for copy in (0, 1) for event in events]
        write(stored, self.settings.events_dir)

    @property
    def shares(self) -> dict[str, float]:
        return variants.load_experiment(self.settings.repo).shares

    @property
    def aliases(self) -> dict[str, str]:
        held = registry.read_aliases(self.settings)
        return {name: version for name, version in held.items() if name in registry.ALIASES}


@pytest.fixture
def shop(template: Path, tmp_path: Path) -> Shop:
    return Shop(template, tmp_path)


def test_a_bundle_comes_to_serve_by_every_step(shop: Shop) -> None:
    shop.rollouts.begin("2")
    assert shop.aliases == {"champion": "1", "shadow": "2"}
    shop.show(500)  # before any server had read it
    shop.show(50, shadow="2")
    found = shop.rollouts.look()
    assert (found.result, found.step, found.seen.lists, found.seen.failed) == (WAITS, "shadow", 50, 0)
    assert found.why == "1.0 h left, 50 of at least 40 lists"
    shop.clock.advance(HOUR_MS)
    assert (shop.rollouts.look().result, shop.rollouts.standing().step) == (MOVED, 1)
    assert shop.aliases == {"champion": "1", "challenger": "2"}
    assert shop.shares == {"champion": 90, "challenger": 10}
    shop.clock.advance(2 * HOUR_MS)
    found = shop.rollouts.look()
    assert (found.result, found.seen.lists) == (WAITS, 0), "its time is over, but nobody has seen it"
    shop.show(60, clicks=1, variant="challenger", by="2")
    shop.show(60, clicks=1)
    shop.clock.advance(1)
    found = shop.rollouts.look()
    assert (found.result, found.step) == (MOVED, "50 % of the users")
    assert found.seen.change[0] == 0
    assert shop.shares == {"champion": 50, "challenger": 50}
    shop.clock.advance(2 * HOUR_MS)
    shop.show(60, variant="challenger", by="2")
    assert shop.rollouts.look().result == SERVES
    assert shop.aliases == {"champion": "2"}
    assert shop.shares == {"champion": 100, "challenger": 0}
    assert shop.rollouts.look() is None
    assert registry.told(shop.settings, "2")["rollout"] == "serves: 50 % of the users is over"
    assert registry.rollback(shop.settings) == "1"


def test_a_shadow_that_fails_is_withdrawn(shop: Shop) -> None:
    shop.rollouts.begin("2")
    shop.show(45, shadow="2")
    shop.show(5, shadow="2", scores=None)
    assert shop.rollouts.look().result == WAITS, "a tenth is borne"
    shop.show(10, shadow="2", scores=None)
    found = shop.rollouts.look()
    assert (found.result, found.why) == (WITHDRAWN, "it surely fails 15.8% more of its lists, and 10.0% are borne")
    assert shop.aliases == {"champion": "1"}
    assert not (shop.settings.bundles_dir / FILE).exists()


def test_a_challenger_that_fails_more_than_the_champion_is_withdrawn(shop: Shop) -> None:
    shop.rollouts.begin("2")
    shop.show(50, shadow="2")
    shop.clock.advance(HOUR_MS)
    shop.rollouts.look()
    shop.show(30, variant="challenger", by="2", degraded=["hydrate"])
    shop.show(100, variant="challenger", by="1", degraded=["variant.challenger"])
    shop.show(30, degraded=["hydrate"])
    found = shop.rollouts.look()
    assert (found.result, found.seen.lists, found.seen.failed) == (WAITS, 30, 0), "the store was away for all"
    shop.show(10)
    assert shop.rollouts.look().result == WITHDRAWN


def test_a_challenger_that_surely_does_worse_is_withdrawn_in_mid_step(shop: Shop) -> None:
    shop.rollouts.begin("2")
    shop.show(50, shadow="2")
    shop.clock.advance(HOUR_MS)
    shop.rollouts.look()
    shop.show(20, clicks=0, variant="challenger", by="2")
    shop.show(80, clicks=2)
    assert shop.rollouts.look().seen.change is None, "twenty shoppers tell nothing"
    shop.show(40, clicks=0, variant="challenger", by="2")
    found = shop.rollouts.look()
    assert found.result == WITHDRAWN
    assert found.why == "-2.0000 [-2.2219, -1.7781] click a list"
    assert shop.shares["challenger"] == 0
    assert shop.aliases == {"champion": "1"}


def test_it_ends_where_somebody_else_is_named_or_takes_its_place(shop: Shop) -> None:
    shop.rollouts.begin("2")
    registry.promote(shop.settings, "3", registry.SHADOW)
    assert (shop.rollouts.look().result, shop.aliases) == (WITHDRAWN, {"champion": "1", "shadow": "3"})
    shop.rollouts.begin("2")
    shop.rollouts.begin("3")
    assert (shop.rollouts.standing().version, shop.aliases) == ("3", {"champion": "1", "shadow": "3"})
    assert registry.told(shop.settings, "2")["rollout"] == "withdrawn: 3 takes its place"
    assert shop.rollouts.stop().why == "it was stopped"
    assert (shop.rollouts.stop(), shop.aliases) == (None, {"champion": "1"})


def test_what_was_killed_on_its_way_goes_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.rollouts.begin("2")
    shop.show(50, shadow="2")
    shop.clock.advance(HOUR_MS)
    with monkeypatch.context() as cut:
        cut.setattr("batch.rollout.write_whole", lambda *told: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            shop.rollouts.look()
    assert (shop.rollouts.standing().step, shop.aliases["challenger"]) == (0, "2")
    assert shop.rollouts.look().result == MOVED
    assert (shop.rollouts.standing().step, shop.aliases["challenger"]) == (1, "2")
    registry.promote(shop.settings, "2")
    found = shop.rollouts.look()
    assert (found.result, found.why, shop.aliases) == (SERVES, "it was named champion", {"champion": "2"})
    assert shop.shares["challenger"] == 0


def test_what_cannot_begin_changes_nothing(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="1 is champion already"):
        shop.rollouts.begin("1")
    with pytest.raises(ModelError, match=r"bundle.json is missing"):
        shop.rollouts.begin("9")
    (shop.settings.repo / "promotion.toml").write_text("")
    with pytest.raises(ConfigError, match=r"no table \[rollout\]"):
        rollouts_of(shop.settings, bundles.SCHEMA_HASH, shop.clock.now_ms)
    assert (shop.rollouts.look(), shop.aliases) == (None, {"champion": "1"})
    (shop.settings.bundles_dir / FILE).write_text("{}")
    with pytest.raises(DataError, match="Delete it"):
        shop.rollouts.look()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ramp = [10, 10]", "each share is above the one before"),
        ("least_lists = 5", "it has no step"),
        ('shadow = "0s"', "greater than"),
        ("ramp = [100]", "less than 100"),
    ],
)
def test_rules_that_make_no_sense_are_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "promotion.toml").write_text(f"[rollout]\n{text}\n")
    with pytest.raises(ConfigError, match=why):
        load_rules(tmp_path)


def test_the_sensor_looks_while_there_is_a_rollout(shop: Shop) -> None:
    import dagster as dg

    from batch.assets import defs
    from batch.rollout import rollout, rollout_is_under_way

    assert defs.get_sensor_def("rollout_is_under_way").job_name == "rollout"
    context = dg.build_sensor_context(resources={"rollouts": shop.rollouts})
    assert not rollout_is_under_way(context).run_requests
    shop.rollouts.begin("2")
    assert len(rollout_is_under_way(context).run_requests) == 1
    done = dg.materialize([rollout], resources={"rollouts": shop.rollouts})
    assert done.output_for_node("rollout")["result"] == WAITS
    assert not rollout_is_under_way(dg.build_sensor_context(resources={"rollouts": None})).run_requests
