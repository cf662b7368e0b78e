"""UDP socket ports, without root: each test has its own addresses of 127.0.0.0/8."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from netio import netdev, netns, udp
from netio.middleware import put_frame
from netio.port import Ready
from softrnic.errors import IoError
from softrnic.layout import FrameFlag, make_ring
from tests.netio import naive
from tests.netio.frames import PATIENCE_NS, collect, deliver, pattern, ring_frames, roce

_NETS = itertools.count(1)


def two_addresses() -> tuple[str, str]:
    """Nobody else's on this machine, so that suites can run side by side."""
    net = f"127.{1 + os.getpid() % 250}.{next(_NETS)}"
    return f"{net}.1", f"{net}.2"


@pytest.fixture
def pair() -> Iterator[tuple[udp.UdpPort, udp.UdpPort]]:
    here, there = two_addresses()
    with udp.open_udp(here) as a, udp.open_udp(there) as b:
        yield a, b


def text(port: udp.UdpPort) -> str:
    return socket.inet_ntop(socket.AF_INET if len(port.address) == 4 else socket.AF_INET6, port.address)


def frame_between(a: udp.UdpPort, b: udp.UdpPort, payload: bytes, **fields: object) -> bytes:
    """As the engine would build it for these two ports."""
    version = 4 if len(a.address) == 4 else 6
    macs = {"src_mac": a.mac.hex(":"), "dst_mac": b.mac.hex(":")}
    return roce(payload, version=version, src=text(a), dst=text(b), sport=a.fixed_sport or 0, **macs, **fields)


def test_a_frame_comes_back_as_it_was_sent(pair) -> None:
    """All the engine computes its ICRC from, and more: the headers made up are those sent, byte for byte."""
    a, b = pair
    frame = frame_between(a, b, pattern(1000))
    assert deliver(a, b, [(frame, 0)]) == [(frame, 0)]
    assert Ether(frame)[IP].chksum == Ether(bytes(Ether(frame)))[IP].chksum


def test_an_identification_that_nobody_told_is_flagged(pair) -> None:
    a, b = pair
    tx, rx = make_ring(1), make_ring(1)
    put_frame(tx, 0, frame_between(a, b, b"x"))
    a.send_burst(tx, 1, 0)
    assert b.wait(PATIENCE_NS)
    assert b.recv_burst(rx, 0) == 1
    assert rx.frames[0]["flags"] == FrameFlag.ID_UNKNOWN


