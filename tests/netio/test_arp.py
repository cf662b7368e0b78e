"""ARP and neighbour discovery against scapy's idea of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from netio import memory
from netio.arp import (
    CACHE_ENTRIES,
    MAX_SOLICITATIONS,
    REACHABLE_NS,
    RETRANSMIT_NS,
    NeighbourPort,
    Neighbours,
    multicast_mac,
)
from netio.port import SLOW_SLOTS
from tests.netio.frames import drain, exchange, roce

OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
OUR4, PEER4 = "10.0.0.1", "10.0.0.2"
OUR6, PEER6 = "fd00::1", "fd00::2"
BROADCAST = "ff:ff:ff:ff:ff:ff"
ip = ipaddress.ip_address


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@pytest.fixture
def we() -> Neighbours:
    return Neighbours(
        mac(OURS),
        [ipaddress.ip_interface(f"{OUR4}/24"), ipaddress.ip_interface(f"{OUR6}/64")],
        [ip("10.0.0.254"), ip("fd00::fe")],
    )


def hear(we: Neighbours, packet: Packet, now: int = 0) -> list[Packet]:
    return [Ether(answer) for answer in we.receive(bytes(packet), now)]


def ask(we: Neighbours, address: str, now: int = 0) -> list[Packet]:
    return [Ether(frame) for frame in we.resolve(ip(address), now)]


def request(target: str = OUR4, source: str = PEER4) -> Packet:
    return Ether(src=THEIRS, dst=BROADCAST) / ARP(op=1, hwsrc=THEIRS, psrc=source, pdst=target)


def reply(source: str = PEER4, hwsrc: str = THEIRS) -> Packet:
    return Ether(src=hwsrc, dst=OURS) / ARP(op=2, hwsrc=hwsrc, psrc=source, hwdst=OURS, pdst=OUR4)


def solicit(target: str = OUR6, source: str = PEER6, link: str = THEIRS) -> Packet:
    head = Ether(src=THEIRS, dst="33:33:ff:00:00:01") / IPv6(src=source, dst="ff02::1:ff00:1", hlim=255)
    return head / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=link)


def advert(target: str = PEER6, link: str = THEIRS) -> Packet:
    head = Ether(src=THEIRS, dst=OURS) / IPv6(src=target, dst=OUR6, hlim=255)
    return head / ICMPv6ND_NA(tgt=target, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=link)


def checksum_is_right(packet: Packet) -> bool:
    again = packet.copy()
    del again[IPv6].payload.cksum
    return bytes(again) == bytes(packet)


# --- answering ----------------------------------------------------------------------------------------------


def test_answers_arp(we: Neighbours) -> None:
    (answer,) = hear(we, request())
    assert (answer.src, answer.dst, answer.type) == (OURS, THEIRS, 0x0806)
    arp = answer[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (2, OURS, OUR4, THEIRS, PEER4)
    assert len(bytes(answer)) == 60
    assert we.lookup(ip(PEER4), 1) == mac(THEIRS)


def test_answers_a_probe_without_learning_it(we: Neighbours) -> None:
    """RFC 5227: a probe's sender address is 0."""
    assert len(hear(we, request(source="0.0.0.0"))) == 1
    assert we.lookup(ip("0.0.0.0"), 1) is None


@pytest.mark.parametrize("target", [PEER4, "10.0.0.3", "0.0.0.0", "255.255.255.255"])
def test_does_not_answer_for_others(we: Neighbours, target: str) -> None:
    assert hear(we, request(target=target)) == []
    assert we.lookup(ip(PEER4), 1) is None


def test_answers_solicitations(we: Neighbours) -> None:
    (answer,) = hear(we, solicit())
    assert (answer.src, answer.dst) == (OURS, THEIRS)
    assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (OUR6, PEER6, 255)
    advertisement = answer[ICMPv6ND_NA]
    assert (advertisement.tgt, advertisement.R, advertisement.S, advertisement.O) == (OUR6, 0, 1, 1)
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == OURS
    assert checksum_is_right(answer)
    assert we.lookup(ip(PEER6), 1) == mac(THEIRS)


