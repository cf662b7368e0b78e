"""AF_PACKET ports over veth pairs, each end in its own namespace; the peer is ours, or a plain socket, or the host."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Dot1Q, Ether

from netio import netdev, netns, raw
from netio.netns import Namespace
from netio.port import Ready
from netio.raw import RawPort
from softrnic.errors import IoError
from softrnic.layout import make_ring
from tests.netio import naive
from tests.netio.frames import PATIENCE_NS, collect, deliver, drain, pattern, roce

pytestmark = pytest.mark.privileged("netns")

ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}


@dataclass
class Link:
    """Two namespaces joined by a veth pair, eth0 at each end; the near port sends."""

    here: Namespace
    there: Namespace
    port: RawPort

    def far_port(self, **options: bool) -> RawPort:
        with self.there.entered():
            return raw.open_raw("eth0", **options)

    def frame(self, payload: bytes, *, version: int = 4, **fields: object) -> bytes:
        """To the far end, with the addresses that its host has."""
        with self.there.entered():
            far = netdev.mac("eth0")
        macs = {"src_mac": self.port.mac.hex(":"), "dst_mac": far.hex(":")}
        src, dst = ADDRESSES[version]
        return roce(payload, version=version, src=src, dst=dst, **macs, **fields)

    def sniffer(self) -> socket.socket:
        """What arrives at the far end, as tcpdump would see it: no virtio-net header asked for."""
        with self.there.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
            sock.bind(("eth0", 3))
        return sock


@pytest.fixture
def link() -> Iterator[Link]:
    with netns.namespace() as here, netns.namespace() as there:
        netns.veth(here, "eth0", there, "eth0")
        for version in (4, 6):
            prefix = 24 if version == 4 else 64
            for ns, address in zip((here, there), ADDRESSES[version], strict=True):
                netns.add_address(ns, "eth0", f"{address}/{prefix}")
        with here.entered():
            port = raw.open_raw("eth0")
        with port:
            yield Link(here, there, port)


def listen(sock: socket.socket, count: int, wanted: Callable[[bytes], bool] = bool) -> list[bytes]:
    """Messages a socket gets, until `count` of them are wanted ones."""
    sock.settimeout(PATIENCE_NS / 1e9)
    received: list[bytes] = []
    while sum(map(wanted, received)) < count:
        received.append(sock.recv(70_000))
    return received


def is_roce(frame: bytes) -> bool:
    return UDP in (packet := Ether(frame)) and packet[UDP].dport == 4791


@contextlib.contextmanager
def udp_socket(ns: Namespace, version: int) -> Iterator[socket.socket]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with ns.entered():
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((ADDRESSES[version][1], 4791))
    with sock:
        yield sock


def send(link: Link, frame: bytes, seg: int = 0) -> None:
    deliver(link.port, link.port, [(frame, seg)], count=0)


@pytest.mark.parametrize("version", [4, 6])
def test_packets_and_super_frames_cross_whole(link: Link, version: int) -> None:
    packet, super_frame = (link.frame(pattern(n), version=version) for n in (4112, 14 * 4112 + 100))
    with link.far_port() as far:
        received = deliver(link.port, far, [(packet, 0), (super_frame, 4112)])
    assert [(Ether(frame)[UDP].payload, seg) for frame, seg in received] == [
        (Ether(packet)[UDP].payload, 0),
        (Ether(super_frame)[UDP].payload, 4112),
    ]
    assert [len(frame) for frame, _ in received] == [len(packet), len(super_frame)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("offload", [True, False])
def test_a_peer_that_did_not_ask_gets_single_datagrams(link: Link, version: int, offload: bool) -> None:
    """A UDP socket, and so rxe. Its host checks the UDP checksums that IPv6 must have."""
    with link.here.entered():
        netdev.set_feature("eth0", "tx-udp-segmentation", offload)
    payload = pattern(5 * 1040 + 7)
    with udp_socket(link.there, version) as sock:
        send(link, link.frame(payload, version=version), 1040)
        send(link, link.frame(b"one", version=version))
        expected = [payload[i : i + 1040] for i in range(0, len(payload), 1040)] + [b"one"]
        assert listen(sock, len(expected)) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_cuts_as_we_do(link: Link, version: int) -> None:
    """IP identifications id, id + 1, ... and own lengths, which the ICRC covers; UDP checksums that are right."""
    with link.here.entered():
        assert netdev.set_feature("eth0", "tx-udp-segmentation", False)
        assert netdev.set_feature("eth0", "tx-checksum-ip-generic", False)
    frame = link.frame(pattern(4 * 1040 + 50), version=version)
    with link.sniffer() as sock:
        send(link, frame, 1040)
        cut = [f for f in listen(sock, 5, is_roce) if is_roce(f)]
    udp = 34 if version == 4 else 54
    blank = [packet[: udp + 6] + packet[udp + 8 :] for packet in naive.split(frame, 1040)]
    assert [packet[: udp + 6] + packet[udp + 8 :] for packet in cut] == blank
    for packet in map(Ether, cut):
        checked = packet.copy()
        del checked[UDP].chksum
        assert bytes(checked) == bytes(packet)


def test_without_offload_the_port_cuts(link: Link) -> None:
    link.port.tables.port["flags"] = 0
    frame = link.frame(pattern(2500))
    with link.far_port() as far:
        assert deliver(link.port, far, [(frame, 1000)], count=3) == [(p, 0) for p in naive.split(frame, 1000)]


def test_one_packet_cut_in_software_is_marked_right_over_ipv6(link: Link) -> None:
    link.port.tables.port["flags"] = 0
    with udp_socket(link.there, 6) as sock:
        send(link, link.frame(pattern(2500), version=6), 1000)
        assert [len(datagram) for datagram in listen(sock, 3)] == [1000, 1000, 500]


def test_only_roce_is_received(link: Link) -> None:
    other = link.frame(b"dns", dport=53)
    mine = link.frame(b"mine")
    with link.far_port() as far:
        assert deliver(link.port, far, [(other, 0), (mine, 0), (other, 0), (mine, 0)], count=2) == [(mine, 0)] * 2


def test_what_we_send_does_not_come_back(link: Link) -> None:
    send(link, link.frame(b"x"))
    assert drain(link.port) == []


def test_wait_ends_when_a_frame_comes(link: Link) -> None:
    with link.far_port() as far:
        assert far.wait(0) == Ready(0)
        send(link, link.frame(b"x"))
        assert far.wait(PATIENCE_NS) == Ready.RX
        assert far.recv_burst(make_ring(1), 0) == 1


@pytest.mark.parametrize(("vid", "plain_port"), [(5, False), (0, True)])
def test_vlan_tags(link: Link, vid: int, plain_port: bool) -> None:
    """The kernel takes tags out. A port that asked has them put back; another sees priority tags only, untagged."""
    frame = link.frame(pattern(3000), vlan=vid)
    payload = bytes(Ether(frame)[UDP].payload)
    with link.far_port(vlan=True) as tagged, link.far_port() as plain:
        send(link, frame, 1000)
        ((got, seg),) = collect(tagged, 1)
        assert (Ether(got)[Dot1Q].vlan, bytes(Ether(got)[UDP].payload), seg) == (vid, payload, 1000)
        received = collect(plain, 1 if plain_port else 0)
        assert bool(received) is plain_port
        assert all(Dot1Q not in Ether(f) and bytes(Ether(f)[UDP].payload) == payload for f, _ in received)
        send(link, link.frame(b"untagged"))
        assert [Dot1Q in Ether(f) for f, _ in collect(tagged, 1) + collect(plain, 1)] == [False, False]


def test_a_link_that_goes_down_is_counted_and_comes_back(link: Link) -> None:
    with link.far_port() as far:
        with link.there.netlink() as ipr:
            ipr.link("set", index=ipr.link_lookup(ifname="eth0")[0], state="down")
        assert drain(far) == []
        assert far.counters()["rx_errors"] == 1
        assert deliver(far, far, [(link.frame(b"x"), 0)], count=0) == []
        assert far.counters()["tx_errors"] == 1
        with link.there.netlink() as ipr:
            ipr.link("set", index=ipr.link_lookup(ifname="eth0")[0], state="up")
        frame = link.frame(b"again")
        assert deliver(link.port, far, [(frame, 0)]) == [(frame, 0)]


def test_too_long_for_the_link_is_an_error(link: Link) -> None:
    send(link, link.frame(pattern(5000)))
    assert link.port.counters()["tx_errors"] == 1


def test_a_flood_is_lost_in_the_receivers_buffer_and_the_port_goes_on(link: Link) -> None:
    frame = link.frame(pattern(60_000))
    with link.far_port() as far:
        for _ in range(40):
            deliver(link.port, link.port, [(frame, 4112)] * 16, count=0)
        received = []
        while far.counters()["rx_drops"] + len(received) < 640:
            received += collect(far, 1)
        assert 0 < len(received) < 640
        assert far.counters()["rx_drops"] == 640 - len(received)
        assert deliver(link.port, far, [(frame, 4112)])[0][1] == 4112


def multicast() -> str:
    """Groups of the calling thread's namespace."""
    return Path("/proc/thread-self/net/dev_mcast").read_text()


