"""Views of one join key for all entities that are known beforehand, held in shared memory: no request asks for them.

Each row is what :meth:`OnlineReader.read_views` gives for its entity at one instant, the same for all rows and logged
with what was served: values float64, since request-time functions read instants that a float32 does not hold, the
newest event, and the marks of what was folded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.assemble import needed
from headwater.online.codec import Ints, is_fixed
from headwater.online.keys import Keys
from headwater.online.merge import Marks, Places, TellMarks
from headwater.online.names import Names
from headwater.online.reader import OnlineReader, ViewRead
from headwater.online.shared import Mapped
from headwater.plan import BatchView, FeaturePlan, OnDemandView, View

FRESH_MS = 1000
"""In the machine's time: rows that were current longer ago are not served."""
_MARKS = 3


@dataclass(frozen=True)
class Layout:
    """What a row holds: of each view the newest event, its features, and the marks of each of its tables."""

    join_key: str
    views: tuple[View | BatchView, ...]
    features: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, plan: FeaturePlan, service: str, join_key: str) -> "Layout":
        """Views of a service that are keyed by one join key alone, where what is read of them is numbers."""
        wanted = needed(plan, service)
        views = [view for name in wanted if not isinstance(view := plan.view(name), OnDemandView)]
        alone = tuple(view for view in views if view.join_keys == (join_key,) and _is_numeric(view, wanted[view.name]))
        return cls(join_key, alone, {view.name: wanted[view.name] for view in alone})

    @cached_property
    def places(self) -> dict[str, int]:
        """Word of each view's newest event, after which its features follow, then its tables' marks."""
        found, at = {}, 0
        for view in self.views:
            found[view.name] = at
            at += 1 + len(self.features[view.name]) + _MARKS * len(_tables(view))
        return found

    @cached_property
    def width(self) -> int:
        return sum(1 + len(self.features[view.name]) + _MARKS * len(_tables(view)) for view in self.views)

    def file(self, folder: Path, ids: Names, *of: str) -> Path:
        """Where rows of these entities of a store lie, in this layout: another set, order or store is another file."""
        told = [
            *of,
            self.join_key,
            *(f"{view.name} {view.model_dump_json()}" for view in self.views),
            repr(self.features),
        ]
        digest = hashlib.blake2b("\0".join(told).encode(errors="surrogatepass"), digest_size=8)
        digest.update(ids.texts.sizes.data)
        digest.update(ids.texts.joined().data)
        return folder / f"{self.join_key}-{digest.hexdigest()}.rows"

    def pack(self, reads: Mapping[str, ViewRead]) -> NDArray[np.int64]:
        """Rows (n, width) of entities that were read."""
        columns: list[Ints] = []
        for view in self.views:
            read = reads[view.name]
            columns.append(read.newest)
            columns += [np.asarray(read.values[name], np.float64).view(np.int64) for name in self.features[view.name]]
            marks = read.marks
            columns += [
                column.view(np.int64)
                for table in _tables(view)
                for column in (marks[table].count, marks[table].ingest, marks[table].hash)
            ]
        return np.stack(columns, axis=1)

    def unpack(self, words: NDArray[np.int64], now: int | Ints, keys: Keys) -> dict[str, ViewRead]:
        """Inverse of :meth:`pack` for rows (width, n) that hold at an instant, or each (n,) at its own, epoch ms."""
        return {view.name: self._unpacked(view, words, now, keys) for view in self.views}

    def _unpacked(self, view: View | BatchView, words: NDArray[np.int64], now: int | Ints, keys: Keys) -> ViewRead:
        at = self.places[view.name]
        newest, features = words[at], self.features[view.name]
        values = {name: words[at + 1 + place].view(np.float64) for place, name in enumerate(features)}
        marked = at + 1 + len(features)
        marks: dict[str, TellMarks] = {
            table: _teller(words[marked + _MARKS * place : marked + _MARKS * (place + 1)])
            for place, table in enumerate(_tables(view))
        }
        instants = instants_of(view, newest, now)
        oldest = 0 if view.ttl_ms == 0 else np.maximum(0, instants - view.ttl_ms)
        return ViewRead(values, newest >= oldest, instants, newest, keys, marks)


def instants_of(view: View | BatchView, newest: Ints, now: int | Ints) -> Ints:
    """The instant that each row is read at where the clock shows ``now``, as the reader has it."""
    return np.maximum(now, newest + 1 if isinstance(view, View) else newest)


def holds(view: View | BatchView, read: ViewRead) -> tuple[Ints, Ints]:
    """From which reading of the clock, and before which, each row would be read with the same values, int64 (n,).

    Values change by time alone where the clock enters another hop while a window has events, and where a ttl ends.
    """
    known, at = read.newest >= 0, read.at
    since, until = np.full(len(at), np.iinfo(np.int64).min), np.full(len(at), np.iinfo(np.int64).max)
    if view.ttl_ms:
        ends = read.newest + view.ttl_ms + 1
        until = np.where(known & read.found, ends, until)
        since = np.where(known & ~read.found, ends, since)
    marks = read.marks
    for table in view.tables if isinstance(view, View) else ():
        if table.hop_ms is not None:
            begins = at // table.hop_ms * table.hop_ms
            since = np.where(known, np.maximum(since, begins), since)
            filled = marks[table.id].count > 0
            until = np.where(filled, np.minimum(until, begins + table.hop_ms), until)
    # a row is never read at an earlier instant than its newest event has, whatever the clock shows
    least = instants_of(view, read.newest, np.iinfo(np.int64).min)
    return np.where(least >= since, np.iinfo(np.int64).min, since), until


class Mirror:
    """The reading side: rows of numbered entities, as they were less than a second ago."""

    def __init__(self, layout: Layout, n: int, path: Path) -> None:
        self.layout = layout
        self._n = n
        self._rows = Mapped(path, n, layout.width)

    def read(
        self, places: NDArray[np.int32], ids: Sequence[str], reader: OnlineReader | None = None
    ) -> dict[str, ViewRead]:
        """Views of some entities, by their numbers and ids; nothing where it cannot be told what they are now.

        Those numbered on behind the mirror's are asked of a reader, each as of when that is.
        """
        later = places >= self._n
        found = self._rows.read(places[~later], FRESH_MS)
        if found is None:
            return {}
        if not later.any():
            return self.layout.unpack(*found, Keys([ids]))
        if reader is None:
            return {}
        asked = Keys([list(compress(ids, later.tolist()))])
        reads = reader.read_views({view.name: asked for view in self.layout.views}, features=self.layout.features)
        words, instants = np.empty((self.layout.width, len(places)), np.int64), np.full(len(places), found[1])
        words[:, ~later], words[:, later] = found[0], self.layout.pack(reads).T
        instants[later] = np.min([read.at for read in reads.values()], axis=0)  # a row's is later only by its newest
        return self.layout.unpack(words, instants, Keys([ids]))


def _is_numeric(view: View | BatchView, features: Sequence[str]) -> bool:
    if isinstance(view, BatchView):
        return is_fixed(view)
    return not any(aggregate.is_list for aggregate in view.aggregates if aggregate.feature in features)


def _tables(view: View | BatchView) -> tuple[str, ...]:
    return tuple(table.id for table in view.tables) if isinstance(view, View) else ()


def _teller(words: NDArray[np.int64]) -> TellMarks:
    def tell(places: Places) -> Marks:
        count, ingest, hashes = (column[places] for column in words)
        return Marks(count, ingest, hashes.view(np.uint64))

    return tell
