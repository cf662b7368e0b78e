"""The transport headers: offsets, getters, putters, in network byte order (IBTA 9.2 to 9.3).

Every function takes the buffer and the offset of the header it speaks about. Nothing is checked here but the
bounds of a checked build: whoever calls has found the packet long enough for BTH, extension headers and ICRC.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import bswap32, bswap64, inline, st32, st64
from softrnic.wire.fields import field_addr, get8, get16, get24, get32, get64, put8, put24, put32, put64
from softrnic.wire.opcodes import (
    AETH_LEN,
    ATOMICACKETH_LEN,
    ATOMICETH_LEN,
    CNP_RESV_LEN,
    DETH_LEN,
    IETH_LEN,
    IMMDT_LEN,
    RETH_LEN,
)

__all__ = [
    "AETH_LEN", "ATOMICACKETH_LEN", "ATOMICETH_LEN", "BTH_LEN", "CNP_RESV_LEN", "DETH_LEN",
    "ICRC_LEN", "IETH_LEN", "IMMDT_LEN", "RETH_LEN", "aeth_msn", "aeth_syndrome",
    "atomicacketh_orig", "atomiceth_compare", "atomiceth_rkey", "atomiceth_swap", "atomiceth_va",
    "bth_ackreq", "bth_becn", "bth_dqpn", "bth_fecn", "bth_migreq", "bth_opcode", "bth_padcnt",
    "bth_pkey", "bth_psn", "bth_se", "bth_tver", "deth_qkey", "deth_sqpn", "ieth_rkey", "immdt",
    "put_aeth", "put_atomicacketh", "put_atomiceth", "put_bth", "put_deth", "put_ieth", "put_immdt",
    "put_reth", "reth_len", "reth_rkey", "reth_va",
]  # fmt: skip

BTH_LEN  = 12
ICRC_LEN = 4

#  Base Transport Header (9.2)
#   0                   1                   2                   3
#   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#  +---------------+-+-+---+-------+-------------------------------+
#  |    opcode     |S|M|pad| tver  |             pkey              |
#  +-+-+-----------+-+-+---+-------+-------------------------------+
#  |F|B|   resv6   |                     dqpn                      |
#  +-+-+-----------+-----------------------------------------------+
#  |A|    resv7    |                      psn                      |
#  +-+-------------+-----------------------------------------------+


@inline
def bth_opcode(buf: np.ndarray, o: int) -> int:
    """Opcode: a row of `opcodes.OPCODES`, if valid."""
    return get8(buf, o)


@inline
def bth_se(buf: np.ndarray, o: int) -> int:
    """Solicited event."""
    return get8(buf, o + 1) >> 7


@inline
def bth_migreq(buf: np.ndarray, o: int) -> int:
    """Migration state: 1 migrated."""
    return get8(buf, o + 1) >> 6 & 1


@inline
def bth_padcnt(buf: np.ndarray, o: int) -> int:
    """Bytes of padding between payload and ICRC."""
    return get8(buf, o + 1) >> 4 & 3


@inline
def bth_tver(buf: np.ndarray, o: int) -> int:
    """Transport header version; 0 is the only one (C9-7)."""
    return get8(buf, o + 1) & 0xF


@inline
def bth_pkey(buf: np.ndarray, o: int) -> int:
    """Partition key."""
    return get16(buf, o + 2)


@inline
def bth_fecn(buf: np.ndarray, o: int) -> int:
    """Forward congestion notification."""
    return get8(buf, o + 4) >> 7


@inline
def bth_becn(buf: np.ndarray, o: int) -> int:
    """Backward congestion notification; 1 in a CNP."""
    return get8(buf, o + 4) >> 6 & 1


@inline
def bth_dqpn(buf: np.ndarray, o: int) -> int:
    """Destination QP number."""
    return get24(buf, o + 5)


@inline
def bth_ackreq(buf: np.ndarray, o: int) -> int:
    """Acknowledge request."""
    return get8(buf, o + 8) >> 7


@inline
def bth_psn(buf: np.ndarray, o: int) -> int:
    """Packet sequence number."""
    return get24(buf, o + 9)


@inline
def put_bth(
    buf: np.ndarray, o: int, opcode: int, se: int, padcnt: int, pkey: int, dqpn: int, ackreq: int, psn: int
) -> None:
    """A whole BTH: version 0, MigReq 1 (the migrated state, in which every RoCE QP is), no FECN, no BECN."""
    addr = field_addr(buf, o, BTH_LEN)
    flags = se << 7 | 1 << 6 | padcnt << 4
    st64(addr, bswap64(opcode << 56 | flags << 48 | pkey << 32 | dqpn))
    st32(addr + 8, bswap32(ackreq << 31 | psn))


#  RDMA Extended Transport Header (9.3.3)
#  +---------------------------------------------------------------+
#  |                     virtual address (64)                      |
#  |                                                               |
#  +---------------------------------------------------------------+
#  |                             rkey                              |
#  +---------------------------------------------------------------+
#  |                          DMA length                           |
#  +---------------------------------------------------------------+


@inline
def reth_va(buf: np.ndarray, o: int) -> int:
    """Virtual address, signed: negative is beyond any address we know."""
    return get64(buf, o)


@inline
def reth_rkey(buf: np.ndarray, o: int) -> int:
    """Remote key."""
    return get32(buf, o + 8)


@inline
def reth_len(buf: np.ndarray, o: int) -> int:
    """Bytes of the whole message."""
    return get32(buf, o + 12)


@inline
def put_reth(buf: np.ndarray, o: int, va: int, rkey: int, length: int) -> None:
    """A whole RETH."""
    put64(buf, o, va)
    put32(buf, o + 8, rkey)
    put32(buf, o + 12, length)


#  ACK Extended Transport Header (9.3.5)
#  +---------------+-----------------------------------------------+
#  |   syndrome    |                      msn                      |
#  +---------------+-----------------------------------------------+


@inline
def aeth_syndrome(buf: np.ndarray, o: int) -> int:
    """Syndrome: kind in bits 6:5, credits, RNR timer or NAK code in bits 4:0."""
    return get8(buf, o)


@inline
def aeth_msn(buf: np.ndarray, o: int) -> int:
    """Message sequence number."""
    return get24(buf, o + 1)


@inline
def put_aeth(buf: np.ndarray, o: int, syndrome: int, msn: int) -> None:
    """A whole AETH."""
    put8(buf, o, syndrome)
    put24(buf, o + 1, msn)


#  Atomic Extended Transport Header (9.3.4)
#  +---------------------------------------------------------------+
#  |                     virtual address (64)                      |
#  |                                                               |
#  +---------------------------------------------------------------+
#  |                             rkey                              |
#  +---------------------------------------------------------------+
#  |                    swap or add data (64)                      |
#  |                                                               |
#  +---------------------------------------------------------------+
#  |                      compare data (64)                        |
#  |                                                               |
#  +---------------------------------------------------------------+


@inline
def atomiceth_va(buf: np.ndarray, o: int) -> int:
    """Virtual address, signed."""
    return get64(buf, o)


@inline
def atomiceth_rkey(buf: np.ndarray, o: int) -> int:
    """Remote key."""
    return get32(buf, o + 8)


@inline
def atomiceth_swap(buf: np.ndarray, o: int) -> int:
    """What to store (compare and swap) or to add (fetch and add)."""
    return get64(buf, o + 12)


@inline
def atomiceth_compare(buf: np.ndarray, o: int) -> int:
    """What to compare with; unused by fetch and add."""
    return get64(buf, o + 20)


@inline
def put_atomiceth(buf: np.ndarray, o: int, va: int, rkey: int, swap: int, compare: int) -> None:
    """A whole AtomicETH."""
    put64(buf, o, va)
    put32(buf, o + 8, rkey)
    put64(buf, o + 12, swap)
    put64(buf, o + 20, compare)


#  Atomic ACK Extended Transport Header (9.5.3): the 64 bits that were there before.


@inline
def atomicacketh_orig(buf: np.ndarray, o: int) -> int:
    """Original remote data."""
    return get64(buf, o)


@inline
def put_atomicacketh(buf: np.ndarray, o: int, orig: int) -> None:
    """A whole AtomicAckETH."""
    put64(buf, o, orig)


#  Immediate (9.3.6): 32 bits handed to the receiver's completion as they are.


@inline
def immdt(buf: np.ndarray, o: int) -> int:
    """Immediate data."""
    return get32(buf, o)


@inline
def put_immdt(buf: np.ndarray, o: int, imm: int) -> None:
    """Immediate data."""
    put32(buf, o, imm)


#  Invalidate Extended Transport Header (9.3.7): the 32-bit rkey to invalidate.


@inline
def ieth_rkey(buf: np.ndarray, o: int) -> int:
    """The rkey to invalidate."""
    return get32(buf, o)


@inline
def put_ieth(buf: np.ndarray, o: int, rkey: int) -> None:
    """The rkey to invalidate."""
    put32(buf, o, rkey)


#  Datagram Extended Transport Header (9.3.2)
#  +---------------------------------------------------------------+
#  |                             qkey                              |
#  +---------------+-----------------------------------------------+
#  |     resv8     |                     sqpn                      |
#  +---------------+-----------------------------------------------+


@inline
def deth_qkey(buf: np.ndarray, o: int) -> int:
    """Queue key."""
    return get32(buf, o)


@inline
def deth_sqpn(buf: np.ndarray, o: int) -> int:
    """Source QP number."""
    return get24(buf, o + 5)


@inline
def put_deth(buf: np.ndarray, o: int, qkey: int, sqpn: int) -> None:
    """A whole DETH."""
    put32(buf, o, qkey)
    put32(buf, o + 4, sqpn & 0xFFFFFF)
