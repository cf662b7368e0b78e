"""The slow ring: ARP and neighbour discovery frames that a port's kernel sets aside for Python.

A tap's user side is the NIC itself, so somebody must answer for its addresses; that is netio/arp.py's
business, which is too rare and too branchy for a kernel. Here is only what crosses between the two.
"""

from __future__ import annotations

import numpy as np

from netio.header import ETH_ARP, ETH_IPV6, PROTO_ICMPV6, get_be16, ip_offset
from netio.port import SLOW_BYTES, SLOW_SLOTS, PortTables
from softrnic.jit import addr_of, i64, inline, ld8, memcpy, st64

ND_FIRST, ND_LAST = 133, 137  # router solicitation to redirect (RFC 4861, 4)


@inline
def is_slow(addr: int, length: int) -> bool:
    """Whether a frame is ARP or IPv6 neighbour discovery."""
    ip = ip_offset(addr, length)
    if ip < 0:
        return False
    ethertype = get_be16(addr + ip - 2)
    if ethertype == ETH_ARP:
        return True
    if ethertype != ETH_IPV6 or length < ip + 48 or int(ld8(addr + ip + 6)) != PROTO_ICMPV6:
        return False
    return ND_FIRST <= int(ld8(addr + ip + 40)) <= ND_LAST


@inline
def divert(pt: PortTables, addr: int, length: int) -> None:
    """Copy a frame into the slow ring; a full ring or an overlong frame loses it."""
    port = pt.port[0]
    head = i64(port["slow_head"])
    if head - i64(port["slow_tail"]) == SLOW_SLOTS or length > SLOW_BYTES - 8:
        port["rx_drops"] += 1
        return
    slot = addr_of(pt.slow) + (head % SLOW_SLOTS) * SLOW_BYTES
    st64(slot, length)
    memcpy(slot + 8, addr, length)
    port["slow_head"] = head + 1
    port["rx_diverted"] += 1


def take_slow(pt: PortTables) -> bytes | None:
    """The oldest diverted frame, or None."""
    port = pt.port[0]
    tail = i64(port["slow_tail"])
    if tail == i64(port["slow_head"]):
        return None
    at = (tail % SLOW_SLOTS) * SLOW_BYTES
    length = int(pt.slow[at : at + 8].view(np.int64)[0])
    frame = pt.slow[at + 8 : at + 8 + length].tobytes()
    port["slow_tail"] = tail + 1
    return frame
