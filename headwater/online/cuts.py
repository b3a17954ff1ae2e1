"""From which offsets on the stream folds a table of tiles: what lies below them is the backfill's.

The contract between the two writers of a table. The stream writes a table's cut once, before it first folds the table,
and both keep to it for as long as the table exists: the live slot holds the events at or behind the cut of their
partition, whether the stream goes on or replays all, and the base slot those below it and the historic import. A table
that the stream has folded from the first event on has a cut without offsets.

A Redis hash a project, ``hw1:cuts:<project>``: a table's id to its cut. A table that is folded and has no cut has lost
its tiles, since they lie in the same store. One that was dropped keeps a mark that it was, as a stream that still runs
may go on writing it.
"""

from collections.abc import Iterable, Mapping

import redis
from pydantic import Field

from headwater.plan import FeaturePlan, Frozen


class Cut(Frozen):
    """Where the stream begins to fold one table.

    ``cluster`` is Kafka's id of the log that ``offsets`` belong to; a partition that is not named is folded whole.
    """

    cluster: str
    offsets: dict[int, int] = Field(default_factory=dict)
    is_backfilled: bool = False
    is_dropped: bool = False

    def holds_in(self, cluster: str) -> bool:
        """Whether the table's tiles are there, and its offsets are of this log."""
        return self.cluster == cluster and not self.is_dropped

    @property
    def waits(self) -> bool:
        """Whether what lies below it has yet to be backfilled."""
        return bool(self.offsets) and not self.is_backfilled


def cuts_key(project: str) -> str:
    """Redis hash of a project's cuts."""
    return f"hw1:cuts:{project}"


def read_cuts(store: redis.Redis, project: str) -> dict[str, Cut]:
    """All cuts of a project, by the table's id."""
    held: Mapping[bytes, bytes] = store.hgetall(cuts_key(project))  # type: ignore[assignment]
    return {table.decode(): Cut.model_validate_json(cut) for table, cut in held.items()}


def add_cuts(store: redis.Redis, project: str, cuts: Mapping[str, Cut]) -> None:
    """Write cuts of tables that have none yet."""
    for table, cut in cuts.items():
        store.hsetnx(cuts_key(project), table, cut.model_dump_json())


def write_cuts(store: redis.Redis, project: str, cuts: Mapping[str, Cut]) -> None:
    """Write cuts, in place of what is there."""
    for table, cut in cuts.items():
        store.hset(cuts_key(project), table, cut.model_dump_json())


def mark_backfilled(store: redis.Redis, project: str, tables: Iterable[str], offsets: Mapping[int, int]) -> None:
    """Say that tables are backfilled up to these offsets; of a table whose cut is another by now, nothing is said."""
    cuts = read_cuts(store, project)
    done = {table: cuts[table] for table in tables if table in cuts and cuts[table].offsets == offsets}
    kept = {table: cut for table, cut in done.items() if cut.waits and not cut.is_dropped}
    write_cuts(store, project, {table: cut.model_copy(update={"is_backfilled": True}) for table, cut in kept.items()})


def mark_dropped(store: redis.Redis, project: str, tables: Iterable[str]) -> None:
    """Say that the tiles of tables are being deleted; what the stream has never folded needs no mark."""
    cuts = read_cuts(store, project)
    dropped = {table: Cut(cluster=cuts[table].cluster, is_dropped=True) for table in tables if table in cuts}
    write_cuts(store, project, dropped)


def views_to_backfill(plan: FeaturePlan, cuts: Mapping[str, Cut]) -> list[str]:
    """Views with a table whose cut has no backfill yet."""
    waiting = {table for table, cut in cuts.items() if cut.waits}
    return [view.name for view in plan.views if any(table.id in waiting for table in view.tables)]
