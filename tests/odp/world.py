"""A pair of devices whose b side has an address space: memory with holes, a page table if asked for, and a resolver."""

from __future__ import annotations

import mmap
from collections import deque

import numpy as np

from softrnic.verbs import AddressSpace, PageFault, Qp, Wc
from tests.pairs import ALL_ACCESS, Pair

PAGE = 4096
BASE = 16 * PAGE  # where its memory begins


def pages(count: int) -> np.ndarray:
    """Page-aligned memory."""
    return np.frombuffer(mmap.mmap(-1, count * PAGE), np.uint8)


class World(Pair):
    """`ram` is the memory of `space` on side b; faults are noted, and resolved after `delay` rounds."""

    def __init__(
        self, *, npages: int = 64, paged: bool = True, page_size: int = PAGE, delay: int = 0, size: int = 1 << 18
    ) -> None:
        super().__init__(size=size)
        self.ram = pages(npages)
        self.space: AddressSpace = self.b.device.create_space(page_size, paged=paged)
        self.slot = self.space.add_slot(BASE, self.ram)
        self.space.resolver = self.note
        self.delay = delay
        self.faults: list[PageFault] = []
        self.due: deque[tuple[int, PageFault]] = deque()
        self.rounds = 0
        self.refuses = False

    def note(self, fault: PageFault) -> None:
        """The resolver."""
        self.faults.append(fault)
        self.due.append((self.rounds + self.delay, fault))

    def answer(self) -> None:
        """Resolve (or refuse) what is due."""
        while self.due and self.due[0][0] <= self.rounds:
            fault = self.due.popleft()[1]
            if self.refuses:
                fault.space.refuse(fault.addr, fault.length)
            else:
                fault.space.resolve(fault.addr, fault.length, fault.write)

    def round(self) -> int:
        """Carry what there is, hand out events, resolve what is due: the number of frames."""
        n = self.step()
        for side in (self.a, self.b):
            side.device.dispatch_events()
        self.answer()
        self.rounds += 1
        self.now += 1000
        self.tick()
        return n

    def tick(self) -> None:
        """Timers."""
        for side in (self.a, self.b):
            side.device.engine.on_timer(self.now)

    def play(self, *, budget: int = 20_000) -> None:
        """Until nothing moves any more."""
        for _ in range(budget):
            if self.round() or self.due or any(s.device.engine.has_work() for s in (self.a, self.b)):
                continue
            deadlines = [d for s in (self.a, self.b) if (d := s.device.engine.next_deadline()) is not None]
            if not deadlines:
                return
            self.now = max(self.now, min(deadlines))
            self.tick()
        raise AssertionError("no end")

    def region(self, ranges: list[tuple[int, int]] | None = None, *, odp: bool = True, iova: int = 0x1000000):
        """A region of the space: of all, or of ranges, which count from BASE."""
        if ranges is None:
            return self.b.pd.reg_all(self.space, ALL_ACCESS, odp=odp)
        shifted = [(BASE + addr, length) for addr, length in ranges]
        return self.b.pd.reg_physical_mr(self.space, iova, shifted, ALL_ACCESS, odp=odp)

    def random(self, seed: int) -> np.ndarray:
        """Fill a's buffer and the ram with noise; a's bytes."""
        rng = np.random.default_rng(seed)
        self.a.buf[:] = rng.integers(0, 256, len(self.a.buf))
        self.ram[:] = rng.integers(0, 256, len(self.ram))
        return self.a.buf

    def poll(self, side: str = "a") -> list[Wc]:
        """Completions of one side."""
        return (self.a if side == "a" else self.b).cq.poll(1000)


def statuses(completions: list[Wc]) -> list[str]:
    """Their statuses by name."""
    return [wc.status.name for wc in completions]


def paused(qp: Qp) -> int:
    """PageWait bits of a QP."""
    return int(qp.record["fault"])
