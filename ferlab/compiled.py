"""What numba compiles, for retrieval and for drawing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable) -> Any:
    """The function as machine code, kept beside its source or in the user's cache where one of them can be written to.

    It lets go of the interpreter, so that threads run it side by side.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither can: compiled anew in every process
        return njit(nogil=True)(function)
