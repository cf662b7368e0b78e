"""Bitmaps over an address space: one bit per page, memory only for those parts that were ever touched."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # asm-generic/mman-common.h; Python names it from 3.13 on
_HUGE = 4 << 20
ALIGN_SHIFT = 18  # pages: a bitmap begins at a multiple of so many, hence its words, and its blocks of 64, stay whole


class Bitmap:
    """`bits` zero bits, a multiple of 64 times 64, in memory that the kernel commits page by page."""

    def __init__(self, bits: int) -> None:
        size = max(mmap.PAGESIZE, (bits + 7) // 8)
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self.words = np.frombuffer(self._memory, np.uint64)

    @property
    def address(self) -> int:
        """Where it lies in this process."""
        return int(self.words.ctypes.data)

    def clear(self) -> None:
        """All bits to zero, and the memory given back."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def take_over(self, other: Bitmap, at: int) -> None:
        """Copy `other` to word `at`, without committing memory for its zeros."""
        chunks = other.words.reshape(-1, mmap.PAGESIZE // 8)
        for i in np.flatnonzero(chunks.any(axis=1)):
            start = at + int(i) * chunks.shape[1]
            self.words[start : start + chunks.shape[1]] = chunks[i]


def zero_words(count: int) -> np.ndarray:
    """`count` zero words. Many of them in huge pages: else the kernel would spend longer on them than we do."""
    if count * 8 < _HUGE:
        return np.zeros(count, np.uint64)
    memory = mmap.mmap(-1, count * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint64)


def window(low: int, high: int, page_size: int) -> tuple[int, int]:
    """First address and number of pages of a bitmap over [low, high)."""
    align = page_size << ALIGN_SHIFT
    first = low // align * align
    return first, -(-(max(high, low + 1) - first) // align) << ALIGN_SHIFT
