"""The audit on a real Valkey and Spark: it finds nothing where all is well, and whatever is not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from support.archives import START, Stored, draw, plan_with, rows_of, user_and_pair_views, write
from support.impressions import archive_impressions
from support.tiles import write_all

from batch.audit import Audit, audit, equal
from batch.report import keep
from headwater.clock import ManualClock
from headwater.errors import DataError
from headwater.online import codec
from headwater.online.keeper import Keeper
from headwater.online.keys import entity_key, other_keys, project_prefix
from headwater.online.mirror import Layout, Mirror
from headwater.online.names import Names, packed
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import DAY_MS, HOUR_MS, BatchView, Column, FeaturePlan, OnDemandView, Service, ServiceFeature
from headwater.settings import Settings
from serving.contracts import Ranked, Request
from serving.impressions import Impression, document
from serving.rerank import Arranged
from serving.sources import blend

pytestmark = pytest.mark.integration
USERS = ITEMS = ["1", "2", "3", "11", "31", "stranger"]
FUNCTION = """
import numpy as np

def ratio(inputs):
    now = np.asarray(inputs["request_time"])
    return {"ratio": inputs["sum_amount_3h"] / inputs["n_3h"], "hour": now // 3_600_000 % 24}
"""


def make_plan(folder: Path, ttl_ms: int) -> FeaturePlan:
    """Every function of user and of user and item, a ready-made view and a request-time one."""
    (folder / "audited_ratios.py").write_text(FUNCTION)
    times = pa.array([START, START, START + DAY_MS, START + 9 * DAY_MS], pa.timestamp("ms", "UTC"))
    profile = pa.table({"user_id": ["1", "2", "2", "2"], "age": [30, 40, 41, 99], "event_timestamp": times})
    pq.write_table(profile, folder / "profile.parquet")
    by_user, by_pair = user_and_pair_views(ttl_ms)
    pair = by_pair.model_copy(update={"aggregates": tuple(
        one.model_copy(update={"feature": f"pair_{one.feature}", "default": 0.0}) for one in by_pair.aggregates
    )})  # fmt: skip
    ready = BatchView(
        name="profile", join_keys=("user_id",), columns=(Column(name="age", dtype="int64", default=-1.0),),
        path=str(folder / "profile.parquet"), timestamp_field="event_timestamp", created_field=None, ttl_ms=0,
        id="00112233aabbccdd",
    )  # fmt: skip
    ratios = OnDemandView(
        name="ratios", function="audited_ratios:ratio", inputs=(("by_user", "n_3h"), ("by_user", "sum_amount_3h")),
        request=("request_time",), columns=tuple(Column(name=name, dtype="float64") for name in ("ratio", "hour")),
    )  # fmt: skip
    chosen = [(view.name, a.feature) for view in (by_user, pair) for a in view.aggregates if not a.is_list]
    chosen += [("profile", "age"), ("ratios", "ratio"), ("ratios", "hour")]
    service = Service(name="all", features=tuple(ServiceFeature(view=view, feature=name) for view, name in chosen))
    parts = {"on_demand": (ratios,), "batch_views": (ready,), "services": (service,)}
    return plan_with(by_user, pair, **parts).model_copy(update={"repo": str(folder)})


@dataclass
class Shop:
    """A platform in miniature: tiles are written and replies logged as the real ones are."""

    spark: Any
    client: redis.Redis
    settings: Settings
    plan: FeaturePlan
    events: Sequence[Stored]
    logged: list[dict[str, Any]] = field(default_factory=list)

    def fold(self, events: Sequence[Stored]) -> None:
        """Write what a stream that has read just these events writes."""
        for view in self.plan.views:
            write_all(OnlineWriter(self.client, self.plan.project), view, rows_of(events, view.join_keys), codec.LIVE)

    def serve(self, at: int, mirror: Mirror | None = None) -> None:
        """Every item to every user; views of the user alone as a mirror has them."""
        reader = OnlineReader(self.client, self.plan, ManualClock(at))
        n = len(ITEMS)
        for number, user in enumerate(USERS):
            known = None if mirror is None else mirror.read(np.full(n, number, np.int32), [user] * n)
            matrix = reader.read_matrix("all", {"user_id": [user] * n, "item_id": ITEMS}, known=known)
            impression = Impression(
                matrix.now, Request(user, "home", 10), Ranked(f"{user}-{at}", [], (), "v1"), "all",
                self.plan.schema_hash("all"), ITEMS, blend({"popular": np.arange(n, dtype=np.int32)}),
                np.zeros(n, np.float32), Arranged(np.arange(3), np.ones(3)), matrix,
            )  # fmt: skip
            self.logged.append(json.loads(json.dumps(document(impression), allow_nan=False)))

    def mirror(self, at: int) -> Mirror:
        """What is stored of each user alone, brought to an instant."""
        layout = Layout.of(self.plan, "all", "user_id")
        names = Names.of(packed(USERS))
        path = layout.file(self.settings.state_dir, names)
        keeper = Keeper(self.client, self.plan, ManualClock(at), layout, names, path)
        with keeper.changes() as changes:
            draft = keeper.fill()
            keeper.turn(changes, draft.words)
            draft.put_in_place()
        return Mirror(layout, len(USERS), path)

    def audit(self, fresh_s: float = 60.0, plan: FeaturePlan | None = None) -> Audit:
        """Archive all that was logged, then audit it."""
        archive_impressions(self.settings, self.logged)
        return audit(self.spark, self.settings, plan or self.plan, fresh_s)

    def before(self, instant: int) -> list[Stored]:
        """Events that had arrived."""
        return [one for one in self.events if one.ingest_time < instant]


@pytest.fixture
def ttl_ms() -> int:
    return 30 * HOUR_MS


@pytest.fixture
def shop(ttl_ms: int, spark: Any, valkey: str, valkey_client: redis.Redis, tmp_path: Path) -> Shop:
    """Two days of events with ties, nulls, copies and late arrivals, archived whole."""
    events = draw(300, seed=3)
    settings = Settings(state_dir=tmp_path, redis=valkey)
    write(events, settings.events_dir)
    plan = make_plan(tmp_path, ttl_ms)
    rows = OnlineWriter(valkey_client, plan.project)
    (ready,) = plan.batch_views
    for user, age, time in (("1", 30, START), ("2", 41, START + DAY_MS)):
        rows.write_rows(ready, [(user,)], [codec.encode_row(ready, time, time, [age])])
    return Shop(spark, valkey_client, settings, plan, events)


def test_what_was_served_from_a_mirror_is_computed_again_at_the_mirrors_instant(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second later than it was brought to the present, and with the marks of then."""
    monkeypatch.setattr("headwater.online.mirror.FRESH_MS", 600_000)
    for at in INSTANTS:
        shop.fold(shop.before(at))
        shop.serve(at + 500, shop.mirror(at))
    found = shop.audit()
    assert found.mismatched == 0
    by_user = [one for name, one in found.by_feature.items() if name in shop.plan.view("by_user").features]
    assert sum(one.compared for one in by_user) > 0
    assert sum(one.in_flight for one in by_user) == 0
    assert {at for one in shop.logged for at in one["views"]["by_user"]["at"]} == set(INSTANTS)


INSTANTS = (START + 30 * HOUR_MS, START + 44 * HOUR_MS + 1, START + 6 * DAY_MS)


@pytest.mark.parametrize("ttl_ms", [0, 30 * HOUR_MS], ids=["for ever", "thirty hours"])
def test_what_was_served_by_a_stream_that_keeps_up_is_computed_again_bit_for_bit(shop: Shop) -> None:
    """Though the archive has since got events that happened before the reply and arrived after it."""
    for at in INSTANTS:
        shop.fold(shop.before(at))
        shop.serve(at)
    found = shop.audit()
    assert found.vectors == len(INSTANTS) * len(USERS) * len(ITEMS)
    assert found.cells == found.vectors * len(shop.plan.service("all").names)
    assert (found.mismatched, found.in_flight, found.unmarked) == (0, 0, 0)
    assert set(found.by_feature) == set(shop.plan.service("all").names)
    folder = keep(shop.settings, found)
    assert "headwater_audit_vectors 108.0" in (folder / "headwater_audit.prom").read_text()
    assert json.loads((folder / "last.json").read_text())["mismatched"] == 0


@pytest.mark.parametrize(
    ("ttl_ms", "order"), [(0, "as they arrived"), (30 * HOUR_MS, "shuffled")], ids=["for ever", "thirty hours"]
)
def test_what_a_lagging_stream_had_not_folded_is_in_flight_or_late_by_the_bound(shop: Shop, order: str) -> None:
    """The others are found and compared, whether they are the first to arrive or any."""
    at, lag = INSTANTS[0], 30 * 60_000
    known = shop.before(at)
    delayed = [one for one in known if one.ingest_time >= at - lag]
    kept = [] if order == "as they arrived" else delayed[::2]
    shop.fold([one for one in known if one.ingest_time < at - lag] + kept)
    shop.serve(at)
    within = shop.audit(fresh_s=lag / 1000)
    assert within.mismatched == 0
    assert within.in_flight > 0
    beyond = shop.audit(fresh_s=0)
    assert (beyond.in_flight, beyond.causes["defect"], beyond.causes["definition_changed"]) == (0, 0, 0)
    assert beyond.mismatched == beyond.causes["late"] == within.in_flight
    firsts = [tally.first for tally in beyond.by_feature.values() if tally.first is not None]
    names = {one.event.event_id for one in delayed}
    assert {first["missing_event"] for first in firsts} <= names
    assert firsts


def test_a_lag_hides_no_wrong_value(shop: Shop) -> None:
    at, lag = INSTANTS[0], 30 * 60_000
    shop.fold(shop.before(at - lag))
    shop.serve(at)
    for row in shop.logged[0]["items"]:
        row["features"][0] += 1.0
    found = shop.audit(fresh_s=lag / 1000)
    feature = shop.plan.service("all").names[0]
    assert found.by_feature[feature].defect == found.mismatched == len(shop.logged[0]["items"])


@pytest.mark.parametrize("planted", ["one unit in the last place", "null"])
def test_one_logged_value_that_was_changed_is_found(shop: Shop, planted: str) -> None:
    at = INSTANTS[1]
    shop.fold(shop.before(at))
    shop.serve(at)
    names = shop.plan.service("all").names
    place, told = names.index("hour"), shop.logged[2]["others"][1]
    right = told["features"][place]
    told["features"][place] = None if planted == "null" else float(np.nextafter(np.float32(right), np.float32(99)))
    found = shop.audit()
    assert (found.mismatched, found.causes["defect"]) == (1, 1)
    first = found.by_feature["hour"].first
    assert first is not None
    assert (first["request_id"], first["item_id"]) == (shop.logged[2]["request_id"], told["item_id"])
    assert (first["offline"], first["cause"]) == (right, "defect")


def test_a_tile_that_was_tampered_with_is_found(shop: Shop) -> None:
    """Its marks are right and its sum is not."""
    at = INSTANTS[1]
    shop.fold(shop.before(at))
    view = shop.plan.views[1]
    table = next(one for one in view.tables if one.kind == "fixed" and one.hop_ms is None)
    owner = next(shop.client.scan_iter(match=entity_key(project_prefix(shop.plan.project), "user_id", "1")))
    held = [name for name in shop.client.hkeys(owner) if name.startswith(table.field)]
    name = next(one for one in held if other_keys(one[len(table.field) :])[0] in ITEMS)
    blob = shop.client.hget(owner, name)
    record = np.frombuffer(blob, codec.record_dtype(table), 1, codec.HEADER.size).copy()
    record["sum_amount"] += 1_000_000
    shop.client.hset(owner, name, blob[: codec.HEADER.size] + record.tobytes())
    shop.serve(at)
    found = shop.audit()
    wrong = {feature: tally.defect for feature, tally in found.by_feature.items() if tally.mismatched}
    assert wrong == {"pair_sum_amount_ever": 1}


def test_an_event_that_the_archive_does_not_have_is_a_defect(shop: Shop) -> None:
    at = INSTANTS[1]
    user = USERS[0]
    stranger = replace(shop.events[0].event, event_id="nowhere", user_id=user, item_id="1", event_type="purchase")
    shop.fold([*shop.before(at), Stored(stranger, START, 0, 10_000)])
    shop.serve(at)
    found = shop.audit(fresh_s=10**6)
    assert found.mismatched == found.causes["defect"] > 0
    assert found.in_flight == 0
    first = found.by_feature["n_ever"].first
    assert first is not None
    assert first["events"] == "other than archived"


def test_a_definition_that_was_changed_since_is_told_as_the_cause(shop: Shop) -> None:
    at = INSTANTS[1]
    shop.fold(shop.before(at))
    shop.serve(at)
    view = shop.plan.views[0]
    changed = view.model_copy(update={"projection": view.projection.replace("'purchase'", "'view'")})
    found = shop.audit(plan=shop.plan.model_copy(update={"views": (changed, shop.plan.views[1])}))
    assert found.mismatched == found.causes["definition_changed"] > 0
    assert not any(found.by_feature[name].mismatched for name in found.by_feature if name.startswith("pair_"))


def test_impressions_without_marks_are_counted_and_left_out(shop: Shop) -> None:
    shop.fold(shop.before(INSTANTS[0]))
    shop.serve(INSTANTS[0])
    shop.logged[0]["views"] = {"by_user": {"at": [INSTANTS[0]], "newest": [START]}}
    shop.logged[1]["views"] = {}
    found = shop.audit()
    assert (found.impressions, found.unmarked) == (len(USERS) - 2, 1)


def test_where_nothing_was_archived_that_is_said(spark: Any, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 0)
    with pytest.raises(DataError, match="no archived impressions there"):
        audit(spark, Settings(state_dir=tmp_path), plan)


def test_cells_are_equal_by_their_bits_and_absence_by_its_like():
    served = np.array([1.0, 0.0, np.nan, np.nan, np.nan, 1.0], np.float32)
    offline = np.array([1.0, -0.0, np.nan, np.inf, 1.0, np.nan], np.float32)
    assert equal(served, offline).tolist() == [True, False, True, True, False, False]
