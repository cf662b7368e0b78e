"""Memory that comes after the switch: the device waits for pages, and their arrival lets it go on.

Between an address space (softrnic.verbs.paging) and the connection. Only the device's own accesses wait: a program that
touches a page itself before `Place.on_complete` finds what is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from softrnic.migrate import pages
from softrnic.migrate.stream import PAGE
from softrnic.verbs.space import AddressSpace

Want = Callable[[int, int], None]


class Position(NamedTuple):
    """Where a piece of memory lies: in an address space, from an address on."""

    space: AddressSpace
    addr: int
    length: int


class _Source:
    """The page source of one address space."""

    def __init__(
        self, space: AddressSpace, pieces: dict[int, Position], missing: list[np.ndarray], want: Want
    ) -> None:
        self._space = space
        self._pieces = pieces
        self._missing = missing
        self._want = want

    def request(self, addr: int, length: int, urgent: bool) -> None:
        """A QP waits for pages, or will."""
        for page in range(addr // PAGE * PAGE, addr + length, PAGE):
            found = self._find(page)
            if found is None or not self._missing[found[0]][found[1]]:
                self._space.resolve(page, PAGE)
            elif urgent:
                self._want(*found)

    def _find(self, addr: int) -> tuple[int, int] | None:
        """The piece and the page in it at an address."""
        for i, at in self._pieces.items():
            if 0 <= addr - at.addr < at.length:
                return i, (addr - at.addr) // PAGE
        return None


class Fetch:
    """The missing memory of a function that runs already. `want(piece, page)` is called in whatever thread."""

    def __init__(self, positions: list[Position], missing: list[np.ndarray], want: Want) -> None:
        self._positions = positions
        for space in {at.space for at in positions}:
            pieces = {i: at for i, at in enumerate(positions) if at.space is space}
            space.page_source = _Source(space, pieces, missing, want)
        for at, bits in zip(positions, missing, strict=True):
            for first, count in pages.runs(~bits, 1 << 30):
                at.space.resolve(at.addr + first * PAGE, count * PAGE)

    def land(self, piece: int, first: int, count: int, data: np.ndarray | None) -> None:
        """Pages have come; None: zeros. Bytes behind the end of a piece belong to its last page."""
        whole = np.zeros(count * PAGE, np.uint8)
        if data is not None:
            whole[: len(data)] = data
        at = self._positions[piece]
        at.space.land(at.addr + first * PAGE, whole)

    def close(self) -> None:
        """All has come."""
        for space in {at.space for at in self._positions}:
            space.page_source = None
