"""What a request itself tells of who is asking and what for: keys of its ``context``.

``basket``, ``item``: the items that the list is about, which it does not repeat. ``likes``: what a user chose who has
no history yet; it stands in for one. Each is ids with commas between them; items that the bundle does not know are
left out. ``segment``: a value of the attribute of users that surfaces.toml declares.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from headwater.errors import DataError
from serving.contracts import Request
from serving.ports import Ints, Numbering, UserState

ABOUT = ("basket", "item")
LIKES, SEGMENT = "likes", "segment"
MAX_TOLD = 100
"""Items that one key may name."""


def require_few(context: Mapping[str, str]) -> None:
    """Raise :class:`DataError` where a key names more items than are read."""
    for key in (*ABOUT, LIKES):
        found = len(_ids(context, key))
        if found > MAX_TOLD:
            raise DataError(f"context.{key}: {found} items, and at most {MAX_TOLD} are read. Name fewer.")


def told(user: UserState, request: Request, items: Numbering, now_ms: int, seed: int) -> UserState:
    """The user with what the request tells."""
    context = {} if request.query is not None else request.context  # a search is about its words
    user = replace(user, segment=context.get(SEGMENT, ""), now_ms=now_ms, seed=seed)
    if about := [each for key in ABOUT for each in _ids(context, key)]:
        user = replace(user, about=_known(items, about))
    if not len(user.recent) and (likes := _known(items, _ids(context, LIKES))).size:
        user = replace(user, recent=likes, recent_age_ms=np.zeros(len(likes), np.int64))
    return user


def _ids(context: Mapping[str, str], key: str) -> list[str]:
    """Distinct ids, in order."""
    return list(dict.fromkeys(each for part in context.get(key, "").split(",") if (each := part.strip())))


def _known(items: Numbering, ids: list[str]) -> Ints:
    found = items.dense(list(dict.fromkeys(ids)))
    return found[found >= 0]
