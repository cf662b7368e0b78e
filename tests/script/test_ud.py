"""Unreliable datagram and the GSI QP (IBTA 9.8.3, A17.4.5; chapter 13 for QP1)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from softrnic.counters import C
from softrnic.verbs import EventType, QpState, QpType, SendWr, VerbsError, WcFlags, WcOpcode, WcStatus, WrOpcode
from tests.script.harness import GSI_QKEY, PEER_QPN, QKEY, Op, Script

UD, GSI = QpType.UD, QpType.GSI
SEND, SEND_IMM = WrOpcode.SEND, WrOpcode.SEND_WITH_IMM
GRH = 40
FAMILIES = pytest.mark.parametrize("family", ["v4", "v6"])


@pytest.mark.parametrize("length", [0, 1, 3, 4, 255, 1024, 4095, 4096])
@pytest.mark.parametrize("opcode", [SEND, SEND_IMM])
def test_sent(opcode: WrOpcode, length: int) -> None:
    """9.8.3: one message is one packet; it names its sender and the receiver's Q_Key."""
    with Script(UD, psn=0xFFFFFF) as s:
        for psn in (0xFFFFFF, 0):
            s.post(opcode, length, wr_id=1, imm=0x01020304)
            imm = {"imm": 0x01020304} if opcode == SEND_IMM else {}
            op = Op.SEND_ONLY_IMM if imm else Op.SEND_ONLY
            payload = s.memory(0, length)
            s.expect(op, psn=psn, ackreq=0, qkey=QKEY, sqpn=s.qp.qpn, payload=payload, **imm)
            s.sent(1, opcode=WcOpcode.SEND)


@FAMILIES
@pytest.mark.parametrize("length", [0, 1, 4096])
def test_received(family: str, length: int) -> None:
    """9.8.3.3, A17.4.5.1: 40 bytes for the network header, in front of the payload."""
    with Script(UD, family=family) as s:
        data = bytes(i % 256 for i in range(length))
        s.post_recv(GRH + length, wr_id=1)
        s.inject(Op.SEND_ONLY, 77, data, sqpn=0x123)
        s.received(1, opcode=WcOpcode.RECV, byte_len=GRH + length, wc_flags=WcFlags.GRH, src_qp=0x123)
        assert s.memory(GRH, length) == data
        source, destination = (ipaddress.ip_address(ip).packed for ip in (s.peer_ip, s.own_ip))
        if family == "v6":
            header = s.memory(0, GRH)
            assert (header[0] >> 4, header[6]) == (6, 17)
            assert header[8:24] + header[24:40] == source + destination
        else:
            header = s.memory(20, 20)  # A17.4.5.1: an IPv4 header fills the last 20 of the 40 bytes
            assert (header[0], header[9]) == (0x45, 17)
            assert header[12:16] + header[16:20] == source + destination


def test_received_with_immediate() -> None:
    """9.8.3."""
    with Script(UD) as s:
        s.post_recv(100, wr_id=1)
        s.inject(Op.SEND_ONLY_IMM, 0, b"abc", imm=0xCAFE)
        s.received(1, imm=0xCAFE, wc_flags=WcFlags.GRH | WcFlags.WITH_IMM, byte_len=GRH + 3)


def test_psn_means_nothing() -> None:
    """9.8.3.1: datagrams are taken in whatever order, and more than once."""
    with Script(UD) as s:
        for wr_id, psn in enumerate((5, 5, 0xFFFFFF, 0, 0x800000)):
            s.post_recv(100, wr_id=wr_id)
            s.inject(Op.SEND_ONLY, psn, b"x", ackreq=1)
            s.received(wr_id)


@pytest.mark.parametrize("qkey", [QKEY ^ 1, 0, GSI_QKEY, QKEY | 0x80000000])
def test_wrong_qkey(qkey: int) -> None:
    """9.6.1.4.1, 10.2.5: dropped; the receive WQE stays."""
    with Script(UD) as s:
        s.post_recv(100, wr_id=1)
        s.inject(Op.SEND_ONLY, 0, b"x", qkey=qkey)
        s.nothing_completed()
        assert s.count(C.DROP_QKEY) == 1
        s.inject(Op.SEND_ONLY, 0, b"y")
        s.received(1)


