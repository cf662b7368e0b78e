"""SEND and RDMA WRITE over RC: every opcode both ways, and where messages are cut (IBTA 9.4.1, 9.4.3, 9.7.3)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.qp.requester import FIRST_ASKED
from softrnic.verbs import Mtu, WcFlags, WrOpcode
from tests.script.harness import PAGE, PEER_RKEY, PEER_VA, SIZE, Op, Script
from tests.script.messages import KINDS, Kind, edges, packets

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
IMM = 0x8899AABB


def send_message(s: Script, kind: Kind, length: int, psn: int, at: int = 0, imm: int = IMM) -> int:
    """Post one message, expect its packets, acknowledge it; the PSN after it."""
    s.post(kind.wr, length, at, wr_id=9, imm=imm)
    parts = packets(kind, length, s.pmtu)
    for i, part in enumerate(parts):
        fields = {"va": PEER_VA, "rkey": PEER_RKEY, "dmalen": length} if kind.write and part.first else {}
        if kind.tail and part.last:
            fields[kind.tail] = imm
        payload = s.memory(at + part.start, part.end - part.start)
        asks = part.last or i % FIRST_ASKED == FIRST_ASKED - 1  # no round trip is known yet
        s.expect(part.op, psn=psn, ackreq=int(asks), se=0, payload=payload, **fields)
        psn = psn + 1 & 0xFFFFFF
    s.expect_nothing()
    s.nothing_completed()
    s.ack(psn - 1 & 0xFFFFFF, msn=1)
    s.sent(9, opcode=kind.wc)
    return psn


def receive_message(s: Script, kind: Kind, data: bytes, psn: int, va: int, tail: int = IMM) -> int:
    """The peer sends one message and asks for an acknowledgement; the PSN after it."""
    for part in packets(kind, len(data), s.pmtu):
        fields = {"va": va, "dmalen": len(data)} if part.first else {}
        if kind.tail and part.last:
            fields[kind.tail] = tail
        s.inject(part.op, psn, data[part.start : part.end], ackreq=int(part.last), **fields)
        psn = psn + 1 & 0xFFFFFF
    return psn


@EVERY_KIND
@pytest.mark.parametrize("length", edges(256))
def test_sent(kind: Kind, length: int) -> None:
    """9.7.3: first, middle..., last or only; every packet but the last is exactly one path MTU long."""
    with Script(psn=100) as s:
        send_message(s, kind, length, 100)


@EVERY_KIND
@pytest.mark.parametrize("length", edges(256))
def test_received(kind: Kind, length: int) -> None:
    """9.7.4, 9.7.5.1.1: the message lands where it belongs, completes as what it is, and is acknowledged once."""
    with Script(peer_psn=500) as s:
        target, at = (s.va + PAGE, PAGE) if kind.write else (s.va, 0)
        spare = s.pd.reg_mr(bytearray(8))
        tail = spare.rkey if kind.tail == "inv_rkey" else IMM
        if kind.recv is not None:
            s.post_recv(2048, wr_id=4)
        data = bytes(i * 3 % 256 for i in range(length))
        after = receive_message(s, kind, data, 500, target, tail)
        assert s.memory(at, length + 1) == data + bytes([(at + length) % 251])
        if kind.recv is not None:
            flags = {"imm": WcFlags.WITH_IMM, "inv_rkey": WcFlags.WITH_INV, None: WcFlags(0)}[kind.tail]
            s.received(4, opcode=kind.recv, byte_len=length, wc_flags=flags, imm=tail if kind.tail else 0)
        s.expect_ack(psn=after - 1, msn=1)
        assert spare.valid == (kind.tail != "inv_rkey")


@pytest.mark.parametrize("mtu", Mtu)
@pytest.mark.parametrize("delta", [-1, 0, 1])
def test_every_path_mtu(mtu: Mtu, delta: int) -> None:
    """9.7.3, 11.2.5.2: 256 to 4096 bytes of payload in a full packet."""
    with Script(mtu=mtu) as s:
        send_message(s, KINDS["write"], mtu.bytes + delta, 100)
        data = bytes(i % 253 for i in range(mtu.bytes + delta))
        receive_message(s, KINDS["write"], data, 500, s.va)
        s.expect_ack(psn=500 + len(packets(KINDS["write"], len(data), mtu.bytes)) - 1, msn=1)
        assert s.memory(0, len(data)) == data


@EVERY_KIND
def test_psn_wraps_in_mid_message_sent(kind: Kind) -> None:
    """9.7.2: PSNs count modulo 2^24."""
    with Script(psn=0xFFFFFE) as s:
        psn = send_message(s, kind, 5 * 256, 0xFFFFFE)
        assert psn == 3
        send_message(s, kind, 1, psn)


@EVERY_KIND
def test_psn_wraps_in_mid_message_received(kind: Kind) -> None:
    """9.7.2, 9.7.4.1.2: the expected PSN counts modulo 2^24, and so does what is acknowledged."""
    with Script(peer_psn=0xFFFFFE) as s:
        spare = s.pd.reg_mr(bytearray(8))
        tail = spare.rkey if kind.tail == "inv_rkey" else IMM
        if kind.recv is not None:
            s.post_recv(2048, wr_id=4)
        data = bytes(range(256)) * 5
        assert receive_message(s, kind, data, 0xFFFFFE, s.va, tail) == 3
        s.expect_ack(psn=2, msn=1)
        assert s.memory(0, len(data)) == data
        if kind.recv is not None:
            s.received(4, byte_len=len(data))


@pytest.mark.parametrize("last_psn", [0xFFFFFE, 0xFFFFFF, 0])
def test_ack_on_either_side_of_the_wrap(last_psn: int) -> None:
    """9.7.2: an acknowledgement covers everything before it, across the wrap."""
    with Script(psn=last_psn - 2 & 0xFFFFFF) as s:
        for i in range(4):
            s.post(WrOpcode.SEND, 1, wr_id=i)
        for i in range(4):
            s.expect(Op.SEND_ONLY, psn=last_psn - 2 + i & 0xFFFFFF)
        s.ack(last_psn, msn=3)
        for i in range(3):
            s.sent(i)
        s.nothing_completed()
        s.ack(last_psn + 1 & 0xFFFFFF, msn=4)
        s.sent(3)


@pytest.mark.parametrize("start", [PAGE - 1, PAGE, PAGE + 1, PAGE - 256, PAGE - 255])
@pytest.mark.parametrize("length", [1, 2, 256, 257, PAGE + 2])
def test_pages_are_straddled(start: int, length: int) -> None:
    """Reads and writes of memory do not care for pages."""
    with Script() as s:
        send_message(s, KINDS["send"], length, 100, at=start)
        before, data = s.memory(), bytes(255 - i % 256 for i in range(length))
        receive_message(s, KINDS["write"], data, 500, s.va + start)
        assert s.memory() == before[:start] + data + before[start + length :]
        s.flush_wire()


def test_whole_region_and_not_one_byte_more() -> None:
    """9.4.1.1: the last byte of a region may be written."""
    with Script(mtu=Mtu.MTU_4096) as s:
        data = bytes(i % 241 for i in range(SIZE))
        psn = receive_message(s, KINDS["write"], data, 500, s.va)
        assert s.memory() == data
        s.expect_ack(psn=psn - 1, msn=1)


def test_messages_follow_one_another() -> None:
    """9.7.3: one message ends before the next begins, in the order posted."""
    with Script() as s:
        s.post(WrOpcode.SEND, 300, wr_id=1)
        s.post(WrOpcode.RDMA_WRITE, 0, wr_id=2)
        s.post(WrOpcode.SEND_WITH_IMM, 1, wr_id=3, imm=7)
        s.expect(Op.SEND_FIRST, psn=100)
        s.expect(Op.SEND_LAST, psn=101)
        s.expect(Op.WRITE_ONLY, psn=102, dmalen=0)
        s.expect(Op.SEND_ONLY_IMM, psn=103, imm=7)
        s.ack(103, msn=3)
        for wr_id in (1, 2, 3):
            s.sent(wr_id)


def test_inline_data_is_copied_when_posted() -> None:
    """11.4.1.1 / IBV_SEND_INLINE: the buffer may be reused at once, and needs no region."""
    with Script() as s:
        data = bytearray(b"inline data, 37 bytes, in three slots")
        s.post(WrOpcode.SEND, wr_id=1, inline=data)
        s.post(WrOpcode.RDMA_WRITE, wr_id=2, inline=b"")
        data[:6] = b"XXXXXX"
        s.expect(Op.SEND_ONLY, psn=100, payload=b"inline data, 37 bytes, in three slots", padcnt=3)
        s.expect(Op.WRITE_ONLY, psn=101, payload=b"", dmalen=0)
        s.nak(100, 0)
        s.expect(Op.SEND_ONLY, psn=100, payload=b"inline data, 37 bytes, in three slots")
        s.expect(Op.WRITE_ONLY, psn=101)
        s.ack(101)
        s.sent(1)
        s.sent(2)


def test_gather_list() -> None:
    """10.8.3.4: SGEs are taken in order; those of zero length add nothing, whatever key they name."""
    with Script() as s:
        m = s.mr
        s.post(
            WrOpcode.SEND, wr_id=1, sges=[m.sge(10, 3), m.sge(0, 0)._replace(lkey=0xBAD), m.sge(200, 255), m.sge(1, 2)]
        )
        data = s.memory(10, 3) + s.memory(200, 255) + s.memory(1, 2)
        s.expect(Op.SEND_FIRST, psn=100, payload=data[:256])
        s.expect(Op.SEND_LAST, psn=101, payload=data[256:])
        s.ack(101)
        s.sent(1)


def test_scatter_list() -> None:
    """10.8.3.4: a message fills the SGEs of a receive in order, across packets; nothing beyond is touched."""
    with Script() as s:
        m, before = s.mr, s.memory()
        s.post_recv(
            wr_id=1, sges=[m.sge(1000, 100), m.sge(0, 0)._replace(lkey=0xBAD), m.sge(PAGE - 1, 200), m.sge(8, 99)]
        )
        data = bytes(range(100, 200)) * 3
        s.inject(Op.SEND_FIRST, 500, data[:256])
        s.inject(Op.SEND_LAST, 501, data[256:], ackreq=1)
        s.received(1, byte_len=300)
        s.expect_ack(psn=501, msn=1)
        assert s.memory(1000, 100) == data[:100]
        assert s.memory(PAGE - 1, 200) == data[100:]
        assert s.memory(8, 99) == before[8:107]


def test_receive_without_sges_takes_an_empty_message() -> None:
    """10.8.3.4: a receive WQE may have no SGE at all."""
    with Script() as s:
        s.post_recv(wr_id=1, sges=[])
        s.inject(Op.SEND_ONLY_IMM, 500, imm=5, ackreq=1)
        s.received(1, byte_len=0, imm=5)
        s.expect_ack(psn=500, msn=1)


def test_unsignaled_sends_complete_silently() -> None:
    """10.8.2, C10-98: a success that was not asked for makes no completion; its WQE is retired all the same."""
    with Script() as s:
        for i in range(16 + 1):
            s.post(WrOpcode.SEND, 1, wr_id=i, flags=0)
            s.expect(Op.SEND_ONLY, psn=100 + i, ackreq=1)
            s.ack(100 + i)
        assert s.count(C.RDMA_SENDS) == 17


def test_signal_all() -> None:
    """ibv_create_qp, sq_sig_all: every send completes."""
    with Script(sq_sig_all=True) as s:
        s.post(WrOpcode.SEND, 1, wr_id=1, flags=0)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


def test_solicited_event_bit() -> None:
    """9.2.3: only in the last packet of a SEND, or of a WRITE with immediate data."""
    with Script() as s:
        s.post(WrOpcode.SEND, 300, wr_id=1, flags=6)
        s.post(WrOpcode.RDMA_WRITE_WITH_IMM, 1, wr_id=2, flags=6)
        s.expect(Op.SEND_FIRST, psn=100, se=0)
        s.expect(Op.SEND_LAST, psn=101, se=1)
        s.expect(Op.WRITE_ONLY_IMM, psn=102, se=1)
        s.ack(102)
        s.sent(1)
        s.sent(2)
