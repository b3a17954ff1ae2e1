"""Durations as people write them: ``7d``, ``12h``, ``30m``, ``5s``, ``250ms``."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPAN = re.compile(r"\s*(\d+)\s*(ms|s|m|h|d)\s*")


def parse_span(text: str) -> int:
    """Read a duration; milliseconds.

    Raises
    ------
    ValueError
        It is not a whole number and a unit.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration. Write a whole number and ms, s, m, h or d, such as 7d")
    return int(found[1]) * UNITS[found[2]]


def _as_timedelta(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(milliseconds=parse_span(str(value)))


Span = Annotated[timedelta, BeforeValidator(_as_timedelta)]
"""A duration in a declared file."""
