"""A port that is a plain UDP socket: RoCEv2 with no privileges, also between processes of one host.

Decides the socket's options. The frames are moved by netio/udpio.py.

    port = udp.open_udp("192.0.2.7")            # a second process of this host: open_udp("127.0.0.2")

What such a socket cannot do, and what that means for the ICRC (A17.3.3), which covers the IP header but for
type of service, time to live and checksum:

* The UDP source port is the bound one, 4791, for every QP: `fixed_sport`. It is covered, so the engine builds
  its headers with it. (Routers that spread flows by source port see one flow.)
* The IPv4 identification is Linux's choice: 0 from a socket that is not connected and must not fragment, and
  0, 1, 2... in a super-frame, which is what the engine writes. On receive it is not told: ID_UNKNOWN.
* "Don't fragment" is set (IP_PMTUDISC_DO). On receive it is taken to be.
* No Ethernet addresses, VLAN tags or flow labels; the first two are made up, none is covered.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from netio.bare import SocketPort, new_eventfd
from netio.port import Kind, PortCaps, PortFlag, make_tables
from softrnic.errors import IoError
from softrnic.spec import ROCE_UDP_PORT

# linux/in.h, linux/in6.h, linux/udp.h, asm-generic/socket.h
_IP_MTU_DISCOVER, _IP_PKTINFO, _IP_RECVTOS, _IP_PMTUDISC_DO = 10, 8, 13, 2
_IPV6_MTU_DISCOVER, _IPV6_RECVPKTINFO, _IPV6_RECVTCLASS, _IPV6_PMTUDISC_DO = 23, 49, 66, 2
_UDP_GRO = 104
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of Linux before 6.9; later ones take 128
BUFFER_BYTES = 8 << 20

_SUPER_FRAMES = PortCaps(max_frame=65535, max_segments=MAX_SEGMENTS, ethernet=False)
_SINGLE_FRAMES = PortCaps(ethernet=False)


class UdpPort(SocketPort):
    """A UDP socket as a port."""

    def __init__(self, sock: socket.socket, *, mtu: int, offload: bool, local: bytes) -> None:
        address, udp_port = sock.getsockname()[:2]
        tables = make_tables(Kind.UDP, fd=sock.fileno(), wake_fd=new_eventfd(), mtu=mtu)
        port = tables.port
        port["flags"] = PortFlag.OFFLOAD if offload else 0
        port["family"] = socket.AF_INET if len(local) == 4 else socket.AF_INET6
        port["sport"], port["dport"] = udp_port, ROCE_UDP_PORT
        caps = _SUPER_FRAMES if offload else _SINGLE_FRAMES
        super().__init__(f"udp:{address}", sock, tables=tables, caps=caps, mac=mac_of(local))
        self.fixed_sport = udp_port
        self.address = local


def open_udp(address: str, *, port: int = ROCE_UDP_PORT, mtu: int | None = None, offload: bool = True) -> UdpPort:
    """A port bound to an address of this host, or to any ("0.0.0.0", "::"). Peers must use the same `port`.

    `mtu` is that of the path; None takes 1500, and 65535 for loopback addresses.
    """
    ip = ipaddress.ip_address(address)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        (_prepare_ipv4 if ip.version == 4 else _prepare_ipv6)(sock)
        if offload:
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        _grow_buffers(sock)
        sock.bind((address, port))
        return UdpPort(sock, mtu=mtu or (65535 if ip.is_loopback else 1500), offload=offload, local=ip.packed)
    except OSError as error:
        sock.close()
        raise IoError(error.errno or 0, f"UDP port {port} on {address}") from error


def _prepare_ipv4(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)


def _prepare_ipv6(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_DO)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)


def _grow_buffers(sock: socket.socket) -> None:
    """Beyond net.core.rmem_max where we may."""
    for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)


def mac_of(address: bytes) -> bytes:
    """The Ethernet address that stands for an IP address on a UDP port: 02:00 and its last four bytes."""
    return b"\x02\x00" + address[-4:]
