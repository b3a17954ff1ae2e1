"""Items that came after a bundle was trained: numbered on from its last, and placed by what they have in common.

The item tower is not part of a bundle, and has seen no purchase of them: such an item stands where those stand that
share its attributes, a value that few have telling most. It has no popularity, no neighbours and the age of its
arrival, so the sources for what is new propose it, retrieval finds it near its kind, and a search finds it by its
words. The next training gives it a place of its own.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.bundle import Bundle
from models.catalogue import Catalogue, Texts, texts
from models.encoder import unit
from models.evaluation.metrics import PAD, Ints
from models.item_texts import FIELDS
from models.neighbour_table import NeighbourTable
from models.side_tables import SideTables

Float32s = npt.NDArray[np.float32]


def with_items(bundle: Bundle, items: pa.Table, first_seen: npt.NDArray[np.int64]) -> Bundle:
    """Return a bundle that knows further items; those that it knows already are left as they are.

    Parameters
    ----------
    items
        ``item_id``, each once, and attributes as text; one that the bundle's items lack is left out.
    first_seen : (len(items),)
        When each arrived, epoch milliseconds.
    """
    ids = texts(items["item_id"])
    new = bundle.items.dense(ids.tolist()) < 0
    if not new.any():
        return bundle
    told = {name: _column(items, name)[new] for name in bundle.items.text}
    vectors = np.vstack([bundle.vectors, place(bundle.items, told)])
    catalogue = Catalogue(
        bundle.items.ids.plus(ids[new].tolist()), vectors,
        {name: column.plus(told[name].tolist()) for name, column in bundle.items.text.items()},
    )  # fmt: skip
    nothing = np.zeros(int(new.sum()), np.float32)
    popularity = np.concatenate([bundle.popularity, nothing])
    return replace(
        bundle,
        items=catalogue,
        index=bundle.index.plus(vectors),
        encoder=replace(bundle.encoder, items=catalogue.vectors),
        popularity=popularity,
        trending=np.concatenate([bundle.trending, nothing]),
        words=bundle.words.plus(told),
        tables=_tables(bundle.tables, bundle.items, told, first_seen[new], popularity),
    )


def place(known: Catalogue, told: Mapping[str, Texts]) -> Float32s:
    """Vectors of length one (n_new, dim): the mean of the means of those that share each attribute's value.

    A mean weighs one over the number that share it; what shares nothing has the mean of all.
    """
    n_new = len(next(iter(told.values()))) if told else 0
    found = np.zeros((n_new, known.vectors.shape[1]), np.float32)
    for name, column in told.items():
        for value in set(column.tolist()) - {""}:
            alike = known.column(name).having(value)
            if count := int(alike.sum()):
                found[column == value] += known.vectors[alike].mean(0) / np.float32(count)
    alone = ~found.any(1)
    if alone.any():
        found[alone] = known.vectors.mean(0)
    return unit(found)


def _tables(
    held: SideTables, known: Catalogue, told: Mapping[str, Texts], first_seen: npt.NDArray[np.int64],
    popularity: Float32s,
) -> SideTables:  # fmt: skip
    neighbours, described, seen = held.neighbours, held.texts, held.first_seen
    n_new = len(first_seen)
    if neighbours is not None:
        width = neighbours.items.shape[1]
        neighbours = NeighbourTable(
            np.vstack([neighbours.items, np.full((n_new, width), PAD, np.int32)]),
            np.vstack([neighbours.scores, np.zeros((n_new, width), np.float32)]),
        )
    if described is not None:
        numbers = np.concatenate([described.texts, _same_text(known, told, described.texts, n_new)])
        described = replace(described, texts=numbers, popularity=popularity)
    if seen is not None:
        seen = np.concatenate([seen, first_seen])
    return replace(held, neighbours=neighbours, texts=described, first_seen=seen)


def _same_text(known: Catalogue, told: Mapping[str, Texts], numbers: Ints, n_new: int) -> Ints:
    """The text that a known item has word for word, ``PAD`` where none has (n_new,)."""
    names = [name for name in FIELDS if name in told]
    if not names:
        return np.full(n_new, PAD, np.int32)
    rows = np.flatnonzero(known.column(names[0]).among(told[names[0]].tolist()))
    texts_of_rows = zip(*(known.column(name).take(rows) for name in names), strict=True)
    number_of = dict(zip(texts_of_rows, numbers[rows].tolist(), strict=True))
    wanted = zip(*(told[name].tolist() for name in names), strict=True)
    return np.fromiter((number_of.get(each, PAD) for each in wanted), np.int32, n_new)


def _column(items: pa.Table, name: str) -> Texts:
    if name not in items.column_names:
        return np.full(len(items), "", object)
    return texts(items[name].cast(pa.string()))
