"""From an archive of purchases to a bundle that serving can load, by way of the commands' own functions."""

import json
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.archived import archive

from headwater.errors import ConfigError, DataError, ModelError
from headwater.settings import Settings
from models import registry, retriever, training
from models.arrivals import ALWAYS
from models.bundle import load_bundle
from models.comparison import compare_rankers, evaluate_rules
from models.index import build
from models.interactions import newest_ms, read_purchases
from models.paths import paths_of
from models.ranking import RankerConfig
from models.requests import Sampling, draw_training_requests
from models.training import Service
from models.trends import DAY_MS

N_USERS, N_ITEMS, DAYS = 24, 80, 60
END = DAYS * DAY_MS
SAMPLING = Sampling(horizon=timedelta(days=8), span=timedelta(days=20), requests=60, per_user=4)
RANKER = RankerConfig(rounds=20, least_in_leaf=5, threads=1)
SERVICE = Service("recommend", ("retrieval_score", "habit"), "0123456789abcdef")


def purchases(seed=0) -> pd.DataFrame:
    """Every household has ten products that it keeps buying."""
    generator = np.random.default_rng(seed)
    own = [generator.choice(N_ITEMS, 10, replace=False) for _ in range(N_USERS)]
    rows = [
        (f"u{user:02}", f"i{item:02}", day * DAY_MS + user)
        for day in range(1, DAYS, 2)
        for user in range(N_USERS)
        for item in np.unique([*generator.choice(own[user], 3), generator.integers(N_ITEMS)])
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "event_time"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("home")
    ids = [f"i{item:02}" for item in range(N_ITEMS + 5)]
    kinds = [f"c{item % 8}" for item in range(N_ITEMS + 5)]
    pq.write_table(
        pa.table({"item_id": ids, "department": ["food"] * len(ids), "category": kinds, "brand": ["own"] * len(ids),
                  "name": [f"Item {number}" for number in ids]}),
        directory / "items.parquet",
    )  # fmt: skip
    pq.write_table(pa.table({"user_id": ["u00", "u01"], "age": [2, None]}), directory / "users.parquet")
    return directory


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    made = Settings(state_dir=tmp_path_factory.mktemp("state"))
    archive(made.events_dir, purchases())
    return made


@pytest.fixture(scope="module")
def trained(settings, home):
    """Towers, requests, and rows with two stand-ins for features."""
    training.train_retriever(settings, home, SAMPLING.start_ms(newest_ms(settings.events_dir)), passes=10)
    requests = draw_training_requests(settings, END, SAMPLING)
    rows = paths_of(settings).rows
    rows.mkdir()
    habit = requests["from_buy_it_again"].cast(pa.float32())
    pq.write_table(requests.append_column("habit", habit), rows / "part-0.parquet")
    return training.train_ranker(settings, SERVICE, created_ms=END + 5, known_until_ms=END, config=RANKER, home=home)


def test_the_bundle_says_where_it_comes_from(settings, trained):
    meta, _ = trained
    assert meta.version == "1"
    assert meta.created_ms == END + 5
    assert meta.feature_names == SERVICE.feature_names
    assert meta.feature_schema_hash == SERVICE.schema_hash
    assert meta.training_end_ms == newest_ms(settings.events_dir) + 1
    assert meta.metrics["requests"] == 60
    assert registry.read_aliases(settings) == {}  # training promotes nobody


def test_what_was_trained_is_what_is_loaded(settings, trained):
    meta, fitted = trained
    bundle = load_bundle(settings.bundles_dir / meta.version, SERVICE.schema_hash)
    some = np.array([[0.5, 1], [0.1, 0]], np.float32)
    assert np.array_equal(bundle.ranker.score(some), fitted.ranker.score(some))
    assert len(bundle.items) == N_ITEMS + 5
    assert bundle.popularity.shape == bundle.trending.shape == (N_ITEMS + 5,)
    assert bundle.popularity[-5:].tolist() == [0] * 5
    vector = bundle.encoder.encode(np.array([3], np.int32), np.array([[1, 2, -1]], np.int32))
    assert (bundle.index.search(vector, 5) >= 0).all()
    tables = bundle.tables
    assert (tables.neighbours.items[0] >= 0).any()
    assert tables.first_seen[-5:].tolist() == [ALWAYS] * 5
    assert (tables.first_seen[:N_ITEMS] >= 0).all()
    assert tables.segments.users["age"].tolist()[:3] == ["2", "", ""]
    assert len(tables.texts.vectors) == N_ITEMS + 5  # their names differ


def test_the_index_is_built_for_the_recall_and_the_memory_of_the_settings(home, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(retriever, "build", lambda vectors, **how: told.append(how) or build(vectors, **how))
    made = Settings(state_dir=tmp_path, index_recall=0.9, index_memory_mb=3)
    archive(made.events_dir, purchases())
    training.train_retriever(made, home, END, passes=1)
    assert told == [{"recall": 0.9, "memory_bytes": 3 * 2**20}]


def test_a_second_training_names_its_parent_and_loses_to_nobody(settings, trained):
    registry.promote(settings, "1")
    meta, _ = training.train_ranker(settings, SERVICE, END + 9, END, RANKER)
    assert (meta.version, meta.parent) == ("2", "1")
    bundles = [load_bundle(settings.bundles_dir / version) for version in ("1", "2")]
    comparison = compare_rankers(paths_of(settings).rows, *bundles)
    assert comparison.gain.mean == 0
    assert not comparison.is_better
    first, second = (bundle.tables.first_seen.tolist() for bundle in bundles)
    assert first == second


def test_bundles_of_different_features_are_not_compared(settings, trained):
    other = Service("recommend", SERVICE.feature_names, "f" * 16)
    meta, _ = training.train_ranker(settings, other, END, END, RANKER)
    bundles = [load_bundle(settings.bundles_dir / version) for version in ("1", meta.version)]
    with pytest.raises(ModelError, match="different feature schemas"):
        compare_rankers(paths_of(settings).rows, *bundles)


OBJECTIVES = """
[objectives.order]
column = "label"
[objectives.value]
column = "value"
learn = "graded"
[monotone]
habit = 1
"""


def test_what_the_repository_declares_is_in_the_bundle(settings, trained, tmp_path):
    rows = pq.read_table(paths_of(settings).rows)
    value = rows["label"].to_numpy() * (1.0 + np.arange(len(rows)) % 5)
    (tmp_path / "rows").mkdir()
    pq.write_table(
        rows.set_column(rows.column_names.index("value"), "value", pa.array(value)), tmp_path / "rows" / "part.parquet"
    )
    (tmp_path / "objectives.toml").write_text(OBJECTIVES)
    meta, fitted = training.train_ranker(settings, SERVICE, END, END, rows=tmp_path / "rows", repo=tmp_path)
    bundle = load_bundle(settings.bundles_dir / meta.version)
    some = np.array([[0.5, 1], [0.1, 0]], np.float32)
    assert [head.name for head in bundle.heads] == ["order", "value"]
    for loaded, made in zip(bundle.heads, fitted.heads, strict=True):
        assert np.array_equal(loaded.expected(some), made.expected(some))
        assert "[monotone_constraints: 0,1]" in made.ranker.to_text()
    (tmp_path / "objectives.toml").write_text(OBJECTIVES.replace("habit", "habits"))
    with pytest.raises(ConfigError, match=r"monotone.habits: the ranker reads no such feature"):
        training.train_ranker(settings, SERVICE, END, END, rows=tmp_path / "rows", repo=tmp_path)


def test_retrieval_knows_nothing_of_the_requests(settings, trained):
    held = json.loads((paths_of(settings).retriever / "retriever.json").read_text())
    requests = draw_training_requests(settings, END, SAMPLING)
    assert held["cutoff_ms"] <= requests["request_time"].to_numpy().min()


def test_a_retriever_that_has_seen_the_answers_is_refused(settings, trained):
    with pytest.raises(ModelError, match="has seen purchases"):
        draw_training_requests(settings, END - 3 * DAY_MS, SAMPLING)


def test_a_clock_ahead_of_the_archive_asks_about_the_archives_end(settings, trained):
    newest = newest_ms(settings.events_dir) + 1
    ahead = draw_training_requests(settings, END + 900 * DAY_MS, SAMPLING)
    assert ahead["request_time"].to_numpy().max() < SAMPLING.end_ms(newest)


def test_habit_beats_popularity_where_there_is_habit(settings, home, trained):
    scores = evaluate_rules(settings, home, END - 10 * DAY_MS)
    assert scores["own_frequency"]["ndcg@10"] > scores["popularity"]["ndcg@10"] + 0.2
    assert scores["retrieval_only"]["ndcg@10"] > scores["popularity"]["ndcg@10"]
    assert scores["users"] == N_USERS


def test_copies_late_events_and_other_types_do_not_count(tmp_path):
    frame = purchases().head(40)
    archive(tmp_path, frame)
    copies = tmp_path / "date=1970-01-02"
    pq.write_table(pq.read_table(copies / "import-0.parquet"), copies / "again.parquet")
    archive(tmp_path, frame, "views", event_type="view")
    archive(tmp_path, frame, "late", late_ms=100 * DAY_MS)
    assert len(read_purchases(tmp_path, END)) == 80
    assert len(read_purchases(tmp_path, END, known_ms=END)) == 40
    latest = int(frame["event_time"].max())
    assert newest_ms(tmp_path) == latest
    assert read_purchases(tmp_path, latest)["event_time"].max() < latest


def test_an_empty_archive_is_refused(tmp_path):
    for read in (newest_ms, lambda directory: read_purchases(directory, END)):
        with pytest.raises(DataError, match="no events"):
            read(tmp_path)