@pytest.mark.parametrize(("seg", "payload"), [(4112, 60_000), (1040, 1041), (16, 64 * 16), (100, 6350)])
def test_super_frames_cross_whole(pair, seg: int, payload: int) -> None:
    a, b = pair
    frame = frame_between(a, b, pattern(payload))
    assert deliver(a, b, [(frame, seg)]) == [(frame, seg)]
    assert b.counters()["rx_segments"] == a.counters()["tx_segments"] == -(-payload // seg)


def test_the_announced_number_of_segments_is_taken(pair) -> None:
    a, b = pair
    seg = 100
    frame = frame_between(a, b, pattern(a.caps.max_segments * seg))
    assert deliver(a, b, [(frame, seg)]) == [(frame, seg)]


def test_more_segments_than_linux_takes_are_an_error(pair) -> None:
    a, b = pair
    assert deliver(a, b, [(frame_between(a, b, pattern(1000 * 16)), 16)], count=0) == []
    assert a.counters()["tx_errors"] == 1


def test_traffic_class_crosses(pair) -> None:
    """ECN marks are what congestion control lives on."""
    a, b = pair
    frame = frame_between(a, b, b"x", tos=0x6A | 1)
    assert deliver(a, b, [(frame, 0)]) == [(frame, 0)]


def test_a_super_frame_from_a_plain_socket_is_a_burst_of_packets(pair) -> None:
    """A peer that knows nothing of segmentation."""
    _, b = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((text(b), 0))
        for i in range(3):
            sock.sendto(pattern(100, i), (text(b), 4791))
        sport = sock.getsockname()[1]
    received = [Ether(frame) for frame, seg in collect(b, 3) if seg == 0]
    assert [bytes(packet[UDP].payload) for packet in received] == [pattern(100, i) for i in range(3)]
    assert {packet[UDP].sport for packet in received} == {sport}
    assert {packet[UDP].dport for packet in received} == {4791}


def test_a_port_without_offload_gets_packets() -> None:
    here, there = two_addresses()
    with udp.open_udp(here) as a, udp.open_udp(there, offload=False) as b:
        assert b.caps.max_frame == 0
        frames = deliver(a, b, [(frame_between(a, b, pattern(250)), 100)], count=3)
        assert [bytes(Ether(frame)[UDP].payload) for frame, _ in frames] == [
            pattern(250)[:100],
            pattern(250)[100:200],
            pattern(250)[200:],
        ]


def test_ipv6() -> None:
    """The loopback device has one IPv6 address, so the port talks to itself."""
    if not socket.has_ipv6:
        pytest.skip("machine lacks: IPv6")
    with udp.open_udp("::1", port=20_000 + os.getpid() % 20_000) as port:
        frame = frame_between(port, port, pattern(3000), tc=0xB9)
        assert deliver(port, port, [(frame, 0), (frame, 1040)]) == [(frame, 0), (frame, 1040)]
        assert Ether(frame)[IPv6].tc == 0xB9


def test_the_source_address_is_the_frames() -> None:
    """A port bound to any address sends from the one the engine chose, and knows which one was meant."""
    net = two_addresses()[0].rpartition(".")[0]
    with udp.open_udp("0.0.0.0", port=20_000 + os.getpid() % 20_000) as port:
        macs = {"src_mac": udp.mac_of(socket.inet_aton(f"{net}.9")).hex(":")}
        macs["dst_mac"] = udp.mac_of(socket.inet_aton(f"{net}.8")).hex(":")
        frame = roce(b"hello", src=f"{net}.9", dst=f"{net}.8", sport=port.fixed_sport or 0, **macs)
        assert deliver(port, port, [(frame, 0)]) == [(frame, 0)]


@pytest.mark.parametrize(
    "frame",
    [
        roce(b"x", version=6),
        roce(b"x", proto=6),
        roce(b"x", src="192.0.2.1", dst="127.0.0.1"),
        roce(b"x", src="127.0.0.1", dst="127.0.0.1", ihl=4),
        b"\0" * 13,
        b"\0" * 60,
    ],
)
def test_what_cannot_be_sent_is_an_error(pair, frame: bytes) -> None:
    a, _ = pair
    tx = make_ring(1)
    put_frame(tx, 0, frame)
    assert a.send_burst(tx, 1, 0) == 0
    assert a.counters()["tx_errors"] == 1


def test_the_longest_datagram(pair) -> None:
    a, b = pair
    frame = frame_between(a, b, pattern(65507))
    assert deliver(a, b, [(frame, 0)]) == [(frame, 0)]


def test_a_full_buffer_loses_frames_and_nothing_else(pair) -> None:
    a, b = pair
    with socket.socket(fileno=os.dup(b.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    frame = frame_between(a, b, pattern(60_000))
    received = deliver(a, b, [(frame, 0)] * 16, count=0)
    while b.counters()["rx_drops"] + len(received) < 16:
        received += collect(b, 1)
    assert len(received) < 16
    assert b.counters()["rx_drops"] == 16 - len(received)
    assert set(received) <= {(frame, 0)}
    assert deliver(a, b, [(frame, 0)]) == [(frame, 0)]


def test_wait(pair) -> None:
    a, b = pair
    assert b.wait(0) == Ready(0)
    tx, rx = make_ring(1), make_ring(1)
    put_frame(tx, 0, frame_between(a, b, b"x"))
    a.send_burst(tx, 1, 0)
    assert b.wait(PATIENCE_NS) == Ready.RX
    assert b.recv_burst(rx, 0) == 1
    assert len(ring_frames(rx, 1)) == 1


def test_one_address_one_port(pair) -> None:
    a, _ = pair
    with pytest.raises(IoError, match="UDP port 4791"):
        udp.open_udp(text(a))


def test_macs_stand_for_addresses() -> None:
    assert udp.mac_of(bytes([10, 1, 2, 3])) == b"\x02\x00\x0a\x01\x02\x03"
    assert udp.mac_of(bytes(12) + b"\1\2\3\4") == b"\x02\x00\1\2\3\4"


# --- what Linux puts on the wire: seen from the loopback device of a namespace of our own -------------------


@pytest.fixture
def ours() -> Iterator[netns.Namespace]:
    with netns.namespace() as ns:
        for address in ("fd00::1/128", "fd00::2/128"):
            netns.add_address(ns, "lo", address)
        yield ns


def sniff(ns: netns.Namespace) -> socket.socket:
    with ns.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
        sock.bind(("lo", 3))
    return sock


@pytest.mark.privileged("netns")
@pytest.mark.parametrize(("here", "there"), [("127.0.0.1", "127.0.0.2"), ("fd00::1", "fd00::2")])
def test_the_wire_carries_the_headers_the_icrc_was_computed_from(ours: netns.Namespace, here: str, there: str) -> None:
    """Identification 0, then 0, 1, 2... in a super-frame; don't fragment; the ports and addresses of the frame."""
    with ours.entered():
        netdev.set_feature("lo", "tx-udp-segmentation", False)
        a, b = udp.open_udp(here), udp.open_udp(there)
    with a, b, sniff(ours) as sock:
        frames = [(frame_between(a, b, pattern(n, n)), seg) for n, seg in ((10, 0), (250, 100), (11, 0))]
        deliver(a, b, frames)
        expected = [packet for frame, seg in frames for packet in naive.split(frame, seg)]
        sock.settimeout(PATIENCE_NS / 1e9)
        wire = [sock.recv(70_000) for _ in expected]
    assert [masked(packet) for packet in wire] == [masked(packet) for packet in expected]


def masked(frame: bytes) -> bytes:
    """What the ICRC covers (A17.3.3), and the payload: flow label, checksums, TTL and traffic class blanked."""
    packet = Ether(frame)
    packet[UDP].chksum = 0
    if IP in packet:
        packet[IP].ttl = packet[IP].tos = packet[IP].chksum = 0
    else:
        packet[IPv6].fl = packet[IPv6].tc = packet[IPv6].hlim = 0
    return bytes(packet)[14:]


@pytest.mark.privileged("netns")
def test_two_ipv6_ports(ours: netns.Namespace) -> None:
    with ours.entered():
        a, b = udp.open_udp("fd00::1"), udp.open_udp("fd00::2")
    with a, b:
        frame = frame_between(a, b, pattern(5000), tc=3)
        assert deliver(a, b, [(frame, 0), (frame, 1040)]) == [(frame, 0), (frame, 1040)]


@pytest.mark.privileged("netns")
def test_too_long_for_the_path_is_an_error_not_a_fragment(ours: netns.Namespace) -> None:
    with ours.entered():
        netdev.set_mtu("lo", 1500)
        a, b = udp.open_udp("127.0.0.1"), udp.open_udp("127.0.0.2")
    with a, b:
        assert deliver(a, b, [(frame_between(a, b, pattern(1473)), 0)], count=0) == []
        assert a.counters()["tx_errors"] == 1
        longest = frame_between(a, b, pattern(1472))
        assert deliver(a, b, [(longest, 0)]) == [(longest, 0)]
