"""A bundle as training writes it, served: from the files on disk to a list over gRPC."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import lightgbm
import numpy as np
import pyarrow as pa
import pytest
import redis

from headwater import topics
from headwater.clock import ManualClock, StoredClock
from headwater.errors import ConfigError, ModelError
from headwater.kafka_io import Record, Sender
from headwater.plan import DAY_MS, FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.settings import Settings, addresses
from models.bundle import Parts, Trained, write_bundle
from models.calibration import Calibrator
from models.candidates import SOURCES
from models.encoder import UserEncoder, unit
from models.heads import Head
from models.index import build
from models.ranker import Ranker
from serving import build as serving_build
from serving import live as serving_live
from serving import server as serving_server
from serving.arrivals import Arrivals
from serving.availability import withdraw
from serving.build import Builder, build_recommender
from serving.client import Client
from serving.impressions import Discard, document
from serving.surfaces import load_surfaces
from serving.telemetry import Telemetry
from serving.tracking import KafkaLog
from serving.tuning import read_tuning

N, DIM, NOW = 60, 8, 400 * DAY_MS

SURFACES = """
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
deadline_ms = 5000  # the machine that runs the tests may be slow
sources = { buy_it_again = 10, two_tower = 10, popular = 10, trending = 5 }
[[reasons]]
feature = "user_item_purchases"
at_least = 1
text = "bought {value:.0f} times"
"""


def trained_ranker(names: tuple[str, ...], sign: int = 1) -> Ranker:
    """Trees that learned one thing: own purchases (the third column) matter."""
    rng = np.random.default_rng(3)
    features = rng.integers(0, 10, (400, len(names))).astype(np.float32)
    data = lightgbm.Dataset(features, sign * features[:, 2], feature_name=list(names))
    options = {"verbosity": -1, "num_leaves": 7, "min_data_in_leaf": 5, "num_threads": 1, "seed": 3}
    return Ranker(lightgbm.train(options, data, 20))


def tower() -> UserEncoder:
    rng = np.random.default_rng(5)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return UserEncoder(
        items=unit(drawn(N, DIM)), user=drawn(3, DIM), traits=np.zeros((3, 1), np.int32), trait=drawn(1, DIM),
        hidden=drawn(3 * DIM, 4), hidden_bias=drawn(4), out=drawn(4, DIM), out_bias=drawn(DIM),
    )  # fmt: skip


@pytest.fixture
def write(settings: Settings, plan: FeaturePlan) -> Callable[..., Path]:
    """``write(version)`` publishes a bundle of 60 items and two users; ``others`` adds a head of the opposite mind."""
    (settings.repo / "surfaces.toml").write_text(SURFACES)
    plan.model_copy(update={"repo": str(settings.repo)}).save(settings.manifest_path)

    def publish(version: str, schema_hash: str = plan.schema_hash("recommend"), others: bool = False) -> Path:
        names = plan.service("recommend").names
        items = pa.table({
            "item_id": [f"i{n}" for n in range(N)], "name": [f"Item {n}" for n in range(N)],
            "category": [f"c{n % 6}" for n in range(N)],
        })  # fmt: skip
        parts = Parts(
            tower(), build(tower().items), items, ["u1", "u2"], trained_ranker(names),
            Calibrator(np.array([0.0, 10]), np.array([0.1, 0.9])),
            popularity=np.arange(N, 0, -1), trending=np.arange(N),
            others=[Head("click", trained_ranker(names, -1), Calibrator(np.array([-10.0, 0]), np.array([0.1, 0.9])))]
            if others else (),
        )  # fmt: skip
        trained = Trained(
            created_ms=NOW, service="recommend", feature_schema_hash=schema_hash, feature_names=names,
            feature_hashes=plan.feature_hashes("recommend"),
            training_start_ms=0, training_end_ms=NOW, data_hash="d",
        )  # fmt: skip
        folder = settings.bundles_dir / version
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_bundle(folder, trained, parts)
        return folder

    return publish


@pytest.fixture
def running(settings, valkey_client, valkey) -> Iterator[Client]:
    """The server with its own parts but for Kafka."""
    store = redis.Redis.from_url(valkey)
    clock = StoredClock(store)
    clock.set(NOW, speed=0.0)
    telemetry = Telemetry()
    build = Builder(store, clock, Discard(), telemetry).build
    server = serving_server.Server(
        settings, serving_server.Parts(store, clock, KafkaLog("127.0.0.1:1"), telemetry, build)
    )
    server.start()
    with Client(addresses(settings).grpc) as client:
        yield client
    server.close()


@pytest.mark.integration
def test_a_written_bundle_is_served(write, promote, running, valkey_client, put, until):
    put(valkey_client, "user_item", {("u1", "i5"): 9, ("u1", "i8"): 1})
    write("v1")
    promote("v1")
    until(lambda: _version(running) == "v1", "the bundle")
    ranked = running.recommend("u1", limit=5)
    assert ranked.degraded == ()
    assert ranked.items[0].item_id == "i5"
    assert ranked.items[0].reasons == ("bought 9 times",)
    assert ranked.items[0].attributes == {"name": "Item 5", "category": "c5"}
    assert 0.1 < ranked.items[0].score <= 0.9
    assert {source for item in ranked.items for source in item.sources} & {"two_tower", "popular", "trending"}
    assert len(running.similar("i5", 4).items) == 4
    found = running.search("u1", "item 7", require={"category": "c1"})
    assert found.degraded == ()
    assert found.items[0].attributes == {"name": "Item 7", "category": "c1"}
    assert {item.attributes["category"] for item in found.items} == {"c1"}


def _spoil_ranker(folder: Path) -> None:
    (folder / "ranker.txt").write_text("tree\nversion=v4\nnum_leaves=many\n")


def _cut_index(folder: Path) -> None:
    whole = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").write_bytes(whole[: len(whole) // 2])


def _lose_index(folder: Path) -> None:
    (folder / "index.faiss").unlink()


@pytest.mark.integration
@pytest.mark.parametrize("damage", [_spoil_ranker, _cut_index, _lose_index])
def test_a_damaged_bundle_is_not_served_and_lists_go_on_until_it_is_mended(
    write, promote, running, settings, until, monkeypatch, damage
):
    """The one before stays in force; the reply says that it is not the champion's."""
    monkeypatch.setattr(serving_live, "RETRY_S", 0.1)
    write("v1")
    promote("v1")
    until(lambda: _version(running) == "v1", "the first bundle")
    assert running.recommend("u1").degraded == ()
    whole, damaged = write("v2"), settings.bundles_dir / "v2"
    shutil.copytree(whole, settings.bundles_dir / "copy")
    damage(damaged)
    promote("v2")
    until(lambda: "bundle" in running.recommend("u1").degraded, "the refusal")
    ranked = running.recommend("u1")
    assert (ranked.bundle_version, len(ranked.items)) == ("v1", 10)
    shutil.copytree(settings.bundles_dir / "copy", damaged, dirs_exist_ok=True)
    until(lambda: _version(running) == "v2", "the mended bundle")
    assert running.recommend("u1").degraded == ()


