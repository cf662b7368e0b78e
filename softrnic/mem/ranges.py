"""From a list of (address, length) to the table by which a region finds the address of a byte.

Neighbours that continue one another become one piece. What then still consists of many pieces that begin at multiples
of one page size gets a table with one address per page, so that a look-up is one load; anything else a sorted list.
A guest's memory is millions of ranges, so the passes over them are kernels.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

import numpy as np

from softrnic.errors import VerbsError
from softrnic.jit import i64, kernel

TOP = (1 << 63) - 1
_FEW = 8  # pieces that are found as fast by halving
_PAGE_SHIFT = 12
_MAX_SHIFT = 30

# What is wrong with a range.
_WRONG = ("", "has an address beyond 2^63", "has no bytes", "wraps around", "makes it more than a region can have")


class Ranges(NamedTuple):
    """`length` bytes in `npieces` pieces, and their table (MR["ranges"], "nranges", "shift", "skew")."""

    length: int
    npieces: int
    addr: int
    table: np.ndarray
    shift: int
    skew: int

    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Addresses and lengths, in the order of the region; of a table of pages one for each."""
        if not self.shift:
            return self.table[:, 1], np.diff(self.table[:, 0], append=self.length)
        addrs = self.table.copy()
        addrs[0] += self.skew
        ends = np.minimum((np.arange(len(addrs), dtype=np.int64) + 1 << self.shift) - self.skew, self.length)
        return addrs, np.diff(ends, prepend=0)


def as_array(ranges: Any) -> np.ndarray:
    """A list of (address, length) as int64 of shape (n, 2); EINVAL for anything else."""
    try:
        table = np.asarray(ranges)
    except (ValueError, OverflowError):
        table = np.empty(0)
    if table.ndim != 2 or table.shape[1] != 2 or not len(table):
        raise VerbsError(errno.EINVAL, "ranges must be a list of (address, length), and not an empty one")
    if table.dtype.kind not in "iu":
        raise VerbsError(errno.EINVAL, f"addresses and lengths must be integers below 2^63, not {table.dtype}")
    if table.dtype == np.uint64:
        table = table.view(np.int64)  # what is beyond 2^63 is found as negative
    return np.ascontiguousarray(table, np.int64)


def plan(ranges: np.ndarray) -> Ranges:
    """Check the ranges of `as_array` and arrange them; EINVAL says what is wrong with which."""
    at, wrong, count, total, boundary, differences = scan(ranges)
    if wrong:
        addr, length = (int(value) for value in ranges[at])
        raise VerbsError(errno.EINVAL, f"range {at}, {length} bytes at {addr:#x}, {_WRONG[wrong]}")
    shift = min((differences & -differences).bit_length() - 1, _MAX_SHIFT)
    if count > _FEW and shift >= _PAGE_SHIFT and total >> shift <= 4 * count:
        skew = -boundary % (1 << shift)
        table = np.empty(-(-(total + skew) >> shift), np.int64)
        fill_pages(ranges, shift, skew, table)
        return Ranges(total, count, int(ranges[0, 0]), table, shift, skew)
    table = np.empty((count, 2), np.int64)
    fill_list(ranges, table)
    return Ranges(total, count, int(ranges[0, 0]), table, 0, 0)


@kernel
def scan(ranges: np.ndarray) -> tuple[int, int, int, int, int, int]:
    """One look at each range: (index of a wrong one, what is wrong, pieces, bytes, first boundary, boundaries' bits).

    The last is the bitwise or of the distances of all boundaries between pieces from the first.
    """
    pieces, total, end = 0, 0, -1
    boundary, differences = 0, 0
    for i in range(len(ranges)):
        addr, length = i64(ranges[i, 0]), i64(ranges[i, 1])
        wrong = 0
        if addr < 0:
            wrong = 1
        elif length <= 0:
            wrong = 2
        elif addr > TOP - length:
            wrong = 3
        elif total > TOP - length:
            wrong = 4
        if wrong:
            return i, wrong, 0, 0, 0, 0
        if addr != end:
            pieces += 1
            if pieces == 2:
                boundary = total
            elif pieces > 2:
                differences |= total - boundary
        total += length
        end = addr + length
    return 0, 0, pieces, total, boundary, differences


@kernel
def fill_list(ranges: np.ndarray, table: np.ndarray) -> None:
    """The sorted list of pieces: (offset, address)."""
    pieces, total, end = 0, 0, -1
    for i in range(len(ranges)):
        addr, length = i64(ranges[i, 0]), i64(ranges[i, 1])
        if addr != end:
            table[pieces, 0] = total
            table[pieces, 1] = addr
            pieces += 1
        total += length
        end = addr + length


@kernel
def fill_pages(ranges: np.ndarray, shift: int, skew: int, table: np.ndarray) -> None:
    """The address of each page; the first may begin `skew` bytes before the region."""
    page, offset = 0, 0
    for i in range(len(ranges)):
        addr, length = i64(ranges[i, 0]), i64(ranges[i, 1])
        while page < len(table) and (page << shift) - skew < offset + length:
            table[page] = addr + (page << shift) - skew - offset
            page += 1
        offset += length


@kernel
def cover(ranges: np.ndarray, starts: np.ndarray, ends: np.ndarray, used: np.ndarray) -> int:
    """Mark which of the sorted stretches [starts, ends) some ranges lie in: index of a range that is not in any, or -1.

    A range may go on from one stretch to the next where they touch.
    """
    at = 0
    for i in range(len(ranges)):
        addr = i64(ranges[i, 0])
        end = addr + i64(ranges[i, 1])
        while addr < end:
            if at >= len(starts) or addr < i64(starts[at]) or addr >= i64(ends[at]):
                lo, hi = 0, len(starts)
                while lo < hi:
                    mid = (lo + hi) >> 1
                    if i64(starts[mid]) <= addr:
                        lo = mid + 1
                    else:
                        hi = mid
                at = lo - 1
                if at < 0 or addr >= i64(ends[at]):
                    return i
            used[at] = 1
            addr = i64(ends[at])
    return -1
