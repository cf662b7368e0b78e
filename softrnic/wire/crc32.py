"""CRC-32 (IEEE 802.3) of memory, alone or fused with a copy.

A CRC here is the raw running state of the shift register: start from CRC_INIT, and invert at the end. Which
code runs is chosen once, at import, from what the CPU has. Without a compiler it is zlib.
"""

from __future__ import annotations

import ctypes
import zlib

import numpy as np

from softrnic.jit import JIT, inline, memcpy
from softrnic.wire.crc_table import crc32_table
from softrnic.wire.fields import field_addr

CRC_INIT = 0xFFFFFFFF


@inline
def _copy_table(crc: int, dst: int, src: int, n: int) -> int:
    if n > 0:
        memcpy(dst, src, n)
    return crc32_table(crc, src, n)


@inline
def _plain_table(crc: int, dst: int, src: int, n: int) -> int:
    return crc32_table(crc, src, n)


def _plain_zlib(crc: int, dst: int, src: int, n: int) -> int:
    return zlib.crc32(ctypes.string_at(int(src), max(int(n), 0)), int(crc) ^ CRC_INIT) ^ CRC_INIT


def _copy_zlib(crc: int, dst: int, src: int, n: int) -> int:
    if n > 0:
        memcpy(dst, src, n)
    return _plain_zlib(crc, dst, src, n)


# name: (plain, copying), both of (crc, dst, src, n); what this machine can run, best first.
VARIANTS = {}
if JIT:
    from softrnic.wire import clmul

    if clmul.HAS_512:
        VARIANTS["vpclmulqdq512"] = (clmul.crc32_512, clmul.crc32_copy_512)
    if clmul.HAS_128:
        VARIANTS["pclmulqdq"] = (clmul.crc32_128, clmul.crc32_copy_128)
    VARIANTS["table"] = (_plain_table, _copy_table)
else:
    VARIANTS["zlib"] = (_plain_zlib, _copy_zlib)

VARIANT = next(iter(VARIANTS))
_plain, _copy = VARIANTS[VARIANT]


@inline
def crc32_addr(crc: int, addr: int, n: int) -> int:
    """Continue over `n` bytes at an address."""
    return _plain(0 ^ int(crc), 0, addr, n)


@inline
def crc32_update(crc: int, buf: np.ndarray, off: int, n: int) -> int:
    """Continue over `n` bytes of a buffer."""
    return _plain(0 ^ int(crc), 0, field_addr(buf, off, n), n)


@inline
def crc32_copy(crc: int, dst_buf: np.ndarray, dst_off: int, src_addr: int, n: int) -> int:
    """Copy `n` bytes from an address into a buffer and continue over them, in one pass; no overlap."""
    return _copy(0 ^ int(crc), field_addr(dst_buf, dst_off, n), src_addr, n)
