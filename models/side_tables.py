"""What a bundle tells the candidate sources besides towers and trends; bundles of before have none of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import item_texts, segments
from models.item_texts import ItemTexts
from models.neighbour_table import NeighbourTable
from models.segments import Segments

NEIGHBOURS, SIMILARITIES = "neighbours.items.npy", "neighbours.scores.npy"
FIRST_SEEN = "first_seen.npy"

Instants = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SideTables:
    """Each is absent where training did not make it.

    Attributes
    ----------
    first_seen : (n_items,)
        As :func:`models.arrivals.first_seen` has it.
    """

    neighbours: NeighbourTable | None = None
    segments: Segments | None = None
    first_seen: Instants | None = None
    texts: ItemTexts | None = None

    def save(self, folder: Path) -> list[str]:
        """Write those that there are; names of the files."""
        written: list[str] = []
        if self.neighbours is not None:
            np.save(folder / NEIGHBOURS, self.neighbours.items)
            np.save(folder / SIMILARITIES, self.neighbours.scores)
            written += [NEIGHBOURS, SIMILARITIES]
        if self.segments is not None:
            self.segments.save(folder)
            written += segments.FILES
        if self.first_seen is not None:
            np.save(folder / FIRST_SEEN, self.first_seen)
            written += [FIRST_SEEN]
        if self.texts is not None:
            written += self.texts.save(folder)
        return written

    @classmethod
    def load(cls, folder: Path, files: Collection[str], popularity: npt.NDArray[np.float32]) -> "SideTables":
        """Map those whose files a bundle lists."""
        return cls(
            NeighbourTable(*(_mapped(folder / name) for name in (NEIGHBOURS, SIMILARITIES)))
            if NEIGHBOURS in files else None,
            Segments.load(folder) if segments.LISTS in files else None,
            _mapped(folder / FIRST_SEEN) if FIRST_SEEN in files else None,
            ItemTexts.load(folder, files, popularity) if item_texts.TEXTS in files else None,
        )  # fmt: skip

    def sizes(self) -> Mapping[str, int]:
        """Items that each file of items is about."""
        held = {NEIGHBOURS: self.neighbours, FIRST_SEEN: self.first_seen, item_texts.TEXTS: self.texts}
        return {name: len(table) for name, table in held.items() if table is not None}


NO_TABLES = SideTables()


def _mapped(path: Path) -> npt.NDArray[Any]:
    held: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return held
