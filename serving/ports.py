"""What the funnel needs of the parts it is given; whatever fits may be put in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.online.entity import Entity
from headwater.online.names import Names
from headwater.online.reader import Entities, Matrix
from serving.guard import Deadline

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Times = NDArray[np.int64]
Bools = NDArray[np.bool_]
_NONE: Ints = np.empty(0, np.int32)
_NO_TIMES: Times = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class UserState:
    """``user`` is the dense number, -1 for one the model never saw.

    ``recent`` (n_recent,): distinct items, newest first, and ``recent_age_ms``, how long ago each was last. ``own``
    (n_own,): all that the user ever had, strongest habit first. Items are dense. ``held`` is what was read.

    :func:`serving.told.told` adds what the request tells: ``about`` (n_about,), the items that the list is about, such
    as a basket's, ``segment``, a value of the declared attribute of users, the clock, and a ``seed`` for what is drawn.
    """

    user_id: str
    user: int
    recent: Ints = field(default_factory=lambda: _NONE)
    own: Ints = field(default_factory=lambda: _NONE)
    recent_age_ms: Times = field(default_factory=lambda: _NO_TIMES)
    about: Ints = field(default_factory=lambda: _NONE)
    segment: str = ""
    now_ms: int = 0
    seed: int = 0
    held: Entity | None = field(default=None, repr=False, compare=False)

    @property
    def lately(self) -> tuple[Ints, Times]:
        """What the request is about, as of now, then the recent items, each once, with their ages."""
        if not len(self.about):
            return self.recent, self.recent_age_ms
        others = ~np.isin(self.recent, self.about)
        ages = np.concatenate([np.zeros(len(self.about), np.int64), self.recent_age_ms[others]])
        return np.concatenate([self.about, self.recent[others]]), ages

    @property
    def seen(self) -> Ints:
        """All items the user had, in no order."""
        return np.union1d(self.recent, self.own).astype(np.int32)


class Numbering(Protocol):
    """Strings at the edge, int32 inside."""

    def dense(self, ids: Sequence[str]) -> Ints:
        """Numbers of ids, -1 for unknown ones."""
        ...


class Source(Protocol):
    """Proposes items for a user."""

    waits: ClassVar[bool]
    """Whether it may wait for something outside of this process: then it is asked in a thread of its own."""

    def propose(self, user: UserState, n: int) -> Ints:
        """Distinct dense items, best first, at most n."""
        ...


class Encoder(Protocol):
    """The user tower."""

    def encode(self, users: Ints, recent: Ints, age_ms: Times) -> Floats:
        """Unit vectors (n, dim) of dense users (n,) with recent items (n, n_recent), padded with -1, and their ages."""
        ...


class Index(Protocol):
    """Nearest items by inner product."""

    def search(self, vectors: Floats, n: int, allowed: Bools | None = None) -> Ints:
        """Dense items, nearest first (len(vectors), n), padded with -1; no others than the allowed (n_items,)."""
        ...


class Sought(Protocol):
    """The search of one request."""

    @property
    def allowed(self) -> Bools | None:
        """What the request may see (n_items,), ``None`` for all: nothing else is scored."""
        ...

    @property
    def sources(self) -> Mapping[str, Source]:
        """Who proposes items for the query."""
        ...

    def by_words(self, items: Ints, scores: Floats) -> Floats:
        """Scores (n,) of items (n,), moved so that a better match of the words comes first."""
        ...


class Search(Protocol):
    """Finds items for a text."""

    def sought(self, query: str, require: Mapping[str, str]) -> Sought:
        """Begin the search for one request.

        Raises
        ------
        DataError
            ``require`` names an attribute that the catalogue does not have.
        """
        ...


class Column(Protocol):
    """One attribute of all items, or of all users; row i has ``values[numbers[i]]``."""

    @property
    def values(self) -> Names:
        """The distinct ones."""
        ...

    @property
    def numbers(self) -> Ints:
        """(n,)"""
        ...

    def __getitem__(self, row: int) -> str:
        """The value of one."""
        ...

    def take(self, rows: NDArray[Any]) -> list[str]:
        """The values of some."""
        ...

    def having(self, text: str) -> Bools:
        """Rows that have it (n,)."""
        ...

    def among(self, texts: Sequence[str]) -> Bools:
        """Rows that have one of these (n,)."""
        ...


class Catalogue(Numbering, Protocol):
    """The bundle's items; row i is dense item i."""

    ids: Names
    """(n_items,)"""
    vectors: Floats
    """(n_items, dim), unit length."""

    def attributes(self, items: Ints) -> Sequence[Mapping[str, str]]:
        """What is known of some items: name, category, ..."""
        ...

    def column(self, name: str) -> Column:
        """One attribute of all items (n_items,)."""
        ...

    def groups(self, name: str) -> Ints:
        """Number of each item's value of one attribute (n_items,), -1 where it has none."""
        ...


class State(Protocol):
    """Reads who is asking."""

    def read(self, user_id: str) -> UserState:
        """State as of now."""
        ...

    def unknown(self, user_id: str) -> UserState:
        """What is known without asking the store."""
        ...


class Features(Protocol):
    """The online store's hot path."""

    def read_matrix(self, service: str, entities: Entities, *, items: Ints, held: Entity | None = None) -> Matrix:
        """Features of rows of entities, of which the items have these numbers, and one is known already."""
        ...


class Scorer(Protocol):
    """What puts rows in order."""

    def score(self, features: Floats) -> Floats:
        """Higher is better, float32 (n,), from float32 (n, n_features)."""
        ...


class Ranker(Scorer, Protocol):
    """A scorer that tells what made a score."""

    def contributions(self, features: Floats) -> Floats:
        """What each feature adds to the score, and the base in the last column (n, n_features + 1)."""
        ...


class Availability(Protocol):
    """What may not be shown now."""

    def unavailable(self, deadline: Deadline | None = None) -> Ints:
        """Dense items; where it cannot be asked, as it last was."""
        ...


@dataclass(frozen=True)
class Bundle:
    """What the funnel takes from one version of the models."""

    version: str
    schema_hash: str
    catalogue: Catalogue
    sources: Mapping[str, Source]
    index: Index
    ranker: Ranker
    calibrate: Callable[[Floats], Floats]
    popular: Ints
    """All items that may stand in when nothing else does, best first."""
    search: Search
    weighed: Mapping[str, Scorer] = field(default_factory=dict)
    """By surface, where several objectives make the order; their scores are worths, which need no calibration."""
    weigh: Callable[[Mapping[str, Mapping[str, float]]], Mapping[str, Scorer]] = lambda weights: {}
    """``weighed`` for other weights, by surface and objective."""
