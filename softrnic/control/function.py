"""A function beside a host's own device: its addresses on the host's wire, while it is there.

    with host.add_function("vf0", "10.0.0.7/24") as vf: ...          # an address of its own
    vf = host.add_function("vf0"); restore(vf.device, ...); vf.appear()  # one that came from elsewhere

Decides when an address begins and ceases to be ours on the wire; what a function is, softrnic.verbs decides.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from typing import TYPE_CHECKING, Protocol

from softrnic.verbs import Device
from softrnic.verbs.device import IpAddress

if TYPE_CHECKING:
    from softrnic.control.host import Host

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Presence(Protocol):
    """How a wire comes to know an address. The pump stands still during each call."""

    def add(self, address: IpInterface, mac: bytes) -> None:
        """Receive what is sent to it; answer who asks for it."""

    def remove(self, ip: IpAddress) -> None:
        """No more."""

    def announce(self, now: int, addresses: list[IpAddress]) -> None:
        """Tell everybody that it is here: gratuitous ARP, unsolicited neighbour advertisement."""


class Directory:
    """Of a wire on which nobody asks: all its hosts look neighbours up in one table."""

    def __init__(self, peers: dict[IpAddress, bytes]) -> None:
        self._peers = peers

    def add(self, address: IpInterface, mac: bytes) -> None:
        self._peers[address.ip] = mac

    def remove(self, ip: IpAddress) -> None:
        self._peers.pop(ip, None)

    def announce(self, now: int, addresses: list[IpAddress]) -> None:
        """The table has said it."""


class Function:
    """One function of a host. Made by `Host.add_function`; closing it leaves the host and its other functions alone."""

    def __init__(self, host: Host, device: Device, presence: Presence, prefixes: dict[IpAddress, IpInterface]) -> None:
        self.host = host
        self.device = device
        self._presence = presence
        self._prefixes = prefixes
        self._shown: list[IpAddress] = []

    def appear(self) -> None:
        """Be on the wire with every address the device has now, and say so; again, to say it again.

        Those with a VLAN are not answered for: that is the business of who made the VLAN.
        """
        with self.host.nic.quiesced():
            for gid in self.device.gids.values():
                if gid.vlan is None and gid.ip not in self._shown:
                    self._presence.add(self._prefixes.get(gid.ip, ipaddress.ip_interface(gid.ip)), gid.mac)
                    self._shown.append(gid.ip)
            self._presence.announce(time.monotonic_ns(), self._shown)

    def vanish(self) -> None:
        """Off the wire: nobody answers for its addresses here any more."""
        with self.host.nic.quiesced():
            while self._shown:
                self._presence.remove(self._shown.pop())

    def close(self) -> None:
        """Off the wire, and gone with all that is on it."""
        if self in self.host.functions:
            self.host.functions.remove(self)
            with contextlib.ExitStack() as stack:
                stack.callback(self.device.destroy)
                self.vanish()

    def __enter__(self) -> Function:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