def test_multicast_is_joined_and_left_with_the_port(link: Link) -> None:
    group = bytes.fromhex("01005e000105")
    with link.far_port() as far:
        far.join(group)
        with link.there.entered():
            assert "01005e000105" in multicast()
    with link.there.entered():
        assert "01005e000105" not in multicast()


def test_two_ports_of_one_device_have_all_frames(link: Link) -> None:
    frame = link.frame(b"x")
    with link.far_port() as one, link.far_port() as two:
        send(link, frame)
        assert collect(one, 1) == collect(two, 1) == [(frame, 0)]


def test_no_such_device() -> None:
    with pytest.raises(IoError, match="network device nosuch"):
        raw.open_raw("nosuch")


@pytest.mark.privileged("tun")
def test_a_device_without_ethernet_is_refused(link: Link) -> None:
    with link.here.netlink() as ipr:
        ipr.link("add", ifname="tun0", kind="tuntap", mode="tun")
    with link.here.entered(), pytest.raises(IoError, match="tun0 is no Ethernet device"):
        raw.open_raw("tun0")


def test_the_loopback_device_is_a_wire() -> None:
    with netns.namespace() as ns, ns.entered(), raw.open_raw("lo") as port:
        frame = roce(b"to myself", src="127.0.0.1", dst="127.0.0.1", dst_mac="00:00:00:00:00:00")
        assert deliver(port, port, [(frame, 0)]) == [(frame, 0)]


def test_ethernet_addresses_and_mtu(link: Link) -> None:
    with link.here.entered():
        assert (link.port.mac, link.port.mtu) == (netdev.mac("eth0"), 4200)
