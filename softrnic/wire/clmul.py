"""CRC-32 by carry-less multiplication: 512-bit (AVX-512, VPCLMULQDQ) and 128-bit (PCLMULQDQ) kernels.

Decides how to fold; which kernel runs is `crc32`'s business.

After Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel,
2009). Registers are reflected: bit i of a 64-bit word is the coefficient of x^(63-i), and of the two words
of a lane the one first in memory is the higher.

* Fold: a 128-bit lane H x^64 + L that stands D bits before another is moved onto it as H (x^(D+64) mod P) +
  L (x^D mod P). Multiplying two reflected words yields the product times x, so the constants are x^(D+63) and
  x^(D-1). Four accumulators hide the latency of the multiplier.
* The odd block is the head of a message, not its tail: zeros in front of a message change nothing once the
  incoming state has been XORed into its first four bytes. So the last block ends where the message ends.
* Reduce: every word that is left is multiplied by x^(d+32) mod P, d bits before the end, and all are added:
  95 bits S. Then Barrett: Q = floor(S / P) by one multiplication with floor(x^95 / P), S - Q P by another.
"""

from __future__ import annotations

from typing import Any

from softrnic.jit import inline, ld8, ld32, ld64, st8, st32, st64
from softrnic.wire.crc_table import TABLE
from softrnic.wire.gf2 import CRC32, divide, power, reflect
from softrnic.wire.vector import (
    FEATURES,
    V128,
    V512,
    Vector,
    constant,
    double_words,
    high_word,
    load128,
    load512,
    load512_masked,
    multiply_high,
    multiply_low,
    pack,
    place_state,
    select_bytes,
    shift_down_32,
    shift_up,
    store,
    store512_masked,
    sum_lanes,
    xor,
)

HAS_128 = FEATURES.issuperset({"+pclmul", "+sse4.1"})
HAS_512 = FEATURES.issuperset({"+vpclmulqdq", "+avx512f", "+avx512bw", "+avx512vl", "+avx512vbmi"})


