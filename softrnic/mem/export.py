"""Dirty bitmaps from one form into others: shifted, coarser, finer, into shared memory, as page numbers. Word by word.

Bit i of word w of a source is page 64 w + i from its first address. Nothing here is lost or invented: every bit set in
a target comes from a bit of the source that touches it, and every bit of the source sets all that it touches.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import addr_of, atomic_or64, cttz64, inline, kernel, ld32, ld64, st32, st64, st_rel64

RING_HEADER = 8  # words before a ring's entries
RING_PRODUCED, RING_CONSUMED, RING_OVERFLOW = 0, 1, 2


@inline
def _or_bits(dst, first, count, atomic):
    """Set bits [first, first + count) of the bitmap at address `dst`."""
    while count > 0:
        low = first & 63
        n = min(count, 64 - low)
        mask = (-1 if n == 64 else (1 << n) - 1) << low
        at = dst + ((first >> 6) << 3)
        if atomic:
            if ld64(at) & mask != mask:
                atomic_or64(at, mask)
        else:
            st64(at, ld64(at) | mask)
        first += n
        count -= n


@inline
def _or_word(dst, bit, word, atomic):
    """Set the bits of a word in the bitmap at address `dst`, from bit `bit` on."""
    down = bit & 63
    at = dst + ((bit >> 6) << 3)
    low = word << down
    if low != 0:
        if atomic:
            atomic_or64(at, low)
        else:
            st64(at, ld64(at) | low)
    if down != 0:
        high = (word >> (64 - down)) & ((1 << down) - 1)
        if high != 0:
            if atomic:
                atomic_or64(at + 8, high)
            else:
                st64(at + 8, ld64(at + 8) | high)


@kernel
def or_shifted(words: np.ndarray, dst: int, bit: int, atomic: bool) -> int:
    """OR `words` into the bitmap at address `dst` from bit `bit` on, page for page: how many words had a bit."""
    found = 0
    for i in range(len(words)):
        word = ld64(addr_of(words) + 8 * i)
        if word != 0:
            _or_word(dst, bit + 64 * i, word, atomic)
            found += 1
    return found


@kernel
def or_scaled(words: np.ndarray, size: int, skew: int, dst: int, target: int, limit: int, atomic: bool) -> int:
    """The same where pages have `size` bytes in the source and `target` in the bitmap: how many pages were dirty.

    The source begins `skew` bytes after the bitmap does (negative: before). Bits from `limit` on are not touched.
    """
    pages = 0
    for i in range(2 * len(words)):
        half = ld32(addr_of(words) + 4 * i)  # never negative
        while half != 0:
            page = 32 * i + cttz64(half)
            half &= half - 1
            pages += 1
            start = skew + page * size
            first = max(0, start // target)
            last = min(limit - 1, (start + size - 1) // target)
            if first <= last:
                _or_bits(dst, first, last - first + 1, atomic)
    return pages


@kernel
def push_pages(words: np.ndarray, first: int, ring: np.ndarray) -> int:
    """Move page numbers, counted from `first`, out of a bitmap into a ring: how many bits are left for want of room."""
    at, slots = addr_of(ring), len(ring) - RING_HEADER
    produced = ld64(at + 8 * RING_PRODUCED)
    room = slots - (produced - ld64(at + 8 * RING_CONSUMED))
    left = 0
    for i in range(2 * len(words)):
        where = addr_of(words) + 4 * i
        half = ld32(where)
        while half != 0 and room > 0:
            st64(at + 8 * (RING_HEADER + produced % slots), first + 32 * i + cttz64(half))
            half &= half - 1
            produced += 1
            room -= 1
        st32(where, half)
        while half != 0:
            half &= half - 1
            left += 1
    st64(at + 8 * RING_OVERFLOW, 1 if left else 0)
    st_rel64(at + 8 * RING_PRODUCED, produced)
    return left