@pytest.mark.integration
def test_a_start_with_a_damaged_champion_answers_with_the_last_one_that_is_whole(
    write, promote, settings, valkey_client, clock, until
):
    for version in ("v1", "v2", "v3", "never promoted"):
        write(version)
    _lose_index(settings.bundles_dir / "v2")
    _cut_index(settings.bundles_dir / "v3")
    aliases = {"champion": "v3", "history": ["v1", "v2"]}
    (settings.bundles_dir / "aliases.json").write_text(json.dumps(aliases))
    live = serving_live.Live(settings, Builder(valkey_client, clock, Discard(), Telemetry()).build)
    assert not live.refresh()
    assert (live.recommender.version, live.now.behind) == ("v1", True)
    assert len(live.recommender.recommend(live.recommender.request("u1")).items) == 10
    promote("never promoted")
    assert live.refresh()
    assert not live.now.behind


@pytest.mark.integration
def test_a_bundle_that_is_loaded_while_the_store_is_down_knows_what_has_been_withdrawn(
    write, settings, valkey_client, clock, monkeypatch
):
    withdraw(valkey_client, "shop", ["i0"])
    builder = Builder(valkey_client, clock, Discard(), Telemetry())
    builder.build_warm(load_plan(settings.repo), write("v1"))

    def fails(*_):
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(valkey_client, "smembers", fails)
    builder.withdrawn["shop"]._read_at = float("-inf")
    again = builder.build(load_plan(settings.repo), write("v2"))
    shown = [item.item_id for item in again.recommend(again.request("u1", limit=N)).items]
    assert len(shown) == N - 1
    assert "i0" not in shown


@pytest.mark.integration
def test_where_no_bundle_is_whole_the_reason_is_told(write, settings, promote, valkey_client, clock):
    _cut_index(write("v1"))
    promote("v1")
    live = serving_live.Live(settings, Builder(valkey_client, clock, Discard(), Telemetry()).build)
    assert not live.refresh()
    with pytest.raises(ModelError, match=r"index\.faiss was altered.*headwater train"):
        _ = live.recommender


