"""Membership in IP multicast groups, by the host's stack: it tells routers and switches (IGMP, MLD) and has the device
receive what is sent to the group. The frames themselves come in by the port.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct

from netio.netns import Namespace
from softrnic.errors import IoError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Memberships:
    """Of one network device; all end with `close`, or with the process."""

    def __init__(self, ns: Namespace, ifname: str) -> None:
        self._ns = ns
        self._ifname = ifname
        self._sockets: dict[IpAddress, socket.socket] = {}  # one each: a socket may be in 20 groups only

    def hear(self, group: IpAddress, wanted: bool) -> None:
        """Join, or leave."""
        if wanted and group not in self._sockets:
            self._sockets[group] = self._join(group)
        elif not wanted and group in self._sockets:
            self._sockets.pop(group).close()

    def _join(self, group: IpAddress) -> socket.socket:
        with contextlib.ExitStack() as undo, self._ns.entered():
            try:
                index = socket.if_nametoindex(self._ifname)
                family = socket.AF_INET if group.version == 4 else socket.AF_INET6
                sock = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
                if group.version == 4:
                    request = struct.pack("=4s4si", group.packed, bytes(4), index)  # struct ip_mreqn
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
                else:
                    request = struct.pack("=16si", group.packed, index)  # struct ipv6_mreq
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            except OSError as error:
                raise IoError(error.errno or errno.ENODEV, f"group {group} on {self._ifname}") from error
            undo.pop_all()
            return sock

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