def test_defends_its_address_against_who_would_take_it(we: Neighbours) -> None:
    """RFC 4862 5.4.3: duplicate address detection asks from the unspecified address."""
    probe = (
        Ether(src=THEIRS, dst="33:33:ff:00:00:01")
        / IPv6(src="::", dst="ff02::1:ff00:1", hlim=255)
        / ICMPv6ND_NS(tgt=OUR6)
    )
    (answer,) = hear(we, probe)
    assert (answer.dst, answer[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert answer[ICMPv6ND_NA].S == 0
    assert checksum_is_right(answer)


def test_does_not_solicit_answers_for_others(we: Neighbours) -> None:
    assert hear(we, solicit(target=PEER6)) == []


# --- asking -------------------------------------------------------------------------------------------------


def test_asks_by_arp_and_learns(we: Neighbours) -> None:
    (question,) = ask(we, PEER4)
    assert (question.dst, question.src) == (BROADCAST, OURS)
    arp = question[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.pdst) == (1, OURS, OUR4, PEER4)
    assert ask(we, PEER4) == []
    assert hear(we, reply(), now=5) == []
    assert we.lookup(ip(PEER4), 6) == mac(THEIRS)
    assert we.next_deadline() is None


def test_asks_by_solicitation_and_learns(we: Neighbours) -> None:
    (question,) = ask(we, PEER6)
    assert (question.dst, question[IPv6].dst) == ("33:33:ff:00:00:02", "ff02::1:ff00:2")
    assert (question[IPv6].src, question[IPv6].hlim) == (OUR6, 255)
    assert question[ICMPv6ND_NS].tgt == PEER6
    assert question[ICMPv6NDOptSrcLLAddr].lladdr == OURS
    assert checksum_is_right(question)
    hear(we, advert())
    assert we.lookup(ip(PEER6), 1) == mac(THEIRS)


def test_asks_the_gateway_for_what_is_far(we: Neighbours) -> None:
    assert ask(we, "192.0.2.1")[0][ARP].pdst == "10.0.0.254"
    assert ask(we, "192.0.2.2") == []
    assert ask(we, "2001:db8::1")[0][ICMPv6ND_NS].tgt == "fd00::fe"
    hear(we, reply(source="10.0.0.254"))
    assert we.lookup(ip("192.0.2.2"), 1) == mac(THEIRS)


def test_knows_no_way_without_a_gateway(we: Neighbours) -> None:
    we.gateways.clear()
    assert we.next_hop(ip("192.0.2.1")) is None
    assert ask(we, "192.0.2.1") == []
    assert we.lookup(ip("192.0.2.1"), 0) is None
    assert len(ask(we, "fe80::5")) == 1


def test_knows_itself_and_groups(we: Neighbours) -> None:
    assert we.lookup(ip(OUR6), 0) == mac(OURS)
    assert we.lookup(ip("224.1.2.3"), 0) == mac("01:00:5e:01:02:03")
    assert multicast_mac(ip("239.129.2.3")) == mac("01:00:5e:01:02:03")
    assert multicast_mac(ip("ff02::1:2")) == mac("33:33:00:01:00:02")
    assert ask(we, OUR4) == ask(we, "ff02::9") == []


def test_asks_three_times_then_gives_up(we: Neighbours) -> None:
    ask(we, PEER4, now=10)
    asked = 1
    while (deadline := we.next_deadline()) is not None:
        assert deadline == 10 + asked * RETRANSMIT_NS
        assert list(we.on_timer(deadline - 1)) == []
        asked += len(list(we.on_timer(deadline)))
    assert asked == MAX_SOLICITATIONS
    assert len(ask(we, PEER4, now=10**12)) == 1


def test_forgets(we: Neighbours) -> None:
    hear(we, request(), now=0)
    assert we.lookup(ip(PEER4), REACHABLE_NS - 1) == mac(THEIRS)
    assert we.lookup(ip(PEER4), REACHABLE_NS) is None
    assert len(ask(we, PEER4, now=REACHABLE_NS)) == 1


def test_a_neighbour_may_move(we: Neighbours) -> None:
    """What gratuitous ARP and unsolicited advertisements are for, after a migration."""
    hear(we, request())
    hear(we, solicit())
    moved = "02:00:00:00:00:77"
    gratuitous = ARP(op=1, hwsrc=moved, psrc=PEER4, pdst=PEER4)
    assert hear(we, Ether(src=moved, dst=BROADCAST) / gratuitous) == []
    assert we.lookup(ip(PEER4), 1) == mac(moved)
    hear(we, advert(link=moved))
    assert we.lookup(ip(PEER6), 1) == mac(moved)


# --- telling ------------------------------------------------------------------------------------------------


def test_announces_by_gratuitous_arp(we: Neighbours) -> None:
    frame = Ether(we.announce(ip(OUR4)))
    assert frame.dst == BROADCAST
    assert (frame[ARP].op, frame[ARP].hwsrc, frame[ARP].psrc, frame[ARP].pdst) == (1, OURS, OUR4, OUR4)


def test_announces_by_unsolicited_advertisement(we: Neighbours) -> None:
    frame = Ether(we.announce(ip(OUR6)))
    assert (frame.dst, frame[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (frame[ICMPv6ND_NA].S, frame[ICMPv6ND_NA].O, frame[ICMPv6ND_NA].tgt) == (0, 1, OUR6)
    assert checksum_is_right(frame)


# --- hostile ------------------------------------------------------------------------------------------------


def test_replies_nobody_asked_for_are_not_believed(we: Neighbours) -> None:
    hear(we, reply())
    hear(we, advert())
    assert we.lookup(ip(PEER4), 1) is None
    assert we.lookup(ip(PEER6), 1) is None


@pytest.mark.parametrize("claimed", [BROADCAST, "01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_addresses_that_are_no_stations_are_refused(we: Neighbours, claimed: str) -> None:
    ask(we, PEER4)
    assert hear(we, reply(hwsrc=claimed)) == []
    assert hear(we, solicit(link=claimed)) == []
    assert we.lookup(ip(PEER4), 1) is None
    assert we.lookup(ip(PEER6), 1) is None


def test_nobody_else_is_us(we: Neighbours) -> None:
    hear(we, request(source=OUR4))
    assert we.lookup(ip(OUR4), 1) == mac(OURS)


@pytest.mark.parametrize(
    "packet",
    [
        Ether(src=THEIRS, dst=OURS, type=0x0806) / b"short",
        Ether(src=THEIRS, dst=OURS) / ARP(hwtype=6, pdst=OUR4),
        Ether(src=THEIRS, dst=OURS) / ARP(ptype=0x86DD, pdst=OUR4),
        Ether(src=THEIRS, dst=OURS) / ARP(hwlen=8, pdst=OUR4),
        Ether(src=THEIRS, dst=OURS) / ARP(plen=16, pdst=OUR4),
        Ether(src=THEIRS, dst=OURS) / IPv6(src=PEER6, dst=OUR6, hlim=64) / ICMPv6ND_NS(tgt=OUR6),
        Ether(src=THEIRS, dst=OURS) / IPv6(src=PEER6, dst=OUR6, hlim=255) / ICMPv6ND_NS(tgt=OUR6, code=1),
        Ether(src=THEIRS, dst=OURS) / IPv6(src=PEER6, dst=OUR6, hlim=255) / ICMPv6ND_NS(tgt=OUR6, cksum=1),
        Ether(src=THEIRS, dst=OURS) / IPv6(src=PEER6, dst=OUR6, hlim=255, plen=60) / ICMPv6ND_NS(tgt=OUR6),
        Ether(src=THEIRS, dst=OURS) / IPv6(src=PEER6, dst=OUR6, hlim=255, plen=8) / ICMPv6ND_NS(tgt=OUR6),
    ],
)
def test_malformed_frames_are_counted(we: Neighbours, packet: Packet) -> None:
    assert hear(we, packet) == []
    assert we.malformed == 1


@pytest.mark.parametrize(
    "packet",
    [
        Ether(src=THEIRS, dst=OURS) / IPv6(src=PEER6, dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
        Ether(src=THEIRS, dst=OURS) / Dot1Q(vlan=5) / ARP(pdst=OUR4),
        Ether(src=THEIRS, dst=OURS, type=0x88CC) / b"lldp",
    ],
)
def test_what_is_not_for_us_is_ignored(we: Neighbours, packet: Packet) -> None:
    assert hear(we, packet) == []
    assert we.malformed == 0


def test_the_cache_is_bounded(we: Neighbours) -> None:
    we.addresses[0] = ipaddress.ip_interface(f"{OUR4}/8")
    first = ip("10.1.0.0")
    for i in range(CACHE_ENTRIES + 10):
        hear(we, request(source=str(first + i)))
    known = [i for i in range(CACHE_ENTRIES + 10) if we.lookup(first + i, 1)]
    assert known == list(range(10, CACHE_ENTRIES + 10))


@given(st.data())
def test_any_damage_is_survived(data: st.DataObject) -> None:
    we = Neighbours(mac(OURS), [ipaddress.ip_interface(f"{OUR4}/24"), ipaddress.ip_interface(f"{OUR6}/64")])
    frame = bytearray(bytes(data.draw(st.sampled_from([request(), reply(), solicit(), advert()]))))
    for _ in range(data.draw(st.integers(0, 5))):
        frame[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(14, len(frame))) :]
    for answer in we.receive(bytes(frame), 0):
        assert len(answer) >= 60


# --- behind a port ------------------------------------------------------------------------------------------


@pytest.fixture
def two_ports() -> Iterator[tuple[NeighbourPort, NeighbourPort]]:
    a, b = memory.pair()
    ports = (
        NeighbourPort(a, Neighbours(a.mac, [ipaddress.ip_interface(f"{OUR4}/24")])),
        NeighbourPort(b, Neighbours(b.mac, [ipaddress.ip_interface(f"{PEER4}/24")])),
    )
    yield ports
    for port in ports:
        port.close()


def test_ports_find_each_other_and_the_engine_sees_none_of_it(two_ports) -> None:
    a, b = two_ports
    assert a.resolve(ip(PEER4), 0) is None
    assert a.next_deadline() == RETRANSMIT_NS
    assert drain(b) == []
    assert drain(a) == []
    assert a.resolve(ip(PEER4), 0) == b.mac
    assert b.resolve(ip(OUR4), 0) == a.mac
    assert a.next_deadline() is None
    assert a.counters()["rx_diverted"] == b.counters()["rx_diverted"] == 1


def test_what_is_for_the_engine_passes(two_ports) -> None:
    a, b = two_ports
    frame = roce(b"x")
    assert exchange(a, b, [(frame, 0), (bytes(request()), 0), (frame, 0)]) == [(frame, 0), (frame, 0)]


def test_announce_moves_the_address(two_ports) -> None:
    a, b = two_ports
    b.resolve(ip(OUR4), 0)
    drain(a)
    drain(b)
    a.neighbours.mac = mac("02:00:00:00:00:55")
    a.announce(1)
    drain(b, now=1)
    assert b.resolve(ip(OUR4), 1) == mac("02:00:00:00:00:55")


def test_asking_again_is_the_ports_business(two_ports) -> None:
    a, b = two_ports
    a.resolve(ip(PEER4), 0)
    assert len(drain(b._bare)) == 0
    a.service(RETRANSMIT_NS)
    assert b.counters()["rx_diverted"] == 1
    drain(b)
    assert b.counters()["rx_diverted"] == 2


def test_a_flood_of_questions_is_bounded(two_ports) -> None:
    a, b = two_ports
    for _ in range(3):
        exchange(a, b._bare, [(bytes(request()), 0)] * 16)
    counters = b.counters()
    assert (counters["rx_diverted"], counters["rx_drops"]) == (SLOW_SLOTS, 48 - SLOW_SLOTS)
    b.service(0)
    exchange(a, b, [(bytes(request()), 0)])
    assert b.counters()["rx_diverted"] == SLOW_SLOTS + 1
