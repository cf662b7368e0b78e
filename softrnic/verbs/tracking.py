"""Write tracking of an address space: which pages the device has written since one last asked.

Exact: every byte the device changes lies in a page that is reported, and no page it did not write is.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from softrnic.errors import VerbsError
from softrnic.mem.dirty import BLOCK_SHIFT, harvest
from softrnic.verbs.bitmap import Bitmap, window, zero_words

if TYPE_CHECKING:
    from softrnic.verbs.device import Device

_CHUNK = 1 << 22  # pages harvested at a time while the engine stands still
MAX_PAGE_SIZE = 1 << 30


class TrackedSpace(ABC):
    """The part of an address space that is its dirty log."""

    device: Device
    index: int

    def __init__(self) -> None:
        self._log: tuple[Bitmap, Bitmap] | None = None
        self._log_size = 0

    @abstractmethod
    def _span(self) -> tuple[int, int]:
        """First address and end of what there is."""

    @abstractmethod
    def _refresh(self) -> None:
        """Something was switched on or off: tell the engine."""

    @property
    def tracking(self) -> int:
        """The page size at which writes are recorded, 0 if they are not."""
        return self._log_size

    def start_tracking(self, page_size: int = 4096) -> None:
        """Write-protect every page for the device: from now on its first write to each is recorded."""
        if self._log is not None:
            raise VerbsError(errno.EBUSY, f"writes are being recorded already, by pages of {self._log_size}")
        check_page_size(page_size)
        self._log_size = page_size
        harvest(self.device.engine.tables, self.index, 0, 0, np.zeros(1, np.uint64))  # of nothing: it compiles
        with self.device.quiesced():
            self._make_log()
            self.device.record["spaces"][self.index]["tracking"] = 1
            self._refresh()

    def _make_log(self) -> None:
        """Inside `quiesced`: a log over all of the space, with what an older one holds."""
        record = self.device.record["spaces"][self.index]
        low, high = self._span()
        old, before = self._log, int(record["dirty_first"])
        if old is not None:
            end = before + int(record["dirty_pages"]) * self._log_size
            if before <= low and high <= end:
                return
            low, high = min(low, before), max(high, end)
        first, count = window(low, high, self._log_size)
        log = Bitmap(count), Bitmap(count >> BLOCK_SHIFT)
        if old is not None:
            words = (before - first) // self._log_size // 64
            log[0].take_over(old[0], words)
            blocks = old[1].words[: end // self._log_size - before // self._log_size >> BLOCK_SHIFT + 6]
            log[1].words[words // 4096 : words // 4096 + len(blocks)] = blocks
        record["dirty_shift"] = self._log_size.bit_length() - 1
        record["dirty_first"], record["dirty_pages"] = first, count
        record["dirty"], record["dirty_blocks"] = log[0].address, log[1].address
        self._log = log

    def read_and_clear(
        self, first_addr: int | None = None, length: int | None = None, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Pages written in [first_addr, first_addr + length) since they were last taken out, and protect them again.

        By default of all of the space. 64-bit words as of KVM_GET_DIRTY_LOG: bit i of word w is page 64 w + i from
        first_addr, which must begin a page. `out`: an array of zeros to fill.
        """
        if self._log is None:
            raise VerbsError(errno.EINVAL, "writes are not being recorded")
        record, size = self.device.record["spaces"][self.index], self._log_size
        start = int(record["dirty_first"])
        end = start + int(record["dirty_pages"]) * size
        at = self._span()[0] // size * size if first_addr is None else first_addr
        if length is None:
            length = max(0, self._span()[1] - at)
        if at % size or length < 0 or at < 0:
            raise VerbsError(errno.EINVAL, f"{length} bytes at {at:#x}: not from a page of {size} on")
        count = -(-length // size)
        words = zero_words(-(-count // 64)) if out is None else out
        if words.dtype != np.uint64 or len(words) * 64 < count or not words.flags.c_contiguous:
            raise VerbsError(errno.EINVAL, f"out must be an array of {-(-count // 64)} uint64")
        if at < start or at + count * size > end:
            return self._clipped(at, count, words)
        for done in range(0, count, _CHUNK):
            with self.device.quiesced():
                harvest(
                    self.device.engine.tables, self.index, (at - start) // size + done, min(_CHUNK, count - done),
                    words[done // 64 :],
                )  # fmt: skip
        return words

    def _clipped(self, at: int, count: int, words: np.ndarray) -> np.ndarray:
        """Asked for more than there is: nothing was ever written beyond."""
        low, high = self._span()
        size = self._log_size
        low = low // size * size
        begin, end = max(at, low), min(at + count * size, -(-high // size) * size)
        if begin < end:
            skip = (begin - at) // size
            inner = self.read_and_clear(begin, end - begin)
            flags = np.zeros(len(words) * 64, np.uint8)
            flags[skip : skip + (end - begin) // size] = unpack(inner, (end - begin) // size)
            words[:] = np.packbits(flags, bitorder="little").view(np.uint64)
        return words

    def written(self, first_addr: int | None = None, length: int | None = None) -> Iterator[tuple[int, int]]:
        """The same as runs of bytes (address, length), in order."""
        at = self._span()[0] // self._log_size * self._log_size if first_addr is None else first_addr
        words = self.read_and_clear(at, length)
        for first, count in runs(words):
            yield at + first * self._log_size, count * self._log_size

    def stop_tracking(self) -> None:
        """Writes are recorded no more; what was not taken out is forgotten."""
        if self._log is None:
            return
        with self.device.quiesced():
            self.device.record["spaces"][self.index]["tracking"] = 0
            self.device.record["spaces"][self.index]["dirty_pages"] = 0
            self._refresh()
        self._log, self._log_size = None, 0


def check_page_size(page_size: int) -> None:
    """EINVAL unless it is a power of two from 4 KiB to 1 GiB."""
    if not (isinstance(page_size, int) and 4096 <= page_size <= MAX_PAGE_SIZE and page_size & (page_size - 1) == 0):
        raise VerbsError(errno.EINVAL, f"a page has 2^12 to 2^30 bytes, a power of two, not {page_size!r}")


def unpack(words: np.ndarray, count: int) -> np.ndarray:
    """The first `count` bits of words as bytes of 0 and 1."""
    return np.unpackbits(words.view(np.uint8), bitorder="little", count=count)


def runs(words: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of set bits: (first, count)."""
    busy = np.flatnonzero(words)
    if not len(busy):
        return
    bits = np.unpackbits(words[busy].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    which = np.nonzero(bits)
    numbers = busy[which[0]] * 64 + which[1]
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate(([0], breaks + 1))]
    lasts = numbers[np.concatenate((breaks, [len(numbers) - 1]))]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        yield first, last - first + 1
