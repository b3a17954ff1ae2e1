"""Kinds of index, what each takes, and which suits a catalogue.

References
----------
Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using HNSW graphs", TPAMI 2020.
André, Kermarrec and Le Scouarnec, "Quicker ADC", TPAMI 2019, for the products of 4 bits that a search scans.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt

from headwater.errors import ModelError

LINKS = 24
"""Neighbours of an item in a graph; twice as many on its lowest level."""
MOST_LISTS = 8_192
"""More would take longer to find than they save: their middles are found in time that grows with the square."""
EXACT_BELOW = 50_000
"""Items that are searched one by one in a millisecond or so."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to find near items.

    Attributes
    ----------
    spec
        Dimensions and lists to what FAISS's factory calls it.
    item_bytes
        Memory an item takes, by the number of dimensions.
    """

    name: str
    spec: Callable[[int, int], str]
    item_bytes: Callable[[int], float]

    @property
    def has_lists(self) -> bool:
        return self.name.startswith("ivf")


FLAT = Kind("flat", lambda dim, lists: "Flat", lambda dim: 4 * dim)
HNSW = Kind("hnsw_sq8", lambda dim, lists: f"IDMap,HNSW{LINKS},SQ8", lambda dim: dim + 8 + 4 * 2 * LINKS * 1.1)
IVF_SQ8 = Kind("ivf_sq8", lambda dim, lists: f"IVF{lists},SQ8", lambda dim: dim + 8)
IVF_PQ = Kind("ivf_pq", lambda dim, lists: f"IVF{lists},PQ{_halved(dim)}x4fs", lambda dim: _halved(dim) / 2 + 8)
KINDS = {kind.name: kind for kind in (FLAT, IVF_SQ8, IVF_PQ, HNSW)}


def suitable(n_items: int, dim: int, memory_bytes: float | None = None, exact_below: int = EXACT_BELOW) -> Kind:
    """Kind for a catalogue: exact while that is quick, else lists of a byte a dimension, else of 4 bits for two.

    Lists of bytes were the fastest at a million items (docs/performance.md). Those of 4 bits take a third of the
    memory, and what they find is looked at again in the vectors themselves.

    Raises
    ------
    ModelError
        Nothing fits the memory.
    """
    if n_items < exact_below and fits(FLAT, n_items, dim, memory_bytes):
        return FLAT
    kinds = [kind for kind in (IVF_SQ8, IVF_PQ) if kind is IVF_SQ8 or dim % 2 == 0]
    for kind in kinds:
        if fits(kind, n_items, dim, memory_bytes):
            return kind
    raise ModelError(
        f"index: {n_items} items of {dim} dimensions need {n_items * kinds[-1].item_bytes(dim) / 2**20:.0f} MiB at "
        f"least, of {(memory_bytes or 0) / 2**20:.0f}. Give it more, or choose fewer dimensions."
    )


def fits(kind: Kind, n_items: int, dim: int, memory_bytes: float | None) -> bool:
    """Whether so many items of that kind take no more than the memory, if that is limited."""
    return memory_bytes is None or n_items * kind.item_bytes(dim) <= memory_bytes


def n_lists(n_items: int) -> int:
    """Inverted lists for so many items: some four times the root, as FAISS's makers advise."""
    return max(1, min(ceil(4 * sqrt(n_items)), MOST_LISTS, n_items))


def _halved(dim: int) -> int:
    """Products of two dimensions each."""
    return max(1, dim // 2)
