"""What the kernel knows of a network device's surroundings: addresses, routes, neighbours.

For raw ports, whose device the kernel also owns. Synchronous, on pyroute2: see netio/netns.py for what that
means. All functions take the namespace the device is in.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from netio.arp import IpAddress, IpInterface, multicast_mac
from netio.netns import Namespace
from softrnic.errors import IoError

# linux/neighbour.h: states in which the address is good to use
_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE STALE DELAY PROBE NOARP PERMANENT
_NUD_FAILED = 0x20
_DISCARD_PORT = 9
_POLL_SECONDS = 0.002
_IFF_UP = 1


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A network device."""

    ifindex: int
    ifname: str
    mac: bytes
    mtu: int
    up: bool
    vlan_id: int | None
    """Set if the device is a VLAN of another."""
    addresses: tuple[IpInterface, ...]

    def gids(self) -> list[bytes]:
        """The RoCEv2 GIDs of the addresses (A17.4.1.2): IPv6 as it is, IPv4 mapped. Link-local IPv6 first."""
        packed = [own.ip.packed for own in self.addresses]
        gids = [p if len(p) == 16 else bytes(10) + b"\xff\xff" + p for p in packed]
        return sorted(gids, key=lambda gid: not gid.startswith(b"\xfe\x80"))


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address."""

    ifindex: int
    source: IpAddress
    next_hop: IpAddress


def link_info(ns: Namespace, ifname: str) -> LinkInfo:
    """Facts about a device and its addresses."""
    with ns.netlink() as ipr:
        link = _link(ipr, ifname)
        index = int(link["index"])
        info = link.get_attr("IFLA_LINKINFO")
        data = info.get_attr("IFLA_INFO_DATA") if info else None
        is_vlan = bool(info) and info.get_attr("IFLA_INFO_KIND") == "vlan"
        addresses = tuple(
            ipaddress.ip_interface(
                f"{entry.get_attr('IFA_LOCAL') or entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
            )
            for entry in ipr.get_addr(index=index)
        )
        return LinkInfo(
            ifindex=index,
            ifname=ifname,
            mac=bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", "")),
            mtu=int(link.get_attr("IFLA_MTU")),
            up=bool(link["flags"] & _IFF_UP),
            vlan_id=int(data.get_attr("IFLA_VLAN_ID")) if is_vlan and data else None,
            addresses=addresses,
        )


def _link(ipr: Any, ifname: str) -> Any:
    found = ipr.link_lookup(ifname=ifname)
    if not found:
        raise IoError(0, f"no network device {ifname}")
    return ipr.get_links(found[0])[0]


def route_to(ns: Namespace, ifname: str, destination: IpAddress) -> Route:
    """The kernel's route to an address through a device."""
    with ns.netlink() as ipr:
        index = int(_link(ipr, ifname)["index"])
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        try:
            reply = ipr.route("get", dst=str(destination), oif=index, family=family)
        except NetlinkError as error:
            raise IoError(error.code, f"route to {destination} through {ifname}") from error
        route = reply[0]
        source = route.get_attr("RTA_PREFSRC")
        if source is None:
            raise IoError(0, f"{ifname} has no address to reach {destination} from")
        gateway = route.get_attr("RTA_GATEWAY")
        return Route(
            ifindex=int(route.get_attr("RTA_OIF")),
            source=ipaddress.ip_address(source),
            next_hop=ipaddress.ip_address(gateway) if gateway else destination,
        )


def resolve(ns: Namespace, ifname: str, destination: IpAddress, *, timeout: float = 3.0) -> bytes:
    """The Ethernet address frames to `destination` must be sent to. Waits for the kernel to find out."""
    if destination.is_multicast:
        return multicast_mac(destination)
    info = link_info(ns, ifname)
    if any(own.ip == destination for own in info.addresses):
        return info.mac
    hop = route_to(ns, ifname, destination).next_hop
    deadline = time.monotonic() + timeout
    asked = False
    with ns.netlink() as ipr:
        while True:
            mac, failed = _neighbour(ipr, info.ifindex, hop)
            if mac:
                return mac
            if (asked and failed) or time.monotonic() >= deadline:
                raise IoError(0, f"no answer from {hop} on {ifname}")
            if not asked:
                _provoke(ns, ifname, hop)
                asked = True
            time.sleep(_POLL_SECONDS)


def _neighbour(ipr: Any, ifindex: int, hop: IpAddress) -> tuple[bytes | None, bool]:
    """(Ethernet address if usable, whether the kernel has given up) from the kernel's table."""
    family = socket.AF_INET if hop.version == 4 else socket.AF_INET6
    for entry in ipr.get_neighbours(family=family, ifindex=ifindex):
        if entry["ifindex"] == ifindex and entry.get_attr("NDA_DST") == str(hop):
            address = entry.get_attr("NDA_LLADDR")
            if address and entry["state"] & _NUD_USABLE:
                return bytes.fromhex(address.replace(":", "")), False
            return None, bool(entry["state"] & _NUD_FAILED)
    return None, False


def _provoke(ns: Namespace, ifname: str, hop: IpAddress) -> None:
    """Make the kernel ask, by a datagram to the discard port."""
    family = socket.AF_INET if hop.version == 4 else socket.AF_INET6
    with ns.entered(), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ifname.encode())
        scope = (0, socket.if_nametoindex(ifname)) if hop.version == 6 and hop.is_link_local else ()
        sock.sendto(b"", (str(hop), _DISCARD_PORT, *scope))