def _fold_by(vector: Vector, bits: int) -> Any:
    """What moves every 128-bit lane `bits` towards the end."""
    pair = [reflect(power(bits + 63), 64), reflect(power(bits - 1), 64)]
    return constant(vector, pair * (vector.lanes // 2))


# What every word is multiplied by at the end; and the two constants of Barrett's reduction.
_TO_END = [reflect(power(64 * i + 32), 64) for i in range(7, -1, -1)]
_to_end_512, _to_end_128 = constant(V512, _TO_END), constant(V128, _TO_END[-2:])
_barrett = constant(V128, [reflect(divide(1 << 95)[0], 64), 0])
_modulus = constant(V128, [reflect(CRC32 & 0xFFFFFFFF, 32) << 1, 0])


@inline
def _fold(v, by):
    return xor(multiply_low(v, by), multiply_high(v, by))


@inline
def _reduce(s):
    """95 bits, x^0 at bit 126, modulo P.

    S / x^32 is bits 32 to 94. Its product with floor(x^95 / P) has Q in bits 0 to 62 and in bit 63
    something that must go: doubling drops it. Then Q P has its lowest 32 coefficients in bits 64 to 95.
    """
    q = double_words(multiply_low(shift_down_32(s), _barrett()))
    return (high_word(s) >> 31 ^ high_word(multiply_low(q, _modulus()))) & 0xFFFFFFFF


def _make_few(copy: bool) -> Any:
    @inline
    def few(crc, dst, src, n):
        """Fewer than 4 bytes, into which the state does not fit."""
        for i in range(n):
            byte = ld8(src + i)
            if copy:
                st8(dst + i, byte)
            crc = (crc >> 8) ^ int(TABLE[0, (crc ^ byte) & 0xFF])
        return crc

    return few


def _make_blocks(vector: Vector, load: Any, copy: bool) -> Any:
    bits = 64 * vector.lanes
    size = bits // 8
    by_1, by_2, by_3, by_4 = (_fold_by(vector, bits * i) for i in (1, 2, 3, 4))

    @inline
    def blocks(a, b, dst, src, end):
        """Fold two blocks, and all those from `src` to `end`, into one."""
        if end - src >= 6 * size:
            c, d = load(src), load(src + size)
            if copy:
                store(dst, c)
                store(dst + size, d)
            src += 2 * size
            dst += 2 * size
            while end - src >= 4 * size:
                e, f, g, h = load(src), load(src + size), load(src + 2 * size), load(src + 3 * size)
                if copy:
                    store(dst, e)
                    store(dst + size, f)
                    store(dst + 2 * size, g)
                    store(dst + 3 * size, h)
                a = xor(_fold(a, by_4()), e)
                b = xor(_fold(b, by_4()), f)
                c = xor(_fold(c, by_4()), g)
                d = xor(_fold(d, by_4()), h)
                src += 4 * size
                dst += 4 * size
            a = xor(xor(_fold(a, by_3()), _fold(b, by_2())), xor(_fold(c, by_1()), d))
        else:
            a = xor(_fold(a, by_1()), b)
        while src < end:
            b = load(src)
            if copy:
                store(dst, b)
            a = xor(_fold(a, by_1()), b)
            src += size
            dst += size
        return a

    return blocks


def _make_512(copy: bool) -> Any:
    few, blocks = _make_few(copy), _make_blocks(V512, load512, copy)

    @inline
    def crc512(crc, dst, src, n):
        """Blocks of 64 bytes."""
        if n < 4:
            return few(crc, dst, src, n)
        r = ((n - 1) & 63) + 1  # bytes of the head
        mask = -1 << (64 - r)
        head = load512_masked(src + r - 64, mask)
        if copy:
            store512_masked(dst + r - 64, mask, head)
        state = place_state(crc, r)
        a = xor(head, select_bytes(mask, state))
        end = src + n
        src += r
        dst += r
        if src < end:
            b = load512(src)
            if copy:
                store(dst, b)
            a = blocks(a, xor(b, select_bytes(~mask, state)), dst + 64, src + 64, end)
        return _reduce(sum_lanes(_fold(a, _to_end_512())))

    return crc512


def _make_128(copy: bool) -> Any:
    few, blocks = _make_few(copy), _make_blocks(V128, load128, copy)

    @inline
    def short(crc, dst, src, n):
        """4 to 15 bytes: one block of which they are the end."""
        if n >= 8:
            low, high = ld64(src), ld64(src + n - 8)
            if copy:
                st64(dst, low)
                st64(dst + n - 8, high)
            up = 8 * (16 - n)  # 8 to 64
            return pack((low ^ crc) << (up - 8) << 8, high ^ crc >> (64 - up))
        low, high = ld32(src), ld32(src + n - 4)
        if copy:
            st32(dst, low)
            st32(dst + n - 4, high)
        return pack(0, ((low | high << 8 * (n - 4)) ^ crc) << 8 * (8 - n))

    @inline
    def crc128(crc, dst, src, n):
        """Blocks of 16 bytes."""
        if n < 4:
            return few(crc, dst, src, n)
        if n < 16:
            return _reduce(_fold(short(crc, dst, src, n), _to_end_128()))
        r = ((n - 1) & 15) + 1  # bytes of the head
        head = load128(src)
        if copy:
            store(dst, head)  # beyond r too, where the next block will be stored again
        a = shift_up(xor(head, pack(crc, 0)), 8 * (16 - r))
        end = src + n
        src += r
        dst += r
        if src < end:
            b = load128(src)
            if copy:
                store(dst, b)
            rest = crc >> 8 * min(r, 4)  # of the state, what did not fit in the head
            a = blocks(a, xor(b, pack(rest, 0)), dst + 16, src + 16, end)
        return _reduce(_fold(a, _to_end_128()))

    return crc128


# All of (crc, dst, src, n). The plain ones ignore `dst`, the copying ones also store what they read there.
crc32_512, crc32_copy_512 = _make_512(copy=False), _make_512(copy=True)
crc32_128, crc32_copy_128 = _make_128(copy=False), _make_128(copy=True)
