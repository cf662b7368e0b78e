"""Big-endian fields: every width at every alignment, against int.from_bytes."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.wire import fields

WIDTHS = (8, 16, 24, 32, 48, 64)
BYTES = bytes(range(0x81, 0x81 + 40))


def getter(bits: int):
    return getattr(fields, f"get{bits}")


def putter(bits: int):
    return getattr(fields, f"put{bits}")


@pytest.mark.parametrize("bits", WIDTHS)
def test_get(bits: int) -> None:
    buf = np.frombuffer(BYTES, np.uint8).copy()
    n = bits // 8
    for off in range(len(BYTES) - n + 1):
        # Kernels have no unsigned 64-bit integers: the widest field is signed.
        assert getter(bits)(buf, off) == int.from_bytes(BYTES[off : off + n], "big", signed=bits == 64)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [0, 1, 0x0102030405060708, -1, -(1 << 63), (1 << 63) - 1])
def test_put_stores_the_low_bits_and_nothing_else(bits: int, value: int) -> None:
    n = bits // 8
    for off in (0, 1, 7, 16):
        buf = np.full(40, 0xA5, np.uint8)
        putter(bits)(buf, off, value)
        want = bytearray(b"\xa5" * 40)
        want[off : off + n] = (value & (1 << bits) - 1).to_bytes(n, "big")
        assert buf.tobytes() == bytes(want)
        assert getter(bits)(buf, off) & (1 << bits) - 1 == value & (1 << bits) - 1


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.skipif(not fields.CHECK, reason="this build has no bounds checks")
def test_a_checked_build_refuses_what_is_outside(bits: int) -> None:
    buf = np.zeros(16, np.uint8)
    for off in (-1, 16 - bits // 8 + 1, 1 << 40):
        with pytest.raises(IndexError):
            getter(bits)(buf, off)
        with pytest.raises(IndexError):
            putter(bits)(buf, off, 0)
