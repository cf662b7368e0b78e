"""Steering: a rule table in force on an interface.

    with Steering("eth0", "tc") as steering:
        steering.add("192.0.2.1", 0x11, Rule.drop())  # a suspended queue pair
        steering.add("192.0.2.1", None, Rule.to_socket(0))  # the rest of that address: function 0
        steering.filter_socket(packet_socket, target=0)

Decides when programs are attached and detached: not before the default rule stands, and for certain on exit.
What a rule does to a packet is `program.py`'s.
"""

from __future__ import annotations

import errno
import socket
from enum import StrEnum

from ebpf.attach import Attachment, XdpMode, attach_tc, attach_xdp
from ebpf.program import TC, XDP, socket_program, steering_program
from ebpf.rules import Action, Address, Rule, socket_slot
from ebpf.table import RuleTable
from softrnic.errors import IoError

_SO_ATTACH_BPF = 50  # include/uapi/asm-generic/socket.h; the socket module has no name for it


class Mode(StrEnum):
    """Where the program runs."""

    TC          = "tc"  # for AF_PACKET sockets, and as a shield
    XDP         = "xdp"  # for AF_XDP sockets: in the driver if it can, else in the stack
    XDP_NATIVE  = "xdp-native"
    XDP_GENERIC = "xdp-generic"


_XDP_MODE = {Mode.XDP: XdpMode.AUTO, Mode.XDP_NATIVE: XdpMode.NATIVE, Mode.XDP_GENERIC: XdpMode.GENERIC}


class Steering(RuleTable):
    """The steering program on an interface of the calling thread's network namespace, until `close()`.

    `default` is the rule for any address, in force from the first moment. `vlan`: frames of a VLAN are judged
    too; without it they are left alone, for they belong to a VLAN interface on top of this one.
    """

    def __init__(
        self, ifname: str, mode: Mode | str = Mode.TC, *, default: Rule | None = None, vlan: bool = False
    ) -> None:
        self.mode = Mode(mode)
        self.vlan = vlan
        ifindex = _ifindex(ifname)
        super().__init__()
        try:
            if default is not None:
                self.add(None, None, default)
            self._attachment = self._attach(ifindex)
        except BaseException:
            super().close()
            raise
        self.how = f"{self._attachment.how} on {ifname}"
        """By what means, for people."""

    def _attach(self, ifindex: int) -> Attachment:
        if self.mode is Mode.TC:
            with self.load(steering_program(TC, vlan=self.vlan)) as program:
                return attach_tc(program, ifindex)
        with self.load(steering_program(XDP, vlan=self.vlan)) as program:
            return attach_xdp(program, ifindex, _XDP_MODE[self.mode])

    def add(self, address: Address | None, qpn: int | None, rule: Rule) -> None:
        if rule.action is Action.KEEP and self.mode is not Mode.TC:
            raise ValueError("keep is for mode tc: xdp would keep the packet from AF_PACKET sockets as well")
        super().add(address, qpn, rule)

    def add_xsk(self, fd: int, target: int = 0, queue: int = 0) -> None:
        if self.mode is Mode.TC:
            raise ValueError("AF_XDP sockets need an xdp mode")
        super().add_xsk(fd, target, queue)

    def filter_socket(self, sock: socket.socket, target: int = 0, *, others: bool = True) -> None:
        """Let an AF_PACKET socket have the RoCEv2 packets of function `target` only.

        `others`: it has the frames that are not RoCEv2 as well. The filter stays with the socket, and follows
        the rules for as long as this object lives.
        """
        if self.mode is not Mode.TC:
            raise ValueError("AF_PACKET sockets need mode tc")
        socket_slot(target, 0)
        with self.load(socket_program(target, others=others, vlan=self.vlan)) as program:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program.fileno())

    def close(self) -> None:
        """Detach and let go; again is harmless."""
        self._attachment.close()
        super().close()


def _ifindex(ifname: str) -> int:
    try:
        return socket.if_nametoindex(ifname)
    except OSError as error:
        raise IoError(errno.ENODEV, f"interface {ifname}") from error
