"""Since when there is each item, which a catalogue need not tell."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from models.interactions import Interactions

ALWAYS = -1
"""Before any instant: nobody had bought it when the first bundle was made. What is bought later is not new for that."""

Instants = npt.NDArray[np.int64]


def first_seen(
    bought: Interactions, ids: npt.NDArray[np.object_], at_ms: int, before: Mapping[str, int] | None
) -> Instants:
    """When each item was first bought or, if it was not yet, first in a catalogue, epoch ms (n_items,).

    Parameters
    ----------
    ids : (n_items,)
    at_ms
        Now: the time of what was not in the bundle before.
    before
        What this was for the items of the bundle before; without one, items not yet bought have been there ``ALWAYS``.
    """
    never = np.iinfo(np.int64).max
    found = np.full(len(ids), never)
    np.minimum.at(found, bought.item, bought.at_ms)
    if before is None:
        return np.where(found == never, ALWAYS, found)
    earlier = np.fromiter((before.get(each, at_ms) for each in ids.tolist()), np.int64, len(ids))
    return np.minimum(found, earlier)
