"""Taps: two on a bridge, and one against the host's own stack."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Dot1Q, Ether

from netio import netdev, netns, tap
from netio.arp import NeighbourPort, Neighbours
from netio.header import ETH_IPV6
from netio.netns import Namespace
from netio.port import Ready
from netio.tap import TapPort
from softrnic.errors import IoError
from tests.netio import naive
from tests.netio.frames import drain, exchange, pattern, roce

pytestmark = pytest.mark.privileged("netns", "tun")
SECOND = 10**9
ip = ipaddress.ip_address


@contextlib.contextmanager
def bridged(ns: Namespace, *, offload: tuple[bool, bool] = (True, True)) -> Iterator[tuple[TapPort, TapPort]]:
    with ns.entered():
        a = tap.open_tap("tap0", offload=offload[0])
        b = tap.open_tap("tap1", offload=offload[1])
    with a, b:
        netns.bridge(ns, "br0", ["tap0", "tap1"])
        yield a, b


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with netns.namespace() as ns:
        yield ns


def arrived(port: TapPort | NeighbourPort) -> list[tuple[bytes, int]]:
    """RoCE frames that came; waits for the first. The hosts' own solicitations come too."""
    bare = port if isinstance(port, TapPort) else port.inner
    assert isinstance(bare, TapPort)
    received: list[tuple[bytes, int]] = []
    while not received and bare.wait(SECOND):
        received = [(frame, seg) for frame, seg in drain(port) if UDP in Ether(frame)]
    return received


def between(a: TapPort, b: TapPort, payload: bytes, **fields: object) -> bytes:
    return roce(payload, src_mac=a.mac.hex(":"), dst_mac=b.mac.hex(":"), **fields)


@pytest.mark.parametrize("version", [4, 6])
def test_super_frames_cross_a_bridge_whole(ns: Namespace, version: int) -> None:
    with bridged(ns) as (a, b):
        assert a.caps.max_frame > 60_000
        frame = between(a, b, pattern(14 * 4112 + 9), version=version)
        exchange(a, a, [(frame, 4112)])
        ((got, seg),) = arrived(b)
        assert (bytes(Ether(got)[UDP].payload), seg) == (pattern(14 * 4112 + 9), 4112)


def test_a_tap_without_offload_gets_and_sends_packets(ns: Namespace) -> None:
    with bridged(ns, offload=(True, False)) as (a, b):
        assert b.caps.max_frame == 0
        there, back = between(a, b, pattern(2500)), between(b, a, pattern(2500))
        exchange(a, a, [(there, 1000)])
        cut = arrived(b)
        while len(cut) < 3:
            cut += arrived(b)
        assert [bytes(Ether(f)[UDP].payload) for f, _ in cut] == [
            bytes(Ether(f)[UDP].payload) for f in naive.split(there, 1000)
        ]
        exchange(b, b, [(back, 1000)])
        assert arrived(a) == [(f, 0) for f in naive.split(back, 1000)]


def test_tags_stay_in_the_frame(ns: Namespace) -> None:
    with bridged(ns) as (a, b):
        frame = between(a, b, b"tagged", vlan=7)
        exchange(a, a, [(frame, 0)])
        ((got, _),) = arrived(b)
        assert got == frame
        assert Ether(got)[Dot1Q].vlan == 7


def test_taps_resolve_each_other_over_the_bridge(ns: Namespace) -> None:
    with bridged(ns) as (a, b):
        one = NeighbourPort(a, Neighbours(a.mac, [ipaddress.ip_interface("10.0.0.1/24")]))
        two = NeighbourPort(b, Neighbours(b.mac, [ipaddress.ip_interface("10.0.0.2/24")]))
        assert one.resolve(ip("10.0.0.2"), 0) is None
        while two.resolve(ip("10.0.0.1"), 0) is None:
            assert b.wait(SECOND) == Ready.RX
            assert drain(two) == []
        while one.resolve(ip("10.0.0.2"), 0) is None:
            assert a.wait(SECOND) == Ready.RX
            assert drain(one) == []
        assert one.resolve(ip("10.0.0.2"), 0) == b.mac
        assert two.resolve(ip("10.0.0.1"), 0) == a.mac


@pytest.mark.parametrize(("ours", "host"), [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")])
def test_the_host_finds_us_and_talks_to_us(ns: Namespace, ours: str, host: str) -> None:
    """Its stack asks who has our address, we answer, its datagram comes; ours arrives in its socket."""
    with ns.entered():
        port = tap.open_tap("tap0", mac=b"\x02\0\0\0\0\x77")
    prefix = 24 if "." in ours else 64
    netns.add_address(ns, "tap0", f"{host}/{prefix}")
    family = socket.AF_INET if "." in ours else socket.AF_INET6
    with port, ns.entered(), socket.socket(family, socket.SOCK_DGRAM) as sock:
        we = NeighbourPort(port, Neighbours(port.mac, [ipaddress.ip_interface(f"{ours}/{prefix}")]))
        sock.bind((host, 4791))
        sock.settimeout(10)
        sock.sendto(b"are you there", (ours, 4791))
        ((got, _),) = arrived(we)
        assert bytes(Ether(got)[UDP].payload) == b"are you there"
        assert Ether(got).dst == "02:00:00:00:00:77"
        answer = roce(
            b"yes", version=4 if "." in ours else 6, src=ours, dst=host, src_mac=port.mac.hex(":"),
            dst_mac=netdev.mac("tap0").hex(":"),
        )  # fmt: skip
        exchange(we, we, [(answer, 0)])
        assert sock.recvfrom(100)[0] == b"yes"


def test_a_kernel_that_knows_no_udp_segmentation(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 6.2 refuses the flags: here, one that no Linux knows."""
    monkeypatch.setattr(tap, "_TUN_F_USO6", 0x8000)
    with ns.entered(), tap.open_tap("tap0") as port:
        assert port.caps.max_frame == 0


def test_a_tap_that_is_down_is_an_error(ns: Namespace) -> None:
    with ns.entered():
        port = tap.open_tap("tap0")
    with port:
        with ns.netlink() as ipr:
            ipr.link("set", index=ipr.link_lookup(ifname="tap0")[0], state="down")
        before = drain(port)  # what the kernel sent while it was up: it looks for other users of its address
        assert exchange(port, port, [(between(port, port, b"x"), 0)]) == []
        assert port.counters()["tx_errors"] == 1
        assert all(Ether(frame).type == ETH_IPV6 for frame, _ in before)


def test_the_device_goes_with_the_port(ns: Namespace) -> None:
    with ns.entered():
        with tap.open_tap() as port:
            assert port.name in {name for _, name in socket.if_nameindex()}
            assert netdev.mtu(port.name) == port.mtu == 4200
            assert port.mac != netdev.mac(port.name)
        assert port.name not in {name for _, name in socket.if_nameindex()}


def test_a_name_that_is_taken_is_an_error(ns: Namespace) -> None:
    with ns.entered(), tap.open_tap("tap0"), pytest.raises(IoError, match="tap tap0"):
        tap.open_tap("tap0")


def test_macs_are_local_and_differ(ns: Namespace) -> None:
    """Taps of one name on two hosts meet on one network."""
    with bridged(ns) as (a, b):
        assert a.mac != b.mac
        assert a.mac[0] & 3 == b.mac[0] & 3 == 2
