"""Who may speak to a QP, and what its packets look like on the wire (IBTA 9.6, 10.9; A17.3, A17.9)."""

from __future__ import annotations

from typing import Any

import pytest

from softrnic.counters import C
from softrnic.verbs import QpType, WrOpcode
from tests import scapy_roce as sr
from tests.script.harness import FAMILIES, OWN_MAC, PEER_MAC, Op, Script, dissect
from tests.script.messages import KINDS, packets

SEND, WRITE = WrOpcode.SEND, WrOpcode.RDMA_WRITE
OTHER = {"v4": "10.0.0.99", "v6": "fd00::99"}


@pytest.mark.parametrize("vlan", [None, 1, 4094])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [QpType.RC, QpType.UC, QpType.UD])
def test_every_kind_of_network(kind: QpType, family: str, vlan: int | None) -> None:
    """A17.3: IPv4 and IPv6, tagged and not, both ways."""
    with Script(kind, family=family, vlan=vlan) as s:
        s.post(SEND, 5, wr_id=1)
        s.expect(Op.SEND_ONLY, psn=100, payload=s.memory(0, 5), padcnt=3)
        if kind == QpType.RC:
            s.ack(100)
        s.sent(1)
        s.post_recv(100, wr_id=2)
        s.inject(Op.SEND_ONLY, 500, b"hello", ackreq=1)
        s.received(2)
        if kind == QpType.RC:
            s.expect_ack(psn=500, msn=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_messages_over_both_families(family: str) -> None:
    """A17.3: every packet of a message has the lengths and the ICRC of its family."""
    with Script(family=family, vlan=7) as s:
        s.post(WRITE, 1000, wr_id=1)
        for i, part in enumerate(packets(KINDS["write"], 1000, 256)):
            s.expect(part.op, psn=100 + i, payload=s.memory(part.start, part.end - part.start))
        s.ack(103)
        s.sent(1)
        s.inject(Op.READ_REQUEST, 500, dmalen=1000)
        assert b"".join(p.payload for p in s.flush_wire()) == s.memory(0, 1000)


def test_headers_of_a_packet() -> None:
    """A17.3.1: DF set, UDP 4791 with a source port from 0xC000 on and no checksum, hop limit 64."""
    with Script(traffic_class=0x6A) as s:
        s.post(SEND, 1, wr_id=1)
        packet = s.expect(Op.SEND_ONLY, psn=100).packet
        assert packet[sr.IP].flags == "DF"
        assert (packet[sr.IP].ttl, packet[sr.IP].tos, packet[sr.IP].id) == (64, 0x6A, 0)
        udp = packet[sr.UDP]
        assert (udp.dport, udp.chksum) == (4791, 0)
        assert udp.sport >= 0xC000
        s.inject(Op.WRITE_ONLY, 500, ackreq=1)
        assert s.expect_ack(psn=500, msn=1).packet[sr.UDP].sport == udp.sport
        s.ack(100)
        s.sent(1)


def dropped(s: Script, why: C, op: int = Op.WRITE_ONLY, psn: int = 500, payload: bytes = b"x", **fields: Any) -> None:
    """The packet changes nothing but a counter."""
    before = s.memory()
    s.inject(op, psn, payload, ackreq=1, **fields)
    s.expect_nothing()
    s.nothing_completed()
    assert s.memory() == before
    assert s.count(why) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [QpType.RC, QpType.UC])
