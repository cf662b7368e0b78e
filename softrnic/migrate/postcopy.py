"""Which page goes next when the function runs already and part of its memory does not: pure book-keeping.

Pages that somebody waits for go first, in the order they were asked for. Behind them the rest, from the page after the
last one asked for on, since who touched one page is likely to touch the next. Every page goes once.
"""

from __future__ import annotations

from collections import deque

import numpy as np


class PageOrder:
    """The pages of one piece of memory still to be sent."""

    def __init__(self, missing: np.ndarray) -> None:
        """`missing`: one bool per page."""
        self._missing = missing.astype(bool, copy=True)
        self._left = int(np.count_nonzero(self._missing))
        self._urgent: deque[int] = deque()
        self._cursor = 0

    @property
    def left(self) -> int:
        """Pages still to be sent."""
        return self._left

    @property
    def missing(self) -> np.ndarray:
        """One bool per page: still to be sent."""
        return self._missing.copy()

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for a page."""
        return any(self._missing[page] for page in self._urgent)

    def want(self, page: int) -> bool:
        """Somebody waits for this page. False: there is no such page, or it has gone already."""
        if not 0 <= page < len(self._missing) or not self._missing[page]:
            return False
        self._urgent.append(page)
        self._cursor = page + 1
        return True

    def again(self, first: int, count: int) -> None:
        """These pages did not arrive after all."""
        part = self._missing[first : first + count]
        self._left += int(np.count_nonzero(~part))
        part[:] = True

    def take(self, most: int) -> tuple[int, int] | None:
        """The next run, (first page, count up to `most`), now counted as sent; None when all have gone."""
        while self._urgent:
            page = self._urgent.popleft()
            if self._missing[page]:
                return self._sent(page, 1)  # alone: nobody shall wait for its neighbours to be sent
        if not self._left:
            return None
        first = self._next_from(self._cursor)
        window = self._missing[first : first + most]
        gaps = np.flatnonzero(~window)
        return self._sent(first, int(gaps[0]) if len(gaps) else len(window))

    def _next_from(self, cursor: int) -> int:
        later = np.flatnonzero(self._missing[cursor:])
        return cursor + int(later[0]) if len(later) else int(np.flatnonzero(self._missing)[0])

    def _sent(self, first: int, count: int) -> tuple[int, int]:
        self._missing[first : first + count] = False
        self._left -= count
        self._cursor = first + count
        return first, count
