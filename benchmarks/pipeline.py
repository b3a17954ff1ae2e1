"""The platform's own lists at a past instant: its sources propose, LambdaMART orders, both trained as the demo does.

The retriever learns from what lies before the ranker's requests, and Spark joins the features, as they were known, of
training rows and of the candidates to be put in order. What serving adds is left out: the list's diversity, and a place
for exploration.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from batch.labels import number_labels
from batch.point_in_time import service_rows
from batch.session import spark_session
from batch.training_set import build_ranking_rows, join_keys
from benchmarks.parts import apply_example
from headwater.datasets import complete_journey
from headwater.datasets.complete_journey import home_of
from headwater.registry.manifest import load_plan
from headwater.settings import Settings
from models.evaluation.metrics import Ints, top_k_grouped
from models.interactions import Dataset, newest_ms, read_purchases
from models.paths import paths_of
from models.ranker import Ranker
from models.ranking import fit_ranker, read_rows
from models.requests import DEFAULT_SAMPLING, instant_requests
from models.retriever import Retriever
from models.training import train_retriever

SERVICE = "recommend"
HEAP_MB = 2048


@contextlib.contextmanager
def journey(households: int | None) -> Iterator[Settings]:
    """Complete Journey, all of it before its test period in the archive, with the example's definitions applied."""
    with tempfile.TemporaryDirectory(prefix="headwater-journey-") as folder:
        settings = Settings(
            state_dir=Path(folder) / "state", repo=Path(folder) / "feature_repo", spark_heap_mb=HEAP_MB, redis=None
        )
        complete_journey.prepare(settings, households, replay_days=0)
        apply_example(settings)
        yield settings


def lists(settings: Settings, data: Dataset, users: Ints, at_ms: int, depth: int) -> Ints:
    """Lists of users (len(users), depth) in the numbering of ``data``, of nothing that happened from ``at_ms`` on.

    A household that the retriever never saw, since its first purchase came too late, has an empty list.
    """
    known_ms = min(at_ms, newest_ms(settings.events_dir) + 1)  # as the rows are drawn
    retriever = train_retriever(settings, home_of(settings), DEFAULT_SAMPLING.start_ms(known_ms))
    plan = load_plan(settings.repo)
    spark = spark_session(settings)
    try:
        build_ranking_rows(spark, settings, plan, SERVICE, at_ms)
        asked = _candidates(settings, retriever, data.users.ids.values[users], at_ms)
        numbered = number_labels(asked, join_keys(plan, SERVICE), settings.training_dir / "asked.parquet")
        rows = settings.training_dir / "offered"
        service_rows(spark, settings, plan, SERVICE, numbered).write.parquet(str(rows))
    finally:
        spark.stop()
    names = plan.service(SERVICE).names
    ranker = fit_ranker(read_rows(paths_of(settings).rows, names), names).ranker
    return _ordered(ds.dataset(rows).to_table(), ranker, data, users, depth)


def _candidates(settings: Settings, retriever: Retriever, ids: npt.NDArray[np.object_], at_ms: int) -> pa.Table:
    known = retriever.users.dense(ids)
    purchases = read_purchases(settings.events_dir, at_ms)
    return instant_requests(retriever, purchases, known[known >= 0], at_ms)


def _ordered(offered: pa.Table, ranker: Ranker, data: Dataset, users: Ints, depth: int) -> Ints:
    features = np.stack([offered[name].to_numpy() for name in ranker.feature_names], 1).astype(np.float32)
    place = np.full(len(data.users.ids), -1, np.int32)
    place[users] = np.arange(len(users))
    household = place[data.users.ids.dense(offered["user_id"].to_pylist())]
    item = data.items.ids.dense(offered["item_id"].to_pylist())
    return top_k_grouped(household, item, ranker.score(features), len(users), depth)
