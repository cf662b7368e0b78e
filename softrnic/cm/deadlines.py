"""Items with at most one deadline each, earliest first: O(log n), and nothing kept of what was cancelled.

Time is whatever integer the caller counts in.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_SLACK = 64  # cancelled entries worth keeping rather than rebuilding the heap


class _Entry(Generic[T]):
    __slots__ = ("item", "order", "when")

    def __init__(self, when: int, order: int, item: T) -> None:
        self.when = when
        self.order = order
        self.item: T | None = item  # None once cancelled

    def __lt__(self, other: _Entry[T]) -> bool:
        return (self.when, self.order) < (other.when, other.order)


class Deadlines(Generic[T]):
    """Deadlines by item; items compare by identity."""

    def __init__(self) -> None:
        self._heap: list[_Entry[T]] = []
        self._entries: dict[int, _Entry[T]] = {}
        self._order = 0  # among equal deadlines the first set is the first due

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, item: T, when: int) -> None:
        """Replace the item's deadline."""
        self.cancel(item)
        self._order += 1
        entry = _Entry(when, self._order, item)
        self._entries[id(item)] = entry
        heapq.heappush(self._heap, entry)

    def cancel(self, item: T) -> None:
        """Forget the item's deadline, if it has one."""
        entry = self._entries.pop(id(item), None)
        if entry is None:
            return
        entry.item = None
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = [e for e in self._heap if e.item is not None]
            heapq.heapify(self._heap)

    def of(self, item: T) -> int | None:
        """The item's deadline."""
        entry = self._entries.get(id(item))
        return entry.when if entry else None

    def next(self) -> int | None:
        """The earliest deadline."""
        while self._heap and self._heap[0].item is None:
            heapq.heappop(self._heap)
        return self._heap[0].when if self._heap else None

    def expired(self, now: int) -> Iterator[T]:
        """Take out, one by one, the items whose deadline is not after `now`."""
        while (when := self.next()) is not None and when <= now:
            item = heapq.heappop(self._heap).item
            if item is not None:
                del self._entries[id(item)]
                yield item
