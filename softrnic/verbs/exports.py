"""The dirty log of an address space in the forms that others expect: KVM, vhost, VFIO, a ring of page numbers.

All take pages out of a *log*: anything with `tracking` (its page size) and `read_and_clear(addr, length)`, so an
address space, or a Merged of one and of what processors wrote. A page taken out by one is not reported by another:
one reader per log.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from softrnic.errors import VerbsError
from softrnic.mem import export
from softrnic.verbs.slot import TOP, view_of

VHOST_PAGE = 4096  # VHOST_LOG_PAGE
MIN_REPORT_PAGE = 4096  # of VFIO


def pages_in(length: int, size: int) -> int:
    """How many pages begin in `length` bytes."""
    return -(-length // size)


def words_for(bits: int) -> int:
    """How many 64-bit words hold so many bits."""
    return -(-bits // 64)


class DirtyLog(Protocol):
    """Where dirty pages are taken out of."""

    @property
    def tracking(self) -> int:
        """Bytes per page."""

    def read_and_clear(self, first_addr: int, length: int) -> np.ndarray:
        """Pages written in a range since they were last taken out, as 64-bit words; the range begins a page."""


class Merged:
    """Several logs of the same memory as one: what the device wrote and what processors wrote.

    A page is as large as the largest of theirs.
    """

    def __init__(self, logs: Sequence[DirtyLog]) -> None:
        if not logs:
            raise VerbsError(errno.EINVAL, "nothing to merge")
        self._logs = tuple(logs)

    @property
    def tracking(self) -> int:
        """Bytes per page."""
        return max(log.tracking for log in self._logs)

    def read_and_clear(self, first_addr: int, length: int) -> np.ndarray:
        """Pages that any of them has."""
        size = self.tracking
        _check(first_addr, length, size)
        count = pages_in(length, size)
        words = np.zeros(words_for(count), np.uint64)
        for log in self._logs:
            part = log.read_and_clear(first_addr, length)
            _merge(part, log.tracking, 0, int(words.ctypes.data), size, count, atomic=False)
        return words


def _merge(words: np.ndarray, size: int, skew: int, dst: int, target: int, limit: int, *, atomic: bool) -> None:
    """OR a bitmap into another of other pages, which begins `skew` bytes before it and has `limit` bits."""
    words = np.ascontiguousarray(words, np.uint64)
    if size == target and skew % size == 0 and skew >= 0 and skew // size + _highest(words) < limit:
        export.or_shifted(words, dst, skew // size, atomic)
    else:
        export.or_scaled(words, size, skew, dst, target, limit, atomic)


def _highest(words: np.ndarray) -> int:
    """Index of the highest bit set, or -1."""
    busy = np.flatnonzero(words)
    return int(busy[-1]) * 64 + int(words[busy[-1]]).bit_length() - 1 if len(busy) else -1


def _check(addr: int, length: int, size: int) -> None:
    if length <= 0 or addr < 0 or addr > TOP - length:
        raise VerbsError(errno.EINVAL, f"{length} bytes at {addr:#x} are none, or wrap around")
    if not size:
        raise VerbsError(errno.EINVAL, "writes are not being recorded")
    if addr % size:
        raise VerbsError(errno.EINVAL, f"{addr:#x} does not begin a page of {size}")


# --- KVM ------------------------------------------------------------------------------------------------------


class KvmLog:
    """KVM_GET_DIRTY_LOG of one memory slot; `manual`: with KVM_CLEAR_DIRTY_LOG, as KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.

    Pages are those of the log.
    """

    def __init__(self, log: DirtyLog, addr: int, length: int, *, manual: bool = False) -> None:
        _check(addr, length, log.tracking)
        self._log, self._addr, self._length = log, addr, length
        self.pages = pages_in(length, log.tracking)
        self._pending = np.zeros(words_for(self.pages), np.uint64)
        self._manual = manual

    def get(self) -> np.ndarray:
        """The bitmap of the slot; without `manual` it is cleared by that."""
        self._pending |= self._log.read_and_clear(self._addr, self._length)
        got = self._pending.copy()
        if not self._manual:
            self._pending[:] = 0
        return got

    def clear(self, first_page: int, num_pages: int, bitmap: np.ndarray) -> None:
        """Forget the pages set in `bitmap`, whose bit 0 is `first_page`.

        EINVAL unless `first_page` is a multiple of 64, and `num_pages` too or reaching to the end.
        """
        end = first_page + num_pages
        whole = num_pages % 64 == 0 or end == self.pages
        if first_page < 0 or num_pages <= 0 or first_page % 64 or not whole or end > self.pages:
            raise VerbsError(errno.EINVAL, f"{num_pages} pages from {first_page} are not whole words of {self.pages}")
        count = words_for(num_pages)
        if len(bitmap) < count:
            raise VerbsError(errno.EINVAL, f"{num_pages} pages need {count} words, not {len(bitmap)}")
        self._pending[first_page // 64 : first_page // 64 + count] &= ~np.asarray(bitmap[:count], np.uint64)


# --- vhost ----------------------------------------------------------------------------------------------------


class VhostLog:
    """The log that a vhost-user front-end hands over (VHOST_USER_SET_LOG_BASE): a bit per 4 KiB of guest memory.

    `memory`: the mapped shared memory. The front-end takes words out by an atomic exchange, so bits are set atomically.
    """

    def __init__(self, memory: Any) -> None:
        self._view = view_of(memory)
        if not self._view.flags.writeable:
            raise VerbsError(errno.EACCES, "a log is written to")
        if self._view.nbytes % 8 or int(self._view.ctypes.data) % 8:
            raise VerbsError(errno.EINVAL, "a log has whole 64-bit words")
        self.bits = self._view.nbytes * 8

    def export(self, log: DirtyLog, addr: int, length: int) -> None:
        """Take dirty pages of a range out of `log` and set their bits. EINVAL when the log has none for them."""
        _check(addr, length, log.tracking)
        if pages_in(addr + length, VHOST_PAGE) > self.bits:
            raise VerbsError(errno.EINVAL, f"the log ends at {self.bits * VHOST_PAGE:#x}, not at {addr + length:#x}")
        words = log.read_and_clear(addr, length)
        _merge(words, log.tracking, addr, int(self._view.ctypes.data), VHOST_PAGE, self.bits, atomic=True)


# --- VFIO -----------------------------------------------------------------------------------------------------


class VfioLog:
    """VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, at pages of any power of two from 4 KiB on.

    They may be finer or coarser than those of the log: bits are replicated or folded. A dirty page of which a report
    covers only a part stays dirty in its rest.
    """

    def __init__(self, log: DirtyLog) -> None:
        self._log = log
        self._rest: list[tuple[int, int]] = []

    def report(self, iova: int, length: int, page_size: int, bitmap: np.ndarray) -> None:
        """OR the dirty pages of a range into `bitmap`, one bit per `page_size`; bits are never cleared (linux/vfio.h).

        EINVAL for what is no range or page size, EOVERFLOW for a range that wraps.
        """
        size = self._log.tracking
        if page_size < MIN_REPORT_PAGE or page_size & (page_size - 1):
            raise VerbsError(errno.EINVAL, f"a report has pages of a power of two from 4096 on, not of {page_size}")
        if not size:
            raise VerbsError(errno.EINVAL, "DMA logging is not enabled")
        if length <= 0 or iova < 0:
            raise VerbsError(errno.EINVAL, f"{length} bytes at {iova:#x}")
        if iova > TOP - length:
            raise VerbsError(errno.EOVERFLOW, f"{length} bytes at {iova:#x} wrap around")
        bits = pages_in(length, page_size)
        if bitmap.dtype != np.uint64 or not bitmap.flags.c_contiguous or len(bitmap) * 64 < bits:
            raise VerbsError(errno.EINVAL, f"{bits} pages need {words_for(bits)} words of 64 bits")
        start, end = iova // size * size, iova + length
        words = self._log.read_and_clear(start, end - start)
        _merge(words, size, start - iova, int(bitmap.ctypes.data), page_size, bits, atomic=False)
        self._report_rest(iova, end, page_size, bitmap)
        for page, low, high in ((0, start, iova), ((end - 1 - start) // size, end, pages_in(end, size) * size)):
            if low < high and int(words[page // 64]) >> (page % 64) & 1:
                self._rest.append((low, high))

    def _report_rest(self, iova: int, end: int, page_size: int, bitmap: np.ndarray) -> None:
        """What earlier reports left of pages they had taken out."""
        rest, self._rest = self._rest, []
        for low, high in rest:
            first, last = max(low, iova), min(high, end)
            if first >= last:
                self._rest.append((low, high))
                continue
            for bit in range((first - iova) // page_size, (last - 1 - iova) // page_size + 1):
                bitmap[bit // 64] |= np.uint64(1 << (bit % 64))
            self._rest += [(a, b) for a, b in ((low, first), (last, high)) if a < b]


# --- a ring ---------------------------------------------------------------------------------------------------


class DirtyRing:
    """Numbers of dirty pages in a ring of words, which may be shared memory: three counters, room to 8, entries.

    Word 0 counts what was put in, word 1 what the reader has taken, word 2 is 1 while pages did not fit. Those stay in
    a bitmap behind the ring, follow as soon as there is room, and `rest` takes them out all at once.
    """

    def __init__(self, log: DirtyLog, addr: int, length: int, words: np.ndarray) -> None:
        _check(addr, length, log.tracking)
        if words.dtype != np.int64 or not words.flags.c_contiguous or len(words) <= export.RING_HEADER:
            raise VerbsError(errno.EINVAL, f"a ring is an array of more than {export.RING_HEADER} int64")
        self._log, self._addr, self._length, self._ring = log, addr, length, words
        self._pending = np.zeros(words_for(pages_in(length, log.tracking)), np.uint64)

    @property
    def overflow(self) -> bool:
        """Whether there are dirty pages that are not in the ring for want of room."""
        return bool(self._ring[export.RING_OVERFLOW])

    def fill(self) -> int:
        """Put in what has become dirty: how many pages did not fit."""
        self._pending |= self._log.read_and_clear(self._addr, self._length)
        return int(export.push_pages(self._pending, self._addr // self._log.tracking, self._ring))

    def take(self, limit: int = 1 << 30) -> Iterator[int]:
        """As a reader in this process: page numbers, address by page size."""
        slots = len(self._ring) - export.RING_HEADER
        while limit > 0 and self._ring[export.RING_CONSUMED] < self._ring[export.RING_PRODUCED]:
            at = int(self._ring[export.RING_CONSUMED]) % slots
            page = int(self._ring[export.RING_HEADER + at])
            self._ring[export.RING_CONSUMED] += 1
            limit -= 1
            yield page

    def rest(self) -> np.ndarray:
        """After an overflow: all dirty pages that are not in the ring, as a bitmap from the range's first page on."""
        self._pending |= self._log.read_and_clear(self._addr, self._length)
        got = self._pending.copy()
        self._pending[:] = 0
        self._ring[export.RING_OVERFLOW] = 0
        return got
