"""Polynomials over GF(2) modulo that of CRC-32, and where the constants of carry-less folding come from.

A polynomial is an int, bit i the coefficient of x^i; `reflect` turns it into what a CPU register holds,
since in CRC-32 the first bit of a byte is its lowest. Python only: it runs at import, never in a kernel.
"""

from __future__ import annotations

CRC32 = 0x104C11DB7  # x^32 + x^26 + x^23 + x^22 + x^16 + x^12 + x^11 + x^10 + x^8 + x^7 + ... + x + 1


def reflect(p: int, bits: int) -> int:
    """`p` with bit 0 at bit `bits` - 1 and the other way round."""
    return int(f"{p:0{bits}b}"[::-1], 2)


def divide(p: int, d: int = CRC32) -> tuple[int, int]:
    """Quotient and remainder of polynomials."""
    quotient = 0
    while p.bit_length() >= d.bit_length():
        shift = p.bit_length() - d.bit_length()
        quotient |= 1 << shift
        p ^= d << shift
    return quotient, p


def power(e: int) -> int:
    """x^e modulo CRC-32."""
    return divide(1 << e)[1]
