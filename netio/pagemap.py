"""What the kernel knows about pages: PAGEMAP_SCAN (linux/fs.h), /proc/PID/pagemap and /proc/kpageflags.

PAGEMAP_SCAN finds the pages that were written since they were last protected and protects them again in one step, so
that no write falls between the two. It works for ranges registered with a userfaultfd that has WP_ASYNC, where the
kernel itself lifts the protection at the first write. Reports; decides nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from enum import IntFlag
from typing import NamedTuple

import numpy as np

from softrnic.errors import IoError

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


# fmt: off
class Category(IntFlag):
    """PAGE_IS_*: what may be said of a page."""

    WPALLOWED  = 1 << 0
    WRITTEN    = 1 << 1
    FILE       = 1 << 2
    PRESENT    = 1 << 3
    SWAPPED    = 1 << 4
    PFNZERO    = 1 << 5
    HUGE       = 1 << 6
    SOFT_DIRTY = 1 << 7
    GUARD      = 1 << 8


NONE = Category(0)


class KpageFlag(IntFlag):
    """linux/kernel-page-flags.h, as far as it proves something here."""

    SWAPBACKED    = 1 << 14
    COMPOUND_HEAD = 1 << 15
    COMPOUND_TAIL = 1 << 16
    HUGE          = 1 << 17
    KSM           = 1 << 21
    THP           = 1 << 22
    ZERO_PAGE     = 1 << 24


# Bits of a pagemap entry, Documentation/admin-guide/mm/pagemap.rst
ENTRY_PRESENT   = 1 << 63
ENTRY_SWAPPED   = 1 << 62
ENTRY_UFFD_WP   = 1 << 57
ENTRY_EXCLUSIVE = 1 << 56
_ENTRY_PFN      = (1 << 55) - 1
# fmt: on

_PAGEMAP_SCAN = 3 << 30 | 96 << 16 | ord("f") << 8 | 16
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_ARGUMENT = struct.Struct("=12Q")  # struct pm_scan_arg
_REGION = np.dtype([("start", "u8"), ("end", "u8"), ("categories", "u8")])
_REGIONS = 512  # in one call; there may be any number of calls


class Found(NamedTuple):
    """Pages [start, end) that have the same categories."""

    start: int
    end: int
    categories: Category


class Pagemap:
    """/proc/PID/pagemap of a process, by default of this one."""

    def __init__(self, pid: int | None = None) -> None:
        try:
            self._fd = os.open(f"/proc/{pid or 'self'}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise IoError(error.errno or errno.EIO, f"pagemap of process {pid or os.getpid()}") from None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Pagemap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def scan(
        self, start: int, length: int, *, mask: Category = NONE, anyof: Category = NONE,
        returned: Category = NONE, protect: bool = False,
    ) -> list[Found]:  # fmt: skip
        """Pages that have all of `mask` and one of `anyof`, with what is `returned` of each.

        `protect` write-protects them in the same step; EPERM where the range is not registered for that.
        """
        end = start + length
        regions = np.zeros(_REGIONS, _REGION)
        found: list[Found] = []
        while start < end:
            flags = _WP_MATCHING | _CHECK_WPASYNC if protect else 0
            argument = bytearray(
                _ARGUMENT.pack(
                    96, flags, start, end, 0, regions.ctypes.data, _REGIONS, 0, 0,
                    int(mask), int(anyof), int(returned or mask | anyof),
                )
            )
            try:
                n = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
            except OSError as error:
                raise IoError(error.errno or errno.EIO, f"PAGEMAP_SCAN at {start:#x}") from None
            found += [Found(int(r["start"]), int(r["end"]), Category(int(r["categories"]))) for r in regions[:n]]
            start = _ARGUMENT.unpack(argument)[4]
        return found

    def written(self, start: int, length: int) -> list[Found]:
        """Pages written since the last call, or since the range was protected; they are protected again."""
        return self.scan(start, length, mask=Category.WRITTEN, protect=True)

    def entries(self, start: int, length: int) -> np.ndarray:
        """The u64 of each page; frame numbers in it are 0 without CAP_SYS_ADMIN."""
        first, last = start // PAGE_BYTES, (start + length - 1) // PAGE_BYTES
        data = os.pread(self._fd, 8 * (last - first + 1), 8 * first)
        return np.frombuffer(data, np.uint64)

    def frames(self, start: int, length: int) -> np.ndarray:
        """Page frame numbers; 0 where no page is present."""
        entries = self.entries(start, length)
        return np.where(entries & np.uint64(ENTRY_PRESENT), entries & np.uint64(_ENTRY_PFN), np.uint64(0))


def kpageflags(frames: np.ndarray) -> list[KpageFlag]:
    """Flags of page frames; root only."""
    fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = [int.from_bytes(os.pread(fd, 8, 8 * int(frame)), "little") if frame else 0 for frame in frames]
    finally:
        os.close(fd)
    return [KpageFlag(word & sum(KpageFlag)) for word in words]
