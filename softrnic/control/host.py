"""A host as RDMA sees it: a device with its addresses, joined to a port that finds other hosts.

Decides how a device comes by its GIDs and how it finds MACs on each kind of port; the port and the pump do the rest.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ebpf.shield import Shield, shield
from netio import arp, neigh, netns, raw, tap, udp
from netio.arp import NeighbourPort, Neighbours
from netio.bare import BarePort
from netio.group import Memberships
from netio.neigh import LinkInfo
from netio.port import Port
from softrnic.control import SPIN_NS
from softrnic.control.function import Directory, Function, IpInterface, Presence
from softrnic.control.nic import Nic
from softrnic.errors import IoError
from softrnic.verbs import Device, VerbsError
from softrnic.verbs.address import Gid, IpAddress

Wrap = Callable[[Port], Port]
RESOLVE_SECONDS = 3.0


@dataclass
class Host:
    """A device on the wire. Closing it takes both off.

    `presence`: how further addresses come to be on the wire; None if it cannot have any. `ns`: the namespace of a port
    that is a network device, and `shield` what keeps its host from answering for us.
    """

    device: Device
    nic: Nic
    address: IpAddress
    mac: bytes
    presence: Presence | None = None
    ns: netns.Namespace | None = None
    shield: Shield | None = None
    memberships: Memberships | None = None
    functions: list[Function] = field(default_factory=list)

    @property
    def port(self) -> Port:
        """The port, with whatever middleware is around it."""
        return self.nic.port

    def add_function(
        self, name: str, address: str | IpInterface | None = None, *, mac: bytes | None = None, vlan: int | None = None
    ) -> Function:
        """Another function on the same wire, with an address, its prefix length and a MAC, by default a random one.

        Without an address it is empty and on no wire: for `restore`, and `Function.appear` afterwards.
        """
        if self.presence is None:
            raise IoError(errno.EOPNOTSUPP, f"{self.port.name} has one address and cannot have others")
        device = self.device.create_function(name)
        prefixes: dict[IpAddress, IpInterface] = {}
        function = Function(self, device, self.presence, prefixes)
        self.functions.append(function)
        if address is not None:
            try:
                interface = _interface(address)
                prefixes[interface.ip] = interface
                device.add_gid(interface.ip, mac or tap.random_mac(), vlan)
                function.appear()
            except BaseException:
                function.close()
                raise
        return function

    def close(self) -> None:
        """Destroy everything on the device and its other functions, stop its pump, close its port."""
        for function in list(self.functions):
            function.close()
        self.device.close()
        self.nic.close()
        for held in (self.memberships, self.shield):
            if held is not None:
                held.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _interface(address: str | IpInterface) -> IpInterface:
    try:
        return ipaddress.ip_interface(address)
    except ValueError as error:
        raise VerbsError(errno.EINVAL, str(error)) from None


def _no_wrap(port: Port) -> Port:
    return port


def make_device(name: str, addresses: Sequence[IpAddress], mac: bytes) -> Device:
    """A device that owns these addresses, and as its GUID the EUI-64 of its MAC; not on any wire."""
    guid = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    device = Device(name, node_guid=int.from_bytes(guid, "big"))
    for address in addresses:
        device.add_gid(address, mac)
    return device


def own_addresses(info: LinkInfo) -> list[IpAddress]:
    """The addresses of a network device as a GID table has them: IPv4 first, as it is what people name a host by."""
    return sorted((own.ip for own in info.addresses), key=lambda ip: (ip.version, ip.is_link_local))


def _start(name: str, port: Port, addresses: Sequence[IpAddress], mac: bytes, spin_ns: int) -> Host:
    device = make_device(name, addresses, mac)
    return Host(device, Nic(device, port, spin_ns=spin_ns), addresses[0], mac)


def open_raw(
    ifname: str, *, name: str = "sr0", wrap: Wrap = _no_wrap, spin_ns: int = SPIN_NS,
    ns: netns.Namespace | None = None, vlan: bool = False,
) -> Host:  # fmt: skip
    """A host on a network device of namespace `ns` (default: the current one), with all addresses it has. Needs root.

    Neighbours are found in the kernel's own table, and the kernel answers for the addresses it has; those of further
    functions we answer for ourselves. `vlan`: tagged frames are ours too, for GIDs with a VLAN.
    """
    ns = ns or netns.current()
    info = neigh.link_info(ns, ifname)
    if not info.addresses:
        raise IoError(0, f"{ifname} has no address: give it one first (ip addr add ...)")
    with contextlib.ExitStack() as undo:
        with ns.entered():
            bare = undo.enter_context(raw.open_raw(ifname, vlan=vlan))
            kept = undo.enter_context(shield(ifname, vlan=vlan))
            inner = NeighbourPort(bare, Neighbours(bare.mac))
            port = wrap(inner)
        memberships = Memberships(ns, ifname)
        host = _start(name, port, own_addresses(info), info.mac, spin_ns)
        undo.pop_all()
    host.presence, host.ns, host.shield = inner, ns, kept
    host.memberships = memberships
    host.device.hear_group = memberships.hear
    host.device.resolve_mac = lambda gid, ip: _look_up(ns, ifname, ip)
    return host


def _look_up(ns: netns.Namespace, ifname: str, ip: IpAddress) -> bytes:
    """In a thread of its own: pyroute2 does not work in one whose event loop runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(neigh.resolve, ns, ifname, ip, timeout=RESOLVE_SECONDS).result()


