"""The invariant CRC of RoCEv2 (IBTA 7.8.1, A17.3.3).

CRC-32 over 64 one bits in place of the LRH, the IP and UDP headers with their variant fields taken as ones,
the BTH with its byte 4 (resv8a) taken as ones, and all that follows up to the ICRC itself. Stored little-
endian.

A flow's headers differ from packet to packet only in lengths and IP identification. CRC is linear, so they
are taken as zero in a base that is computed once per flow or frame, and what they add is XORed in per
packet:

    base = icrc_base(headers)                        once
    crc  = icrc_seed(base, ip_id, udp_payload_len)   per packet
    crc  = icrc_bth(crc, BTH and extension headers)
    crc  = crc32_update / crc32_copy(crc, payload and padding)
    icrc = icrc_finish(crc)
"""

from __future__ import annotations

import zlib

import numpy as np

from softrnic.jit import frozen, inline, ld8, ld32, ld64, st32
from softrnic.wire.crc32 import CRC_INIT, crc32_addr, crc32_copy, crc32_update
from softrnic.wire.crc_table import POLY, TABLE, crc32_words
from softrnic.wire.fields import field_addr

__all__ = [
    "crc32_addr", "crc32_copy", "crc32_update",
    "get_icrc", "icrc_base", "icrc_bth", "icrc_check", "icrc_finish", "icrc_seed", "put_icrc",
]  # fmt: skip

_IPV4_TO_BTH = 28  # bytes of IP and UDP header
_IPV6_TO_BTH = 48


def _advance(crc: int, n: int) -> int:
    """The state after `n` zero bytes."""
    for _ in range(n):
        crc = crc >> 8 ^ int(TABLE[0, crc & 0xFF])
    return crc


def _rewind(crc: int, n: int) -> int:
    """The state before `n` zero bytes: the inverse of `_advance`."""
    for _ in range(8 * n):
        crc = ((crc ^ POLY) << 1 | 1) if crc >> 31 else crc << 1
    return crc


def _contribution(off: int, header_len: int) -> list[int]:
    """What each value of the header byte at `off` adds to the state at the end of the UDP header."""
    return [_advance(int(TABLE[0, b]), header_len - off - 1) for b in range(256)]


def _both(a: list[int], b: list[int]) -> list[int]:
    return [x ^ y for x, y in zip(a, b, strict=True)]


# Rows: IP total length, identification, UDP length; high byte, low byte.
_SEED_V4 = frozen([_contribution(off, _IPV4_TO_BTH) for off in (2, 3, 4, 5, 24, 25)], "u4")
# IPv6 payload length equals UDP length, so one lookup serves both.
_SEED_V6 = frozen(
    [_both(_contribution(4 + i, _IPV6_TO_BTH), _contribution(44 + i, _IPV6_TO_BTH)) for i in (0, 1)], "u4"
)
# A change of BTH byte 4 moved back to where the state enters the BTH: masking costs one lookup.
_RESV8A = frozen([_rewind(b ^ 0xFF, 4) for b in range(256)], "u4")
# The state after 4 and after 8 bytes of ones in place of the LRH.
_ONES_4 = zlib.crc32(b"\xff" * 4) ^ CRC_INIT
_ONES_8 = zlib.crc32(b"\xff" * 8) ^ CRC_INIT
_UDP_LAST = 0xFFFF0000  # UDP length zero for now, checksum ones; little-endian


@inline
def icrc_base(buf: np.ndarray, l3_off: int, is_v6: int) -> int:
    """The state after the masked IP and UDP headers at `l3_off`, lengths and identification taken as zero."""
    if is_v6:
        addr = field_addr(buf, l3_off, _IPV6_TO_BTH)
        # Traffic class, flow label and hop limit are variant; payload length is zero for now.
        word0 = ld32(addr) & 0x000000F0 | 0xFFFFFF0F
        word1 = ld32(addr + 4) & 0x00FF0000 | 0xFF000000
        crc = crc32_words(_ONES_8, word0 | word1 << 32, ld64(addr + 8))
        crc = crc32_words(crc, ld64(addr + 16), ld64(addr + 24))
        return crc32_words(crc, ld64(addr + 32), ld32(addr + 40) | _UDP_LAST << 32)
    addr = field_addr(buf, l3_off, _IPV4_TO_BTH)
    # TOS, TTL and header checksum are variant; total length and identification are zero for now.
    word0 = ld32(addr) & 0x000000FF | 0x0000FF00
    word1 = ld32(addr + 4) & 0xFFFF0000
    word2 = ld32(addr + 8) & 0x0000FF00 | 0xFFFF00FF
    crc = crc32_words(_ONES_4, 0xFFFFFFFF | word0 << 32, word1 | word2 << 32)
    return crc32_words(crc, ld64(addr + 12), ld32(addr + 20) | _UDP_LAST << 32)


@inline
def icrc_seed(base: int, is_v6: int, ip_id: int, udp_payload_len: int) -> int:
    """The state before the BTH of a packet with this identification and these UDP payload bytes."""
    udp_len = 8 + udp_payload_len
    crc = 0 ^ int(base)  # an int64 even if the caller's is a uint32 of a record
    if is_v6:
        return crc ^ int(_SEED_V6[0, udp_len >> 8 & 0xFF]) ^ int(_SEED_V6[1, udp_len & 0xFF])
    ip_len = 20 + udp_len
    return crc ^ int(
        _SEED_V4[0, ip_len >> 8 & 0xFF] ^ _SEED_V4[1, ip_len & 0xFF]
        ^ _SEED_V4[2, ip_id >> 8 & 0xFF] ^ _SEED_V4[3, ip_id & 0xFF]
        ^ _SEED_V4[4, udp_len >> 8 & 0xFF] ^ _SEED_V4[5, udp_len & 0xFF]
    )  # fmt: skip


