"""CRC-32 (IEEE 802.3, reflected) of memory, alone or fused with a copy.

A CRC here is the raw running state of the shift register: start from CRC_INIT, and invert at the end. Which
code runs is chosen once, at import. Without a compiler it is zlib.
"""

from __future__ import annotations

import ctypes
import zlib

import numpy as np

from softrnic.jit import JIT, frozen, inline, ld8, ld64, memcpy
from softrnic.wire.fields import field_addr

CRC_INIT = 0xFFFFFFFF
POLY = 0xEDB88320  # x^32 + x^26 + x^23 + ... + 1, bit 31 is x^0


def _byte_step(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ POLY * (crc & 1)
    return crc


def _slices() -> list[list[int]]:
    """TABLE[k][b]: the state that byte b leaves behind after k more zero bytes."""
    rows = [[_byte_step(b) for b in range(256)]]
    for _ in range(15):
        rows.append([c >> 8 ^ rows[0][c & 0xFF] for c in rows[-1]])
    return rows


TABLE = frozen(_slices(), "u4")


@inline
def crc32_word(crc: int, word: int) -> int:
    """Continue over the four bytes of a little-endian 32-bit word."""
    a = crc ^ word
    return 0 ^ int(
        TABLE[3, a & 0xFF] ^ TABLE[2, a >> 8 & 0xFF] ^ TABLE[1, a >> 16 & 0xFF] ^ TABLE[0, a >> 24 & 0xFF]
    )  # fmt: skip


@inline
def crc32_words(crc: int, a: int, b: int) -> int:
    """Continue over the sixteen bytes of two little-endian 64-bit words: sixteen independent lookups."""
    a ^= crc
    return 0 ^ int(
        TABLE[15, a & 0xFF] ^ TABLE[14, a >> 8 & 0xFF]
        ^ TABLE[13, a >> 16 & 0xFF] ^ TABLE[12, a >> 24 & 0xFF]
        ^ TABLE[11, a >> 32 & 0xFF] ^ TABLE[10, a >> 40 & 0xFF]
        ^ TABLE[9, a >> 48 & 0xFF] ^ TABLE[8, a >> 56 & 0xFF]
        ^ TABLE[7, b & 0xFF] ^ TABLE[6, b >> 8 & 0xFF]
        ^ TABLE[5, b >> 16 & 0xFF] ^ TABLE[4, b >> 24 & 0xFF]
        ^ TABLE[3, b >> 32 & 0xFF] ^ TABLE[2, b >> 40 & 0xFF]
        ^ TABLE[1, b >> 48 & 0xFF] ^ TABLE[0, b >> 56 & 0xFF]
    )  # fmt: skip


@inline
def crc32_table(crc: int, addr: int, n: int) -> int:
    """CRC by sixteen tables of 256, on any CPU."""
    while n >= 16:
        crc = crc32_words(crc, ld64(addr), ld64(addr + 8))
        addr += 16
        n -= 16
    while n > 0:
        crc = (crc >> 8) ^ int(TABLE[0, (crc ^ ld8(addr)) & 0xFF])
        addr += 1
        n -= 1
    return crc


@inline
def crc32_copy_table(crc: int, dst: int, src: int, n: int) -> int:
    """Copy, then CRC of what arrived."""
    memcpy(dst, src, n)
    return crc32_table(crc, dst, n)


def crc32_zlib(crc: int, addr: int, n: int) -> int:
    """The twin without a compiler."""
    return zlib.crc32(ctypes.string_at(int(addr), max(int(n), 0)), int(crc) ^ CRC_INIT) ^ CRC_INIT


def crc32_copy_zlib(crc: int, dst: int, src: int, n: int) -> int:
    """The twin without a compiler."""
    memcpy(dst, src, n)
    return crc32_zlib(crc, dst, n)


crc32_addr = crc32_table if JIT else crc32_zlib
crc32_copy_addr = crc32_copy_table if JIT else crc32_copy_zlib


@inline
def crc32_update(crc: int, buf: np.ndarray, off: int, n: int) -> int:
    """Continue over `n` bytes of a buffer."""
    return crc32_addr(crc, field_addr(buf, off, n), n)


@inline
def crc32_copy(crc: int, dst_buf: np.ndarray, dst_off: int, src_addr: int, n: int) -> int:
    """Copy `n` bytes from an address into a buffer and continue over them, in one pass; no overlap."""
    return crc32_copy_addr(crc, field_addr(dst_buf, dst_off, n), src_addr, n)
