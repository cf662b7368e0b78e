"""Big-endian fields of 8 to 64 bits in a uint8 array, at any offset.

Decides nothing: bytes to int64 and back. The caller has checked that the field lies inside the buffer; a
build with bounds checks, and every run without a compiler, checks once more and raises IndexError. `get64`
is signed, as every 64-bit quantity in a kernel is: a virtual address above 2^63 is negative and fails its
range check.
"""

from __future__ import annotations

import numpy as np

from softrnic import jit
from softrnic.jit import (
    addr_of,
    bswap16,
    bswap32,
    bswap64,
    inline,
    ld8,
    ld16,
    ld32,
    ld64,
    st8,
    st16,
    st32,
    st64,
)

CHECK = bool(jit.config.BOUNDSCHECK) or not jit.JIT


@inline
def field_addr(buf: np.ndarray, off: int, n: int) -> int:
    """Address of `n` bytes at `off`."""
    if CHECK and (off < 0 or off + n > len(buf)):
        raise IndexError("wire field outside its buffer")
    return addr_of(buf) + int(off)


@inline
def get8(buf: np.ndarray, off: int) -> int:
    """8 bits, unsigned."""
    return ld8(field_addr(buf, off, 1))


@inline
def get16(buf: np.ndarray, off: int) -> int:
    """16 bits, unsigned."""
    return bswap16(ld16(field_addr(buf, off, 2)))


@inline
def get24(buf: np.ndarray, off: int) -> int:
    """24 bits, unsigned."""
    addr = field_addr(buf, off, 3)
    return ld8(addr) << 16 | bswap16(ld16(addr + 1))


@inline
def get32(buf: np.ndarray, off: int) -> int:
    """32 bits, unsigned."""
    return bswap32(ld32(field_addr(buf, off, 4)))


@inline
def get48(buf: np.ndarray, off: int) -> int:
    """48 bits, unsigned."""
    addr = field_addr(buf, off, 6)
    return bswap16(ld16(addr)) << 32 | bswap32(ld32(addr + 2))


@inline
def get64(buf: np.ndarray, off: int) -> int:
    """64 bits, signed."""
    return bswap64(ld64(field_addr(buf, off, 8)))


@inline
def put8(buf: np.ndarray, off: int, v: int) -> None:
    """The low 8 bits of `v`."""
    st8(field_addr(buf, off, 1), v)


@inline
def put16(buf: np.ndarray, off: int, v: int) -> None:
    """The low 16 bits of `v`."""
    st16(field_addr(buf, off, 2), bswap16(v))


@inline
def put24(buf: np.ndarray, off: int, v: int) -> None:
    """The low 24 bits of `v`."""
    addr = field_addr(buf, off, 3)
    st8(addr, v >> 16)
    st16(addr + 1, bswap16(v))


@inline
def put32(buf: np.ndarray, off: int, v: int) -> None:
    """The low 32 bits of `v`."""
    st32(field_addr(buf, off, 4), bswap32(v))


@inline
def put48(buf: np.ndarray, off: int, v: int) -> None:
    """The low 48 bits of `v`."""
    addr = field_addr(buf, off, 6)
    st16(addr, bswap16(v >> 32))
    st32(addr + 2, bswap32(v))


@inline
def put64(buf: np.ndarray, off: int, v: int) -> None:
    """All 64 bits of `v`."""
    st64(field_addr(buf, off, 8), bswap64(v))