def test_privileged_qkey_is_the_qps_own() -> None:
    """10.2.5: a Q_Key with the high bit set in a work request stands for the QP's."""
    with Script(UD) as s:
        s.post(SEND, 1, wr_id=1, qkey=0x80000000 | 5)
        s.expect(Op.SEND_ONLY, psn=100, qkey=QKEY)
        s.sent(1)
        s.post(SEND, 1, wr_id=2, qkey=0x7FFFFFFF)
        s.expect(Op.SEND_ONLY, psn=101, qkey=0x7FFFFFFF)
        s.sent(2)


def test_qkey_may_change() -> None:
    """11.2.5.2: the Q_Key is an attribute of a UD QP in RTS."""
    with Script(UD) as s:
        s.qp.modify(QpState.RTS, qkey=99)
        s.post_recv(100, wr_id=1)
        s.inject(Op.SEND_ONLY, 0, b"x")
        s.inject(Op.SEND_ONLY, 0, b"y", qkey=99)
        s.received(1)


def test_no_receive_posted() -> None:
    """9.8.3.2: dropped without a word."""
    with Script(UD) as s:
        s.inject(Op.SEND_ONLY, 0, b"x", ackreq=1)
        s.expect_nothing()
        assert s.count(C.DROP_NO_RECV) == 1


@pytest.mark.parametrize("room", [0, GRH - 1, GRH, GRH + 9])
def test_receive_too_small(room: int) -> None:
    """9.8.3.2, 9.9.3: the datagram is dropped, and the receive WQE waits for one that fits."""
    with Script(UD) as s:
        s.post_recv(room, wr_id=1)
        before = s.memory()
        s.inject(Op.SEND_ONLY, 0, bytes(10))
        s.nothing_completed()
        assert s.memory() == before
        assert s.count(C.DROP_LENGTH) == 1
        assert s.qp.state == QpState.RTS
        if room >= GRH:
            s.inject(Op.SEND_ONLY, 0, bytes(room - GRH))
            s.received(1, byte_len=room)


def test_scattered() -> None:
    """The header and the payload fill the SGEs in order."""
    with Script(UD) as s:
        s.post_recv(wr_id=1, sges=[s.mr.sge(0, 30), s.mr.sge(1000, 11), s.mr.sge(2000, 50)])
        s.inject(Op.SEND_ONLY, 0, b"0123456789")
        s.received(1, byte_len=50)
        assert s.memory(1010, 1) + s.memory(2000, 9) == b"0123456789"


def test_receive_that_names_wrong_memory() -> None:
    """11.6.2: a local protection error, which takes the QP to the error state."""
    with Script(UD) as s:
        s.post_recv(wr_id=1, sges=[s.mr.sge(0, 100)._replace(lkey=0xBAD)])
        s.inject(Op.SEND_ONLY, 0, b"x")
        s.received(1, WcStatus.LOC_PROT_ERR)
        s.expect_event(EventType.QP_FATAL)
        assert s.qp.state == QpState.ERR


@pytest.mark.parametrize("length", [4097, 8000])
def test_longer_than_the_path_mtu(length: int) -> None:
    """9.8.3, a datagram is one packet: a local length error."""
    with Script(UD) as s:
        s.post(SEND, length, wr_id=1)
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_LEN_ERR)
        assert s.qp.state == QpState.SQE


@pytest.mark.parametrize(
    "opcode", [WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ, WrOpcode.ATOMIC_FETCH_AND_ADD, WrOpcode.SEND_WITH_INV]
)
def test_only_sends(opcode: WrOpcode) -> None:
    """9.8.3, table 38."""
    with Script(UD) as s:
        s.post(opcode, 8, wr_id=1)
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_QP_OP_ERR)


@pytest.mark.parametrize("op", [Op.SEND_FIRST, Op.WRITE_ONLY, Op.READ_REQUEST, Op.ACKNOWLEDGE, Op.SEND_ONLY_INV])
def test_opcodes_that_ud_does_not_have(op: Op) -> None:
    """Table 38: dropped."""
    with Script(UD) as s:
        s.post_recv(100, wr_id=1)
        s.inject(op, 0)
        s.nothing_completed()
        assert s.count(C.DROP_OPCODE) == 1


