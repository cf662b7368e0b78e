"""Which stretches of a table are free: a buddy allocator over slot numbers, and a pool of single ones.

Pure book-keeping for the control path; knows nothing of what lies in the slots.
"""

from __future__ import annotations

import errno
from collections import deque

from softrnic.errors import VerbsError


class Slab:
    """Power-of-two runs of slots out of [0, size), `size` a power of two."""

    def __init__(self, size: int, what: str) -> None:
        self._what = what
        self._top = size.bit_length() - 1
        self._free: list[set[int]] = [set() for _ in range(self._top + 1)]
        self._free[self._top].add(0)

    def alloc(self, count: int) -> int:
        """First slot of a run of at least `count`, rounded up to a power of two; ENOMEM when there is none."""
        order = max(0, count - 1).bit_length()
        level = order
        while level <= self._top and not self._free[level]:
            level += 1
        if level > self._top:
            raise VerbsError(errno.ENOMEM, f"no room for {count} {self._what}")
        base = self._free[level].pop()
        while level > order:
            level -= 1
            self._free[level].add(base + (1 << level))
        return base

    def free(self, base: int, count: int) -> None:
        """Give a run back."""
        order = max(0, count - 1).bit_length()
        while order < self._top and (base ^ (1 << order)) in self._free[order]:
            self._free[order].remove(base ^ (1 << order))
            base &= ~(1 << order)
            order += 1
        self._free[order].add(base)


class Pool:
    """Single slots out of [first, size); the one freed longest ago is reused first."""

    def __init__(self, first: int, size: int, what: str) -> None:
        self._what = what
        self._size = size
        self._fresh = first
        self._freed: deque[int] = deque()

    def alloc(self) -> int:
        """A free slot; ENOMEM when there is none."""
        if self._fresh < self._size:
            self._fresh += 1
            return self._fresh - 1
        if not self._freed:
            raise VerbsError(errno.ENOMEM, f"no more {self._what}: the device has {self._size}")
        return self._freed.popleft()

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._freed.append(slot)
