"""Devices by the names that commands take: a network device such as eth0 (as root), or udp:ADDRESS (as anybody).

Decides which of them this process could open, and what a device would be like. Puts nothing on a wire.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

from pyroute2 import IPRoute

from netio import neigh, netdev, netns, udp
from softrnic.control.host import make_device, own_addresses
from softrnic.control.nic import active_mtu
from softrnic.errors import IoError
from softrnic.verbs import Device

UDP = "udp:"


def names() -> list[str]:
    """Every device this process could open."""
    return [*(_network_devices() if os.geteuid() == 0 else ()), *_udp_addresses()]


def _network_devices() -> list[str]:
    """Ethernet devices that are up and have an address; the loopback device is better served by UDP."""
    found = []
    with contextlib.closing(netns.current()) as ns:
        for _, name in socket.if_nameindex():
            if not _is_ethernet(name):
                continue
            info = neigh.link_info(ns, name)
            if info.up and info.addresses and not any(own.ip.is_loopback for own in info.addresses):
                found.append(name)
    return found


def _is_ethernet(name: str) -> bool:
    try:
        netdev.mac(name)
    except IoError:
        return False
    return True


def _udp_addresses() -> list[str]:
    """Addresses of this host; link-local ones would need a scope."""
    with IPRoute() as ipr:
        texts = [entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS") for entry in ipr.get_addr()]
    addresses = {ipaddress.ip_address(text) for text in texts}
    usable = [ip for ip in addresses if not (ip.version == 6 and ip.is_link_local)]
    return [f"{UDP}{ip}" for ip in sorted(usable, key=lambda ip: (ip.version, int(ip)))]


def has_address(name: str, address: str) -> bool:
    """Whether the device of this name has this address."""
    return any(gid.ip == ipaddress.ip_address(address) for gid in describe(name).gids.values())


def describe(name: str) -> Device:
    """The device of this name, as it is when opened, but on no wire."""
    if name.startswith(UDP):
        return _describe_udp(name)
    with contextlib.closing(netns.current()) as ns:
        info = neigh.link_info(ns, name)
    if not info.addresses:
        raise IoError(0, f"{name} has no address: give it one first (ip addr add ...)")
    device = make_device(name, own_addresses(info), info.mac)
    device.set_active_mtu(active_mtu(info.mtu))
    return device


def _describe_udp(name: str) -> Device:
    address = name.removeprefix(UDP)
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise IoError(0, f"{address!r} is no IP address") from None
    with udp.open_udp(address, port=0) as port:  # port 4791 may be in use, by a NIC for instance
        device = make_device(name, [ip], port.mac)
        device.set_active_mtu(active_mtu(port.mtu))
        return device
