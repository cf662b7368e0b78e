"""A host's arena as an address space that never keeps still: pages come late and are taken away, slots come and go.

The arena lies in pieces at scattered addresses of the space, and a region puts them together again in order, so that to
everybody else it is a name for the arena like any other.
"""

from __future__ import annotations

from random import Random

import numpy as np

from softrnic.verbs import Access, AddressSpace, Device, PageFault, Pd, PhysicalMr
from tests.sim.scenario import ARENA

_PAGE = 4096
_BESIDE = 1 << 40  # where slots are plugged that nobody uses


class PagedArena:
    """The space, its region, and what disturbs them."""

    def __init__(self, device: Device, pd: Pd, arena: np.ndarray, access: Access, iova: int, random: Random) -> None:
        self.random = random
        self.space: AddressSpace = device.create_space(paged=True)
        self.space.resolver = self._note
        self._due: list[PageFault] = []
        self._extra = bytearray(_PAGE)
        cuts = sorted(random.randrange(8, ARENA, 8) for _ in range(random.randrange(12)))  # none through an atomic
        edges = [0, *cuts, ARENA]
        places = random.sample(range(1, 1000), len(edges))
        self._ranges = []
        for start, end, place in zip(edges, edges[1:], places, strict=False):
            if start < end:
                addr = place * 4 * ARENA + (int(arena.ctypes.data) + start) % _PAGE  # atomics need their alignment
                self.space.add_slot(addr, arena[start:end])
                self._ranges.append((addr, end - start))
        self.mr: PhysicalMr = pd.reg_physical_mr(self.space, iova, self._ranges, access, odp=True)

    def _note(self, fault: PageFault) -> None:
        self._due.append(fault)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a page."""
        return bool(self._due)

    def visit(self) -> bool:
        """Answer some of what is due, and now and then disturb: whether anything was answered."""
        r = self.random
        later = [fault for fault in self._due if r.random() < 0.2]
        now = [fault for fault in self._due if fault not in later]
        self._due = later
        for fault in now:
            if not self.space.resolve(fault.addr, fault.length, fault.write, seq=fault.seq):
                self._due.append(fault._replace(seq=self.space.sequence))
        if r.random() < 0.3:
            self._disturb()
        return bool(now)

    def _disturb(self) -> None:
        r = self.random
        addr, length = r.choice(self._ranges)
        what = r.randrange(4)
        if what == 0:
            self.space.invalidate(addr + r.randrange(length), r.choice((1, _PAGE, 16 * _PAGE)))
        elif what == 1:
            self.space.prefetch(addr, length, write=True)
        elif what == 2:
            self.mr.rereg_physical([piece for pair in self._ranges for piece in self._cut(*pair)])
        elif plugged := [s for s in self.space.slots if s.addr >= _BESIDE]:
            self.space.remove_slot(plugged[0])
        else:
            self.space.add_slot(_BESIDE + r.randrange(100) * _PAGE, self._extra)

    def _cut(self, addr: int, length: int) -> list[tuple[int, int]]:
        """The same bytes in two pieces. A place for an atomic is never cut."""
        at = self.random.randrange(length) & -_PAGE
        return [(addr, at), (addr + at, length - at)] if at else [(addr, length)]
