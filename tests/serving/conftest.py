"""A tiny feature repository and store for the serving tests: no feast, the plan is written by hand."""

import hashlib
import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from headwater.clock import ManualClock
from headwater.online import codec
from headwater.online.names import Names, packed
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import (
    DAY_MS,
    Aggregate,
    FeaturePlan,
    Function,
    Partial,
    Service,
    ServiceFeature,
    Source,
    Table,
    View,
)
from headwater.runtime.ports import free_port
from headwater.settings import Settings
from models.bm25 import index_words
from models.catalogue import Column
from serving.availability import StoredAvailability, Withdrawn
from serving.funnel import Funnel
from serving.guard import Guard
from serving.hydration import Hydration
from serving.impressions import Discard
from serving.ports import Bundle
from serving.reasons import Reasons
from serving.rulebook import RuleBook
from serving.search import Search
from serving.sources import BuyItAgain, Fixed, TwoTower
from serving.state import Remembering, StateReader
from serving.surfaces import Surfaces
from serving.telemetry import Telemetry

NOW = 400 * DAY_MS
REGISTRY = b"what feast would have written"


def _count_view(name: str, join_keys: tuple[str, ...], feature: str, table: str) -> View:
    """Lifetime count of events."""
    return View(
        name=name, join_keys=join_keys, source="events", projection="", columns={}, ttl_ms=0,
        aggregates=(
            Aggregate(
                feature=feature, function=Function(name="count"), column=None, kind="int", window_ms=None, hop_ms=None,
                default=0.0, table=table,
            ),
        ),
        tables=(Table(id=table, kind="fixed", hop_ms=None, keep=0, partials=(Partial(kind="count", column=None),)),),
    )  # fmt: skip


def _with_newest(view: View, feature: str) -> View:
    """Add the time of the newest event."""
    newest = Aggregate(
        feature=feature, function=Function(name="max"), column="event_time", kind="int", window_ms=None, hop_ms=None,
        table=view.tables[0].id,
    )  # fmt: skip
    partials = (*view.tables[0].partials, Partial(kind="max", column="event_time"))
    table = view.tables[0].model_copy(update={"partials": partials})
    return view.model_copy(update={"aggregates": (*view.aggregates, newest), "tables": (table,)})


def _last_view() -> View:
    return View(
        name="user_recent", join_keys=("user_id",), source="events", projection="", columns={"item_id": "string"},
        ttl_ms=0,
        aggregates=(
            Aggregate(
                feature="user_last_items", function=Function(name="last", n=20), column="item_id", kind="string",
                window_ms=None, hop_ms=None, table="00000000000000aa",
            ),
        ),
        tables=(Table(id="00000000000000aa", kind="last", hop_ms=None, keep=0, column="item_id", n=20),),
    )  # fmt: skip


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FeaturePlan:
    """Views of a user, an item, user x item and user x category, and the services over them."""
    views = (
        _count_view("user_activity", ("user_id",), "user_purchases", "0000000000000001"),
        _count_view("item_activity", ("item_id",), "item_purchases", "0000000000000002"),
        _with_newest(
            _count_view("user_item", ("user_id", "item_id"), "user_item_purchases", "0000000000000003"),
            "user_item_newest",
        ),
        _count_view("user_category", ("user_id", "category"), "user_category_purchases", "0000000000000004"),
        _last_view(),
    )
    return FeaturePlan(
        project="shop", registry_sha256=hashlib.sha256(REGISTRY).hexdigest(), repo=".",
        sources=(
            Source(
                name="events", topic="events", columns=(), event_id="event_id", event_time="event_time", key="user_id"
            ),
        ),
        views=views, batch_views=(), on_demand=(),
        services=(
            Service(
                name="recommend",
                features=tuple(ServiceFeature(view=view.name, feature=view.features[0]) for view in views[:4]),
            ),
            Service(name="user_state", features=(ServiceFeature(view="user_recent", feature="user_last_items"),)),
        ),
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, plan: FeaturePlan) -> Settings:
    """State of its own, with an applied repository and no bundle; servers are named by each test."""
    repo = tmp_path / "feature_repo"
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text("project: shop\nregistry: data/registry.db\n")
    (repo / "data" / "registry.db").write_bytes(REGISTRY)
    plan.save(repo / "data" / "manifest.json")
    return Settings(
        state_dir=tmp_path / "state", repo=repo, grpc_port=free_port(), metrics_port=free_port(),
        kafka="127.0.0.1:1", redis="redis://127.0.0.1:1/0",
    )  # fmt: skip


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


