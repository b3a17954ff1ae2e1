"""A repository that shares no name with the platform's own, from `feast apply` to values: online equals the oracle."""

import json
import math
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import redis
from support.jobs import Job, environment, read_all

from benchmarks.oracle import Row, fold
from headwater.clock import ManualClock, StoredClock
from headwater.datasets.ingest import column_map, ingest
from headwater.folds import to_fixed
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, HOUR_MS, FeaturePlan, View
from headwater.registry.manifest import load_plan
from headwater.runtime import kafka as kafka_server
from headwater.runtime.parts import topics_of
from headwater.runtime.ports import free_port
from headwater.settings import Settings, get_settings
from streaming.archive import catch_up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "fraud"
END = 1_800_000_000_000
COUNTED = {
    "card_activity": ("approved",), "card_refusals": ("declined",), "merchant_activity": ("approved", "declined"),
    "card_merchant_activity": ("approved",), "device_activity": ("approved", "declined", "refunded"),
    "visit_activity": ("approved", "declined", "refunded"), "card_merchants": ("approved", "declined", "refunded"),
}  # fmt: skip
"""Which payments each view's projection selects, by status."""


@dataclass(frozen=True)
class Fraud:
    """The repository, applied, with its stream running."""

    plan: FeaturePlan
    settings: Settings
    job: Job
    payments: list[dict[str, Any]]


