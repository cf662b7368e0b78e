"""Receive queues as a program keeps them: buffers posted now or later, and handed out again by completions."""

from __future__ import annotations

import numpy as np

from softrnic.verbs import Qp, RecvWr, Srq, Wc
from tests.sim.host import Host, Piece

GRH_BYTES = 40


class Receiver:
    """The receive queue of one QP, or a shared one. With `size`, all buffers are of that size."""

    def __init__(self, host: Host, queue: Qp | Srq, most_sge: int, number: int, size: int | None = None) -> None:
        self.host, self.queue, self.most_sge, self.size = host, queue, most_sge, size
        self._unposted: list[list[Piece]] = []
        self._posted: dict[int, list[Piece]] = {}  # wr_id to the buffer
        self._next = number << 40
        if isinstance(queue, Qp):
            self._record: np.void = queue.record
            self._depth, self._prod, self._head = queue.rq_size, "rq_prod", "rq_head"
        else:
            self._record = host.device.record["srqs"][queue.index]
            self._depth, self._prod, self._head = queue.max_wr, "prod", "head"

    def plan(self, length: int) -> None:
        """One more message of up to `length` bytes will come."""
        size = length if self.size is None else self.size
        if self.size is None and self.host.random.random() < 0.3:
            size += self.host.random.randrange(100)
        self._unposted.append(self.host.alloc_split(size, self.most_sge))

    @property
    def unposted(self) -> int:
        """Buffers still to be posted."""
        return len(self._unposted)

    @property
    def room(self) -> int:
        """How many buffers could be posted now."""
        if not self._unposted:
            return 0
        return min(len(self._unposted), self._depth - int(self._record[self._prod]) + int(self._record[self._head]))

    def post(self, most: int) -> int:
        """Post up to `most` buffers as far as there is room; returns how many."""
        n = min(most, self.room)
        for pieces in self._unposted[:n]:
            self.queue.post_recv(RecvWr(self.host.sges(pieces), self._next))
            self._posted[self._next] = pieces
            self._next += 1
        del self._unposted[:n]
        return n

    def take(self, wc: Wc) -> list[Piece] | None:
        """The buffer a completion names, or None if that is not one whose turn it is."""
        pieces = self._posted.pop(wc.wr_id, None)
        if pieces is None or (isinstance(self.queue, Qp) and any(wr_id < wc.wr_id for wr_id in self._posted)):
            return None
        return pieces

    def forgive(self) -> None:
        """Buffers not completed may hold part of a message (UC, UD)."""
        for pieces in self._posted.values():
            self.host.accept(pieces)
