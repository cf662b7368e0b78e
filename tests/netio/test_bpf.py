"""Classic filters, run by the kernel on a socket pair: what passes, what does not."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether

from netio.bpf import attach_socket, roce_filter
from tests.netio.frames import roce

ROCE = [
    roce(b"x"),
    roce(b"x", version=6),
    roce(b"x", options=[b"\x94\x04\x00\x00"]),
    roce(b"", sport=4791, flags=0),
]
NEIGHBOURS = [
    bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP()),
    bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_NS()),
]
OTHERS = [
    roce(b"x", dport=53),
    roce(b"x", sport=4791, dport=50000),
    roce(b"x", version=6, dport=4790),
    roce(b"x", frag=1),
    roce(b"x", proto=6),
    roce(b"x", version=6, nh=44),
    roce(b"x")[:37],
    roce(b"x", version=6)[:57],
    bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP() / TCP(dport=4791)),
    bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP() / ICMP()),
    bytes(60),
    b"",
]


def passes(program: bytes, frame: bytes) -> bool:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with near, far:
        attach_socket(far, program)
        near.send(frame)
        try:
            return far.recv(70_000) == frame
        except BlockingIOError:
            return False


@pytest.mark.parametrize("vlan", [False, True])
def test_only_roce_passes(vlan: bool) -> None:
    program = roce_filter(vlan=vlan)
    assert [passes(program, frame) for frame in ROCE] == [True] * len(ROCE)
    assert [passes(program, frame) for frame in OTHERS + NEIGHBOURS] == [False] * len(OTHERS + NEIGHBOURS)


@pytest.mark.parametrize("vlan", [False, True])
def test_neighbours_pass_where_we_answer_for_ourselves(vlan: bool) -> None:
    program = roce_filter(vlan=vlan, neighbours=True)
    assert [passes(program, frame) for frame in ROCE + NEIGHBOURS] == [True] * len(ROCE + NEIGHBOURS)
    assert [passes(program, frame) for frame in OTHERS] == [False] * len(OTHERS)
