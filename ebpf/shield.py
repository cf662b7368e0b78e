"""Keep the host stack from answering RoCEv2 packets with ICMP port unreachable.

A raw port reads its packets from an AF_PACKET socket; the host's IP stack gets them too, finds nobody at UDP
4791 and says so to the sender, whose connections that can end. `shield` decides how to prevent it: by the
steering program at the tc hook where BPF is allowed, else by UDP sockets that take all and read nothing. Either way the
sockets are there and ask for GRO: what was cut on its way from a softrnic on another host is then whole again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import socket
import struct
from typing import Self

from ebpf.rules import Rule
from ebpf.steering import Mode, Steering
from softrnic.errors import IoError
from softrnic.spec import ROCE_UDP_PORT

_log = logging.getLogger(__name__)

_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
_UDP_GRO = 104  # include/uapi/linux/udp.h
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # struct sock_filter: BPF_RET | BPF_K, 0 bytes


class Shield:
    """In place until `close()`, or to the end of a `with` block."""

    how = "nothing: another program holds the port, and the host gives it what is ours"
    """By what means, for people."""

    def close(self) -> None:
        """Take it away; again is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def shield(ifname: str, *, vlan: bool = False) -> Shield:
    """Shield `ifname` as well as this process may, `vlan`: from tagged frames, too. Both ways die with the process."""
    try:
        best: Shield = ProgramShield(Steering(ifname, Mode.TC, default=Rule.keep(), vlan=vlan))
    except IoError as error:
        if error.errno == errno.ENODEV:
            raise
        best = _without_program(str(error).splitlines()[0])
    _log.info("RoCEv2 is kept from the host stack by %s", best.how)
    return best


def _without_program(reason: str) -> Shield:
    try:
        return HostShield(reason=reason)
    except IoError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return Shield()  # where there is a socket, the host does not answer


class ProgramShield(Shield):
    """The steering program, and a socket behind it that gets nothing: only for one that asks does GRO merge packets."""

    def __init__(self, steering: Steering) -> None:
        self.how = steering.how
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(steering)
        with contextlib.suppress(IoError):  # another holds the port: then that one says what is merged
            self._stack.enter_context(HostShield())

    def close(self) -> None:
        self._stack.close()


class HostShield(Shield):
    """UDP sockets on port 4791 of all addresses of the network namespace. They need no privilege.

    A filter drops what they receive before it is queued. Shields of one user's processes share the port. The way
    to that filter is long: each frame costs half a microsecond more than with a program at the tc hook.
    """

    def __init__(self, *, reason: str = "") -> None:
        self.how = f"a UDP socket ({reason})" if reason else "a UDP socket"
        self._sockets: list[socket.socket] = []
        try:
            for family in _families():
                self._sockets.append(_mute_socket(family))
        except OSError as error:
            self.close()
            raise IoError(error.errno or errno.EIO, f"UDP port {ROCE_UDP_PORT}, to shield it") from error

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()


def _families() -> list[socket.AddressFamily]:
    families = [socket.AF_INET]
    if socket.has_dualstack_ipv6():
        families.append(socket.AF_INET6)
    return families


def _mute_socket(family: socket.AddressFamily) -> socket.socket:
    """A UDP socket that has the RoCEv2 port and receives nothing.

    Its asking for GRO spares the host the cutting up of super-frames, too, that it is about to drop.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with contextlib.suppress(OSError):  # before Linux 5.0
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        _drop_all(sock)
        sock.bind(("", ROCE_UDP_PORT))
    except BaseException:
        sock.close()
        raise
    return sock


def _drop_all(sock: socket.socket) -> None:
    """Attach a classic BPF filter, which any user may."""
    code = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    program = struct.pack("@HP", 1, ctypes.addressof(code))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
