"""A port on any Ethernet device: an AF_PACKET socket with virtio-net headers, so super-frames cross whole.

Decides the socket's options; needs root. The frames are moved by netio/fdio.py. Opens in the calling thread's
namespace: `with ns.entered(): port = raw.open_raw("eth0")`.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from netio import netdev
from netio.bare import SocketPort, new_eventfd
from netio.bpf import attach_socket, roce_filter
from netio.port import SUPER_FRAMES, Kind, PortFlag, make_tables
from softrnic.errors import IoError

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP = 1, 2
_PACKET_AUXDATA, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 8, 15, 23
_PACKET_MR_MULTICAST, _PACKET_MR_PROMISC, _PACKET_MR_UNICAST = 0, 1, 3
_ETH_P_ALL = 3
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
BUFFER_BYTES = 8 << 20


class RawPort(SocketPort):
    """A port on a network device."""

    def __init__(
        self,
        ifname: str,
        sock: socket.socket,
        *,
        mac: bytes,
        mtu: int,
        vlan: bool,
    ) -> None:
        tables = make_tables(Kind.FD, fd=sock.fileno(), wake_fd=new_eventfd(), mtu=mtu)
        tables.port["flags"] = PortFlag.SOCKET | PortFlag.OFFLOAD | (PortFlag.VLAN if vlan else 0)
        super().__init__(ifname, sock, tables=tables, caps=SUPER_FRAMES, mac=mac)
        self._vlan = vlan
        self._ifindex = netdev.index(ifname)

    def join(self, mac: bytes) -> None:
        """Have the device receive frames to a multicast group, or to a second unicast address. The kernel counts."""
        self._membership(_PACKET_ADD_MEMBERSHIP, mac)

    def leave(self, mac: bytes) -> None:
        self._membership(_PACKET_DROP_MEMBERSHIP, mac)

    def _membership(self, what: int, mac: bytes) -> None:
        if mac == self.mac:
            return
        kind = _PACKET_MR_MULTICAST if mac[0] & 1 else _PACKET_MR_UNICAST
        self._sock.setsockopt(_SOL_PACKET, what, struct.pack("=iHH8s", self._ifindex, kind, len(mac), mac))

    def hear_neighbours(self) -> None:
        attach_socket(self._sock, roce_filter(vlan=self._vlan, neighbours=True))


def open_raw(ifname: str, *, promisc: bool = False, vlan: bool = False) -> RawPort:
    """A port on `ifname`.

    `promisc`: frames to other stations too. `vlan`: frames with any VLAN tag, which is left in. The host's own stack
    gets the same frames and would answer them with ICMP: `ebpf.shield` keeps it from that.
    """
    mac, mtu = netdev.mac(ifname), netdev.mtu(ifname)
    try:
        sock = _packet_socket(ifname, promisc=promisc, vlan=vlan)
    except OSError as error:
        raise IoError(error.errno or 0, f"packet socket on {ifname}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        port = RawPort(ifname, sock, mac=mac, mtu=mtu, vlan=vlan)
        undo.pop_all()
    return port


def _packet_socket(ifname: str, *, promisc: bool, vlan: bool) -> socket.socket:
    """Bound only when all is set, so that no unfiltered frame is ever queued.

    Without PACKET_QDISC_BYPASS: it gains nothing on veth, and the kernel drops super-frames that it would
    have to cut in software for a device without UDP segmentation.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        attach_socket(sock, roce_filter(vlan=vlan))
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        if vlan:
            sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        sock.bind((ifname, _ETH_P_ALL))
        if promisc:
            request = struct.pack("=iHH8s", netdev.index(ifname), _PACKET_MR_PROMISC, 0, b"")
            sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
    except BaseException:
        sock.close()
        raise
    return sock
