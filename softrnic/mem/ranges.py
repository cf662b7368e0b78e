"""From a list of (address, length) to the table by which a region finds the address of a byte.

Neighbours that continue one another become one range. What then still consists of many pieces that begin at multiples
of one page size gets a table with one address per page, so that a look-up is one load; anything else a sorted list.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

import numpy as np

from softrnic.errors import VerbsError

TOP = (1 << 63) - 1
_FEW = 8  # pieces that are found as fast by halving
_PAGE_SHIFT = 12
_MAX_SHIFT = 30


class Ranges(NamedTuple):
    """Pieces in the order of the region, and the table the engine reads (MR["ranges"], "nranges", "shift", "skew")."""

    addrs: np.ndarray
    lengths: np.ndarray
    length: int
    table: np.ndarray
    shift: int
    skew: int


def plan(ranges: Any) -> Ranges:
    """Check a list of (address, length) and arrange it; EINVAL says what is wrong with it."""
    addrs, lengths = _columns(ranges)
    total = _total(lengths)
    joins = addrs[1:] == addrs[:-1] + lengths[:-1]
    offsets = np.zeros(len(addrs), np.int64)
    np.cumsum(lengths[:-1], out=offsets[1:])
    if joins.any():
        starts = np.concatenate(([0], np.flatnonzero(~joins) + 1))
        addrs, offsets = addrs[starts], offsets[starts]
        lengths = np.diff(offsets, append=total)
    shift = _page_shift(offsets, total)
    if shift:
        skew = -int(offsets[1]) % (1 << shift)
        return Ranges(addrs, lengths, total, _page_table(addrs, offsets, lengths, shift, skew), shift, skew)
    return Ranges(addrs, lengths, total, np.column_stack((offsets, addrs)), 0, 0)


def _columns(ranges: Any) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and lengths, checked one by one."""
    try:
        table = np.asarray(ranges)
    except (ValueError, OverflowError):
        table = np.empty(0)
    if table.ndim != 2 or table.shape[1] != 2 or not len(table):
        raise VerbsError(errno.EINVAL, "ranges must be a list of (address, length), and not an empty one")
    if table.dtype.kind not in "iu":
        raise VerbsError(errno.EINVAL, f"addresses and lengths must be integers below 2^63, not {table.dtype}")
    if table.dtype.kind == "u" and int(table.max()) > TOP:
        raise VerbsError(errno.EINVAL, f"{int(table.max()):#x} is beyond 2^63")
    addrs = np.ascontiguousarray(table[:, 0], np.int64)
    lengths = np.ascontiguousarray(table[:, 1], np.int64)
    for wrong, what in (
        (addrs < 0, "has a negative address"), (lengths <= 0, "has no bytes"), (addrs > TOP - lengths, "wraps around"),
    ):  # fmt: skip
        if wrong.any():
            i = int(np.argmax(wrong))
            raise VerbsError(errno.EINVAL, f"range {i}, {int(lengths[i])} bytes at {int(addrs[i]):#x}, {what}")
    return addrs, lengths


def _total(lengths: np.ndarray) -> int:
    total = (int((lengths >> 32).sum()) << 32) + int((lengths & 0xFFFFFFFF).sum())
    if total > TOP:
        raise VerbsError(errno.EINVAL, f"{total} bytes in all are more than a region can have")
    return total


def _page_shift(offsets: np.ndarray, total: int) -> int:
    """log2 of the page size at multiples of which all pieces begin, or 0 when a table of pages is not worth it."""
    if len(offsets) <= _FEW:
        return 0
    differences = int(np.bitwise_or.reduce(offsets[2:] - offsets[1]))
    shift = min((differences & -differences).bit_length() - 1, _MAX_SHIFT)
    worth = shift >= _PAGE_SHIFT and total >> shift <= 4 * len(offsets)
    return shift if worth else 0


def _page_table(addrs: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, shift: int, skew: int) -> np.ndarray:
    """Address of each page; the first may begin before the region."""
    first = (offsets + skew) >> shift
    first[0] = 0
    last = (offsets + lengths + skew + (1 << shift) - 1) >> shift
    counts = last - first
    counts[:-1] = np.diff(first)
    if counts.max() == 1:
        table = addrs.copy()
        table[0] -= skew
        return table
    of = np.repeat(np.arange(len(addrs)), counts)
    table = (np.arange(len(of), dtype=np.int64) << shift) - skew
    table += addrs[of]
    table -= offsets[of]
    return table
