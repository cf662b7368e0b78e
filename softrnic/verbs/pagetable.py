"""The device's page table of an address space, as bitmaps in this process: made when paging begins, grown with slots.

The table itself is read and written by softrnic.mem.pages. Who asks for pages, and when, is paging.py's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from softrnic.errors import VerbsError
from softrnic.layout import Paging, make_engine
from softrnic.mem import pages
from softrnic.verbs.bitmap import Bitmap, window
from softrnic.verbs.slot import TOP

if TYPE_CHECKING:
    from softrnic.verbs.device import Device


@functools.cache
def prepare() -> None:
    """Compile what a fault needs before anybody waits for it, on an engine that nobody uses."""
    engs = make_engine()
    pages.is_present(engs, 0, 0, False)
    pages.next_missing(engs, 0, 0, 0, False)
    pages.refuse(engs, 0, 0, 0)
    pages.take_away(engs, 0, 0, 0)
    pages.make_present(engs, 0, 0, 0, False)
    pages.wake_all(engs, 0)
    pages.land(engs, 0, -1, 0, 0)


class PageTable(ABC):
    """The part of an address space that is its page table."""

    device: Device
    index: int
    page_size: int

    def __init__(self) -> None:
        self._on_demand = False
        self._table: tuple[Bitmap, Bitmap, Bitmap] | None = None
        self._lock = threading.Lock()

    @property
    def paged(self) -> bool:
        """Whether on-demand regions look at a page table here."""
        return self._on_demand

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """The engine stands still, and nobody else is at this space; in this order everywhere. Not reentrant."""
        with self.device.quiesced(), self._lock:
            yield

    @abstractmethod
    def _span(self) -> tuple[int, int]:
        """First address and end of what there is."""

    @abstractmethod
    def _refresh(self) -> None:
        """Something was switched on or off: tell the engine."""

    def _set_paging(self, paging: Paging) -> None:
        """Inside `quiesced`: the page table exists before anybody looks at it."""
        record = self.device.record["spaces"][self.index]
        if paging != Paging.NONE:
            self._make_table()
        pages.set_paging(self.device.engine.tables, self.index, int(paging))
        if paging == Paging.NONE:
            self._table = None
            record["npages"] = 0
        self._refresh()

    def _make_table(self) -> None:
        """A page table over all of the space, keeping what is known of the pages of the old one."""
        record = self.device.record["spaces"][self.index]
        low, high = self._span()
        before = int(record["first"])
        if self._table is not None:
            end = before + int(record["npages"]) * self.page_size
            if before <= low and high <= end:
                return
            low, high = min(low, before), max(high, end)
        first, count = window(low, high, self.page_size)
        table = (Bitmap(count), Bitmap(count), Bitmap(count))
        for new, old in zip(table, self._table or (), strict=False):
            new.take_over(old, (before - first) // self.page_size // 64)
        for name, new in zip(("present", "writable", "refused"), table, strict=True):
            record[name] = new.address
        record["first"], record["npages"] = first, count
        record["page_shift"] = self.page_size.bit_length() - 1
        self._table = table

    def _pages(self, addr: int, length: int) -> tuple[int, int]:
        """The pages that touch some bytes, as first address and length; EINVAL when there are none."""
        if self._table is None:
            raise VerbsError(errno.EINVAL, f"address space {self.index} is not paged")
        if length <= 0 or addr < 0 or addr > TOP - length:
            raise VerbsError(errno.EINVAL, f"{length} bytes at {addr:#x} are none, or wrap around")
        first = addr & -self.page_size
        return first, min(TOP + 1 - self.page_size, -(-(addr + length) // self.page_size) * self.page_size) - first

    def is_present(self, addr: int, *, write: bool = False) -> bool:
        """Whether the device may read (write) the page at an address without asking."""
        return self._table is None or bool(pages.is_present(self.device.engine.tables, self.index, addr, write))

    def missing(self, addr: int, length: int, *, write: bool = False) -> Iterator[tuple[int, int]]:
        """Page by page what is not present of some bytes, neighbours together: (address, length)."""
        at, length = self._pages(addr, length)
        end = at + length
        tables = self.device.engine.tables
        while (at := int(pages.next_missing(tables, self.index, at, end, write))) < end:
            stop = at + self.page_size
            while stop < end and not self.is_present(stop, write=write):
                stop += self.page_size
            yield at, stop - at
            at = stop
