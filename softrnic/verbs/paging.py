"""On-demand paging of an address space: faults of the device handed to a resolver, and what its owner answers.

The device has a page table of its own (softrnic.mem.pages). Nothing here blocks: a resolver starts whatever brings the
page, returns, and calls `resolve` or `refuse` when it knows, from any thread; until then only QPs that need the page
wait. `invalidate` is the other direction, the role of an MMU notifier.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from softrnic.counters import C
from softrnic.errors import VerbsError
from softrnic.layout import FaultFlag, Paging
from softrnic.mem import pages
from softrnic.verbs.pagetable import PageTable, prepare
from softrnic.verbs.slot import Slot, view_of

if TYPE_CHECKING:
    from softrnic.engine import Event
    from softrnic.verbs.mr import Mr
    from softrnic.verbs.space import AddressSpace

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # madvise, Linux 5.14


class PageFault(NamedTuple):
    """What a resolver is asked for: pages that touch these bytes.

    `prefetch`: advice, nobody waits. `failed`: the page table said present, but the kernel refused the access. `seq`
    goes back into `resolve`, so that what was invalidated meanwhile is asked for again instead of believed.
    """

    space: AddressSpace
    addr: int
    length: int
    write: bool
    prefetch: bool = False
    failed: bool = False
    seq: int = 0


class PageSource(Protocol):
    """Post-copy: where pages that are not here yet come from; they arrive through `AddressSpace.land`."""

    def request(self, addr: int, length: int, urgent: bool) -> None:
        """Bring these bytes, before all others if `urgent`: a QP waits for them. Must not block."""


Resolver = Callable[[PageFault], None]


@dataclass
class _Wanted:
    """A page that was asked for."""

    write: bool = False
    mrs: Counter[int] = field(default_factory=Counter)


class PagedSpace(PageTable):
    """The part of an address space that asks for pages, and is answered."""

    slots: list[Slot]
    regions: set[Mr]

    def __init__(self) -> None:
        super().__init__()
        self._resolver: Resolver | None = None
        self._source: PageSource | None = None
        self._wanted: dict[int, _Wanted] = {}
        self._seq = 0

    @abstractmethod
    def slot_at(self, addr: int) -> Slot | None:
        """The slot that has some byte of the page at an address."""

    @abstractmethod
    def sweep(self) -> None:
        """Never ask a process again that has died."""

    # --- faults and answers ---

    @property
    def sequence(self) -> int:
        """What `PageFault.seq` is now: counts what was invalidated."""
        return self._seq

    @property
    def resolver(self) -> Resolver | None:
        """Who is asked for missing pages. None: pages of this host come by themselves."""
        return self._resolver

    @resolver.setter
    def resolver(self, resolver: Resolver | None) -> None:
        with self._still():
            self._resolver = resolver
            for mr in list(self.regions):
                mr.trust(resolver is None)

    def fault(self, event: Event) -> None:
        """A page the device needed is missing. Called by whoever drives the engine."""
        page, write = event.arg & -self.page_size, bool(event.flags & FaultFlag.WRITE)
        failed = bool(event.flags & FaultFlag.FAILED)
        self.sweep()
        with self._lock:  # whoever drives the engine is here, so it stands still
            if self._table is None:
                return
            known = self._wanted.get(page)
            if self.is_present(page, write=write):
                if not failed:
                    self._count_handled(Counter([event.mr]))  # came before we looked
                    return
                # no more: the kernel took it away unheard
                pages.take_away(self.device.engine.tables, self.index, page, self.page_size)
            asked = known is not None and known.write >= write and not failed
            wanted = self._wanted.setdefault(page, _Wanted())
            wanted.mrs[event.mr] += 1
            wanted.write |= write
            end = event.arg + max(1, event.length)
            run = next(self.missing(page, end - page, write=write), (page, self.page_size))
        if not asked:
            self._ask(run[0], run[1], write, failed=failed)

    def _ask(self, addr: int, length: int, write: bool, *, prefetch: bool = False, failed: bool = False) -> None:
        """Hand a fault to whoever brings pages. One that throws has said that there is no page."""
        try:
            if self._source is not None:
                self._source.request(addr, length, not prefetch)
            elif self._resolver is not None:
                self._resolver(PageFault(self, addr, length, write, prefetch, failed, self._seq))  # type: ignore[arg-type]
            else:
                self._resolve_here(addr, length, write, failed)
        except Exception as error:  # noqa: BLE001  the device goes on, whatever is wrong with a resolver
            self.resolver_error = error
            self.refuse(addr, length)

    resolver_error: Exception | None = None
    """The last exception of a resolver; the pages it was asked for were refused."""

    def _resolve_here(self, addr: int, length: int, write: bool, failed: bool) -> None:
        """Without a resolver: memory of this process is brought in by the kernel, that of others at the access."""
        for page in range(addr, addr + length, self.page_size):
            if self.populate(page, self.page_size, write=write, failed=failed):
                self.resolve(page, self.page_size, write=write)
            else:
                self.refuse(page, self.page_size)

    def populate(self, addr: int, length: int, *, write: bool, failed: bool = False) -> bool:
        """Have the kernel bring pages of this process, which may take a while: whether all of them can be had.

        Those of other processes are brought in by the access itself; `failed`: it was refused.
        """
        end = addr + length
        while addr < end:
            slot = self.slot_at(addr)
            stop = addr + self.page_size if slot is None else min(end, max(slot.end, addr + self.page_size))
            if slot is not None and slot.pid:
                there = _populate(slot, addr, stop, write) if slot.is_ours else not failed
                if not there:
                    return False
            addr = stop
        return True

    @property
    def seq(self) -> int:
        """Counts invalidations: for `resolve`, as it was when one began to bring the page."""
        return self._seq

    def resolve(self, addr: int, length: int, write: bool = True, *, seq: int | None = None) -> bool:
        """The pages are there now, to be written too if `write`; who waits for them goes on.

        With the `seq` of the fault, False and nothing happens if something was invalidated since: ask again.
        """
        with self._still():
            start, size = self._pages(addr, length)
            if seq is not None and seq != self._seq:
                return False
            pages.make_present(self.device.engine.tables, self.index, start, size, write)
            self._settle(start, size, handled=True)
        self.device.kick()
        return True

    def refuse(self, addr: int, length: int) -> None:
        """The pages never will be there: who waits for them has an access error, until they are resolved after all."""
        with self._still():
            start, size = self._pages(addr, length)
            pages.refuse(self.device.engine.tables, self.index, start, size)
            self._settle(start, size, handled=False)
        self.device.kick()

    def invalidate(self, addr: int, length: int) -> None:
        """The pages are about to change or to go: when this returns the device touches them no more, and asks again."""
        with self._still():
            start, size = self._pages(addr, length)
            taken = int(pages.take_away(self.device.engine.tables, self.index, start, size))
            self._seq += 1
            stats = self.device.record["mr_stats"]
            self.device.record["counters"][C.PAGE_INVALIDATIONS] += size // self.page_size
            self.device.record["counters"][C.PAGE_INVALIDATIONS_HANDLED] += taken
            for mr in self._on_demand_regions(start, size):
                stats[mr.index]["page_invalidations"] += 1
                stats[mr.index]["page_invalidations_handled"] += taken > 0

    def prefetch(self, addr: int, length: int, write: bool = False) -> None:
        """ibv_advise_mr: bring what is missing of these bytes before anybody needs it."""
        with self._still():
            runs = list(self.missing(addr, length, write=write))
            count = sum(size for _, size in runs) // self.page_size
            self.device.record["counters"][C.PAGE_PREFETCH] += count
            for mr in self._on_demand_regions(addr, length):
                self.device.record["mr_stats"][mr.index]["page_prefetch"] += count
        for start, size in runs:
            self._ask(start, size, write, prefetch=True)

    def look_again(self) -> None:
        """Let all who wait here try again; what is still missing is asked for anew."""
        with self._still():
            self._look_again()

    def _look_again(self) -> None:
        self._wanted.clear()
        pages.wake_all(self.device.engine.tables, self.index)

    def _on_demand_regions(self, addr: int, length: int) -> Iterable[Mr]:
        return [mr for mr in list(self.regions) if mr.odp and mr.overlaps(addr, addr + length)]

    def _settle(self, start: int, size: int, *, handled: bool) -> None:
        """What was asked for has been answered."""
        if size // self.page_size < len(self._wanted):
            answered = [p for p in range(start, start + size, self.page_size) if p in self._wanted]
        else:
            answered = [p for p in self._wanted if start <= p < start + size]
        for page in answered:
            wanted = self._wanted.pop(page)
            if handled:
                self._count_handled(wanted.mrs)

    def _count_handled(self, mrs: Counter[int]) -> None:
        for index, count in mrs.items():
            self.device.record["counters"][C.PAGE_FAULTS_HANDLED] += count
            if index >= 0:
                self.device.record["mr_stats"][index]["page_faults_handled"] += count

    # --- post-copy ---

    @property
    def page_source(self) -> PageSource | None:
        """Where pages come from that arrive later. Setting one takes every page away, from all regions, pinned or not.

        Setting None ends this: what has not arrived is what it is.
        """
        return self._source

    @page_source.setter
    def page_source(self, source: PageSource | None) -> None:
        prepare()
        with self._still():
            if source is not None and self._source is None:
                self._set_paging(Paging.EVERY)
                for bitmap in self._table or ():
                    bitmap.clear()
            elif source is None and self._source is not None:
                self._set_paging(Paging.ODP if self._on_demand else Paging.NONE)
            self._source = source
            self._seq += 1
            self._look_again()
        self.device.kick()

    def land(self, addr: int, data: bytes | memoryview | np.ndarray) -> int:
        """Whole pages arrive from the page source: how many were still missing. EFAULT where nothing can be written.

        A page that is here already stays as it is: the device may have written it since.
        """
        view = view_of(data)
        start, size = self._pages(addr, view.nbytes)
        if start != addr or size != view.nbytes:
            raise VerbsError(errno.EINVAL, f"{view.nbytes} bytes at {addr:#x} are not whole pages")
        landed = 0
        with self._still():
            for at in range(0, size, self.page_size):
                status = pages.land(
                    self.device.engine.tables, self.index, addr + at, int(view.ctypes.data) + at, self.page_size
                )
                if status not in (pages.LANDED, pages.LATE):
                    raise VerbsError(errno.EFAULT, f"the page at {addr + at:#x} cannot be written")
                landed += status == pages.LANDED
            self._settle(start, size, handled=True)
        self.device.kick()
        return landed


def _populate(slot: Slot, addr: int, end: int, write: bool) -> bool:
    """Ask the kernel for pages of this process, for writing only if need be: that would break up shared ones."""
    start = max(addr, slot.addr)
    host = slot.host + start - slot.addr
    skip = host % mmap.PAGESIZE
    advice = _POPULATE_WRITE if write else _POPULATE_READ
    return bool(_LIBC.madvise(host - skip, min(end, slot.end) - start + skip, advice) == 0)