def sent(payments: list[dict[str, Any]]) -> list[tuple[bytes, bytes, int]]:
    """Payments in disorder, some late, some twice."""
    draw = random.Random(7)
    late = [(one, one["paidAt"] + draw.choice((0, 0, 0, 40_000, HOUR_MS, DAY_MS))) for one in payments]
    late += draw.sample(late, len(late) // 20)
    late.sort(key=lambda pair: pair[1])
    return [(one["card_id"].encode(), json.dumps(one).encode(), ingest) for one, ingest in late]


@pytest.fixture(scope="module")
def fraud(tmp_path_factory: pytest.TempPathFactory, kafka: str, valkey: str) -> Iterator[Fraud]:
    folder = tmp_path_factory.mktemp("fraud")
    repo = folder / "repo"
    shutil.copytree(EXAMPLE, repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    settings = Settings(
        state_dir=folder / "state", repo=repo, kafka=kafka, redis=valkey, flink_heap_mb=700,
        stream_metrics_port=free_port(),
    )  # fmt: skip
    feast = [sys.executable, "-W", "ignore", "-m", "headwater.registry.lean", "-c", str(repo), "apply"]
    applied = subprocess.run(feast, capture_output=True, text=True, env=_shell(settings), check=False)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    plan = load_plan(repo)
    kafka_server.create_topics(kafka, partitions=2, names=topics_of(settings))
    payments = list(runpy.run_path(str(EXAMPLE / "generate.py"))["payments"](3_000, 3, END, days=40, cards=40))
    job = Job(settings, folder / "stream.log")
    job.send(sent(payments), "payments")
    job.send([(b"c1", b'{"paymentId": "one"}', END), (b"c1", b"{", END)], "payments")
    job.start()
    yield Fraud(plan, settings, job, payments)
    job.end()


def _shell(settings: Settings) -> dict[str, str]:
    import os

    return os.environ | environment(settings)


def rows_of(view: View, payments: list[dict[str, Any]]) -> list[Row]:
    """What the view's projection makes of the payments, told again in Python."""
    rows = []
    for one in payments:
        declined = int(one["status"] == "declined")
        held = {**one, **{name: one["attributes"].get(name) for name in ("session", "reason")}, "declined": declined}
        paid = {"approved": f"add:{one['merchant_id']}", "refunded": f"remove:{one['merchant_id']}"}
        held["step"] = "clear" if held["reason"] == "stolen" else paid.get(one["status"])
        key = tuple(held[name] for name in view.join_keys)
        unwanted = view.name == "device_activity" and not one["online"]
        if one["status"] in COUNTED[view.name] and None not in key and not unwanted:
            values = {
                name: int(to_fixed(np.array([held[name]]))[0]) if kind == "fixed" else held[name]
                for name, kind in view.columns.items()
            }
            rows.append(Row(str(one["paymentId"]), one["paidAt"], one["paidAt"], key, values))
    return rows


def plain(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else None if math.isnan(value) else float(value)


def test_every_value_online_equals_the_naive_window(fraud: Fraud, valkey: str) -> None:
    """Of every card, merchant, device, pair and visit, at once and as the windows empty."""
    fraud.job.catch_up()
    compared = seen = 0
    with redis.Redis.from_url(valkey) as client:
        reader = OnlineReader(client, fraud.plan, ManualClock(END))
        for view in fraud.plan.views:
            rows = rows_of(view, fraud.payments)
            keys = sorted({row.key for row in rows})[:60]
            own = {key: [row for row in rows if row.key == key] for key in keys}
            for at in (END + 1, END + 40_000, END + 5 * HOUR_MS, END + 9 * DAY_MS):
                read = reader.read_views({view.name: keys}, at)[view.name]
                for place, key in enumerate(keys):
                    found, values = fold(view, own[key], key, at, known=False)
                    assert bool(read.found[place]) is found, (view.name, key)
                    assert {name: plain(column[place]) for name, column in read.values.items()} == values
                    compared += len(values)
                    seen += sum(value not in (None, 0, []) for value in values.values())
    assert compared > 5_000
    assert seen > 2_000


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_feast_reads_the_same_values(fraud: Fraud, valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets and lists too, and whatever the order in which a request names its keys."""
    from feast import FeatureStore

    monkeypatch.setenv("HEADWATER_REDIS", valkey)
    get_settings.cache_clear()
    fraud.job.catch_up()
    names = [f"{view.name}:{name}" for view in fraud.plan.views for name in view.features if "visit" not in name]
    one = next(payment for payment in reversed(fraud.payments) if payment["device_id"] and payment["online"])
    entity = {name: one[name] for name in ("merchant_id", "device_id", "card_id")}
    told = FeatureStore(str(fraud.settings.repo)).get_online_features(names, [entity]).to_dict()
    get_settings.cache_clear()
    with redis.Redis.from_url(valkey) as client:
        keys = {
            view.name: [tuple(entity[key] for key in view.join_keys)]
            for view in fraud.plan.views if view.name != "visit_activity"
        }  # fmt: skip
        reads = OnlineReader(client, fraud.plan, StoredClock(client)).read_views(keys)
    wanted = {name: plain(column[0]) for read in reads.values() for name, column in read.values.items()}
    assert {name: told[name][0] for name in wanted} == wanted
    assert wanted["card_open_merchants_30d"]


def test_the_repository_is_of_the_size_it_says(fraud: Fraud) -> None:
    assert len(fraud.plan.views) == 7
    assert sum(len(view.features) for view in fraud.plan.views) == 48
    keys = {view.name: view.join_keys for view in fraud.plan.views}
    assert keys["visit_activity"] == ("session", "card_id", "device_id")
    assert fraud.plan.source("payments").event_id == "paymentId"


def test_a_models_row_holds_the_ratios_of_its_entities(fraud: Fraud, valkey: str) -> None:
    fraud.job.catch_up()
    one = max(fraud.payments, key=lambda payment: payment["paidAt"] if payment["device_id"] else 0)
    entities = {name: [one[name]] for name in ("card_id", "merchant_id", "device_id")}
    with redis.Redis.from_url(valkey) as client:
        reader = OnlineReader(client, fraud.plan, ManualClock(END))
        matrix = reader.read_matrix("authorise", entities, END + 1, {"amount": np.array([250.0])})
    row = dict(zip(matrix.names, matrix.values[0].tolist(), strict=True))
    own = {
        view.name: fold(view, rows_of(view, fraud.payments), tuple(one[k] for k in view.join_keys), END + 1, False)[1]
        for view in fraud.plan.views if view.name not in ("visit_activity", "card_merchants")
    }  # fmt: skip
    mean = own["card_activity"]["card_mean_amount_30d"]
    assert row["amount_over_card_mean"] == np.float32(250.0 / mean)
    tries = own["merchant_activity"]["merchant_payments_30d"]
    assert row["merchant_decline_share_30d"] == np.float32(
        (own["merchant_activity"]["merchant_declines_30d"] + 0.5) / (tries + 10)
    )


def test_the_archive_keeps_what_the_stream_folds_and_refuses_what_it_refuses(fraud: Fraud) -> None:
    catch_up(fraud.settings)
    folder = fraud.settings.archive_dir / "payments"
    archived = ds.dataset(folder, format="parquet", partitioning="hive").to_table()
    ids = archived["paymentId"].to_pylist()
    assert len(ids) == len(sent(fraud.payments))
    assert set(ids) == {one["paymentId"] for one in fraud.payments}
    assert archived["attributes"].to_pylist()[0] is not None
    letters = read_all(fraud.settings.kafka or "", "events.dead_letter")
    reasons = [dict(message.headers()) for message in letters]
    assert [told["reason"] for told in reasons if told["source"] == b"payments"] == [b"malformed", b"malformed"]


def test_a_file_of_payments_is_sent_as_payments(fraud: Fraud, tmp_path: Path) -> None:
    file = tmp_path / "more.csv"
    rows = ('900001,2027-01-15T08:00:00,c9,12.5,TRUE,"{}"', "900002,later,c9,1,true,", "no,2027-01-15,c9,1,true,")
    file.write_text("\n".join(("paymentId,when,card_id,amount,online,attributes", *rows)))
    columns = column_map(fraud.settings, "payments", "paidAt=when")
    done = ingest(fraud.settings, file, columns, ManualClock(END), "payments", historic=True)
    assert (done.produced, done.dead_letters) == (1, 2)
    (record,) = [m for m in read_all(fraud.settings.kafka or "", "payments") if b"900001" in m.value()]
    assert json.loads(record.value()) == {
        "paymentId": 900_001, "paidAt": 1_800_000_000_000, "card_id": "c9", "amount": 12.5, "online": True,
        "attributes": {},
    }  # fmt: skip
    assert (record.key(), record.timestamp()[1]) == (b"c9", 1_800_000_000_000)


def test_offline_values_equal_the_online_ones(fraud: Fraud, tmp_path: Path) -> None:
    """Spark reads the archive of the foreign topic; every cell is compared with ==."""
    from batch.parity import compare
    from batch.session import spark_session

    fraud.job.catch_up()
    catch_up(fraud.settings)
    spark = spark_session(Settings(state_dir=tmp_path, spark_heap_mb=1024))
    try:
        parity = compare(spark, fraud.settings, fraud.plan, cells=1_500)
    finally:
        spark.stop()
    assert parity.cells_compared >= 1_500
    assert parity.cells_mismatched == 0, parity.first


def test_no_name_of_the_example_occurs_in_the_engine() -> None:
    root = EXAMPLE.parents[1]
    names = ("payment", "merchant", "card_id", "fraud", "paidAt")
    engine = [path for room in ("headwater", "streaming", "batch") for path in (root / room).rglob("*.py")]
    assert len(engine) > 60
    assert [(path.name, name) for path in engine for name in names if name in path.read_text()] == []
