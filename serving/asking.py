"""Calls, validated: what is out of bounds is refused by its field's name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from headwater.errors import DataError
from headwater.text import WORD, fold
from serving.contracts import MAX_LIMIT, Request
from serving.surfaces import DEFAULT, SEARCH, Surface
from serving.told import require_few

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
    if name == SEARCH:
        raise DataError(f"surface: {SEARCH} answers a query. Call Search.")
    return _asked(surfaces[name], name, user_id, limit, exclude, include, context)


def sought(
    surfaces: Mapping[str, Surface], user_id: str, query: str, limit: int, exclude: Sequence[str],
    require: Mapping[str, str], context: Mapping[str, str],
) -> Request:  # fmt: skip
    """Validate a search.

    Raises
    ------
    DataError
        A field is out of bounds; the message names it.
    """
    bounded("query's length", len(query), 1, MAX_TEXT)
    text = query.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    if not WORD.search(fold(text)):
        raise DataError(f"query: {text[:80]!r} has no letter or digit. Type a word of what is wanted.")
    asked_for = _asked(surfaces[SEARCH], SEARCH, user_id, limit, exclude, (), {**context, "query": text})
    return replace(asked_for, query=text, require=dict(require))


def _asked(
    surface: Surface, name: str, user_id: str, limit: int, exclude: Sequence[str], include: Sequence[str],
    context: Mapping[str, str],
) -> Request:  # fmt: skip
    if not user_id:
        raise DataError("user_id: empty. Name who is asking.")
    bounded("user_id's length", len(user_id), 1, MAX_TEXT)
    bounded("limit", limit, 0, MAX_LIMIT)
    bounded("exclude_item_ids' number", len(exclude), 0, MAX_IDS)
    bounded("include_item_ids' number", len(include), 0, MAX_LIMIT)
    require_few(context)
    return Request(user_id, name, limit or surface.limit, frozenset(exclude), tuple(include), dict(context))


def bounded(field_name: str, value: int, low: int, high: int) -> None:
    """Raise :class:`DataError` for what is not from ``low`` to ``high``."""
    if not low <= value <= high:
        raise DataError(f"{field_name}: {value} is not from {low} to {high}. Ask for less.")