Counts = dict[tuple[str, ...], int]


@pytest.fixture
def put(plan: FeaturePlan) -> Callable[..., None]:
    """``put(client, view, {key: count})`` writes lifetime counts as the stream would; each key's newest event one day
    ago, or as ``newest`` says."""

    def write(client: redis.Redis, name: str, counts: Counts, newest: int | list[int] = NOW - DAY_MS) -> None:
        view = plan.view(name)
        assert isinstance(view, View)
        n, held = len(counts), np.array(list(counts.values()))
        at = np.broadcast_to(newest, n)
        columns = {
            "tile": np.zeros(n), "slot": np.full(n, codec.LIVE), "count": held, "newest": at, "ingest": at,
            "hash": np.arange(n), "count_all": held, "max_event_time": at,
        }  # fmt: skip
        OnlineWriter(client, plan.project).write_tiles(view.tables[0], view.join_keys, list(counts), columns)

    return write


@pytest.fixture
def put_recent(plan: FeaturePlan) -> Callable[..., None]:
    """``put_recent(client, user, items)`` writes a user's last items, oldest first."""

    def write(client: redis.Redis, user: str, items: list[str]) -> None:
        view = plan.view("user_recent")
        assert isinstance(view, View)
        at = [NOW - DAY_MS + i for i in range(len(items))]
        payload = codec.pack_entries((t, f"e{t}", item) for t, item in zip(at, items, strict=True))
        columns = {
            "tile": np.zeros(1), "slot": np.full(1, codec.LIVE), "count": np.array([len(items)]),
            "newest": np.array([at[-1]]), "ingest": np.array([at[-1]]), "hash": np.zeros(1),
        }  # fmt: skip
        OnlineWriter(client, plan.project).write_tiles(view.tables[0], view.join_keys, [(user,)], columns, [payload])

    return write


