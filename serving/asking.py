"""Calls, validated: what is out of bounds is refused by its field's name."""

from collections.abc import Mapping, Sequence

from headwater.errors import DataError
from serving.contracts import MAX_LIMIT, Request
from serving.surfaces import DEFAULT, Surface

MAX_IDS = 10_000
MAX_TEXT = 512


def asked(
    surfaces: Mapping[str, Surface], user_id: str, surface: str, limit: int, exclude: Sequence[str],
    include: Sequence[str], context: Mapping[str, str],
) -> Request:  # fmt: skip
    """Validate a call for a list; what is empty takes its default.

    Raises
    ------
    DataError
        A field is out of bounds; the message names it.
    """
    name = surface or DEFAULT
    if name not in surfaces:
        raise DataError(f"surface: {name[:80]!r} is unknown. Choose from {', '.join(surfaces)}.")
    if not user_id:
        raise DataError("user_id: empty. Name who is asking.")
    bounded("user_id's length", len(user_id), 1, MAX_TEXT)
    bounded("limit", limit, 0, MAX_LIMIT)
    bounded("exclude_item_ids' number", len(exclude), 0, MAX_IDS)
    bounded("include_item_ids' number", len(include), 0, MAX_LIMIT)
    wanted = limit or surfaces[name].limit
    return Request(user_id, name, wanted, frozenset(exclude), tuple(include), dict(context))


def bounded(field_name: str, value: int, low: int, high: int) -> None:
    """Raise :class:`DataError` for what is not from ``low`` to ``high``."""
    if not low <= value <= high:
        raise DataError(f"{field_name}: {value} is not from {low} to {high}. Ask for less.")
