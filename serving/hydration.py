"""Features of a request's rows: the user's from one read, the items' from memory that is kept current meanwhile."""

import fcntl
import threading
import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

import redis

from headwater.clock import Clock
from headwater.errors import HeadwaterError
from headwater.log import get_logger
from headwater.online.entity import Entity
from headwater.online.keeper import Keeper
from headwater.online.mirror import Layout, Mirror
from headwater.online.names import Names
from headwater.online.reader import Entities, Matrix, OnlineReader, ViewRead
from headwater.plan import FeaturePlan
from serving.ports import Ints

log = get_logger("serving")
TURN_S = 0.1
ELECT_S = 0.2
PAUSE_S = 1.0


@dataclass(frozen=True)
class Hydration:
    """Reads a service for candidates; ``items`` answers for views of the item alone while it is current.

    Items that came since are not in it, and take a round trip of their own.
    """

    reader: OnlineReader
    items: Mirror | None = None

    def read_matrix(self, service: str, entities: Entities, *, items: Ints, held: Entity | None = None) -> Matrix:
        """Features of rows of entities; what neither the mirror nor ``held`` has takes one round trip.

        Errors are those of :meth:`OnlineReader.read_matrix`.
        """
        known: dict[str, ViewRead] = {}
        if self.items is not None:
            known = self.items.read(items, entities[self.items.layout.join_key], self.reader)
        return self.reader.read_matrix(service, entities, held=held, known=known)


def mirrored(
    store: redis.Redis,
    plan: FeaturePlan,
    clock: Clock,
    service: str,
    join_key: str,
    ids: Names,
    folder: Path,
    known: MutableMapping[Path, Mirror],
) -> Mirror | None:
    """The mirror of a service's item views, which this process keeps current while no other does.

    It ends with what is returned. ``None`` where there are no such views. One that is ``known`` by its file is returned
    again, and a new one is put there.
    """
    layout = Layout.of(plan, service, join_key)
    if not layout.views:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    where = store.connection_pool.connection_kwargs
    path = layout.file(folder, ids, plan.project, *(str(where.get(name)) for name in ("path", "host", "port", "db")))
    if (held := known.get(path)) is not None:
        return held
    mirror, ended = Mirror(layout, len(ids), path), threading.Event()
    known[path] = mirror
    weakref.finalize(mirror, ended.set)
    keeping = _Keeping(Keeper(store, plan, clock, layout, ids, path), ended)
    threading.Thread(target=keeping.run, name="mirror", daemon=True).start()
    return mirror


@dataclass
class _Keeping:
    """One process of those that have a lock file open holds its lock; when it ends, however it does, another has it.

    ``why`` it was not kept last; told once.
    """

    keeper: Keeper
    ended: threading.Event
    why: str = ""

    def run(self) -> None:
        while not self.ended.is_set():
            with self.keeper.path.with_suffix(".lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.ended.wait(ELECT_S)
                    continue
                self._keep()
            self.ended.wait(PAUSE_S)

    def _keep(self) -> None:
        keeper = self.keeper
        try:
            _sweep(keeper.path)
            with keeper.changes() as changes:
                draft = keeper.fill()
                read = keeper.turn(changes, draft.words)
                draft.put_in_place()
                self.why = ""
                log.info("items_mirrored", rows=read, file=keeper.path.name)
                while not self.ended.wait(TURN_S):
                    keeper.turn(changes, draft.words)
        except Exception as error:  # requests read the store meanwhile
            if str(error) != self.why:
                self.why = str(error)
                known = isinstance(error, HeadwaterError | OSError)
                log.warning("items_not_mirrored", reason=self.why, exc_info=None if known else error)


def _sweep(path: Path) -> None:
    """Delete what earlier processes left: files that nobody keeps any more, of other bundles or half written."""
    for old in path.parent.glob("*.rows*"):
        mine = old.name.startswith(path.name)
        with path.with_name(old.name.split(".")[0] + ".lock").open("w") as lock:
            try:
                if not mine:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            old.unlink(missing_ok=True)
