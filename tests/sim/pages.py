"""Small pages for processes that make many engines: a fresh 2 MiB page costs more than a whole simulation."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_PR_SET_THP_DISABLE = 41


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """No transparent huge pages for what this process maps meanwhile."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)
