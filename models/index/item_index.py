"""Nearest items by inner product: exact while the catalogue is small, inverted lists beyond."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

faiss: Any = typed_faiss  # its stubs know the C++ signatures, not what its Python layer accepts

Ints = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

EXACT_BELOW = 50_000
LISTS_PER_ROOT = 4
PROBED_SHARE = 1 / 16
"""Of the lists that a search looks into; more where few items are allowed."""


@dataclass(frozen=True)
class ItemIndex:
    """The thin adapter where FAISS's missing types stop. One thread: scale by processes."""

    inner: Any

    def __len__(self) -> int:
        return int(self.inner.ntotal)

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
        (n, k) dense items, best first, padded with -1, and their (n, k) inner products, -inf for the padding.
        """
        faiss.omp_set_num_threads(1)  # it counts for the calling thread only
        scores, items = self.inner.search(np.ascontiguousarray(vectors, np.float32), k, params=self._how(allowed))
        return items.astype(np.int32), np.where(items < 0, -np.inf, scores).astype(np.float32)

    def save(self, path: Path) -> None:
        faiss.write_index(self.inner, str(path))

    @classmethod
    def load(cls, path: Path) -> "ItemIndex":
        return cls(faiss.read_index(str(path)))

    def _how(self, allowed: Bools | None) -> Any:
        chosen = {} if allowed is None else {"sel": faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))}
        if not isinstance(self.inner, faiss.IndexIVF):
            return faiss.SearchParameters(**chosen)
        share = 1.0 if allowed is None else max(float(allowed.mean()), PROBED_SHARE)
        probed = int(np.ceil(self.inner.nlist * PROBED_SHARE / share))
        return faiss.SearchParametersIVF(nprobe=probed, **chosen)


def build(vectors: Float32s, exact_below: int = EXACT_BELOW) -> ItemIndex:
    """Index unit vectors (n_items, dim); the same vectors give the same index."""
    faiss.omp_set_num_threads(1)
    n, dim = vectors.shape
    rows = np.ascontiguousarray(vectors, np.float32)
    inner: Any = faiss.IndexFlatIP(dim)
    if n >= exact_below:
        inner = faiss.IndexIVFFlat(inner, dim, max(1, round(LISTS_PER_ROOT * n**0.5)), faiss.METRIC_INNER_PRODUCT)
        inner.cp.min_points_per_centroid = 1  # said on stderr otherwise; the lists are short by choice
        inner.train(rows)
    inner.add(rows)
    return ItemIndex(inner)
