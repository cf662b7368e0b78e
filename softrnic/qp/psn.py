"""Packet sequence numbers: 24-bit arithmetic. The only file that masks a PSN (IBTA 9.7.1).

SSNs and MSNs are 24 bits too and use the same functions.
"""

from __future__ import annotations

from softrnic.jit import inline

_MASK = 0xFFFFFF
_HALF = 0x800000


@inline
def psn_add(psn: int, n: int) -> int:
    """`psn` moved on by `n` packets (n may be negative)."""
    return (psn + n) & _MASK


@inline
def psn_diff(a: int, b: int) -> int:
    """Signed distance from b to a: positive when a is ahead, in [-2^23, 2^23)."""
    return ((a - b + _HALF) & _MASK) - _HALF
