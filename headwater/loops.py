"""Loops compiled by numba, which has no types of its own."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit, types
from numba.extending import intrinsic

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(*signature: Any) -> Callable[[Loop], Loop]:
    """Compile a loop, at once for a signature and else when first called, and keep it for the next process."""
    decorate: Callable[[Loop], Loop] = njit(*signature, cache=True, nogil=True)
    return decorate


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def fence(typing: Any) -> Any:
    """Inside a loop: what is read and written before is done before what comes after, as other processes see it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
