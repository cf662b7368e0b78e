"""A function beside a host's own device: its addresses on the host's wire, while it is there.

    with host.add_function("vf0", "10.0.0.7/24") as vf: ...          # an address of its own
    vf = host.add_function("vf0"); restore(vf.device, ...); vf.appear()  # one that came from elsewhere

Decides when an address begins and ceases to be ours on the wire; what a function is, softrnic.verbs decides.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Protocol

from ebpf.rules import Counter, Rule
from ebpf.steering import Mode, Steering
from softrnic.errors import IoError
from softrnic.verbs import Device, Onward
from softrnic.verbs.address import IpAddress
from softrnic.verbs.forward import forwarded, stop_forwarding

if TYPE_CHECKING:
    from softrnic.control.host import Host

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Presence(Protocol):
    """How a wire comes to know an address. The pump stands still during each call."""

    def add(self, address: IpInterface, mac: bytes) -> None:
        """Receive what is sent to it; answer who asks for it."""

    def retire(self, ip: IpAddress) -> None:
        """Still receive what is sent to it, but answer no more: it is somewhere else."""

    def remove(self, ip: IpAddress, mac: bytes) -> None:
        """Neither."""

    def announce(self, now: int, addresses: list[IpAddress]) -> None:
        """Tell everybody that it is here: gratuitous ARP, unsolicited neighbour advertisement."""


class Directory:
    """Of a wire on which nobody asks: all its hosts look neighbours up in one table."""

    def __init__(self, peers: dict[IpAddress, bytes]) -> None:
        self._peers = peers

    def add(self, address: IpInterface, mac: bytes) -> None:
        self._peers[address.ip] = mac

    def retire(self, ip: IpAddress) -> None:
        """The table has who took it over."""

    def remove(self, ip: IpAddress, mac: bytes) -> None:
        if self._peers.get(ip) == mac:
            del self._peers[ip]

    def announce(self, now: int, addresses: list[IpAddress]) -> None:
        """The table has said it."""


class Function:
    """One function of a host. Made by `Host.add_function`; closing it leaves the host and its other functions alone."""

    def __init__(self, host: Host, device: Device, presence: Presence, prefixes: dict[IpAddress, IpInterface]) -> None:
        self.host = host
        self.device = device
        self._presence = presence
        self._prefixes = prefixes
        self._shown: dict[IpAddress, bytes] = {}  # and its MAC
        self._steering: Steering | None = None

    def appear(self) -> None:
        """Be on the wire with every address the device has now, and say so; again, to say it again.

        Those with a VLAN are not answered for: that is the business of who made the VLAN.
        """
        with self.host.nic.quiesced():
            for gid in self.device.gids.values():
                if gid.vlan is None and gid.ip not in self._shown:
                    self._presence.add(self._prefixes.get(gid.ip, ipaddress.ip_interface(gid.ip)), gid.mac)
                    self._shown[gid.ip] = gid.mac
            self._presence.announce(time.monotonic_ns(), list(self._shown))

    def vanish(self) -> None:
        """Off the wire: nobody answers for its addresses here any more."""
        with self.host.nic.quiesced():
            while self._shown:
                self._presence.remove(*self._shown.popitem())

    def forward(self, mac: bytes, *, seconds: float = 30.0, vlan: int | None = None, in_kernel: bool = False) -> None:
        """It lives at another host now, whose own MAC is `mac`: what still arrives for it here goes on to there.

        Nothing else of it stays. It ends after `seconds`, or with `close`. `in_kernel`: by an eBPF program that sees
        the packets before any process does; on a network device only, and until `close`.
        """
        if in_kernel:
            self._steering = self._steer(mac)
        else:
            self.device.forward(Onward(mac, self.host.mac, vlan, lifetime_ns=int(seconds * 1e9)))
        with self.host.nic.quiesced():
            for ip in self._shown:
                self._presence.retire(ip)
        self.device.destroy()

    def forwarded(self) -> int:
        """Packets sent on so far."""
        if self._steering is not None:
            return self._steering.counters()[Counter.FORWARD].packets
        return sum(forwarded(self.device.adapter, ip) for ip in self._shown)

    def _steer(self, mac: bytes) -> Steering:
        host = self.host
        if host.ns is None:
            raise IoError(errno.EOPNOTSUPP, f"{host.port.name} is no network device that the kernel could forward on")
        with host.ns.entered():
            steering = Steering(host.port.name, Mode.TC)
            rule = Rule.forward(socket.if_nametoindex(host.port.name), mac, host.mac)
        for ip in self._shown:
            steering.add(ip, None, rule)
        return steering

    def close(self) -> None:
        """Off the wire, and gone with all that is on it; nothing is forwarded any more."""
        if self not in self.host.functions:
            return
        self.host.functions.remove(self)
        with contextlib.ExitStack() as stack:
            stack.callback(self.device.destroy)
            if self._steering is not None:
                stack.callback(self._steering.close)
            gone = list(self._shown)
            self.vanish()
            with self.host.nic.quiesced():
                for ip in gone:
                    stop_forwarding(self.device.adapter, ip)

    def __enter__(self) -> Function:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
