"""CRC-32 of large buffers, as zlib has it, at the speed of memory."""

from __future__ import annotations

import zlib

import numpy as np

from softrnic.jit import kernel
from softrnic.wire.crc32 import crc32_addr

_LARGE = 1 << 14  # below, the call costs more than it saves


@kernel
def _crc(start: int, addr: int, length: int) -> int:
    """Continue a raw CRC state over memory."""
    return int(crc32_addr(start, addr, length))


def crc32(data: bytes | memoryview, start: int = 0) -> int:
    """zlib.crc32(data, start)."""
    if len(data) < _LARGE:
        return zlib.crc32(data, start)
    array = np.frombuffer(data, np.uint8)
    return int(_crc(start ^ 0xFFFFFFFF, int(array.ctypes.data), len(array))) ^ 0xFFFFFFFF
