"""Words of the items' texts and what each is worth in an item, by BM25: worked out once, mapped, added up at a query.

A term's weight in an item depends on no query (the eager scoring of Lù, "BM25S", arXiv:2407.03618), so bm25s computes
all of them where a bundle is written, and answering needs neither the library nor the texts. A field that weighs w
counts as if it were written w times, which is BM25F (Robertson, Zaragoza and Taylor, CIKM 2004).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.text import words
from models.catalogue import Column, Texts

POSTINGS, WORDS = "search.postings.npy", "search.words.parquet"
FILES = (POSTINGS, WORDS)
FIELDS = {"name": 3, "category": 1, "brand": 1, "department": 1}
"""Attributes that are searched, and how much each weighs; who may see an item, for one, is not a word to find."""
K1, B = 1.5, 0.75
POSTING = np.dtype([("item", "<i4"), ("score", "<f4")])

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Matches:
    """Items (n,) that have a word of a query, by number, their scores, how many of its distinct words each has."""

    items: Ints
    scores: Floats
    words: Ints


@dataclass(frozen=True)
class WordIndex:
    """Postings of each word in turn.

    Attributes
    ----------
    numbers
        Of the words.
    starts : (n_words + 1,) int64
        Where each word's postings begin.
    postings : (n_postings,)
        An item that has the word, and what the word is worth there; mapped perhaps.
    """

    n_items: int
    numbers: Mapping[str, int]
    starts: npt.NDArray[np.int64] = field(repr=False)
    postings: npt.NDArray[Any] = field(repr=False)

    def match(self, query: str, allowed: Bools | None = None) -> Matches:
        """Items that have any word of a text; of the allowed ones (n_items,) alone are the scores added up."""
        known = [self.numbers[word] for word in dict.fromkeys(words(query)) if word in self.numbers]
        held = [self.postings[self.starts[word] : self.starts[word + 1]] for word in known]
        found = np.concatenate([np.empty(0, POSTING), *held])
        if allowed is not None:
            found = found[allowed[found["item"]]]
        counts = np.bincount(found["item"], minlength=self.n_items)
        scores = np.bincount(found["item"], found["score"], self.n_items)
        items = np.flatnonzero(counts)
        return Matches(items.astype(np.int32), scores[items].astype(np.float32), counts[items].astype(np.int32))

    def plus(self, text: Mapping[str, Texts]) -> "WordIndex":
        """The index with further items, numbered on from its last; columns as :func:`index_words` has them (n_new,).

        A word is worth in them what it is in the item in the middle of those that have it, and one that no item had as
        much as any word anywhere: how rare words are is not counted anew.
        """
        columns = [text[name].tolist() for name in FIELDS if name in text]
        n_new = len(columns[0]) if columns else 0
        pairs = sorted(
            {(word, self.n_items + at) for column in columns for at, told in enumerate(column) for word in words(told)}
        )
        numbers = {**self.numbers}
        for word, _ in pairs:
            numbers.setdefault(word, len(numbers))
        most = float(self.postings["score"].max()) if len(self.postings) else 1.0
        ends = np.concatenate([self.starts, np.full(len(numbers) - len(self.numbers), self.starts[-1])])
        places = np.array([numbers[word] for word, _ in pairs], np.int64)
        added = np.empty(len(pairs), POSTING)
        added["item"] = [item for _, item in pairs]
        added["score"] = [self._usual(number, most) for number in places.tolist()]
        order = np.argsort(places, kind="stable")
        postings = np.insert(np.asarray(self.postings), ends[places[order] + 1], added[order])
        more = np.bincount(places, minlength=len(numbers))
        return WordIndex(self.n_items + n_new, numbers, ends + np.append(0, np.cumsum(more)), postings)

    def _usual(self, number: int, unknown: float) -> float:
        if number >= len(self.numbers):
            return unknown
        return float(np.median(self.postings["score"][self.starts[number] : self.starts[number + 1]]))

    def save(self, folder: Path) -> None:
        """Write ``FILES``."""
        np.save(folder / POSTINGS, self.postings)
        by_number = sorted(self.numbers, key=self.numbers.__getitem__)
        pq.write_table(pa.table({"word": by_number, "postings": np.diff(self.starts)}), folder / WORDS)

    @classmethod
    def load(cls, folder: Path, n_items: int) -> "WordIndex":
        """Map what ``save`` wrote."""
        table = pq.read_table(folder / WORDS)
        numbers = {word: number for number, word in enumerate(table["word"].to_pylist())}
        starts = np.concatenate([[0], np.cumsum(table["postings"].to_numpy())]).astype(np.int64)
        return cls(n_items, numbers, starts, np.load(folder / POSTINGS, mmap_mode="r", allow_pickle=False))


def index_words(n_items: int, text: Mapping[str, Texts | Column]) -> WordIndex:
    """Index those of ``FIELDS`` that the items have, each (n_items,)."""
    numbers: dict[str, int] = {}
    columns = [_numbered(text[name].tolist(), numbers, weight) for name, weight in FIELDS.items() if name in text]
    documents = [[word for field in fields for word in field] for fields in zip(*columns, strict=True)]
    if not numbers:
        return WordIndex(n_items, {}, np.zeros(1, np.int64), np.empty(0, POSTING))
    import bm25s  # takes seconds, and what answers does not need it

    scorer = bm25s.BM25(k1=K1, b=B, method="lucene", csc_backend="numpy")
    held = scorer.build_index_from_ids(list(range(len(numbers))), documents, show_progress=False)
    postings = np.empty(len(held["data"]), POSTING)
    postings["item"], postings["score"] = held["indices"], held["data"]
    return WordIndex(n_items, numbers, np.asarray(held["indptr"], np.int64), postings)


def _numbered(texts: Sequence[str], numbers: dict[str, int], weight: int) -> Sequence[Sequence[int]]:
    """Words of each text as numbers, new ones counted on; many items share a text."""
    known = {
        text: [numbers.setdefault(word, len(numbers)) for word in words(text)] * weight for text in dict.fromkeys(texts)
    }
    return [known[text] for text in texts]
