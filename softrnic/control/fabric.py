"""Two hosts with a wire between them, made for the occasion and gone without a trace: for demo, perf and tests.

    with fabric("veth") as (a, b): ...

Wires: `memory` (in this process), `veth` (two namespaces and a wire), `tap` (two taps on a bridge), `udp` (two sockets
on loopback addresses). veth and tap need root; `best_wire` says what this process may use, and why not the others.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator

from pyroute2.netlink.exceptions import NetlinkError

from netio import memory, netns, raw, tap
from netio.port import Port
from netio.switch import MemorySwitch
from softrnic.control import SPIN_NS
from softrnic.control import host as hosts
from softrnic.control.host import Host, Wrap
from softrnic.errors import IoError

WIRES = ("memory", "veth", "tap", "udp")
ADDRESSES = {4: ("10.9.0.1/24", "10.9.0.2/24"), 6: ("fd00:9::1/64", "fd00:9::2/64")}
LOOPBACK = ("127.0.0.1", "127.0.0.2")
LINK_MTU = 4200  # IPv6, UDP and all RoCEv2 headers around 4096 bytes


def best_wire() -> tuple[str, str]:
    """The most real wire that can be made here, and why it is not a tap on a bridge (empty if it is)."""
    if os.geteuid() != 0:
        return "memory", "not root, so no network namespaces"
    why = ""
    for wire, attempt in (("tap", _try_tap), ("veth", _try_veth)):
        try:
            attempt()
        except (OSError, NetlinkError) as error:
            why = why or str(error.args[-1])
        else:
            return wire, why
    return "memory", why


def _try_tap() -> None:
    with netns.namespace() as ns:
        with ns.entered():
            port = tap.open_tap("tap0")
        with port:
            netns.bridge(ns, "br0", ["tap0"])


def _try_veth() -> None:
    with netns.namespace() as here, netns.namespace() as there:
        netns.veth(here, "eth0", there, "eth0")
        with here.entered():
            raw.open_raw("eth0").close()


@contextlib.contextmanager
def fabric(
    wire: str, *, wrap: tuple[Wrap | None, Wrap | None] = (None, None), ip: int = 4, mtu: int = LINK_MTU,
    spin_ns: int = SPIN_NS,
) -> Iterator[tuple[Host, Host]]:  # fmt: skip
    """Hosts sr0 and sr1, able to reach each other. `wrap` puts middleware around each port; `ip` is 4 or 6."""
    makers = {"memory": _memory, "veth": _veth, "tap": _tap, "udp": _udp}
    with contextlib.ExitStack() as stack:
        wraps = [w or _plain for w in wrap]
        try:
            pair = makers[wire](stack, wraps, ADDRESSES[ip], mtu, spin_ns)
        except NetlinkError as error:
            raise IoError(error.code, f"{wire} wire") from error
        yield pair


def _plain(port: Port) -> Port:
    return port


@contextlib.contextmanager
def network(count: int, *, privileged: bool, mtu: int = LINK_MTU, spin_ns: int = SPIN_NS) -> Iterator[list[Host]]:
    """Hosts sr0, sr1, ... that can all reach each other, and have functions.

    `privileged`: each in a network namespace of its own, on a bridge; else in this process, on a switch in memory.
    """
    addresses = [f"10.9.1.{i + 1}/24" for i in range(count)]
    with contextlib.ExitStack() as stack:
        if not privileged:
            switch = stack.enter_context(MemorySwitch(count, mtu=mtu))
            interfaces = [ipaddress.ip_interface(address) for address in addresses]
            yield [
                stack.enter_context(hosts.on_wire(port, interfaces[i], name=f"sr{i}", spin_ns=spin_ns))
                for i, port in enumerate(switch.ports)
            ]
            return
        middle = stack.enter_context(netns.namespace())
        spaces = [stack.enter_context(netns.namespace()) for _ in range(count)]
        for i, ns in enumerate(spaces):
            netns.veth(middle, f"veth{i}", ns, "eth0", mtu=mtu)
            netns.add_address(ns, "eth0", addresses[i])
        netns.bridge(middle, "br0", [f"veth{i}" for i in range(count)])
        yield [
            stack.enter_context(hosts.open_raw("eth0", name=f"sr{i}", ns=ns, spin_ns=spin_ns))
            for i, ns in enumerate(spaces)
        ]


def _memory(
    stack: contextlib.ExitStack, wraps: list[Wrap], addresses: tuple[str, str], mtu: int, spin_ns: int
) -> tuple[Host, Host]:
    ips = [ipaddress.ip_interface(a).ip for a in addresses]
    ports = memory.pair(mtu=mtu)
    peers = {ip: port.mac for ip, port in zip(ips, ports, strict=True)}
    a, b = (
        stack.enter_context(
            hosts.on_port(ports[i], str(ips[i]), peers=peers, name=f"sr{i}", wrap=wraps[i], spin_ns=spin_ns)
        )
        for i in range(2)
    )
    return a, b


def _veth(
    stack: contextlib.ExitStack, wraps: list[Wrap], addresses: tuple[str, str], mtu: int, spin_ns: int
) -> tuple[Host, Host]:
    spaces = [stack.enter_context(netns.namespace()) for _ in range(2)]
    netns.veth(spaces[0], "eth0", spaces[1], "eth0", mtu=mtu)
    for ns, address in zip(spaces, addresses, strict=True):
        netns.add_address(ns, "eth0", address)
    a, b = (
        stack.enter_context(hosts.open_raw("eth0", name=f"sr{i}", wrap=wraps[i], spin_ns=spin_ns, ns=spaces[i]))
        for i in range(2)
    )
    return a, b


def _tap(
    stack: contextlib.ExitStack, wraps: list[Wrap], addresses: tuple[str, str], mtu: int, spin_ns: int
) -> tuple[Host, Host]:
    ns = stack.enter_context(netns.namespace())
    with ns.entered():
        a, b = (
            stack.enter_context(
                hosts.open_tap(
                    ipaddress.ip_interface(addresses[i]), ifname=f"tap{i}", name=f"sr{i}", mtu=mtu, wrap=wraps[i],
                    spin_ns=spin_ns,
                )
            )
            for i in range(2)
        )
    netns.bridge(ns, "br0", ["tap0", "tap1"])
    return a, b


def _udp(
    stack: contextlib.ExitStack, wraps: list[Wrap], addresses: tuple[str, str], mtu: int, spin_ns: int
) -> tuple[Host, Host]:
    a, b = (
        stack.enter_context(hosts.open_udp(LOOPBACK[i], name=f"sr{i}", wrap=wraps[i], spin_ns=spin_ns))
        for i in range(2)
    )
    return a, b
