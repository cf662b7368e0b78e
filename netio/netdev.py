"""A network device's own facts and switches by ioctl: address, MTU, up. For ports, which need no more than
that.

Acts in the network namespace of the calling thread. Addresses and routes are netio/neigh.py's.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from softrnic.errors import IoError

# linux/sockios.h
_GIFFLAGS, _SIFFLAGS, _GIFMTU, _SIFMTU, _GIFHWADDR = 0x8913, 0x8914, 0x8921, 0x8922, 0x8927
_IFF_UP = 1


def _ioctl(request: int, ifname: str, value: bytes = b"") -> bytes:
    """A request on struct ifreq: 16 bytes of name, 24 of value."""
    name = ifname.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return bytes(fcntl.ioctl(sock, request, struct.pack("16s24s", name, value)))[16:]
        except OSError as error:
            raise IoError(error.errno or 0, f"network device {ifname}") from error


def index(ifname: str) -> int:
    """Interface index."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as error:
        raise IoError(error.errno or 0, f"network device {ifname}") from error


def mac(ifname: str) -> bytes:
    """Ethernet address."""
    return _ioctl(_GIFHWADDR, ifname)[2:8]


def mtu(ifname: str) -> int:
    """Greatest IP packet."""
    return int(struct.unpack_from("=i", _ioctl(_GIFMTU, ifname))[0])


def set_mtu(ifname: str, value: int) -> None:
    """Change the MTU."""
    _ioctl(_SIFMTU, ifname, struct.pack("=i", value))


def set_up(ifname: str) -> None:
    """Bring the device up."""
    flags = struct.unpack_from("=h", _ioctl(_GIFFLAGS, ifname))[0]
    _ioctl(_SIFFLAGS, ifname, struct.pack("=h", flags | _IFF_UP))
