"""Distinct texts by number, found again by their bytes: an object is made of what is shown alone."""

import os
from collections.abc import Iterator, Sequence
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

    def __getitem__(self, number: int) -> str:
        return self.take(np.array([number]))[0]

    def __iter__(self) -> Iterator[str]:
        return iter(unpacked(self.texts))

    def take(self, numbers: NDArray[Any]) -> list[str]:
        """The texts of some numbers."""
        return unpacked(self.texts.take(numbers))

    def plus(self, texts: Sequence[str]) -> "Names":
        """With further texts, numbered on."""
        held, more = self.texts, packed(texts)
        raw = np.concatenate([held.raw, more.raw])
        starts = np.concatenate([held.starts, more.starts + len(held.raw)])
        return Names.of(Blobs(raw, starts, np.concatenate([held.sizes, more.sizes])))

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
    from headwater.online import fields

    raw = np.frombuffer(joined, np.uint8)
    n, starts, sizes = fields.parted(raw, len(texts))
    if n != len(texts):
        return Blobs.of([text.encode(errors="surrogatepass") for text in texts])
    return Blobs(raw, starts, sizes)


def unpacked(texts: Blobs) -> list[str]:
    """Inverse of :func:`packed`."""
    found = texts.joined().tobytes().decode(errors="surrogatepass").split("\0") if len(texts) else []
    if len(found) != len(texts):
        return [(text or b"").decode(errors="surrogatepass") for text in texts.listed()]
    return found