@inline
def icrc_bth(crc: int, buf: np.ndarray, bth_off: int, n: int) -> int:
    """Continue over BTH and extension headers, `n` bytes, just written; byte 4 of the BTH counts as ones.

    By words, which a CPU can forward from the stores that wrote them: a vector load would wait for the cache.
    """
    addr = field_addr(buf, bth_off, n)
    end = addr + n
    crc = crc32_words(0, (ld32(addr) ^ crc) << 32, ld32(addr + 4) | 0xFF | ld32(addr + 8) << 32)
    addr += 12
    while end - addr >= 16:
        crc = crc32_words(crc, ld32(addr) | ld32(addr + 4) << 32, ld32(addr + 8) | ld32(addr + 12) << 32)
        addr += 16
    while addr < end:
        crc = crc32_words(0, 0, (ld32(addr) ^ crc) << 32)
        addr += 4
    return crc


@inline
def icrc_finish(crc: int) -> int:
    """The ICRC of a packet whose last byte is in the state."""
    return crc ^ CRC_INIT


@inline
def put_icrc(buf: np.ndarray, off: int, value: int) -> None:
    """Store an ICRC: little-endian, unlike everything else."""
    st32(field_addr(buf, off, 4), value)


@inline
def get_icrc(buf: np.ndarray, off: int) -> int:
    """Load an ICRC."""
    return ld32(field_addr(buf, off, 4))


@inline
def icrc_check(
    buf: np.ndarray, bth_off: int, udp_payload_len: int, base: int, is_v6: int, ip_id: int, id_unknown: int
) -> bool:
    """Is the ICRC of a received segment right? `id_unknown`: `ip_id` and the DF bit in `base` are guesses."""
    n = udp_payload_len - 4
    addr = field_addr(buf, bth_off, udp_payload_len)
    seed = icrc_seed(base, is_v6, ip_id, udp_payload_len)
    crc = crc32_addr(seed ^ int(_RESV8A[ld8(addr + 4)]), addr, n)
    difference = icrc_finish(crc) ^ ld32(addr + n)
    if difference == 0 or is_v6 or not id_unknown:
        return difference == 0
    return _explained_by_id(difference, n)


# --- packets whose IP identification and DF bit the port could not see --------------------------------------
#
# Wrong guesses of those 17 bits XOR a member of a fixed 17-dimensional subspace of GF(2)^32 into the state
# before the BTH. So carry the difference of the ICRCs back over the packet, and ask for membership: fifteen
# parity checks that every member passes. A corrupted packet passes all of them by chance once in 2^15.


_ONE = 1 << 31  # the polynomial 1


def _times(a: int, b: int) -> int:
    """Product of two states as polynomials modulo P; bit 31 is x^0. Kernel and Python alike."""
    product = 0
    for i in range(32):
        product ^= b * (a >> 31 - i & 1)
        b = b >> 1 ^ POLY * (b & 1)
    return product


def _powers(a: int) -> list[int]:
    powers = [_ONE]
    while len(powers) < 256:
        powers.append(_times(powers[-1], a))
    return powers


def _parity_checks(space: list[int]) -> list[int]:
    """A basis of the 32-bit masks that have even overlap with every vector of `space`."""
    rows: dict[int, int] = {}  # pivot bit -> reduced row
    for member in space:
        vector = member
        for pivot, row in rows.items():
            vector ^= row * (vector >> pivot & 1)
        if not vector:
            continue
        pivot = vector.bit_length() - 1
        rows = {p: row ^ vector * (row >> pivot & 1) for p, row in rows.items()} | {pivot: vector}
    free = [bit for bit in range(32) if bit not in rows]
    return [1 << bit | sum(1 << pivot for pivot, row in rows.items() if row >> bit & 1) for bit in free]


def _syndrome(value: int, checks: list[int]) -> int:
    return sum(((value & check).bit_count() & 1) << i for i, check in enumerate(checks))


_HIDDEN_BITS = [(off, 1 << bit) for off in (4, 5) for bit in range(8)] + [(6, 0x40)]
_CHECKS = _parity_checks([_advance(int(TABLE[0, bit]), _IPV4_TO_BTH - off - 1) for off, bit in _HIDDEN_BITS])
_SYNDROME = frozen([[_syndrome(b << 8 * i, _CHECKS) for b in range(256)] for i in range(4)], "i8")
_BACK = frozen([_powers(_rewind(_ONE, 1)), _powers(_rewind(_ONE, 256))], "i8")  # x^-8i, x^-2048i
_times_kernel = inline(_times)


@inline
def _explained_by_id(difference: int, n: int) -> bool:
    """Can a wrong identification or DF bit alone explain this difference, `n` bytes after the UDP header?"""
    d = _times_kernel(_times_kernel(difference, _BACK[0, n & 0xFF]), _BACK[1, n >> 8 & 0xFF])
    low = _SYNDROME[0, d & 0xFF] ^ _SYNDROME[1, d >> 8 & 0xFF]
    high = _SYNDROME[2, d >> 16 & 0xFF] ^ _SYNDROME[3, d >> 24 & 0xFF]
    return bool(low == high)
