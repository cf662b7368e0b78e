"""What processors write to memory that devices write, too: a dirty log to be merged with that of the address space.

    log = Merged([space, CpuDirty(resolver, [watch])])

Pages are write-protected in the processors' page tables. With a descriptor that has WP_ASYNC the kernel lifts that by
itself at the first write, and PAGEMAP_SCAN finds such pages and protects them again in one step. Otherwise the first
write is a fault that the reader answers, noting the page (Policy.UNPROTECT).

A page is taken out before it is protected again, so a write between the two is reported by neither this call nor the
next. It is in the page all the same when the call returns, and whoever asked copies it after that.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from netio import uffd_reader
from netio.pagemap import PAGE_BYTES, Pagemap
from netio.uffd import Feature
from netio.uffd_reader import Policy
from softrnic.errors import IoError
from softrnic.verbs import VerbsError

if TYPE_CHECKING:
    from softrnic.control.odp.resolver import Resolver
    from softrnic.control.odp.watch import Watch


class CpuDirty:
    """Pages of some watches (registered for WP) that processors have written. `pid`: of another process."""

    tracking = PAGE_BYTES

    def __init__(self, resolver: Resolver, watches: Sequence[Watch], pid: int | None = None) -> None:
        for watch in watches:
            if watch.addr % PAGE_BYTES or watch.span.page_size != PAGE_BYTES:
                raise VerbsError(errno.EINVAL, f"the watch at {watch.addr:#x} is not one of {PAGE_BYTES} byte pages")
            if not _is_async(watch) and Policy.UNPROTECT not in watch.span.policy:
                raise VerbsError(errno.EINVAL, "nobody would lift the protection of the watched pages")
        self._reader = resolver.reader
        self._watches = list(watches)
        self._pagemap = Pagemap(pid)
        self._logs = {id(w): np.zeros(-(-w.span.length // PAGE_BYTES // 64), np.uint64) for w in watches}
        for watch in watches:
            if not _is_async(watch):
                self._reader.record(watch.span, int(self._logs[id(watch)].ctypes.data))
            watch.span.uffd.writeprotect(watch.span.start, watch.span.length, True)

    def read_and_clear(self, first_addr: int, length: int) -> np.ndarray:
        """Pages written in a range since they were last taken out, as 64-bit words."""
        if first_addr % PAGE_BYTES or length <= 0:
            raise VerbsError(errno.EINVAL, f"{length} bytes at {first_addr:#x}: not from a page on")
        count = -(-length // PAGE_BYTES)
        flags = np.zeros(-(-count // 64) * 64, np.uint8)
        for watch in self._watches:
            low = max(first_addr, watch.addr)
            high = min(first_addr + count * PAGE_BYTES, watch.addr + watch.span.length)
            if low < high:
                for start, end in self._written(watch, watch.host(low), watch.host(high)):
                    shift = watch.addr - watch.span.start - first_addr
                    flags[(start + shift) // PAGE_BYTES : (end + shift) // PAGE_BYTES] = 1
        return np.packbits(flags, bitorder="little").view(np.uint64)

    def _written(self, watch: Watch, start: int, end: int) -> list[tuple[int, int]]:
        """Ranges of the process, taken out and protected again."""
        if _is_async(watch):
            return [(found.start, found.end) for found in self._pagemap.written(start, end - start)]
        first, last = ((at - watch.span.start) // PAGE_BYTES for at in (start, end))
        log = self._logs[id(watch)]
        runs = []
        for page in range(first, last):
            if uffd_reader.take_bit(log, page):
                at = watch.span.start + page * PAGE_BYTES
                watch.span.uffd.writeprotect(at, PAGE_BYTES, True)
                runs.append((at, at + PAGE_BYTES))
        return runs

    def close(self) -> None:
        """Protect nothing any more."""
        for watch in self._watches:
            try:
                watch.span.uffd.writeprotect(watch.span.start, watch.span.length, False)
            except IoError as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EBADF):
                    raise
            self._reader.record(watch.span, 0)
        self._pagemap.close()


def _is_async(watch: Watch) -> bool:
    return Feature.WP_ASYNC in watch.span.uffd.features