def test_each_request_has_its_own_destination() -> None:
    """10.8.2: address handle, QPN and Q_Key are the work request's."""
    with Script(UD) as s:
        others = [s.pd.create_ah(replace(s.ah_attr, traffic_class=tc, hop_limit=hl)) for tc, hl in ((4, 9), (8, 3))]
        for i, ah in enumerate(others):
            s.post(SEND, 1, wr_id=i, ah=ah, dqpn=0x700 + i)
        for i, ah in enumerate(others):
            packet = s.expect(Op.SEND_ONLY, psn=100 + i, dqpn=0x700 + i).packet
            assert (packet["IP"].tos, packet["IP"].ttl) == (ah.attr.traffic_class, ah.attr.hop_limit)
            s.sent(i)


def test_ipv6_destination() -> None:
    """A17.3.1.2: traffic class and flow label."""
    with Script(UD, family="v6") as s:
        ah = s.pd.create_ah(replace(s.ah_attr, traffic_class=0x6A, flow_label=0x12345, hop_limit=1))
        s.post(SEND, 1, wr_id=1, ah=ah)
        packet = s.expect(Op.SEND_ONLY, psn=100).packet["IPv6"]
        assert (packet.tc, packet.fl, packet.hlim) == (0x6A, 0x12345, 1)
        s.sent(1)


def test_no_address_handle() -> None:
    """A datagram goes nowhere by itself."""
    with Script(UD) as s, pytest.raises(VerbsError, match="address handle"):
        s.qp.post_send(SendWr(SEND))


@pytest.mark.parametrize("how", ["destroyed", "pd"])
def test_address_handle_that_may_not_be_used(how: str) -> None:
    """10.2.2.2: it must exist and be of the QP's protection domain."""
    with Script(UD) as s:
        ah = (s.device.alloc_pd() if how == "pd" else s.pd).create_ah(s.ah_attr)
        if how == "destroyed":
            ah.destroy()
        s.post(SEND, 1, wr_id=1, ah=ah)
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_QP_OP_ERR)


def test_anyone_may_send() -> None:
    """9.8.3: a UD QP has no peer."""
    with Script(UD) as s:
        s.post_recv(100, wr_id=1)
        s.inject(Op.SEND_ONLY, 0, b"x", src_ip="10.9.9.9", sqpn=0xABCDEF)
        s.received(1, src_qp=0xABCDEF)
        assert s.memory(32, 4) == bytes((10, 9, 9, 9))


# --- GSI ------------------------------------------------------------------------------------------------------


def test_gsi_sends_and_receives() -> None:
    """13.5.1, 12.4: QP1, with the well-known Q_Key."""
    with Script(GSI) as s:
        assert s.qp.qpn == 1
        s.post(SEND, 256, wr_id=1, dqpn=1, qkey=GSI_QKEY)
        s.expect(Op.SEND_ONLY, psn=100, dqpn=1, qkey=GSI_QKEY, sqpn=1, payload=s.memory(0, 256))
        s.sent(1)
        s.post_recv(GRH + 256, wr_id=2)
        s.inject(Op.SEND_ONLY, 0, bytes(256), dqpn=1, sqpn=1)
        s.received(2, src_qp=1, byte_len=GRH + 256)


def test_gsi_has_one_qkey() -> None:
    """13.5.1: no other Q_Key opens QP1."""
    with Script(GSI) as s:
        s.post_recv(100, wr_id=1)
        s.inject(Op.SEND_ONLY, 0, b"x", qkey=QKEY)
        s.nothing_completed()
        assert s.count(C.DROP_QKEY) == 1


def test_no_gsi() -> None:
    """Packets for QP1 where there is none."""
    with Script(UD) as s:
        s.inject(Op.SEND_ONLY, 0, b"x", dqpn=1, qkey=GSI_QKEY)
        assert s.count(C.DROP_QPN) == 1
        assert s.qp.qpn != PEER_QPN