def test_packet_of_a_stranger(kind: QpType, family: str) -> None:
    """9.6.1.2.3: a connected QP hears only the address it is connected to."""
    with Script(kind, family=family) as s:
        dropped(s, C.DROP_PEER, src_ip=OTHER[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_packet_to_another_address(family: str) -> None:
    """A17.4: an address that is not ours."""
    with Script(family=family) as s:
        dropped(s, C.DROP_ADDRESS, dst_ip=OTHER[family])


def test_packet_to_another_address_of_ours() -> None:
    """9.6.1.2.3: nor to an address of ours that is not the connection's."""
    with Script() as s:
        s.device.add_gid("10.0.0.99", bytes(6))
        dropped(s, C.DROP_PEER, dst_ip="10.0.0.99")


def test_answers_of_a_stranger() -> None:
    """The same for acknowledgements."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        dropped(s, C.DROP_PEER, Op.ACKNOWLEDGE, 100, b"", src_ip="10.0.0.99")
        s.ack(100)
        s.sent(1)


def test_unknown_qp() -> None:
    """9.6.1.1: no such QP number."""
    with Script() as s:
        dropped(s, C.DROP_QPN, dqpn=s.qp.qpn + 1)


@pytest.mark.parametrize("qpn", [0, 1, 0xFFFFFF])
def test_special_qp_numbers(qpn: int) -> None:
    """QP0, QP1 and multicast, when nobody has them."""
    with Script() as s:
        dropped(s, C.DROP_QPN, dqpn=qpn)


@pytest.mark.parametrize("pkey", [0x7FFE, 0x0001, 0x8001, 0x0000, 0x8000])
def test_another_partition(pkey: int) -> None:
    """10.9.3: the low 15 bits must be equal, and 0 is no partition."""
    with Script() as s:
        dropped(s, C.DROP_PKEY, pkey=pkey)


def test_limited_member() -> None:
    """10.9.3: a limited member may speak to a full one."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, ackreq=1, pkey=0x7FFF)
        s.expect_ack(psn=500, msn=1)


@pytest.mark.parametrize("tver", [1, 15])
def test_header_version(tver: int) -> None:
    """9.2, C9-7: version 0 is the only one."""
    with Script() as s:
        dropped(s, C.DROP_BTH, tver=tver)


@pytest.mark.parametrize("opcode", [0x15, 0x18, 0x1F, 0x24 & 0x3F | 0x40, 0x64, 0x84, 0xA4, 0xC0, 0xFF])
def test_opcode_of_another_transport(opcode: int) -> None:
    """9.6.1.1: reserved opcodes, and those of UD, RD and XRC, at an RC QP."""
    with Script() as s:
        dropped(s, C.DROP_OPCODE, opcode & 0x1F, service=opcode & 0xE0)


@pytest.mark.parametrize(("payload", "padcnt"), [(b"", 1), (b"abcd", 3), (b"", 3)])
def test_padding_is_at_most_the_payload(payload: bytes, padcnt: int) -> None:
    """9.2.4: a pad count beyond what is there; a full word with padding is merely shorter."""
    with Script() as s:
        if payload:
            s.inject(Op.WRITE_ONLY, 500, payload, padcnt=padcnt, dmalen=1, ackreq=1)
            s.expect_ack(psn=500, msn=1)
            assert s.memory(0, 2) == b"a\x01"
        else:
            dropped(s, C.DROP_BTH, payload=payload, padcnt=padcnt)


@pytest.mark.parametrize("op", [Op.READ_REQUEST, Op.ACKNOWLEDGE, Op.FETCH_ADD, Op.ATOMIC_ACKNOWLEDGE])
def test_payload_where_none_belongs(op: Op) -> None:
    """Table 38."""
    with Script() as s:
        dropped(s, C.DROP_BTH, op, payload=b"1234")


@pytest.mark.parametrize("byte", [14, 20, 30, 34, 42, 50, 58, -5, -1])
def test_damaged_on_the_way(byte: int) -> None:
    """9.2, A17.3.4: any bit of what the ICRC covers; damage of the IP header is found by its own checksum."""
    with Script() as s:
        data = bytearray(s.build(Op.WRITE_ONLY, 500, b"abcdef", ackreq=1))
        data[byte] ^= 0x10
        before = s.memory()
        s.deliver(bytes(data))
        s.expect_nothing()
        assert s.memory() == before
        assert s.count(C.DROP_ICRC) + s.count(C.DROP_MALFORMED) + s.count(C.DROP_NOT_ROCE) == 1
        s.deliver(s.build(Op.WRITE_ONLY, 500, b"abcdef", ackreq=1))
        s.expect_ack(psn=500, msn=1)


@pytest.mark.parametrize(("field", "value"), [("ttl", 3), ("tos", 3)])
def test_what_routers_change_is_not_covered(field: str, value: int) -> None:
    """A17.3.3: hop limit and traffic class are variant: the ICRC holds."""
    with Script() as s:
        packet = sr.Ether(s.build(Op.WRITE_ONLY, 500, b"x", ackreq=1))
        icrc = packet[sr.BTH].icrc
        setattr(packet[sr.IP], field, value)
        del packet[sr.IP].chksum
        packet[sr.BTH].icrc = icrc
        s.deliver(bytes(packet))
        s.expect_ack(psn=500, msn=1)


def test_foreign_traffic() -> None:
    """Frames that are not RoCEv2 are nobody's concern."""
    with Script() as s:
        for frame in (b"", bytes(14), bytes(60), b"\xff" * 1500):
            s.deliver(frame)
        s.deliver(bytes(sr.Ether(src=PEER_MAC, dst=OWN_MAC) / sr.IP(dst=s.own_ip) / sr.UDP(dport=53) / b"query"))
        assert s.count(C.DROP_NOT_ROCE) == 5


@pytest.mark.parametrize("cut", range(1, 70, 7))
def test_cut_short(cut: int) -> None:
    """A frame that ends early is no packet."""
    with Script() as s:
        data = s.build(Op.WRITE_ONLY, 500, b"abcd", ackreq=1)
        s.deliver(data[:-cut])
        s.expect_nothing()
        assert s.count(C.RCVD_PKTS) == 0


@pytest.mark.parametrize("padding", [1, 6, 18])
def test_ethernet_padding(padding: int) -> None:
    """Short frames are padded on Ethernet: what lies behind the IP packet does not belong to it."""
    with Script() as s:
        s.deliver(s.build(Op.WRITE_ONLY, 500, b"abcd", ackreq=1) + bytes(padding))
        s.expect_ack(psn=500, msn=1)


def test_address_given_up() -> None:
    """del_gid: packets to it are dropped from then on."""
    with Script() as s:
        s.device.del_gid(s.gid)
        dropped(s, C.DROP_ADDRESS)


def test_congestion_notification_needs_no_answer() -> None:
    """A17.9.3: a CNP for a QP is no request."""
    with Script() as s:
        s.deliver(s.build(1, 0, service=0x80))
        s.expect_nothing()
        assert dissect(s.build(1, 0, service=0x80)).opcode == 0x81
