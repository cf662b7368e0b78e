"""CRC-32 kernels, every variant this machine can run, against zlib; and that they touch nothing else."""

from __future__ import annotations

import ctypes
import mmap
import random

import numpy as np
import pytest

from softrnic.wire import crc32, gf2
from softrnic.wire.crc_table import TABLE, crc32_words
from tests.wire import naive

LENGTHS = (*range(200), *range(252, 264), *range(380, 390), *range(500, 520), 575, 576, 577, 1023, 1024, 1040)
LONG = (4095, 4096, 4097, 65507, 65536 + 333)
DATA = np.frombuffer(random.Random(1).randbytes(70000), np.uint8).copy()
ADDR = DATA.ctypes.data


@pytest.mark.parametrize("variant", crc32.VARIANTS)
def test_plain_agrees_with_zlib(variant: str) -> None:
    plain, _ = crc32.VARIANTS[variant]
    rng = random.Random(2)
    for n in (*LENGTHS, *LONG):
        off, state = rng.randrange(64), rng.getrandbits(32)
        assert plain(state, 0, ADDR + off, n) == naive.crc(state, DATA[off : off + n].tobytes()), n


@pytest.mark.parametrize("variant", crc32.VARIANTS)
def test_copy_agrees_with_zlib_and_copies_exactly(variant: str) -> None:
    _, copy = crc32.VARIANTS[variant]
    rng = random.Random(3)
    out = np.empty(len(DATA) + 128, np.uint8)
    for n in (*LENGTHS, *LONG):
        off, to, state = rng.randrange(64), rng.randrange(64), rng.getrandbits(32)
        out[:] = 0xA5
        want = naive.crc(state, DATA[off : off + n].tobytes())
        assert copy(state, out.ctypes.data + to, ADDR + off, n) == want, n
        assert np.array_equal(out[to : to + n], DATA[off : off + n])
        assert (out[:to] == 0xA5).all(), n
        assert (out[to + n :] == 0xA5).all(), n


@pytest.mark.parametrize("variant", crc32.VARIANTS)
def test_pieces_make_the_whole(variant: str) -> None:
    """Any way to cut a message yields the same state, pieces shorter than the state included."""
    plain, _ = crc32.VARIANTS[variant]
    rng = random.Random(4)
    for _ in range(200):
        n = rng.randrange(1, 400)
        state, at = crc32.CRC_INIT, 0
        while at < n:
            step = min(rng.choice((1, 2, 3, 4, 5, 12, 16, 28, 64, 100)), n - at)
            state = plain(state, 0, ADDR + at, step)
            at += step
        assert state == naive.crc(crc32.CRC_INIT, DATA[:n].tobytes())


class FencedPage:
    """One page of memory between two that must not be touched."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.start = self.base + mmap.PAGESIZE
        self.end = self.start + mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (self.base, self.end):
            assert libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0


@pytest.mark.parametrize("variant", crc32.VARIANTS)
def test_nothing_outside_is_touched(variant: str) -> None:
    """Against both edges of a page whose neighbours are not mapped: any stray access ends the process."""
    plain, copy = crc32.VARIANTS[variant]
    source, target = FencedPage(), FencedPage()
    ctypes.memmove(source.start, ADDR, mmap.PAGESIZE)
    for n in LENGTHS:
        last = mmap.PAGESIZE - n
        for addr, data in ((source.start, DATA[:n]), (source.start + last, DATA[last : mmap.PAGESIZE])):
            want = naive.crc(7, data.tobytes())
            assert plain(7, 0, addr, n) == want
            assert copy(7, target.start, addr, n) == want
            assert copy(7, target.end - n, addr, n) == want
            assert ctypes.string_at(target.end - n, n) == data.tobytes()


def test_the_best_variant_is_used() -> None:
    state = 0x12345678
    want = naive.crc(state, DATA[3:103].tobytes())
    out = np.zeros(128, np.uint8)
    assert crc32.crc32_addr(state, ADDR + 3, 100) == want
    assert crc32.crc32_update(state, DATA, 3, 100) == want
    assert crc32.crc32_copy(state, out, 5, ADDR + 3, 100) == want
    assert np.array_equal(out[5:105], DATA[3:103])
    assert next(iter(crc32.VARIANTS)) == crc32.VARIANT


def test_words() -> None:
    data = DATA[:16].tobytes()
    a, b = (int.from_bytes(part, "little", signed=True) for part in (data[:8], data[8:]))
    assert crc32_words(0xDEADBEEF, a, b) == naive.crc(0xDEADBEEF, data)


def test_table_and_polynomials_agree() -> None:
    """The byte table is x^32 times the byte; both are built from the polynomial in different ways."""
    for byte in range(256):
        remainder = gf2.divide(gf2.reflect(byte, 8) << 32)[1]
        assert gf2.reflect(remainder, 32) == int(TABLE[0, byte])
    quotient, remainder = gf2.divide(1 << 95)
    assert quotient.bit_length() == 64
    assert gf2.power(95) == remainder
