"""Is a view worth its keep: a view that decides lifts, one of noise does not, and both are told what they cost."""

import pyarrow.parquet as pq
import pytest
import redis
from support.definitions import HOUR, aggregation, plan_of, stream_view
from support.labelled import NAMES, labelled
from support.tiles import write_all

from benchmarks.oracle import Row
from headwater.clock import ManualClock
from headwater.errors import ConfigError, DefinitionError
from headwater.online import codec
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import Column, FeaturePlan, OnDemandView, Service, ServiceFeature
from models.ranking import RankerConfig, Rows, read_rows
from models.trial import cost_of, features_of, lift

CONFIG = RankerConfig(rounds=60, least_in_leaf=10)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    directory = tmp_path_factory.mktemp("rows")
    pq.write_table(labelled(n_requests=300), directory / "part.parquet")
    return read_rows(directory, NAMES)


@pytest.fixture(scope="module")
def plan() -> FeaturePlan:
    """Two views, one of them with two tables, and a feature that is computed from the other."""
    own = [aggregation("n", "count", hop=HOUR), aggregation("lately", "last(3)", "item_id", hop=HOUR)]
    pair = [aggregation("pair_n", "count", hop=HOUR)]
    stored = plan_of(stream_view(own, name="own"), stream_view(pair, ("user_id", "item_id"), name="pair"))
    doubled = OnDemandView(
        name="doubled",
        function="m:f",
        inputs=(("own", "n"),),
        request=(),
        columns=(Column(name="twice", dtype="double"),),
    )
    read = (("own", "n"), ("doubled", "twice"), ("pair", "pair_n"))
    services = (
        Service(name="recommend", features=tuple(ServiceFeature(view=view, feature=name) for view, name in read)),
        Service(name="one", features=(ServiceFeature(view="own", feature="n"),)),
    )
    return stored.model_copy(update={"on_demand": (doubled,), "services": services})


def test_what_is_computed_from_a_view_goes_with_it(plan: FeaturePlan) -> None:
    assert features_of(plan, "recommend", "own") == ("n", "twice")
    assert features_of(plan, "recommend", "pair") == ("pair_n",)
    assert features_of(plan, "recommend", "doubled") == ("twice",)
    with pytest.raises(ConfigError, match="reads no feature of it"):
        features_of(plan, "one", "pair")
    with pytest.raises(ConfigError, match="nothing of service one is left"):
        features_of(plan, "one", "own")
    with pytest.raises(DefinitionError, match="no such view"):
        features_of(plan, "one", "elsewhere")


def test_what_decides_lifts_and_noise_does_not(rows: Rows) -> None:
    both, alone, gain, requests = lift(rows, NAMES, ("habit",), CONFIG)
    assert gain.low > 0.1
    assert both - alone == pytest.approx(gain.mean)
    assert 0 < requests <= len(rows.at_ms)
    assert not lift(rows, NAMES, ("noise",), CONFIG)[2].low > 0


def test_the_cost_is_that_of_the_views_own_values(plan: FeaturePlan, valkey_client: redis.Redis) -> None:
    reader = OnlineReader(valkey_client, plan, ManualClock(10 * 3_600_000))
    empty = cost_of(plan, "own", valkey_client, reader)
    assert empty is not None
    assert (empty.entities, empty.bytes_an_entity, empty.read_ms, empty.tiles_an_event) == (0, None, None, 2)
    own, pair = plan.views
    writer = OnlineWriter(valkey_client, plan.project)
    for user in ("ann", "bob*"):
        values = {"item_id": "milk", "session_id": "s", "value": 1, "event_time": 5}
        write_all(writer, own, [Row(f"e-{user}", 5, 5, (user,), values)], codec.LIVE)
        write_all(writer, pair, [Row(f"e-{user}", 5, 5, (user, "milk"), values)], codec.LIVE)
    held = [valkey_client.hgetall(key) for key in valkey_client.scan_iter()]
    fields = {table.field for table in own.tables}
    sizes = [len(value) for one in held for name, value in one.items() if name[:8] in fields]
    cost = cost_of(plan, "own", valkey_client, reader)
    assert cost is not None
    assert cost.entities == 2
    assert cost.bytes_an_entity == sum(sizes) / 2
    assert cost.read_ms is not None
    of_pairs = cost_of(plan, "pair", valkey_client, reader)
    assert of_pairs is not None
    assert (of_pairs.entities, of_pairs.read_ms, of_pairs.tiles_an_event) == (2, None, 1)
    assert cost_of(plan, "doubled", valkey_client, reader) is None
