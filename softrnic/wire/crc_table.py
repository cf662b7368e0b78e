"""CRC-32 by sixteen tables of 256: for any CPU, for words in registers, and to build other tables.

A state is the raw shift register, reflected: bit 31 is the coefficient of x^0.
"""

from __future__ import annotations

from softrnic.jit import frozen, inline, ld8, ld32, ld64

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
def crc32_words(crc: int, a: int, b: int) -> int:
    """Continue over the sixteen bytes of two little-endian 64-bit words: only four of the lookups await `crc`."""
    head = a ^ crc
    tail = (
        TABLE[11, a >> 32 & 0xFF] ^ TABLE[10, a >> 40 & 0xFF] ^ TABLE[9, a >> 48 & 0xFF]
        ^ TABLE[8, a >> 56 & 0xFF] ^ TABLE[7, b & 0xFF] ^ TABLE[6, b >> 8 & 0xFF]
        ^ TABLE[5, b >> 16 & 0xFF] ^ TABLE[4, b >> 24 & 0xFF] ^ TABLE[3, b >> 32 & 0xFF]
        ^ TABLE[2, b >> 40 & 0xFF] ^ TABLE[1, b >> 48 & 0xFF] ^ TABLE[0, b >> 56 & 0xFF]
    )  # fmt: skip
    return 0 ^ int(
        tail ^ TABLE[15, head & 0xFF] ^ TABLE[14, head >> 8 & 0xFF]
        ^ TABLE[13, head >> 16 & 0xFF] ^ TABLE[12, head >> 24 & 0xFF]
    )  # fmt: skip


@inline
def crc32_table(crc: int, addr: int, n: int) -> int:
    """CRC by sixteen tables of 256, on any CPU."""
    while n >= 16:
        crc = crc32_words(crc, ld64(addr), ld64(addr + 8))
        addr += 16
        n -= 16
    while n >= 4:
        crc = crc32_words(0, 0, (ld32(addr) ^ crc) << 32)
        addr += 4
        n -= 4
    while n > 0:
        crc = (crc >> 8) ^ int(TABLE[0, (crc ^ ld8(addr)) & 0xFF])
        addr += 1
        n -= 1
    return crc
