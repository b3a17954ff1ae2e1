"""The index as it is asked: filters, items that are gone, items that are new."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.index.walk import Bools, Float32s, Ints, Walk, faiss, graph_in

AGAIN = 8
"""Times the wanted number that are found by 4-bit products, to be put in order by the vectors themselves."""
FARTHER = 1.5
"""Power of the allowed share by which a search looks farther: the nearest that are left lie farther away, too."""
BROADER = 1 / 3
"""The same of a walk along a graph, which counts none but those that are allowed."""
ALONE_SHARE = 0.02
"""Where no more than so many of the items are allowed, each of them is looked at."""


@dataclass(frozen=True)
class ItemIndex:
    """The thin adapter where FAISS's missing types stop. One thread: scale by processes.

    Attributes
    ----------
    vectors : (n_items, dim)
        What is indexed, mapped perhaps: a filter that allows few items is answered from them.
    gone : (n_items,)
        Items that are found no more; ``None`` while all are there.
    later
        How many of the last items came after the index was built: these are looked at one by one.
    """

    inner: Any
    vectors: Float32s = field(repr=False)
    gone: Bools | None = field(default=None, repr=False)
    later: int = 0

    def __len__(self) -> int:
        return int(self.inner.ntotal) + self.later

    def search(self, vectors: Float32s, n: int, allowed: Bools | None = None) -> Ints:
        """Dense items, nearest first (len(vectors), n), padded with -1; as ``nearest`` without the scores."""
        return self.nearest(vectors, n, allowed)[0]

    def nearest(self, vectors: Float32s, k: int, allowed: Bools | None = None) -> tuple[Ints, Float32s]:
        """Items with the largest inner products.

        Parameters
        ----------
        vectors : (n, dim)
        allowed : (n_items,)
            Only these may be found; all where there is none.

        Returns
        -------
        (n, k) dense items, best first, padded with -1, and their (n, k) inner products, -inf for the padding; where the
        index holds a byte a dimension, products of those bytes.
        """
        if self.gone is not None:
            allowed = ~self.gone if allowed is None else allowed & ~self.gone
        if allowed is not None and allowed.sum() <= max(k, ALONE_SHARE * len(self)):
            return self._among(vectors, k, np.flatnonzero(allowed))
        faiss.omp_set_num_threads(1)  # it counts for the calling thread only
        queries = np.ascontiguousarray(vectors, np.float32)
        found = self._indexed(queries, k, allowed)
        return self._with_later(queries, k, found, allowed) if self.later else found

    def without(self, items: Ints) -> "ItemIndex":
        """The index without some items, until they are left out of the next one that is built."""
        gone = np.zeros(len(self), bool) if self.gone is None else self.gone.copy()
        gone[items] = True
        return replace(self, gone=gone)

    def plus(self, vectors: Float32s) -> "ItemIndex":
        """The index with further items, numbered on from its last; the old one goes on answering as before.

        Parameters
        ----------
        vectors : (n_items + n_new, dim)
            Of all of them, in order.
        """
        new = len(vectors) - len(self)
        gone = None if self.gone is None else np.append(self.gone, np.zeros(new, bool))
        return ItemIndex(self.inner, vectors, gone, self.later + new)

    def save(self, path: Path) -> None:
        """Write FAISS's own format; items that are gone or came later are the next building's, and are not written."""
        faiss.write_index(self.inner, str(path))

    @classmethod
    def load(cls, path: Path, vectors: Float32s) -> "ItemIndex":
        """Map what ``save`` wrote; ``vectors`` (n_items, dim) are kept beside it."""
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), vectors)

    @cached_property
    def _walk(self) -> Walk | None:
        return Walk.of(self.inner) if graph_in(self.inner) is not None else None

    def _among(self, vectors: Float32s, k: int, items: Any) -> tuple[Ints, Float32s]:
        scores = np.asarray(vectors, np.float32) @ np.asarray(self.vectors[items], np.float32).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found, best = items[order].astype(np.int32), np.take_along_axis(scores, order, 1)
        missing = ((0, 0), (0, k - order.shape[1]))
        return np.pad(found, missing, constant_values=-1), np.pad(best, missing, constant_values=-np.inf)

    def _indexed(self, queries: Float32s, k: int, allowed: Bools | None) -> tuple[Ints, Float32s]:
        """What the index finds, of the items that it was built over."""
        if self._walk is not None:
            share, breadth = 1.0 if allowed is None else float(allowed.mean()), graph_in(self.inner).hnsw.efSearch
            return self._walk.nearest(queries, k, int(breadth / share**BROADER), allowed)
        how = self._how(allowed)
        if isinstance(self.inner, faiss.IndexIVFPQFastScan):
            n = min(AGAIN * k, int(self.inner.ntotal))
            return self._again(queries, k, self.inner.search(queries, n, params=how)[1])
        scores, items = self.inner.search(queries, k, params=how)
        return items.astype(np.int32), np.where(items < 0, -np.inf, scores).astype(np.float32)

    def _with_later(
        self, queries: Float32s, k: int, found: tuple[Ints, Float32s], allowed: Bools | None
    ) -> tuple[Ints, Float32s]:
        """The best of what was found and of the items that came later."""
        later = np.arange(len(self) - self.later, len(self))
        mine = self._among(queries, k, later if allowed is None else later[allowed[later]])
        items, scores = (np.hstack(both) for both in zip(found, mine, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(items, best, 1), np.take_along_axis(scores, best, 1)

    def _again(self, queries: Float32s, k: int, found: Any) -> tuple[Ints, Float32s]:
        """The best of what short codes have found, by the vectors themselves."""
        items, scores = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
        for at, held in enumerate(found):
            items[at : at + 1], scores[at : at + 1] = self._among(queries[at : at + 1], k, held[held >= 0])
        return items, scores

    def _how(self, allowed: Bools | None) -> Any:
        """Parameters of a search that must look farther, the fewer items are allowed; ``None`` for the index's own."""
        if allowed is None:
            return None
        told = {"sel": faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))}
        inner, share = self.inner, float(allowed.mean()) ** FARTHER
        if isinstance(inner, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=min(inner.nlist, int(np.ceil(inner.nprobe / share))), **told)
        return faiss.SearchParameters(**told)