def _until(condition: Callable[[], object], what: str, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Wait for a condition, never for a time."""
    return _until


@pytest.fixture
def promote(settings: Settings) -> Callable[..., None]:
    """Name the champion, as ``headwater promote`` does; other aliases by name."""

    def write(version: str, **others: str) -> None:
        settings.bundles_dir.mkdir(parents=True, exist_ok=True)
        scratch = settings.bundles_dir / "aliases.tmp"
        scratch.write_text(json.dumps({"champion": version, **others}))
        scratch.replace(settings.bundles_dir / "aliases.json")

    return write


N_ITEMS = 60


class Shop:
    """A catalogue of 60 items in six categories, vectors drawn once."""

    def __init__(self) -> None:
        self.ids = Names.of(packed([f"i{n}" for n in range(N_ITEMS)]))
        drawn = np.random.default_rng(7).normal(size=(N_ITEMS, 8)).astype(np.float32)
        self.vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def dense(self, ids):
        known = {name: n for n, name in enumerate(self.ids)}
        return np.array([known.get(name, -1) for name in ids], np.int32)

    def column(self, name):
        return Column.of([f"c{n % 6}" for n in range(N_ITEMS)])

    def groups(self, name):
        return np.arange(N_ITEMS, dtype=np.int32) % 6

    def attributes(self, items):
        return [{"name": f"Item {item}", "category": f"c{item % 6}"} for item in items]


class Exact:
    """Nearest by inner product, exactly."""

    def __init__(self, vectors):
        self.vectors = vectors

    def search(self, vectors, n, allowed=None):
        held = np.flatnonzero(np.ones(len(self.vectors), bool) if allowed is None else allowed).astype(np.int32)
        order = held[np.argsort(-(vectors @ self.vectors[held].T), axis=1, kind="stable")[:, :n]]
        return np.pad(order, ((0, 0), (0, max(0, n - order.shape[1]))), constant_values=-1)


class MeanOfRecent:
    """A user tower that only looks at the recent items."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, users, recent, age_ms):
        return self.vectors[np.maximum(recent, 0)].mean(1)


class SumOfFeatures:
    """A ranker: own purchases count most."""

    weights = np.array([0, 0.01, 1, 0.1], np.float32)

    def score(self, features):
        return (features @ self.weights).astype(np.float32)

    def contributions(self, features):
        return np.hstack([features * self.weights, np.zeros((len(features), 1), np.float32)])


class Users:
    def dense(self, ids):
        return np.array([0 if name == "u1" else -1 for name in ids], np.int32)


@pytest.fixture(scope="session")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="session")
def bundle(shop: Shop) -> Bundle:
    """Small models that can be worked out by hand."""
    index = Exact(shop.vectors)
    by_number = np.arange(N_ITEMS, dtype=np.int32)
    names = np.array([f"Item {n}" for n in range(N_ITEMS)], object)
    return Bundle(
        version="v1", schema_hash="h", catalogue=shop, index=index, ranker=SumOfFeatures(),
        sources={
            "two_tower": TwoTower(MeanOfRecent(shop.vectors), index), "buy_it_again": BuyItAgain(),
            "popular": Fixed(by_number), "trending": Fixed(by_number[::-1]),
        },
        calibrate=lambda scores: (1 / (1 + np.exp(-scores))).astype(np.float32), popular=by_number,
        search=Search(shop, index_words(N_ITEMS, {"name": names}), index, by_number[::-1].astype(np.float32)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def surfaces() -> Surfaces:
    """With deadlines that hold on a slow machine too."""
    return Surfaces.model_validate(
        tomllib.loads("""
        [features]
        ranker = "recommend"
        user = "user_id"
        item = "item_id"
                own = "user_item"
        own_weight = "user_item_purchases"
        own_newest = "user_item_newest"
        [features.attributes]
        category = "category"
        [surfaces.home]
        limit = 10
        diversity = 0.0
        seen = "keep"
        deadline_ms = 5000
        sources = { buy_it_again = 10, two_tower = 10, popular = 10, trending = 5 }
        [surfaces.discover]
        limit = 5
        diversity = 0.3
        seen = "hide"
        deadline_ms = 5000
        sources = { two_tower = 10, popular = 10 }
        [[reasons]]
        feature = "user_item_purchases"
        at_least = 1
        text = "bought {value:.0f} times"
        [source_reasons]
        popular = "popular with everyone"
    """)
    )


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Where a test may write rules."""
    return tmp_path / "rules.toml"


class Kept(Funnel):
    """Keeps the surfaces that it was made with, whatever the files of a repository say."""

    def tuned(self, how):
        return replace(self, variant=how.variant, experiment=how.experiment, standing=how.degraded, shadow=how.shadow)


@pytest.fixture
def funnel(
    bundle: Bundle, surfaces: Surfaces, plan: FeaturePlan, clock: ManualClock, rules: Path
) -> Callable[..., Funnel]:
    """``funnel(store)`` over a Redis client; keyword arguments replace its parts."""

    def make(store: redis.Redis, **parts) -> Funnel:
        reader, guard = OnlineReader(store, plan, clock), Guard("online store")
        whole = Kept(
            bundle=bundle, surfaces=surfaces.surfaces, names=surfaces.features,
            state=Remembering(StateReader(reader, surfaces.features, Users(), bundle.catalogue)),
            features=Hydration(reader),
            availability=StoredAvailability(Withdrawn(store, plan.project, guard), bundle.catalogue),
            rules=RuleBook(rules, bundle.catalogue),
            reasons=Reasons(
                surfaces.reasons, surfaces.source_reasons,
                {name: at for at, name in enumerate(plan.service("recommend").names)},
            ),
            impressions=Discard(), clock=clock, telemetry=Telemetry(), store=guard,
        )  # fmt: skip
        return replace(whole, **parts)

    return make
