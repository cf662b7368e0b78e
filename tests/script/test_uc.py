"""Unreliable connection: what is lost is lost, and nothing is answered (IBTA 9.8.2)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import Access, EventType, QpState, QpType, WcFlags, WcStatus, WrOpcode
from tests.script.harness import ALL_ACCESS, FENCE, PEER_RKEY, PEER_VA, SIZE, Op, Script
from tests.script.messages import KINDS, Kind, edges, packets

UC = QpType.UC
KINDS = {name: kind for name, kind in KINDS.items() if name != "send_inv"}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@EVERY_KIND
@pytest.mark.parametrize("length", edges(256))
def test_sent(kind: Kind, length: int) -> None:
    """9.8.2: messages are cut as over RC; no packet asks for an answer; sent is completed."""
    with Script(UC, psn=0xFFFFFF) as s:
        s.post(kind.wr, length, wr_id=9, imm=7)
        for i, part in enumerate(packets(kind, length, 256)):
            fields = {"va": PEER_VA, "rkey": PEER_RKEY, "dmalen": length} if kind.write and part.first else {}
            if kind.tail and part.last:
                fields["imm"] = 7
            payload = s.memory(part.start, part.end - part.start)
            s.expect(part.op, psn=0xFFFFFF + i & 0xFFFFFF, ackreq=0, payload=payload, **fields)
        s.sent(9, opcode=kind.wc)
        s.advance(10**10)


@EVERY_KIND
@pytest.mark.parametrize("length", edges(256))
def test_received(kind: Kind, length: int) -> None:
    """9.8.2: like RC but for the answer: there is none, even if one was asked for."""
    with Script(UC, peer_psn=0xFFFFFF) as s:
        if kind.recv is not None:
            s.post_recv(2048, wr_id=4)
        data = bytes(i * 3 % 256 for i in range(length))
        for i, part in enumerate(packets(kind, length, 256)):
            fields = {"dmalen": length} if part.first else {}
            s.inject(part.op, 0xFFFFFF + i & 0xFFFFFF, data[part.start : part.end], ackreq=1, imm=9, **fields)
        assert s.memory(0, length) == data
        if kind.recv is not None:
            imm = bool(kind.tail)
            s.received(4, opcode=kind.recv, byte_len=length, imm=9 * imm, wc_flags=WcFlags.WITH_IMM if imm else 0)


@pytest.mark.parametrize("opcode", [WrOpcode.RDMA_READ, WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD])
def test_no_reads_or_atomics(opcode: WrOpcode) -> None:
    """9.8.2, table 38: UC has neither."""
    with Script(UC) as s:
        s.post(opcode, 8, wr_id=1)
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_QP_OP_ERR)
        assert s.qp.state == QpState.SQE


@pytest.mark.parametrize("op", [Op.READ_REQUEST, Op.COMPARE_SWAP, Op.ACKNOWLEDGE, Op.SEND_ONLY_INV, 0x1F])
def test_opcodes_that_uc_does_not_have(op: int) -> None:
    """Table 38: dropped."""
    with Script(UC) as s:
        s.inject(op, 500)
        s.expect_nothing()
        assert s.count(C.DROP_OPCODE) == 1


def test_lost_first_packet() -> None:
    """9.8.2.2: the rest of the message is dropped; the next message is taken, with the same receive WQE."""
    with Script(UC) as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.SEND_MIDDLE, 501, bytes(256))
        s.inject(Op.SEND_LAST, 502, bytes(10))
        s.nothing_completed()
        s.inject(Op.SEND_ONLY, 503, b"next")
        s.received(1, byte_len=4)
        assert s.count(C.DROP_UC_SEQ) == 2


def test_lost_middle_packet() -> None:
    """9.8.2.2: a message with a hole is dropped from there on; its receive WQE serves the next from the start."""
    with Script(UC) as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, b"a" * 256)
        s.inject(Op.SEND_MIDDLE, 502, b"c" * 256)
        s.inject(Op.SEND_LAST, 503, b"d")
        s.nothing_completed()
        s.inject(Op.SEND_FIRST, 504, b"A" * 256)
        s.inject(Op.SEND_LAST_IMM, 505, b"B", imm=5)
        s.received(1, byte_len=257, imm=5)
        assert s.memory(0, 257) == b"A" * 256 + b"B"


def test_lost_last_packet() -> None:
    """9.8.2.2: a new first packet ends an unfinished message."""
    with Script(UC) as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, b"a" * 256)
        s.inject(Op.SEND_ONLY, 502, b"next")
        s.received(1, byte_len=4)


def test_lost_last_packet_and_first_of_the_next() -> None:
    """9.8.2.2: the last packet of another message does not complete this one, though a hole is all it needs."""
    with Script(UC) as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, b"a" * 256)
        s.inject(Op.SEND_LAST, 503, b"of another")
        s.nothing_completed()


def test_unfinished_message_without_a_hole() -> None:
    """9.8.2.2: a first packet in sequence while a message is open: the open one is dropped."""
    with Script(UC) as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, b"a" * 256)
        s.inject(Op.WRITE_ONLY, 501, b"w")
        s.inject(Op.SEND_LAST, 502, b"b")
        s.nothing_completed()
        s.inject(Op.SEND_ONLY, 503, b"next")
        s.received(1, byte_len=4)


def test_psn_may_go_anywhere() -> None:
    """9.8.2.2: any first packet is a new beginning, also one with a PSN of the past."""
    with Script(UC) as s:
        for wr_id, psn in enumerate((500, 400, 0, 0xFFFFFF, 0x800000)):
            s.post_recv(SIZE, wr_id=wr_id)
            s.inject(Op.SEND_ONLY, psn, b"x")
            s.received(wr_id)


def test_lost_packet_of_a_write() -> None:
    """9.8.2.2: what arrived before the hole has been written, the rest is not; an immediate completes nothing."""
    with Script(UC) as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.WRITE_FIRST, 500, b"a" * 256, dmalen=600)
        before = s.memory()
        s.inject(Op.WRITE_LAST_IMM, 502, b"c" * 88, imm=1)
        assert s.memory() == before
        s.nothing_completed()


def test_no_receive_posted() -> None:
    """9.8.2.2: there is no RNR: the message is dropped, and no half of it is taken later."""
    with Script(UC) as s:
        s.inject(Op.SEND_FIRST, 500, bytes(256))
        s.post_recv(SIZE, wr_id=1)
        s.inject(Op.SEND_LAST, 501, b"x")
        s.nothing_completed()
        assert s.count(C.DROP_NO_RECV) == 1
        s.inject(Op.SEND_ONLY, 502, b"next")
        s.received(1)


@pytest.mark.parametrize("how", ["rkey", "range", "qp"])
def test_write_that_is_not_permitted(how: str) -> None:
    """9.8.2.2, 9.9.3: dropped without a word; the QP lives on."""
    with Script(UC, access=ALL_ACCESS & ~Access.REMOTE_WRITE if how == "qp" else ALL_ACCESS) as s:
        before = s.memory()
        fields = {"rkey": {"rkey": 0xBAD}, "range": {"va": s.va + SIZE - 1}, "qp": {}}[how]
        s.inject(Op.WRITE_ONLY, 500, b"ab", **fields)
        assert s.memory() == before
        assert s.qp.state == QpState.RTS
        s.post_recv(9, wr_id=1)
        s.inject(Op.SEND_ONLY, 501, b"next")
        s.received(1)


def test_receive_too_small() -> None:
    """9.9.3, 11.6.2: a local length error, which takes the QP to the error state."""
    with Script(UC) as s:
        s.post_recv(3, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"four")
        s.received(1, WcStatus.LOC_LEN_ERR)
        s.expect_event(EventType.QP_REQ_ERR)
        assert s.qp.state == QpState.ERR


def test_receive_that_names_wrong_memory() -> None:
    """9.9.3, 11.6.2: a local protection error, which takes the QP to the error state."""
    with Script(UC) as s:
        s.post_recv(wr_id=1, sges=[s.mr.sge(0, 10)._replace(lkey=0xBAD)])
        s.inject(Op.SEND_ONLY, 500, b"four")
        s.received(1, WcStatus.LOC_PROT_ERR)
        s.expect_event(EventType.QP_FATAL)
        assert s.qp.state == QpState.ERR


def test_order_within_the_send_queue() -> None:
    """10.8.3.3: a fence has nothing to wait for."""
    with Script(UC) as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(WrOpcode.RDMA_WRITE, 1, wr_id=2, flags=FENCE)
        s.expect(Op.SEND_ONLY, psn=100)
        s.expect(Op.WRITE_ONLY, psn=101)
        s.sent(1)


def test_drain() -> None:
    """10.3.1.5: UC drains at once."""
    with Script(UC) as s:
        s.post(WrOpcode.SEND, 600, wr_id=1)
        assert len(s.flush_wire()) == 3
        s.sent(1)
        s.qp.modify(QpState.SQD, en_sqd_async_notify=1)
        s.post(WrOpcode.SEND, 1, wr_id=2)
        s.expect_nothing()
        s.expect_event(EventType.SQ_DRAINED)
        s.qp.modify(QpState.RTS)
        s.expect(Op.SEND_ONLY, psn=103)
        s.sent(2)
