"""What a start goes on from: the newest checkpoint, or nothing but the topics.

A lineage is a chain of runs whose state descends from one another. A start stays in it where its program reads the
newest checkpoint (:mod:`streaming.layout`); tables that are new then are folded from a cut on
(:mod:`headwater.online.cuts`), and the rest of them is backfilled. Else it begins another, from the first event.
"""

import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import redis

from headwater.errors import UnavailableError
from headwater.files import write_whole
from headwater.forgotten import Tombstone, computed_in, read_tombstones
from headwater.kafka_io import describe
from headwater.online.connect import connect
from headwater.online.cuts import Cut, add_cuts, read_cuts, write_cuts
from headwater.online.writer import OnlineWriter
from headwater.plan import FeaturePlan, Frozen
from headwater.settings import Settings, addresses
from streaming import health
from streaming.layout import Layout, layout_of, why_not
from streaming.progress import end_offsets

ASK_S = 2.0
T = TypeVar("T")


class Lineage(Frozen):
    """What a run's checkpoints hold, and the broker's log that they are of.

    Attributes
    ----------
    group
        Consumer group under which the checkpoints' offsets are committed; another lineage has another.
    views
        The view of each table that is folded; the layout also numbers those that no longer are.
    horizons_ms
        By topic: lateness past which an event was refused, so that no state knows its id; ``None`` is never.
    uncut
        Tables that are new in the newest start, until their cuts are written.
    forgotten
        Entities that had been forgotten when the state began, whose older records it never held.
    """

    cluster: str
    group: str
    state_backend: str
    layout: Layout
    views: dict[str, str]
    horizons_ms: dict[str, int | None]
    uncut: tuple[str, ...] = ()
    forgotten: tuple[Tombstone, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a start finds; ``None`` for the cluster and for the cuts where they could not be asked for.

    ``forgotten`` are the tombstones of the archive.
    """

    lineage: Lineage | None
    checkpoint: Path | None
    cluster: str | None
    cuts: Mapping[str, Cut] | None
    state_backend: str = "heap"
    forgotten: tuple[Tombstone, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """What a start does, and why.

    Attributes
    ----------
    action
        ``resume`` the checkpoint; take it as a ``savepoint`` for other views; ``replay`` from the first event.
    lineage
        To be kept beside the checkpoints from then on.
    added, changed, removed
        Views, against those of the lineage that was.
    backfill
        Those of them that have tables which only hold what arrives from then on.
    """

    action: Literal["resume", "savepoint", "replay"]
    why: str
    lineage: Lineage
    checkpoint: Path | None = None
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    backfill: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What ``stream plan --json`` and the log tell."""
        return {
            "action": self.action, "why": self.why, "checkpoint": self.checkpoint and str(self.checkpoint),
            "added": list(self.added), "changed": list(self.changed), "removed": list(self.removed),
            "backfill": [f"headwater backfill --materialize --view {view}" for view in self.backfill],
        }  # fmt: skip


def decide(plan: FeaturePlan, found: Found) -> Start:
    """Decide what a start does."""
    tables, kept = _views_of_tables(plan), found.lineage
    reason = _why_replay(plan, found)
    if kept is None or reason is not None:
        group = f"{health.group_of(plan.project)}-{uuid.uuid4().hex[:12]}"
        fresh = Lineage(
            cluster=found.cluster or "", group=group, state_backend=found.state_backend, layout=layout_of(plan),
            views=tables, horizons_ms=_horizons(plan),
            # Who is known by a computed key alone cannot be left out of the records, and stays barred at the sink.
            forgotten=tuple(one for one in found.forgotten if not computed_in(plan, one.join_key)),
        )  # fmt: skip
        return Start("replay", reason or "", fresh)
    new = [table for table in tables if table not in kept.views]
    lineage = kept.model_copy(update={
        "layout": kept.layout.with_tables(new), "views": tables, "horizons_ms": _horizons(plan),
        "uncut": tuple(table for table in tables if table in new or table in kept.uncut),
    })  # fmt: skip
    before, after = _tables_of_views(kept.views), _tables_of_views(tables)
    if before == after:
        return Start("resume", "the checkpoint holds the same views", lineage, found.checkpoint)
    return Start(
        "savepoint", "the state of the other views is kept", lineage, found.checkpoint,
        added=_in_order(after.keys() - before.keys()),
        changed=_in_order(view for view in after.keys() & before.keys() if after[view] != before[view]),
        removed=_in_order(before.keys() - after.keys()),
        backfill=_in_order(tables[table] for table in new),
    )  # fmt: skip


def _why_replay(plan: FeaturePlan, found: Found) -> str | None:
    """Say what keeps a start from the newest checkpoint."""
    kept, tables = found.lineage, _views_of_tables(plan)
    if found.checkpoint is None:
        return "there is no checkpoint"
    if kept is None:
        return "the checkpoint is of a version of Headwater that told of it otherwise"
    if found.cluster not in (None, kept.cluster):
        return f"Kafka's log is another: {found.cluster}, and the checkpoint is of {kept.cluster}"
    if found.state_backend != kept.state_backend:
        return f"state is kept in {found.state_backend}, and the checkpoint's was in {kept.state_backend}"
    if reason := why_not(kept.layout, layout_of(plan)):
        return reason
    for topic, horizon in _horizons(plan).items():
        before = kept.horizons_ms[topic]
        if before is not None and (horizon is None or horizon > before):
            return f"events of topic {topic} count that were too late before, and their copies are not known"
    if back := _in_order(tables[table] for table in kept.layout.tables if table in tables and table not in kept.views):
        return f"{back[0]} was removed and is back, and its state lacks what has arrived since"
    return None if found.cuts is None else _why_distrust(kept, tables, found.cuts)


def _why_distrust(kept: Lineage, tables: Mapping[str, str], cuts: Mapping[str, Cut]) -> str | None:
    """Say where the store's tiles are not those of the checkpoint."""
    for table, view in tables.items():
        cut = cuts.get(table)
        if table not in kept.views and cut is not None:
            return f"{view} was folded before, by another lineage, and its tiles may lack what has arrived since"
        if table in kept.views and (table not in kept.uncut if cut is None else cut.is_dropped):
            return f"the online store has lost tiles of {view}: it was emptied, or the view was dropped"
    return None


def begin(plan: FeaturePlan, settings: Settings, cluster: str) -> tuple[Start, dict[str, Cut]]:
    """Decide, write down what holds from then on, and return it with the cuts of the plan's tables.

    The lineage is written first. A start that ends before the cuts are written too leaves them to the next, which takes
    them from the topics' ends of then: the checkpoint is no newer, and nothing has folded the tables.

    Raises
    ------
    UnavailableError
        Kafka or the online store does not answer.
    """
    with connect(addresses(settings).redis) as store:
        held = read_cuts(store, plan.project)
        start = decide(plan, _found(settings, cluster, held))
        if start.action == "replay":
            shutil.rmtree(settings.checkpoints_dir, ignore_errors=True)
        _write_lineage(settings, start.lineage)
        if start.action == "replay":
            cuts = first_cuts(plan, store, cluster)
        else:
            cuts = _settle_cuts(plan, store, held, _ends_as_cuts(plan, settings, start.lineage, held))
        _write_lineage(settings, start.lineage.model_copy(update={"uncut": ()}))
        return start, cuts


def first_cuts(plan: FeaturePlan, store: redis.Redis, cluster: str) -> dict[str, Cut]:
    """Return the cuts of a start from the first event, at which a table that has none is folded whole."""
    held = read_cuts(store, plan.project)
    lacking = [table for table in _views_of_tables(plan) if table not in held or not held[table].holds_in(cluster)]
    return _settle_cuts(plan, store, held, {table: Cut(cluster=cluster) for table in lacking})


def _ends_as_cuts(plan: FeaturePlan, settings: Settings, lineage: Lineage, held: Mapping[str, Cut]) -> dict[str, Cut]:
    """Cuts at the topics' ends, for the tables that are new."""
    lacking = {table: view for table, view in lineage.views.items() if table in lineage.uncut and table not in held}
    ends = end_offsets(settings, plan) if lacking else {}
    topics = {view.name: plan.source(view.source).topic for view in plan.views}
    return {
        table: Cut(cluster=lineage.cluster, offsets={
            number: end for (topic, number), (_, end) in ends.items() if topic == topics[view] and end
        })
        for table, view in lacking.items()
    }  # fmt: skip


def _settle_cuts(
    plan: FeaturePlan, store: redis.Redis, held: Mapping[str, Cut], new: Mapping[str, Cut]
) -> dict[str, Cut]:
    """Write what is new, and return what holds: of two starts at once the first."""
    dropped = [bytes.fromhex(table) for table in new if table in held and held[table].is_dropped]
    if dropped:  # a stream that ran on has written them after they were deleted
        OnlineWriter(store, plan.project).drop(dropped)
    write_cuts(store, plan.project, {table: cut for table, cut in new.items() if table in held})
    add_cuts(store, plan.project, {table: cut for table, cut in new.items() if table not in held})
    return {table: cut for table, cut in read_cuts(store, plan.project).items() if table in _views_of_tables(plan)}


def next_start(plan: FeaturePlan, settings: Settings) -> tuple[Start, dict[str, Cut], dict[str, Any]]:
    """Tell what a start would do, with the cuts there are; nothing is changed.

    Where Kafka or the store does not answer, its part is taken to be as the checkpoint knows it, and that is said.
    """
    cluster = _asked(lambda: describe(addresses(settings).kafka, ASK_S).id)
    with connect(addresses(settings).redis, socket_timeout=ASK_S, socket_connect_timeout=ASK_S) as store:
        cuts = _asked(lambda: read_cuts(store, plan.project))
    start = decide(plan, _found(settings, cluster, cuts))
    silent = [name for name, answer in (("kafka", cluster), ("online store", cuts)) if answer is None]
    ends = end_offsets(settings, plan) if start.action == "replay" and cluster is not None else None
    records = None if ends is None else sum(end - first for first, end in ends.values())
    return start, cuts or {}, {**start.as_dict(), "records_to_replay": records, "did_not_answer": silent}


def _asked(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except UnavailableError:
        return None


def _found(settings: Settings, cluster: str | None, cuts: Mapping[str, Cut] | None) -> Found:
    checkpoint = newest_checkpoint(settings.checkpoints_dir)
    forgotten = read_tombstones(settings.archive_dir)
    return Found(read_lineage(settings), checkpoint, cluster, cuts, settings.state_backend, forgotten)


def read_lineage(settings: Settings) -> Lineage | None:
    """Return the lineage of the checkpoints; ``None`` where there is none, or one that this version does not read."""
    try:
        return Lineage.model_validate_json(lineage_path(settings).read_bytes())
    except (OSError, ValueError):
        return None


def lineage_path(settings: Settings) -> Path:
    """Where a run's lineage is kept, beside its checkpoints."""
    return settings.checkpoints_dir / "lineage.json"


def _write_lineage(settings: Settings, lineage: Lineage) -> None:
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    write_whole(lineage_path(settings), lineage.model_dump_json())


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint: one that has its metadata."""
    complete = sorted(folder.glob("*/chk-*/_metadata"), key=lambda path: path.stat().st_mtime_ns)
    return complete[-1].parent.resolve() if complete else None


def drop_others(folder: Path, job_id: str) -> None:
    """Delete the checkpoints of every run but this one, which by now has enough of its own."""
    for other in {metadata.parents[1] for metadata in folder.glob("*/chk-*/_metadata")} - {folder / job_id}:
        shutil.rmtree(other, ignore_errors=True)


def _views_of_tables(plan: FeaturePlan) -> dict[str, str]:
    return {table.id: view.name for view in plan.views for table in view.tables}


def _tables_of_views(views: Mapping[str, str]) -> dict[str, set[str]]:
    return {name: {table for table, view in views.items() if view == name} for name in set(views.values())}


def _horizons(plan: FeaturePlan) -> dict[str, int | None]:
    """By topic that is read."""
    return {source.topic: plan.horizon_ms(source.name) for source in plan.sources if _is_read(plan, source.name)}


def _is_read(plan: FeaturePlan, source: str) -> bool:
    return any(view.source == source for view in plan.views)


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
