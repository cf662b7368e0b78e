"""The dirty log of an address space: one bit per page that the device has written, one per block of 64 words.

As if every page were write-protected in the device's table: the first write finds its bit clear, sets it and so makes
the page writable; every later one finds it set. Harvesting takes bits out and thereby protects the pages again; it
runs while the engine stands still, so that no write can fall between the bytes and their bit.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import addr_of, atomic_or64, i64, inline, kernel, ld64, memcpy, memset, st64
from softrnic.mem.space import bit_at

BLOCK_SHIFT = 12  # pages per bit of `dirty_blocks`: 64 words of 64
_BLOCK_MASK = (1 << BLOCK_SHIFT) - 1
_BLOCK_BYTES = 1 << (BLOCK_SHIFT - 3)


@inline
def set_bit(bitmap, index):
    """Set one bit of a bitmap of 64-bit words, atomically."""
    atomic_or64(bitmap + ((index >> 6) << 3), 1 << (index & 63))


@inline
def _first_write(space, page):
    """A page is written for the first time since it was last taken out of the log."""
    set_bit(i64(space["dirty"]), page)
    if bit_at(i64(space["dirty_blocks"]), page >> BLOCK_SHIFT) == 0:
        set_bit(i64(space["dirty_blocks"]), page >> BLOCK_SHIFT)


@inline
def mark_dirty(space, addr, n):
    """Record that the device has written [addr, addr + n), as far as it lies in the pages of the log."""
    shift, first = i64(space["dirty_shift"]), i64(space["dirty_first"])
    bitmap = i64(space["dirty"])
    page = max(0, (addr - first) >> shift)
    last = min((addr + n - 1 - first) >> shift, i64(space["dirty_pages"]) - 1)
    while page <= last:
        if bit_at(bitmap, page) == 0:
            _first_write(space, page)
        page += 1


@inline
def _take(bitmap, page, count):
    """Take `count` <= 64 bits from `page` on out of a bitmap."""
    at = bitmap + ((page >> 6) << 3)
    down = page & 63
    low = ld64(at)
    mask = -1 if count == 64 else (1 << count) - 1
    bits = 0
    if low != 0:
        # a shift to the right of a signed word drags its sign along: cut that off again
        fits = -1 if down == 0 else (1 << (64 - down)) - 1
        bits = (low >> down) & fits & mask
        st64(at, low & ~(bits << down))
    if down + count > 64:
        high = ld64(at + 8)
        if high != 0:
            more = high & ((1 << (down + count - 64)) - 1)
            st64(at + 8, high & ~more)
            bits |= more << (64 - down)
    return bits


@kernel
def harvest(engs: np.ndarray, space_index: int, page: int, count: int, out: np.ndarray) -> None:
    """Move the bits of `count` pages from `page` (of the log) on to `out`, which is all zero.

    Words are those of KVM_GET_DIRTY_LOG: bit i of word w is page 64 w + i of what was asked for.
    """
    space = engs[0]["spaces"][space_index]
    bitmap, blocks = i64(space["dirty"]), i64(space["dirty_blocks"])
    end, to = page + count, addr_of(out)
    at = page
    while at < end:
        last = min(at + 63, end - 1)
        block = at >> BLOCK_SHIFT
        if bit_at(blocks, block) == 0 and bit_at(blocks, last >> BLOCK_SHIFT) == 0:
            beyond = ((last >> BLOCK_SHIFT) + 1) << BLOCK_SHIFT
            at += max(64, (beyond - at) & ~63)  # words of `out` need not begin where blocks do
        elif at & _BLOCK_MASK == 0 and page & 63 == 0 and at + _BLOCK_MASK < end:
            _take_block(bitmap + (at >> 3), to + ((at - page) >> 3))
            word = blocks + ((block >> 6) << 3)
            st64(word, ld64(word) & ~(1 << (block & 63)))
            at += 1 << BLOCK_SHIFT
        else:
            st64(to + ((at - page) >> 6) * 8, _take(bitmap, at, last - at + 1))
            at += 64


@inline
def _take_block(words, to):
    """Take the 64 words of a block, whatever is in them: a branch for each would cost more."""
    memcpy(to, words, _BLOCK_BYTES)
    memset(words, 0, _BLOCK_BYTES)