@pytest.mark.integration
def test_a_warm_start_makes_lists_that_nobody_is_told_of(write, settings, plan, valkey_client, clock):
    telemetry, seen = Telemetry(), []

    class Recorder:
        def log(self, impression):
            seen.append(impression)

    builder = Builder(valkey_client, clock, Recorder(), telemetry)
    funnel = builder.build_warm(load_plan(settings.repo), write("v1"))
    assert not seen
    assert telemetry.registry.get_sample_value("headwater_stage_seconds_count", {"stage": "rank"}) is None
    assert len(funnel.recommend(funnel.request("u1")).items) == 10
    assert len(seen) == 1


@pytest.mark.integration
def test_items_are_added_to_the_bundle_in_memory_which_is_read_for_as_long_as_nobody_answers_with_it(
    write, settings, valkey_client, clock, monkeypatch
):
    folder, read, load = write("v1"), [], serving_build.bundles.load_bundle
    monkeypatch.setattr(
        serving_build.bundles, "load_bundle", lambda folder, *of: read.append(folder) or load(folder, *of)
    )
    monkeypatch.setattr(Arrivals, "_follow", lambda *_: None)
    arrivals = Arrivals("nowhere:1")
    builder = Builder(valkey_client, clock, Discard(), Telemetry(), arrivals=arrivals)
    plan = load_plan(settings.repo)
    first = builder.build(plan, folder)
    for at, item in enumerate(("one", "two"), 1):
        arrivals.take(item.encode(), json.dumps({"item_id": item, "name": "Quince"}).encode(), NOW)
        found = builder.build(plan, folder)
        assert len(found.bundle.catalogue) == len(first.bundle.catalogue) + at
    assert read == [folder]
    del first, found
    gc.collect()
    builder.build(plan, folder)
    assert read == [folder] * 2
    arrivals.close()


@pytest.mark.integration
def test_a_new_item_is_found_and_recommended_without_a_new_bundle(
    write, promote, settings, kafka, valkey, valkey_client, until
):
    """From Kafka, on the real server: by its word, near its kind, and no more once it is taken back."""
    store = redis.Redis.from_url(valkey)
    clock = StoredClock(store)
    clock.set(NOW, speed=0.0)
    arrivals, telemetry = Arrivals(kafka), Telemetry()
    build = Builder(store, clock, Discard(), telemetry, arrivals=arrivals).build_warm
    log = KafkaLog(kafka)
    parts = serving_server.Parts(store, clock, log, telemetry, build, arrivals.close, arrivals.version)
    write("v1")
    with (settings.repo / "surfaces.toml").open("a") as file:
        file.write("[surfaces.search]\nlimit = 10\ndiversity = 0.0\nseen = 'keep'\nsources = { bm25 = 10 }\n")
    promote("v1")
    server, sender = serving_server.Server(settings, parts), Sender(kafka)
    server.start()
    with Client(addresses(settings).grpc) as client:

        def found():
            return [item.item_id for item in client.search("u1", "quince").items]

        assert "fresh" not in found()
        value = json.dumps({"item_id": "fresh", "name": "Quince", "category": "c2"}).encode()
        for record in (b"{", value):
            sender.send(Record(topics.ITEMS, b"fresh", record, NOW + 1))
        sender.settle()
        until(lambda: found()[:1] == ["fresh"], "the new item")
        ranked = client.recommend("u1", limit=3, include=["fresh"])
        assert ([item.item_id for item in ranked.items], ranked.degraded) == (["fresh"], ())
        sender.send(Record(topics.ITEMS, b"fresh", None, NOW + 2))
        sender.settle()
        until(lambda: "fresh" not in found(), "the item's end")
    server.close()


@pytest.mark.integration
def test_no_request_fails_while_real_bundles_are_swapped(write, promote, running, until):
    for version in ("v1", "v2", "v3"):
        write(version)
    promote("v1")
    until(lambda: _version(running) == "v1", "the first bundle")
    seen: set[str] = set()
    stop = Event()

    def ask() -> None:
        while not stop.is_set():
            ranked = running.recommend("u2")
            assert len(ranked.items) == 10
            assert ranked.degraded == ()
            seen.add(ranked.bundle_version)

    with ThreadPoolExecutor(2) as pool:
        askers = [pool.submit(ask) for _ in range(2)]
        for version in ("v2", "v3", "v1"):
            seen.discard(version)
            promote(version)
            until(lambda version=version: version in seen or any(a.done() for a in askers), version)
        stop.set()
        for asker in askers:
            asker.result()
    assert seen == {"v1", "v2", "v3"}


def test_a_bundle_of_other_features_is_refused_by_name(write, promote, settings):
    write("old", schema_hash="0" * 16)
    promote("old")
    with pytest.raises(ModelError, match="old"):
        build_recommender(settings)


