"""Memory that comes after the switch: the device waits for pages, and their arrival lets it go on.

Between an address space (softrnic.verbs.paging) and the connection. Only the device's own accesses wait: a program that
touches a page itself before `Place.on_complete` finds what is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from softrnic.migrate import pages
from softrnic.migrate.stream import PAGE
from softrnic.verbs.space import AddressSpace


class Fetch:
    """The page source of a function that runs already. `want(piece, page)` is called in whatever thread."""

    def __init__(
        self, space: AddressSpace, memory: list[np.ndarray], missing: list[np.ndarray], want: Callable[[int, int], None]
    ) -> None:
        self._space = space
        self._memory = memory
        self._missing = missing
        self._want = want
        space.page_source = self
        for data, bits in zip(memory, missing, strict=True):
            for first, count in pages.runs(~bits, 1 << 30):
                space.resolve(int(data.ctypes.data) + first * PAGE, count * PAGE)

    def request(self, addr: int, length: int, urgent: bool) -> None:
        """A QP waits for pages: called by the address space."""
        for page in range(addr // PAGE * PAGE, addr + length, PAGE):
            found = self._find(page)
            if found is None or not self._missing[found[0]][found[1]]:
                self._space.resolve(page, PAGE)
            elif urgent:
                self._want(*found)

    def _find(self, addr: int) -> tuple[int, int] | None:
        """The piece and the page in it at an address."""
        for i, data in enumerate(self._memory):
            offset = addr - int(data.ctypes.data)
            if 0 <= offset < len(data):
                return i, offset // PAGE
        return None

    def land(self, piece: int, first: int, count: int, data: np.ndarray | None) -> None:
        """Pages have come; None: zeros. Bytes behind the end of a piece belong to its last page."""
        whole = np.zeros(count * PAGE, np.uint8)
        if data is not None:
            whole[: len(data)] = data
        self._space.land(int(self._memory[piece].ctypes.data) + first * PAGE, whole)

    def close(self) -> None:
        """All has come."""
        self._space.page_source = None
