"""Memory in pages: their checksums, which of them are zero, which differ from a copy, and bitmaps as runs.

Pieces are arrays of bytes; the last page of one may be shorter. Knows nothing of regions, QPs or streams.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from softrnic.jit import addr_of, kernel
from softrnic.migrate.stream import PAGE
from softrnic.wire.crc32 import CRC_INIT, crc32_addr


@kernel
def _crcs(data: np.ndarray, page: int, out: np.ndarray) -> None:
    """CRC-32 of each page of `data` into `out`."""
    at = addr_of(data)
    left = len(data)
    for i in range(len(out)):
        n = min(page, left)
        out[i] = crc32_addr(CRC_INIT, at, n) ^ 0xFFFFFFFF
        at += n
        left -= n


def page_count(length: int) -> int:
    """Pages of so many bytes."""
    return (length + PAGE - 1) // PAGE


def crcs(data: np.ndarray) -> bytes:
    """CRC-32 of each page, u32 little-endian."""
    out = np.zeros(page_count(len(data)), np.uint32)
    _crcs(data, PAGE, out)
    return out.astype("<u4").tobytes()


def zero_pages(data: np.ndarray) -> np.ndarray:
    """One bool per page: all zero."""
    return ~_pagewise(data, None)


def differing_pages(data: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """One bool per page: not the same in both."""
    return _pagewise(data, copy)


def _pagewise(data: np.ndarray, copy: np.ndarray | None) -> np.ndarray:
    whole = len(data) // PAGE
    found = np.zeros(page_count(len(data)), bool)
    head = data[: whole * PAGE].view(np.uint64).reshape(whole, PAGE // 8)
    rest = data[whole * PAGE :]
    if copy is None:
        found[:whole] = head.any(axis=1)
        found[whole:] = rest.any()
    else:
        found[:whole] = (head != copy[: whole * PAGE].view(np.uint64).reshape(whole, PAGE // 8)).any(axis=1)
        found[whole:] = not np.array_equal(rest, copy[whole * PAGE :])
    return found


def span(first: int, count: int, length: int) -> slice:
    """The bytes of pages in a piece of `length`."""
    return slice(first * PAGE, min((first + count) * PAGE, length))


def runs(bits: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(first, count up to `most`) of the stretches of set bits."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], bits, [False])).astype(np.int8)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        for first in range(start, stop, most):
            yield first, min(most, stop - first)


def to_bitmap(bits: np.ndarray) -> bytes:
    """A bit per page, lowest first."""
    return np.packbits(bits, bitorder="little").tobytes()


def from_bitmap(data: bytes, count: int) -> np.ndarray:
    """`count` bools out of a bitmap that is long enough."""
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").astype(bool)
