"""Local addresses: what a GID index stands for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Gid:
    """One local address."""

    index: int
    ip: IpAddress
    mac: bytes
    vlan: int | None


def gid_bytes(addr: IpAddress) -> bytes:
    """An address as a GID: IPv4 as ::ffff:a.b.c.d (A17.4.1)."""
    return addr.packed if addr.version == 6 else bytes(10) + b"\xff\xff" + addr.packed
