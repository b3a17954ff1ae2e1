"""Loops compiled by numba, which has no types of its own."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(*signature: Any) -> Callable[[Loop], Loop]:
    """Compile a loop, at once for a signature and else when first called, and keep it for the next process."""
    decorate: Callable[[Loop], Loop] = njit(*signature, cache=True, nogil=True)
    return decorate