def test_a_bundle_that_reads_what_is_no_longer_applied_is_refused_naming_the_feature(write, promote, settings, plan):
    """And what is defined otherwise, by name too; the server keeps what it answers with."""
    write("old")
    promote("old")
    user, item, *others = plan.views
    forgotten = plan.services[0].model_copy(update={"features": plan.services[0].features[1:]})
    changed = item.model_copy(update={"projection": "SELECT item_id FROM events"})
    applied = plan.model_copy(update={"views": (user, changed, *others), "services": (forgotten, plan.services[1])})
    applied.model_copy(update={"repo": str(settings.repo)}).save(settings.manifest_path)
    with pytest.raises(ModelError, match="user_purchases no longer there; item_purchases defined otherwise"):
        build_recommender(settings)


def test_a_source_that_the_file_misspells_is_named(write, settings):
    write("v1")
    (settings.repo / "surfaces.toml").write_text(SURFACES.replace("trending = 5", "trendy = 5"))
    with pytest.raises(ConfigError, match="trendy"):
        build_recommender(settings, "v1")


OBJECTIVES = """
[objectives.purchase]
column = "label"
[objectives.click]
column = "click"
learn = "binary"
[weights.home]
purchase = 1.0
click = {click}
"""


@pytest.mark.integration
def test_weights_change_the_order_without_training(write, settings, valkey_client, put):
    put(valkey_client, "user_item", {("u1", "i5"): 9, ("u1", "i8"): 1})
    folder = write("v1", others=True)

    def first(click: float) -> str:
        (settings.repo / "objectives.toml").write_text(OBJECTIVES.format(click=click))
        builder = Builder(valkey_client, ManualClock(NOW), Discard(), Telemetry())
        funnel = builder.build(load_plan(settings.repo), folder)
        return funnel.recommend(funnel.request("u1", include=["i5", "i8", "i30"])).items[0].item_id

    assert first(0.0) == "i5"
    assert first(5.0) == "i30"
    assert first(0.0) == "i5"


@pytest.mark.integration
def test_a_variant_weighs_otherwise_on_the_same_bundle_and_the_log_names_it(write, settings, valkey_client, put):
    put(valkey_client, "user_item", {("u1", "i5"): 9, ("u1", "i8"): 1})
    (settings.repo / "objectives.toml").write_text(OBJECTIVES.format(click=0.0))
    (settings.repo / "variants.toml").write_text(
        "experiment = 'clicks'\n[variants.champion]\n[variants.clicky]\nweights.home = { click = 5.0 }\n"
        "surfaces.home = { limit = 2 }\n"
    )
    kept = Kept()
    funnel = Builder(valkey_client, ManualClock(NOW), kept, Telemetry()).build(
        load_plan(settings.repo), write("v1", others=True)
    )
    clicky = funnel.tuned(replace(read_tuning(settings.repo).variants["clicky"], degraded=("variant.clicky",)))
    assert clicky.bundle.index is funnel.bundle.index
    ours, theirs = (one.recommend(one.request("u1", include=["i5", "i8", "i30"])) for one in (funnel, clicky))
    assert (ours.items[0].item_id, len(ours.items), ours.variant) == ("i5", 3, "champion")
    assert (theirs.items[0].item_id, len(theirs.items), theirs.variant) == ("i30", 2, "clicky")
    told = [(one["experiment"], one["variant"], one["degraded"]) for one in kept.records]
    assert told == [("clicks", "champion", []), ("clicks", "clicky", ["variant.clicky"])]
    features = np.random.default_rng(1).random((3, 4)).astype(np.float32)
    worths = clicky.bundle.weighed["home"].score(features)
    assert clicky.score("home", features).tolist() == worths.tolist()
    assert funnel.score("home", features).tolist() == (
        funnel.bundle.calibrate(funnel.bundle.ranker.score(features)).tolist()
    )


class Kept:
    """Keeps the records of impressions."""

    def __init__(self):
        self.records = []

    def log(self, impression):
        self.records.append(document(impression))


def test_weights_of_a_surface_that_there_is_not_are_refused_by_name(write, settings):
    write("v1")
    text = OBJECTIVES.format(click=1).replace("weights.home", "weights.hone")
    (settings.repo / "objectives.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"weights.hone: no such surface. Choose from home"):
        build_recommender(settings, "v1")


def test_without_a_promoted_bundle_the_next_step_is_named(settings):
    with pytest.raises(ModelError, match="headwater train"):
        build_recommender(settings)


def _version(client: Client) -> str:
    try:
        return client.recommend("u1").bundle_version
    except ModelError:
        return ""


def test_the_home_surface_draws_what_the_ranker_learned_on(tmp_path):
    home = load_surfaces(tmp_path).surfaces["home"]
    assert list(home.sources.items()) == list(SOURCES.items())
