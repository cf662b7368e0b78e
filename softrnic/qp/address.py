"""Comparing the addresses of a packet with those in records."""

from __future__ import annotations

from softrnic.jit import addr_of, inline, ld64
from softrnic.wire.fields import get32

_V4_PREFIX = 0x0000FFFF  # ::ffff:0:0/96, third 32-bit word


@inline
def same_ip(ip, buf, at, is_v6):
    """Whether the 16-byte GID `ip` is the address at buf[at]; IPv4 as ::ffff:a.b.c.d."""
    a = addr_of(ip)
    if is_v6:
        b = addr_of(buf) + at
        return ld64(a) == ld64(b) and ld64(a + 8) == ld64(b + 8)
    return ld64(a) == 0 and get32(ip, 8) == _V4_PREFIX and get32(ip, 12) == get32(buf, at)


@inline
def same_mac(mac, buf, at):
    """Whether the six bytes `mac` are those at buf[at]."""
    for i in range(6):
        if mac[i] != buf[at + i]:
            return False
    return True
