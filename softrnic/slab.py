"""Which stretches of a table are free: a buddy allocator over slot numbers, and pools of single ones.

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


class Numbers(Pool):
    """A pool from which the caller may also take a number of its choice."""

    def __init__(self, first: int, size: int, what: str) -> None:
        super().__init__(first, size, what)
        self._used: set[int] = set()

    def alloc(self) -> int:
        number = super().alloc()
        while number in self._used:  # fresh, but somebody has taken it; it comes back when that one is freed
            number = super().alloc()
        self._used.add(number)
        return number

    def take(self, number: int) -> int:
        """This very number; EEXIST when it is taken, EINVAL when there is no such number."""
        if not 0 <= number < self._size:
            raise VerbsError(errno.EINVAL, f"{self._what} are numbered 0 to {self._size - 1}, not {number}")
        if number in self._used:
            raise VerbsError(errno.EEXIST, f"number {number} of {self._what} is taken")
        if number < self._fresh:
            self._freed.remove(number)
        self._used.add(number)
        return number

    def free(self, slot: int) -> None:
        self._used.discard(slot)
        if slot < self._fresh:  # else alloc has not come to it yet
            super().free(slot)
