"""Distinct texts by number, found again by their bytes: no object is made of a text that is looked up."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.online.codec import Ints
from headwater.online.replies import Blobs

_SEED = int.from_bytes(os.urandom(8), "little")
"""Of the hash: what users and items are called is chosen outside."""


@dataclass(frozen=True, slots=True)
class Names:
    """``texts`` (n,), each once; ``slots``: an index of them."""

    texts: Blobs
    slots: Any

    @classmethod
    def of(cls, texts: Blobs) -> "Names":
        """Number texts by their order."""
        from headwater.online import fields

        return cls(texts, fields.index(texts.raw, texts.starts, texts.sizes, _SEED))

    def __len__(self) -> int:
        return len(self.texts)

    def find(self, wanted: Blobs) -> Ints:
        """Numbers of texts, int64 (len(wanted),), -1 for unknown ones."""
        from headwater.online import fields

        held = self.texts
        return fields.find(
            held.raw, held.starts, held.sizes, self.slots, _SEED, wanted.raw, wanted.starts, wanted.sizes
        )

    def values(self, values: Blobs, field: NDArray[np.uint8], texts: NDArray[np.uint8], n: int) -> tuple[Ints, Ints]:
        """Where the values of fields lie that are named by an id and n texts, as :func:`fields.values` has it."""
        from headwater.online import fields

        held = self.texts
        return fields.values(
            held.raw, held.starts, held.sizes, self.slots, _SEED, values.starts, values.sizes, field, texts, n
        )


def packed(texts: Sequence[str]) -> Blobs:
    """Texts end to end as UTF-8, all at once where one can be told from the next."""
    joined = "\0".join(texts).encode(errors="surrogatepass")
    raw = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero(raw == 0)
    if len(ends) != len(texts) - 1:
        return Blobs.of([text.encode(errors="surrogatepass") for text in texts])
    starts = np.r_[0, ends + 1]
    return Blobs(raw, starts, np.r_[ends, len(raw)] - starts)
