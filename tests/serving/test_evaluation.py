"""The judgement of served lists, on purchases whose right answer is plain."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.datasets.complete_journey import TEST_START, epoch_ms, home_of
from headwater.errors import DataError
from headwater.events import ARCHIVE_SCHEMA, HISTORIC_PARTITION
from headwater.settings import Settings
from serving.evaluation import Lists, judge

CUTOFF = epoch_ms(TEST_START)
BOUGHT = {"ann": ["tea", "tea", "milk"], "bob": ["rice"], "eve": ["milk"]}
LATER = {"ann": ["tea", "rice"], "bob": ["rice"]}


@pytest.fixture
def settings(tmp_path):
    settings = Settings(state_dir=tmp_path)
    home_of(settings).mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["tea", "milk", "rice", "salt"]}), home_of(settings) / "items.parquet")
    _write(settings.events_dir / "date=2017-01-01" / "import-0.parquet", BOUGHT, CUTOFF - 86_400_000)
    _write(home_of(settings) / "holdout.parquet", LATER, CUTOFF)
    return settings


def test_only_users_who_bought_later_are_judged_and_repeats_stand_apart(settings):
    report = judge(settings, lambda users: Lists([["tea", "salt"] for _ in users], [["rice"] for _ in users]))
    assert report["users"] == ["ann", "bob"]
    assert report["recall@20"]["headwater"] == 0.25  # ann: tea of tea and rice; bob: nothing
    assert report["recall@20_repeats"]["headwater"] == 0.5
    assert report["recall@20_first"]["headwater"] == 0.0
    assert report["recall@20"]["retrieval_only"] == 0.75
    gain = report["ndcg@10_gain"]["retrieval_only"]
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert np.isclose(gain["mean"], report["ndcg@10"]["headwater"] - report["ndcg@10"]["retrieval_only"], atol=1e-3)


def test_without_held_out_purchases_there_is_nothing_to_judge(settings):
    (home_of(settings) / "holdout.parquet").unlink()
    with pytest.raises(DataError, match="no held-out purchases"):
        judge(settings, lambda users: Lists([], []))


def _write(path, bought, at_ms):
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = [(user, item) for user, items in bought.items() for item in items]
    columns = {
        "event_id": [f"{path.stem}-{at}" for at in range(len(pairs))],
        "event_type": ["purchase"] * len(pairs),
        "event_time": [at_ms] * len(pairs),
        "user_id": [user for user, _ in pairs],
        "item_id": [item for _, item in pairs],
        "ingest_time": [at_ms] * len(pairs),
        "partition": [HISTORIC_PARTITION] * len(pairs),
        "offset": list(range(len(pairs))),
    }
    empty = {name: pa.nulls(len(pairs), ARCHIVE_SCHEMA.field(name).type) for name in ARCHIVE_SCHEMA.names}
    table = pa.table({name: columns.get(name, empty[name]) for name in ARCHIVE_SCHEMA.names}, schema=ARCHIVE_SCHEMA)
    pq.write_table(table, path)
