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

from ebpf.table import RuleTable
from netio import netns
from netio.netns import Namespace, namespace
from tests.ebpf.frames import DST4, DST6, DST_MAC, SRC4, SRC6, SRC_MAC, udp

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
NUD_PERMANENT = 0x80
PATIENCE_S = 10  # how long a packet that must come may take on a loaded machine


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
    sender: Namespace
    host: Namespace
    far: Namespace

    def packets(self, ifname: str, protocol: int = ETH_P_ALL, *, vnet: bool = False) -> PacketSocket:
        """An AF_PACKET socket on a0, b0, b1 or c0."""
        with {"a": self.sender, "b": self.host, "c": self.far}[ifname[0]].entered():
            made = PacketSocket(ifname, protocol, vnet=vnet)
        return self.stack.enter_context(contextlib.closing(made))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        made = Lab(stack, *(stack.enter_context(namespace()) for _ in range(3)))
        netns.veth(made.sender, "a0", made.host, "b0")
        netns.veth(made.far, "c0", made.host, "b1")
        _configure(made.sender, "a0", SRC_MAC, (SRC4, SRC6), neighbour=(DST4, DST6, DST_MAC))
        _configure(made.host, "b0", DST_MAC, (DST4, DST6), neighbour=(SRC4, SRC6, SRC_MAC))
        for address in (DST4, DST6):
            _wait_for_answer(made, address)
        yield made


def _wait_for_answer(lab: Lab, address: str) -> None:
    """Ask until the host answers: the kernel takes links and addresses into use when it finds the time."""
    question = b"is anybody there"
    with contextlib.closing(lab.packets("a0")) as wire:
        wire.sock.settimeout(PATIENCE_S / 100)
        for _ in range(100):
            wire.send(udp(address, payload=question))
            with contextlib.suppress(TimeoutError):
                wire.until(question)
                return
    raise TimeoutError(f"{address} does not answer")


def _configure(
    ns: Namespace, ifname: str, mac: str, own: tuple[str, str], *, neighbour: tuple[str, str, str]
) -> None:
    """Addresses usable at once, neighbours known, ICMP errors unlimited: no traffic but the test's own."""
    with ns.netlink() as ip:
        index = ip.link_lookup(ifname=ifname)[0]
        ip.link("set", index=index, address=mac)
        for address, prefix in zip(own, (24, 64), strict=True):
            netns.add_address(ns, ifname, f"{address}/{prefix}")
        for address in neighbour[:2]:
            ip.neigh("replace", ifindex=index, dst=address, lladdr=neighbour[2], state=NUD_PERMANENT)
    with ns.entered():
        Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
        Path("/proc/sys/net/ipv6/icmp/ratelimit").write_text("0")
