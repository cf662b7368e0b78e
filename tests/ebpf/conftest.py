"""Rule tables without an interface; and three hosts in network namespaces.

    sender a0 ---- b0 host b1 ---- c0 far
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyroute2 import NetNS, netns

from ebpf.table import RuleTable
from tests.ebpf.frames import DST4, DST6, DST_MAC, SRC4, SRC6, SRC_MAC

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
IFA_F_NODAD = 0x02
NUD_PERMANENT = 0x80
PATIENCE_S = 10  # how long a packet that must come may take on a loaded machine
FAR_MAC = "02:00:00:00:00:03"


@pytest.fixture
def table() -> Iterator[RuleTable]:
    with RuleTable() as made:
        yield made


class PacketSocket:
    """An AF_PACKET socket on one interface."""

    def __init__(self, ifname: str, protocol: int = ETH_P_ALL, *, vnet: bool = False) -> None:
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, int(vnet))
        self.sock.bind((ifname, protocol))
        self.sock.settimeout(PATIENCE_S)

    def send(self, frame: bytes) -> None:
        assert self.sock.send(frame) == len(frame)

    def until(self, last: bytes) -> list[bytes]:
        """All frames received, in order, up to the one that has `last` in it."""
        frames = [self.sock.recv(1 << 17)]
        while last not in frames[-1]:
            frames.append(self.sock.recv(1 << 17))
        return frames

    def close(self) -> None:
        self.sock.close()


@dataclass
class Lab:
    """The three hosts. Whatever is opened through it is closed with it."""

    stack: contextlib.ExitStack
    sender: str = "softrnic-ebpf-a"
    host: str = "softrnic-ebpf-b"
    far: str = "softrnic-ebpf-c"

    @contextlib.contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """The calling thread works in `namespace`."""
        netns.pushns(namespace)
        try:
            yield
        finally:
            netns.popns()

    def packets(self, ifname: str, protocol: int = ETH_P_ALL, *, vnet: bool = False) -> PacketSocket:
        """An AF_PACKET socket on a0, b0, b1 or c0."""
        with self.inside({"a": self.sender, "b": self.host, "c": self.far}[ifname[0]]):
            made = PacketSocket(ifname, protocol, vnet=vnet)
        return self.stack.enter_context(contextlib.closing(made))

    def mtu(self, mtu: int) -> None:
        for namespace, ifname in ((self.sender, "a0"), (self.host, "b0")):
            with NetNS(namespace) as ip:
                ip.link("set", index=ip.link_lookup(ifname=ifname)[0], mtu=mtu)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        made = Lab(stack)
        names = (made.sender, made.host, made.far)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                netns.remove(name)
            netns.create(name)
            stack.callback(netns.remove, name)
        _wire(made.host, "b0", DST_MAC, made.sender, "a0", SRC_MAC)
        _wire(made.host, "b1", "02:00:00:00:01:02", made.far, "c0", FAR_MAC)
        _address(made.sender, "a0", SRC4, SRC6, neighbour=(DST4, DST6, DST_MAC))
        _address(made.host, "b0", DST4, DST6, neighbour=(SRC4, SRC6, SRC_MAC))
        yield made


def _wire(ns1: str, if1: str, mac1: str, ns2: str, if2: str, mac2: str) -> None:
    with NetNS(ns1) as one, NetNS(ns2) as two:
        one.link(
            "add", ifname=if1, kind="veth", address=mac1,
            peer={"ifname": if2, "address": mac2, "net_ns_fd": ns2},
        )  # fmt: skip
        for ip, ifname in ((one, if1), (two, if2)):
            for each in ("lo", ifname):
                ip.link("set", index=ip.link_lookup(ifname=each)[0], state="up")


def _address(namespace: str, ifname: str, v4: str, v6: str, *, neighbour: tuple[str, str, str]) -> None:
    """Addresses usable at once, neighbours known, ICMP errors unlimited: no traffic but the test's own."""
    with NetNS(namespace) as ip:
        index = ip.link_lookup(ifname=ifname)[0]
        ip.addr("add", index=index, address=v4, prefixlen=24)
        ip.addr("add", index=index, address=v6, prefixlen=64, flags=IFA_F_NODAD)
        for address in neighbour[:2]:
            ip.neigh("replace", ifindex=index, dst=address, lladdr=neighbour[2], state=NUD_PERMANENT)
    netns.pushns(namespace)
    try:
        Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
        Path("/proc/sys/net/ipv6/icmp/ratelimit").write_text("0")
    finally:
        netns.popns()
