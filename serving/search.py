"""Items for what a user typed: by their words, by likeness to those that have them best, and by what is meant.

The likeness needs no model of language. It is relevance feedback without a user's (Rocchio 1971; over vectors, Li and
others, TOIS 2023): the best matches by words are taken to be what is meant, and the mean of their two-tower vectors,
each weighted by its score, is the query's. So a query of unknown words has none. What is meant by those tells a
sentence model, where it is installed and the bundle's texts were compared by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DataError
from models.bm25 import Matches, WordIndex
from models.item_texts import ItemTexts, query_vector
from serving.ports import Bools, Catalogue, Floats, Index, Ints, Source, UserState

Rows = NDArray[np.intp]
SOURCES = ("bm25", "popular", "dense", "meant")
FEEDBACK = 10
"""So many of the best matches make the query's vector."""
STEPS = 10
"""Likenesses that differ by less than one over so many are the ranker's to order."""


@dataclass(frozen=True)
class Search:
    """A bundle's items, searched; ``popularity`` (n_items,) decides between equal matches.

    ``texts`` has what queries are compared with by their meaning; without them, or the model, nothing is.
    """

    catalogue: Catalogue
    words: WordIndex
    index: Index
    popularity: Floats
    texts: ItemTexts | None = None

    def sought(self, query: str, require: Mapping[str, str]) -> "Sought":
        """Begin the search for one request.

        Raises
        ------
        DataError
            ``require`` names an attribute that the catalogue does not have.
        """
        return Sought(self, query, self._allowed(require))

    @cached_property
    def places(self) -> Ints:
        """Each item's place by popularity, from 0, equal ones by number (n_items,)."""
        places = np.empty(len(self.popularity), np.int32)
        places[np.argsort(-self.popularity, kind="stable")] = np.arange(len(places))
        return places

    def _allowed(self, require: Mapping[str, str]) -> Bools | None:
        """Items that have all the values (n_items,), ``None`` where none is required."""
        if not require:
            return None
        return np.asarray(np.logical_and.reduce([self._having(name, value) for name, value in require.items()]))

    def _having(self, name: str, value: str) -> Bools:
        try:
            column = self.catalogue.column(name)
        except KeyError:
            raise DataError(
                f"require: the catalogue has no attribute {name[:80]!r}. Require one that its items have."
            ) from None
        return column.having(value) if value else np.zeros(len(self.popularity), bool)


@dataclass
class Sought:
    """One request's search, among the items ``allowed`` (n_items,), all where it is ``None``."""

    search: Search
    query: str
    allowed: Bools | None

    @property
    def sources(self) -> Mapping[str, Source]:
        """Who proposes items, as for a list."""
        return dict(zip(SOURCES, map(Found, (self.best, self.popular, self.nearby, self.like)), strict=True))

    @cached_property
    def matches(self) -> Matches:
        """What has any of the query's words."""
        return self.search.words.match(self.query, self.allowed)

    @cached_property
    def meant(self) -> tuple[Ints, Floats]:
        """Items whose texts mean something like the query, best first, and how like it they are."""
        texts = self.search.texts
        if texts is None:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return texts.meant(query_vector(self.query), self.allowed)

    def best(self, n: int) -> Ints:
        """Matches by BM25's score."""
        return self.matches.items[self._first(n, self.matches.scores)]

    def popular(self, n: int) -> Ints:
        """Matches by how many of the words they have, then by popularity: a rare word is not always what is meant."""
        return self.matches.items[self._first(n, self.matches.words)]

    def nearby(self, n: int) -> Ints:
        """Items nearest to the weighted mean of the best matches' vectors."""
        rows = self._first(FEEDBACK, self.matches.scores)
        if not len(rows):
            return self.matches.items
        vectors = self.search.catalogue.vectors[self.matches.items[rows]]  # (n_best, dim)
        mean = np.average(vectors, axis=0, weights=self.matches.scores[rows])[None, :].astype(np.float32)  # (1, dim)
        near: Ints = self.search.index.search(mean, n, self.allowed)[0]
        return near[near >= 0]

    def like(self, n: int) -> Ints:
        """What is meant, as far as it was not said."""
        return self.meant[0][:n]

    def _first(self, n: int, values: Floats | Ints) -> Rows:
        """Rows of the n matches of greatest value, equal ones by popularity, then by number."""
        rows, places = np.arange(len(values)), self.search.places[self.matches.items]
        if n < len(rows):
            least = np.partition(values, -n)[-n]
            above, tied = np.flatnonzero(values > least), np.flatnonzero(values == least)  # too many to sort, at times
            rows = np.append(above, tied[np.argpartition(places[tied], n - len(above) - 1)[: n - len(above)]])
        return np.asarray(rows[np.lexsort((places[rows], -values[rows]))])

    def by_words(self, items: Ints, scores: Floats) -> Floats:
        """Scores (n,) moved so that who has more of the query's words comes first, by score among equals.

        Where nothing has any, what means most like it does.
        """
        if not len(items):
            return scores
        held = np.zeros(len(self.search.catalogue.ids), np.int32)
        held[self.matches.items] = self.matches.words
        if not len(self.matches.items):
            meant, likeness = self.meant
            held[meant] = STEPS * likeness
        span = np.float32(1.0) + scores.max() - scores.min()
        return np.asarray(scores + held[items] * span, np.float32)


@dataclass(frozen=True)
class Found:
    """A way to find, as a source: the same for every user."""

    find: Callable[[int], Ints]
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        return self.find(max(n, 1))[:n]
