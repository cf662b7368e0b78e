"""Random traffic of every opcode against a space that changes under it: every byte right, the dirty log exact.

Both sides move data in and out of the space of side b: WRITE, READ, SEND, atomics from a, and WRITE, READ, SEND by
b out of and into it. Meanwhile pages are taken away at any packet, slots beside the traffic come and go, the region's
ranges are replaced by others that say the same, and the log is harvested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from softrnic.verbs import Mtu, QpCap, QpType, RecvWr, SendWr, WrOpcode
from tests.odp.world import BASE, PAGE, World, pages, statuses
from tests.pairs import ALL_ACCESS

NPAGES = 64
IOVA = 0x7000_0000
CELLS = 64  # bytes at the end of the region for atomics


@dataclass
class Traffic:
    """A world, its random choices, and a model of what the region should hold."""

    seed: int
    odp: bool
    page_size: int = PAGE
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = rng = np.random.default_rng(self.seed)
        self.w = w = World(npages=NPAGES, paged=self.odp, delay=int(rng.integers(0, 30)), size=1 << 20)
        w.random(self.seed)
        self.ranges = self._random_ranges()
        self.mr = w.region(self.ranges, odp=self.odp, iova=IOVA)
        self.where = np.concatenate([np.arange(BASE + a, BASE + a + n) for a, n in self.ranges])
        self.length = len(self.where)
        self.model = w.ram.copy()
        self.changed: set[int] = set()  # pages (of the tracking size) in which the model says something was written
        w.space.start_tracking(self.page_size)
        cap = QpCap(128, 128, 3, 3, 0)
        self.qps = [w.connect(mtu=Mtu.MTU_1024, cap=cap, rd_atomic=4) for _ in range(3)]
        if not self.odp:
            self.qps.append(w.connect(QpType.UC, cap=cap))
        self.next_a, self.next_b = 0, CELLS
        self.reported: set[int] = set()
        self.side_slots: list[Any] = []

    def _random_ranges(self) -> list[tuple[int, int]]:
        """All of the ram, cut into pieces and shuffled; whole pages or odd ones."""
        step = PAGE if self.rng.integers(2) else 1
        cuts = np.unique(self.rng.integers(1, NPAGES * PAGE // step, int(self.rng.integers(0, 40)))) * step
        edges = [0, *cuts.tolist(), NPAGES * PAGE]
        pieces = [(a, b - a) for a, b in pairwise(edges)]
        order = self.rng.permutation(len(pieces)).tolist()
        return [pieces[i] for i in order]

    # --- what happens to whom: every request has bytes of its own on both sides, so that order does not matter ---

    def _take_b(self, n: int) -> int:
        at = self.next_b
        self.next_b += n
        return at

    def _take_a(self, n: int) -> int:
        at = self.next_a
        self.next_a += n
        return at

    def _written(self, at: int, data: np.ndarray) -> None:
        """The model: bytes at an offset of the region."""
        addrs = self.where[at : at + len(data)]
        self.model[addrs - BASE] = data
        self.changed |= set((addrs // self.page_size).tolist())

    def post_all(self, count: int) -> None:
        """`count` requests, as many as there is room for."""
        w, rng = self.w, self.rng
        self.expect_a: list[tuple[int, np.ndarray]] = []
        for i in range(count):
            n = int(rng.choice([1, 7, 100, 1024, 1025, 4096, 5000, 9000]))
            if self.next_b + n > self.length - 64 or self.next_a + n > len(w.a.buf):
                break
            qp, peer = self.qps[int(rng.integers(len(self.qps)))]
            a, b = self._take_a(n), self._take_b(n)
            kinds = [self._a_writes, self._a_sends, self._b_writes, self._b_sends]
            if qp.type == QpType.RC:
                kinds += [self._a_reads, self._b_reads, self._atomic]
            kinds[int(rng.integers(len(kinds)))](qp, peer, a, b, n, i)

    def _remote(self, b: int) -> dict[str, int]:
        return {"remote_addr": IOVA + b, "rkey": self.mr.rkey}

    def _a_writes(self, qp, peer, a, b, n, i) -> None:
        qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [self.w.a.mr.sge(a, n)], i, **self._remote(b)))
        self._written(b, self.w.a.buf[a : a + n])

    def _a_sends(self, qp, peer, a, b, n, i) -> None:
        cut = n // 3
        peer.post_recv(RecvWr([self.mr.sge(b, cut), self.mr.sge(b + cut, n - cut)], i))
        qp.post_send(SendWr(WrOpcode.SEND, [self.w.a.mr.sge(a, n)], i))
        self._written(b, self.w.a.buf[a : a + n])

    def _a_reads(self, qp, peer, a, b, n, i) -> None:
        qp.post_send(SendWr(WrOpcode.RDMA_READ, [self.w.a.mr.sge(a, n)], i, **self._remote(b)))
        self.expect_a.append((a, self.model[self.where[b : b + n] - BASE].copy()))

    def _b_writes(self, qp, peer, a, b, n, i) -> None:
        to = {"remote_addr": self.w.a.mr.iova + a, "rkey": self.w.a.mr.rkey}
        peer.post_send(SendWr(WrOpcode.RDMA_WRITE, [self.mr.sge(b, n)], i, **to))
        self.expect_a.append((a, self.model[self.where[b : b + n] - BASE].copy()))

    def _b_sends(self, qp, peer, a, b, n, i) -> None:
        qp.post_recv(RecvWr([self.w.a.mr.sge(a, n)], i))
        peer.post_send(SendWr(WrOpcode.SEND, [self.mr.sge(b, n)], i))
        self.expect_a.append((a, self.model[self.where[b : b + n] - BASE].copy()))

    def _b_reads(self, qp, peer, a, b, n, i) -> None:
        to = {"remote_addr": self.w.a.mr.iova + a, "rkey": self.w.a.mr.rkey}
        peer.post_send(SendWr(WrOpcode.RDMA_READ, [self.mr.sge(b, n)], i, **to))
        self._written(b, self.w.a.buf[a : a + n])

    def _atomic(self, qp, peer, a, b, n, i) -> None:
        """On a cell that is in one piece, for nobody else; a comparison that fails writes nothing."""
        if len(self.cells) == 0 or n < 8:
            return
        at = self.cells.pop()
        cell = self.where[at : at + 8] - BASE
        old = int(self.model[cell].view(np.int64)[0])
        self.expect_a.append((a, self.model[cell].copy()))
        kind = int(self.rng.integers(3))
        opcode = WrOpcode.ATOMIC_FETCH_AND_ADD if kind == 0 else WrOpcode.ATOMIC_CMP_AND_SWP
        operand = 5 if kind == 0 else old if kind == 1 else old ^ 1
        qp.post_send(SendWr(opcode, [self.w.a.mr.sge(a, 8)], i, compare_add=operand, swap=42, **self._remote(at)))
        if kind != 2:
            new = (old + 5 if kind == 0 else 42) & 0xFFFFFFFFFFFFFFFF
            self._written(at, np.frombuffer(new.to_bytes(8, "little"), np.uint8))

    def make_cells(self) -> None:
        """Offsets of eight bytes in one piece and aligned on both sides, at the end of what is given out."""
        fits = [at for at in range(0, self.length - 8, 8)
                if self.where[at] % 8 == 0 and self.where[at + 7] == self.where[at] + 7]  # fmt: skip
        self.cells = [at for at in fits if at < CELLS][:8]

    # --- what else goes on ---

    def disturb(self) -> None:
        """One thing that must not matter."""
        w, rng = self.w, self.rng
        what = int(rng.integers(6))
        if what < 2 and self.odp:
            first, count = int(rng.integers(NPAGES)), int(rng.integers(1, 20))
            w.space.invalidate(BASE + first * PAGE, count * PAGE)
        elif what == 2:
            addr = BASE + (NPAGES + 1 + 2 * int(rng.integers(20))) * PAGE
            taken = {s.addr for s in w.space.slots}
            if addr not in taken:
                self.side_slots.append(w.space.add_slot(addr, pages(1)))
        elif what == 3 and self.side_slots:
            w.space.remove_slot(self.side_slots.pop(int(rng.integers(len(self.side_slots)))))
        elif what == 4:
            self.mr.rereg_physical(self._same_ranges())
        else:
            self.harvest()

    def _same_ranges(self) -> list[tuple[int, int]]:
        """The same bytes in the same order, cut otherwise: another table."""
        out = []
        for addr, n in self.ranges:
            cut = int(self.rng.integers(0, n))
            out += [(BASE + addr, cut), (BASE + addr + cut, n - cut)] if cut else [(BASE + addr, n)]
        return out

    def harvest(self) -> None:
        """What was written since the last time."""
        for addr, n in self.w.space.written():
            self.reported |= set(range(addr // self.page_size, (addr + n) // self.page_size))

    def run(self, count: int, disturbances: int) -> None:
        """Post, disturb at random moments, play to the end."""
        self.make_cells()
        self.post_all(count)
        for _ in range(disturbances):
            for _ in range(int(self.rng.integers(0, 4))):
                self.w.round()
            self.disturb()
        self.w.play(budget=200_000)
        self.harvest()

    def check(self) -> None:
        """Byte by byte, and page by page."""
        assert set(statuses(self.w.poll()) + statuses(self.w.poll("b"))) == {"SUCCESS"}
        assert (self.w.ram == self.model).all()
        for a, data in self.expect_a:
            assert (self.w.a.buf[a : a + len(data)] == data).all()
        assert self.reported == self.changed


@pytest.mark.parametrize("seed", range(12))
def test_on_demand(seed: int) -> None:
    """By a page table of which pages vanish at any moment."""
    t = Traffic(seed, odp=True)
    t.run(60, 60)
    t.check()
    assert t.w.faults


@pytest.mark.parametrize("seed", range(100, 106))
def test_pinned(seed: int) -> None:
    t = Traffic(seed, odp=False)
    t.run(60, 60)
    t.check()


@pytest.mark.parametrize("page_size", [8192, 1 << 16, 1 << 21])
def test_larger_pages(page_size: int) -> None:
    """The dirty log at any page size."""
    t = Traffic(7, odp=True, page_size=page_size)
    t.run(60, 40)
    t.check()


def test_bytes_that_changed_lie_in_pages_reported() -> None:
    """The other way round, from the bytes alone: a diff of the memory against what was reported."""
    t = Traffic(31, odp=True)
    before = t.w.ram.copy()
    t.run(60, 20)
    differ = set(((np.flatnonzero(before != t.w.ram) + BASE) // PAGE).tolist())
    assert differ <= t.reported
    t.check()


def test_everything_goes_through_one_region() -> None:
    """All of the space instead of a list."""
    t = Traffic(41, odp=True)
    everything = t.w.b.pd.reg_all(t.w.space, ALL_ACCESS, odp=True)
    qp, _ = t.w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [t.w.a.mr.sge(0, 9000)], 1, remote_addr=BASE + 50, rkey=everything.rkey))
    t.w.play()
    assert (t.w.ram[50:9050] == t.w.a.buf[:9000]).all()
