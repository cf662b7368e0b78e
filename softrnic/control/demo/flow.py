"""Work requests in flight: keeps queues full and takes the completions until all is done.

Decides how much is outstanding and when to give up. Must never know what the data is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from softrnic.errors import SoftRnicError
from softrnic.verbs import Cq, RecvWr, SendWr, Wc

WINDOW = 32  # work requests of one queue outstanding at most
STALL_SECONDS = 30.0  # without a single completion, nothing will come any more
WAIT_SECONDS = 0.1

Wr = TypeVar("Wr", SendWr, RecvWr)


class FlowError(SoftRnicError):
    """A completion that was not expected, or none for too long."""


class Flow:
    """The work requests of one queue, posted in order by `post`, completed in order on a CQ of their own."""

    def __init__(self, post: Callable[[Sequence[Wr]], None], cq: Cq, wrs: Iterable[Wr]) -> None:
        self.completions: list[Wc] = []
        self.done = False
        self._fill = _filler(post, wrs)
        self._cq = cq
        self._posted: deque[int] = deque()

    def advance(self, timeout: float | None = None) -> int:
        """Post what fits, take what has completed: how many. With `timeout`, wait for the first."""
        self._posted += self._fill(WINDOW - len(self._posted))
        if not self._posted:
            self.done = True
            return 0
        taken = self._cq.poll(WINDOW) if timeout is None else self._cq.wait(timeout)
        for wc in taken:
            wc.raise_for_status()
            expected = self._posted.popleft()
            if wc.wr_id != expected:
                raise FlowError(f"work request {wc.wr_id} completed, {expected} was next")
        self.completions += taken
        return len(taken)


def _filler(post: Callable[[Sequence[Wr]], None], wrs: Iterable[Wr]) -> Callable[[int], list[int]]:
    """A function that posts up to n more of `wrs` and returns their numbers."""
    waiting: Iterator[Wr] = iter(wrs)

    def fill(n: int) -> list[int]:
        batch = [wr for _, wr in zip(range(n), waiting, strict=False)]
        if batch:
            post(batch)
        return [wr.wr_id for wr in batch]

    return fill


def run(*flows: Flow) -> float:
    """Run all flows to their end; in each round the first named are served first. The seconds it took."""
    start = last = time.monotonic()
    while busy := [flow for flow in flows if not flow.done]:
        moved = sum(flow.advance() for flow in busy)
        if not moved and not busy[0].done:
            moved = busy[0].advance(WAIT_SECONDS)
        now = time.monotonic()
        if moved:
            last = now
        elif now - last > STALL_SECONDS:
            raise FlowError(f"no completion for {STALL_SECONDS:.0f} s")
    return time.monotonic() - start
