"""Cuts in the store: the contract between what the stream folds of a table and what the backfill does."""

import shutil

import pytest
from support.definitions import HOUR, aggregation, plan_of, stream_view

from headwater.errors import UnavailableError
from headwater.online.cuts import Cut, mark_backfilled, read_cuts, views_to_backfill, write_cuts
from headwater.online.keys import entity_key, project_prefix
from headwater.online.writer import OnlineWriter
from headwater.settings import Settings
from streaming import lineage
from streaming.lineage import begin, read_lineage

pytestmark = pytest.mark.integration
OLD, OTHER = (stream_view([aggregation("n", "count", hop=HOUR)], name=name) for name in ("old", "other"))
PLAN, BOTH = plan_of(OLD), plan_of(OTHER, OLD)


@pytest.fixture
def stored(tmp_path, valkey, valkey_client):
    """Settings with an empty online store, and its client."""
    return Settings(state_dir=tmp_path, redis=valkey), valkey_client


@pytest.fixture
def ends(monkeypatch):
    """End offsets of the topic, which tests move."""
    at = {("events", 0): (0, 0), ("events", 1): (0, 0)}
    monkeypatch.setattr(lineage, "end_offsets", lambda *_: dict(at))
    return at


def complete(settings):
    """Leave a checkpoint, as a run would."""
    metadata = settings.checkpoints_dir / "run" / "chk-1" / "_metadata"
    metadata.parent.mkdir(parents=True)
    metadata.touch()
    return metadata.parent


def tables(plan, *views):
    return [table.id for view in plan.views for table in view.tables if not views or view.name in views]


def test_a_table_that_is_new_is_cut_at_the_ends_once_and_for_all(stored, ends):
    settings, _ = stored
    first, cuts = begin(PLAN, settings, "kafka-1")
    assert (first.action, list(cuts.values())) == ("replay", [Cut(cluster="kafka-1")])
    kept = complete(settings)
    ends["events", 0] = (0, 17)
    start, cuts = begin(BOTH, settings, "kafka-1")
    assert (start.action, start.checkpoint) == ("savepoint", kept.resolve())
    (new,) = tables(BOTH, "other")
    assert {table: cut.offsets for table, cut in cuts.items()} == {tables(PLAN)[0]: {}, new: {0: 17}}
    ends["events", 0] = (0, 99)
    assert begin(BOTH, settings, "kafka-1")[1] == cuts
    shutil.rmtree(settings.checkpoints_dir)
    again, held = begin(BOTH, settings, "kafka-1")
    assert (again.action, held) == ("replay", cuts)  # the base slot holds the rest
    assert begin(BOTH, settings, "kafka-2")[1] == {table: Cut(cluster="kafka-2") for table in cuts}
    assert views_to_backfill(BOTH, cuts) == ["other"]


def test_a_start_that_ends_before_its_cuts_are_written_leaves_them_to_the_next(stored, ends, monkeypatch):
    settings, _ = stored
    begin(PLAN, settings, "kafka-1")
    complete(settings)
    with monkeypatch.context() as failing:
        failing.setattr(lineage, "add_cuts", unavailable)
        with pytest.raises(UnavailableError):
            begin(BOTH, settings, "kafka-1")
    assert read_lineage(settings).uncut == tuple(tables(BOTH, "other"))
    ends["events", 1] = (0, 5)
    start, cuts = begin(BOTH, settings, "kafka-1")
    assert start.action != "replay"
    assert cuts[tables(BOTH, "other")[0]].offsets == {1: 5}
    assert read_lineage(settings).uncut == ()


def unavailable(*_):
    raise UnavailableError("the store went away")


def test_a_view_that_comes_and_goes_between_two_starts_is_not_folded_from_its_old_cut(stored, ends):
    """The first of the starts never ran; since then the checkpoint has moved on without the view."""
    settings, _ = stored
    begin(PLAN, settings, "kafka-1")
    complete(settings)
    begin(BOTH, settings, "kafka-1")
    begin(PLAN, settings, "kafka-1")
    start, _ = begin(BOTH, settings, "kafka-1")
    assert (start.action, start.why.split(",")[0]) == ("replay", "other was removed and is back")


def test_of_two_starts_at_once_both_keep_to_the_cut_of_the_first(stored, ends, monkeypatch):
    settings, client = stored
    begin(PLAN, settings, "kafka-1")
    complete(settings)
    (new,) = tables(BOTH, "other")
    first = Cut(cluster="kafka-1", offsets={0: 3})

    def ends_late(*_):
        write_cuts(client, "test", {new: first})
        return {("events", 0): (0, 9)}

    monkeypatch.setattr(lineage, "end_offsets", ends_late)
    assert begin(BOTH, settings, "kafka-1")[1][new] == first


def test_a_dropped_view_is_cleared_and_folded_whole_once_it_is_back(stored, ends):
    settings, client = stored
    begin(BOTH, settings, "kafka-1")
    complete(settings)
    OnlineWriter(client, "test").drop([table.field for view in BOTH.views for table in view.tables])
    assert all(cut.is_dropped for cut in read_cuts(client, "test").values())
    key = entity_key(project_prefix("test"), "user_id", "1")
    client.hset(key, bytes.fromhex(tables(PLAN)[0]), b"written by a stream that ran on")
    start, cuts = begin(BOTH, settings, "kafka-1")
    assert start.action == "replay"
    assert list(cuts.values()) == [Cut(cluster="kafka-1")] * 2
    assert not client.exists(key)


def test_a_backfill_up_to_another_cut_is_not_taken_for_one_up_to_this(stored):
    _, client = stored
    write_cuts(client, "test", {"a": Cut(cluster="k", offsets={0: 5}), "b": Cut(cluster="k")})
    mark_backfilled(client, "test", ["a", "b", "c"], {0: 4})
    assert read_cuts(client, "test")["a"].waits
    mark_backfilled(client, "test", ["a", "b", "c"], {0: 5})
    assert not read_cuts(client, "test")["a"].waits
    assert read_cuts(client, "test").keys() == {"a", "b"}