def open_tap(
    address: IpInterface, *, ifname: str = "srtap%d", name: str = "sr0", mtu: int = 4200, wrap: Wrap = _no_wrap,
    gateway: IpAddress | None = None, spin_ns: int = SPIN_NS,
) -> Host:  # fmt: skip
    """A host that is the user side of a tap made in the current namespace: `address` is its own. Needs root."""
    bare = tap.open_tap(ifname, mtu=mtu)
    return on_wire(bare, address, name=name, wrap=wrap, gateway=gateway, spin_ns=spin_ns)


def on_wire(
    bare: BarePort, address: IpInterface, *, name: str = "sr0", wrap: Wrap = _no_wrap,
    gateway: IpAddress | None = None, spin_ns: int = SPIN_NS,
) -> Host:  # fmt: skip
    """A host on a port that no kernel is behind: it answers for its address, and asks for others, by ARP and ND."""
    neighbours = Neighbours(bare.mac, [address], [gateway] if gateway else [])
    inner = NeighbourPort(bare, neighbours)
    host = _start(name, wrap(inner), [address.ip], bare.mac, spin_ns)
    host.presence = inner
    host.device.resolve_mac = lambda gid, ip: _ask(inner, host.nic, ip)
    inner.announce(time.monotonic_ns())
    return host


def _ask(port: NeighbourPort, nic: Nic, address: IpAddress) -> bytes:
    """Ask on the wire, for at most RESOLVE_SECONDS; answers come in through the pump."""
    deadline = time.monotonic() + RESOLVE_SECONDS
    while time.monotonic() < deadline:
        with nic.quiesced():
            mac = port.resolve(address, time.monotonic_ns())
        if mac is not None:
            return mac
        time.sleep(0.001)
    raise IoError(0, f"nobody on {port.name} answers for {address}")


def open_udp(address: str, *, name: str = "sr0", wrap: Wrap = _no_wrap, spin_ns: int = SPIN_NS) -> Host:
    """A host that is a UDP socket on port 4791 of a local address. Needs no privileges."""
    port = udp.open_udp(address)
    host = _start(name, wrap(port), [ipaddress.ip_address(address)], port.mac, spin_ns)
    host.device.resolve_mac = lambda gid, ip: udp.mac_of(ip.packed)
    host.device.hear_group = _hears_none
    return host


def _hears_none(group: IpAddress, wanted: bool) -> None:
    """A UDP socket receives for the one address it is bound to."""
    if wanted:
        raise IoError(errno.EOPNOTSUPP, f"a UDP port does not hear group {group}")


def on_port(
    port: Port, address: str, *, peers: dict[IpAddress, bytes], name: str = "sr0", wrap: Wrap = _no_wrap,
    spin_ns: int = SPIN_NS,
) -> Host:  # fmt: skip
    """A host on any port, its neighbours given in a table, to which it adds its further functions."""
    host = _start(name, wrap(port), [ipaddress.ip_address(address)], port.mac, spin_ns)
    host.presence = Directory(peers)

    def resolve(gid: Gid, ip: IpAddress) -> bytes:
        with contextlib.suppress(KeyError):
            return arp.multicast_mac(ip) if ip.is_multicast else peers[ip]
        raise IoError(0, f"nobody on {port.name} has address {ip}")

    host.device.resolve_mac = resolve
    return host
