"""The RDMA CM service: TCP-like and UDP-like ports over the CM (IBTA annex A11, rdma_cm).

Decides how an IP address and a port become a service id, a GID and the header at the start of the private
data, and back. Knows nothing of connections.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from softrnic.errors import WireError

IpAddress = IPv4Address | IPv6Address

HEADER_BYTES = 36
HEADER_VERSION = 0
_V4_MAPPED = bytes(10) + b"\xff\xff"


class PortSpace(IntEnum):
    """rdma_port_space: which kind of port a service id stands for."""

    IPOIB = 0x0002
    TCP   = 0x0106  # connected: RC, UC, XRC
    UDP   = 0x0111  # UD, by service id resolution
    IB    = 0x013F


def service_id(space: PortSpace, port: int) -> int:
    """The service id of a port: 0x0000 0000 01pp nnnn, pp the IP protocol, nnnn the port."""
    return space << 16 | port


def port_of(identifier: int) -> tuple[PortSpace, int] | None:
    """What a service id stands for, or None if it is none of the RDMA CM's."""
    try:
        return PortSpace(identifier >> 16), identifier & 0xFFFF
    except ValueError:
        return None


def gid_from_ip(address: IpAddress) -> bytes:
    """The RoCEv2 GID of an IP address (A17.3.1): itself, or the IPv4-mapped IPv6 address."""
    return _V4_MAPPED + address.packed if address.version == 4 else address.packed


def ip_from_gid(gid: bytes) -> IpAddress:
    """The IP address of a RoCEv2 GID."""
    if gid[:12] == _V4_MAPPED:
        return IPv4Address(gid[12:])
    return IPv6Address(gid)


#    0       1       2       3
#   +---+---+---+---+-------+-------+
#  0|maj|min|ipv| - | source port   |
#   +---+---+---+---+-------+-------+
#  4| source address, 16 bytes      |      an IPv4 address in the last four, the others zero
#   +-------------------------------+
# 20| destination address, 16 bytes |
#   +-------------------------------+
class CmaHeader(NamedTuple):
    """What the RDMA CM puts in front of the private data of a REQ and of a SIDR_REQ (A11.3)."""

    source_port: int
    source: IpAddress
    destination: IpAddress

    @classmethod
    def parse(cls, private_data: bytes) -> CmaHeader:
        """The header at the start of `private_data`, or WireError."""
        if len(private_data) < HEADER_BYTES:
            raise WireError(f"{len(private_data)} bytes of private data hold no CMA header")
        if private_data[0] != HEADER_VERSION:
            raise WireError(f"CMA header version {private_data[0] >> 4}.{private_data[0] & 15}")
        version = private_data[1] >> 4
        port = int.from_bytes(private_data[2:4], "big")
        return cls(port, _address(version, private_data[4:20]), _address(version, private_data[20:36]))

    def emit(self) -> bytes:
        """The header's 36 bytes."""
        if self.source.version != self.destination.version:
            raise ValueError(f"{self.source} and {self.destination} are of different IP versions")
        return b"".join(
            (
                bytes((HEADER_VERSION, self.source.version << 4)),
                self.source_port.to_bytes(2, "big"),
                self.source.packed.rjust(16, b"\0"),
                self.destination.packed.rjust(16, b"\0"),
            )
        )


def _address(version: int, data: bytes) -> IpAddress:
    if version == 4:
        return IPv4Address(data[12:])
    if version == 6:
        return IPv6Address(data)
    raise WireError(f"CMA header of IP version {version}")


def parse_ip(text: str) -> IpAddress:
    """An address as it is written; a scope (%eth0) is not part of a GID."""
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
