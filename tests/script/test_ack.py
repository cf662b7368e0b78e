"""Acknowledgements: what they cover, coalescing, MSN, credits, and the ones that come too late (IBTA 9.7.5, 9.7.7)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import EventType, QpCap, QpState, WcStatus, WrOpcode
from tests.script.harness import FENCE, NO_CREDITS, SIGNALED, UNSIGNALED, Op, Script

SEND, WRITE = WrOpcode.SEND, WrOpcode.RDMA_WRITE
# Table 50: credit count field to the number of receive WQEs.
CREDIT_TABLE = [
    0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144,
    8192, 12288, 16384, 24576, 32768,
]  # fmt: skip

# --- responder ----------------------------------------------------------------------------------------------


def test_nothing_is_acknowledged_unasked() -> None:
    """9.7.3: a request without AckReq needs no answer of its own."""
    with Script() as s:
        for i in range(3):
            s.inject(Op.WRITE_ONLY, 500 + i, b"x")
        s.expect_nothing()
        s.inject(Op.WRITE_ONLY, 503, b"x", ackreq=1)
        s.expect_ack(psn=503, msn=4)


def test_coalescing() -> None:
    """9.7.5.1.2: one acknowledgement answers all requests before it."""
    with Script() as s:
        for i in range(5):
            s.inject(Op.WRITE_ONLY, 500 + i, b"x", ackreq=1)
        s.expect_ack(psn=504, msn=5)
        assert s.count(C.ACK_DEFERRED) == 4


def test_ack_in_mid_message() -> None:
    """9.7.5.2.2: AckReq may stand in any packet; the MSN counts whole messages only."""
    with Script() as s:
        s.inject(Op.WRITE_FIRST, 500, bytes(256), dmalen=600, ackreq=1)
        s.expect_ack(psn=500, msn=0)
        s.inject(Op.WRITE_MIDDLE, 501, bytes(256), ackreq=1)
        s.expect_ack(psn=501, msn=0)
        s.inject(Op.WRITE_LAST, 502, bytes(88), ackreq=1)
        s.expect_ack(psn=502, msn=1)


def test_msn_counts_every_message() -> None:
    """9.7.5.2.2: SENDs, WRITEs, READs and atomics alike; duplicates do not count again."""
    with Script() as s:
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"s", ackreq=1)
        s.expect_ack(psn=500, msn=1)
        s.inject(Op.WRITE_ONLY, 501, b"w", ackreq=1)
        s.expect_ack(psn=501, msn=2)
        s.inject(Op.READ_REQUEST, 502, dmalen=1)
        s.expect(Op.READ_RESPONSE_ONLY, psn=502, msn=3)
        s.inject(Op.FETCH_ADD, 503)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=503, msn=4)
        s.inject(Op.WRITE_ONLY, 501, b"w", ackreq=1)
        s.expect_ack(psn=503, msn=4)
        s.received(1)


def test_msn_wraps() -> None:
    """9.7.5.2.2: 24 bits."""
    with Script() as s:
        s.qp.record["msn"] = 0xFFFFFF
        s.inject(Op.WRITE_ONLY, 500, b"w", ackreq=1)
        s.expect_ack(psn=500, msn=0)


@pytest.mark.parametrize("op", [Op.SEND_ONLY, Op.WRITE_ONLY, Op.WRITE_ONLY_IMM])
def test_duplicate_is_acknowledged_and_not_done_again(op: Op) -> None:
    """9.7.5.1.3: with the PSN of the newest request, whatever the duplicate's."""
    with Script() as s:
        for i in range(2):
            s.post_recv(10, wr_id=i)
        s.inject(op, 500, b"one", ackreq=1)
        s.inject(Op.WRITE_ONLY, 501, b"two", va=s.va + 100, ackreq=1)
        s.expect_ack(psn=501, msn=2)
        if op != Op.WRITE_ONLY:
            s.received(0)
        before = s.memory()
        s.inject(op, 500, b"XXX", ackreq=1)
        s.expect_ack(psn=501, msn=2)
        assert s.memory() == before
        assert s.count(C.DUPLICATE_REQUEST) == 1


def test_duplicate_in_mid_message_leaves_the_message_alone() -> None:
    """9.7.5.1.3: a duplicate is answered on the side; the message being received goes on."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"w")
        s.inject(Op.WRITE_FIRST, 501, bytes(256), dmalen=300)
        s.inject(Op.WRITE_ONLY, 500, b"w", ackreq=1)
        s.inject(Op.WRITE_FIRST, 501, bytes(256), dmalen=300)
        s.expect_ack(psn=501, msn=1)
        s.inject(Op.WRITE_LAST, 502, bytes(44), ackreq=1)
        s.expect_ack(psn=502, msn=2)


def test_duplicates_across_the_wrap() -> None:
    """9.7.2: a PSN is a duplicate when it is less than 2^23 behind, and ahead otherwise."""
    with Script(peer_psn=0) as s:
        s.inject(Op.WRITE_ONLY, 0xFFFFFF, b"w", ackreq=1)
        s.expect_ack(psn=0xFFFFFF, msn=0)
        s.inject(Op.WRITE_ONLY, 0x800000, b"w", ackreq=1)
        s.expect_ack(psn=0xFFFFFF, msn=0)
        assert s.count(C.DUPLICATE_REQUEST) == 2
        s.inject(Op.WRITE_ONLY, 0x7FFFFF, b"w")
        s.expect(Op.ACKNOWLEDGE, psn=0, syndrome=0x60)


@pytest.mark.parametrize("posted", [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16])
def test_credits_offered(posted: int) -> None:
    """9.7.7.2, table 50: the largest code that promises no more than what is posted."""
    with Script() as s:
        for i in range(posted):
            s.post_recv(10, wr_id=i)
        s.inject(Op.WRITE_ONLY, 500, b"w", ackreq=1)
        code = s.expect_ack(psn=500, msn=1).syndrome
        assert CREDIT_TABLE[code] == max(n for n in CREDIT_TABLE if n <= posted)


@pytest.mark.parametrize("posted", [4095, 4096, 6143])
def test_many_credits_offered(posted: int) -> None:
    """Table 50, further up."""
    with Script(cap=QpCap(16, 8192)) as s:
        s.qp.record["rq_prod"] = posted
        s.inject(Op.WRITE_ONLY, 500, b"w", ackreq=1)
        code = s.expect_ack(psn=500, msn=1).syndrome
        assert CREDIT_TABLE[code] == max(n for n in CREDIT_TABLE if n <= posted)


def test_credits_count_the_message_being_received() -> None:
    """9.7.7.2: credits count from the MSN, which does not include the message in progress."""
    with Script() as s:
        s.post_recv(600, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, bytes(256), ackreq=1)
        s.expect_ack(psn=500, msn=0, syndrome=1)
        s.inject(Op.SEND_LAST, 501, b"x", ackreq=1)
        s.expect_ack(psn=501, msn=1, syndrome=0)
        s.received(1, byte_len=257)


def test_no_credits_with_a_shared_receive_queue() -> None:
    """9.7.7.2: a responder with an SRQ cannot promise receives to one of its QPs."""
    with Script(srq=16) as s:
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"s", ackreq=1)
        s.expect_ack(psn=500, msn=1, syndrome=NO_CREDITS)
        s.received(1)


# --- requester ----------------------------------------------------------------------------------------------


def test_one_ack_completes_all_before_it() -> None:
    """9.7.5.1.2: in the order posted."""
    with Script() as s:
        for i in range(5):
            s.post((SEND, WRITE)[i % 2], 300, wr_id=i)
        s.flush_wire()
        s.ack(107)
        for i in range(4):
            s.sent(i)
        s.nothing_completed()
        s.ack(109)
        s.sent(4)


def test_ack_in_mid_message_completes_nothing() -> None:
    """9.7.5.1: a message is complete when its last packet is acknowledged."""
    with Script() as s:
        s.post(SEND, 600, wr_id=1)
        s.flush_wire()
        s.ack(100)
        s.ack(101)
        s.nothing_completed()
        s.ack(102)
        s.sent(1)


def test_ghost_acks() -> None:
    """9.7.6: acknowledgements of the past and of what was never sent are dropped."""
    with Script() as s:
        s.ack(99)
        s.ack(100)
        s.post(SEND, 1, wr_id=1)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(101)
        s.ack(98)
        s.ack(100 + 0x800000)
        s.nothing_completed()
        s.ack(100)
        s.sent(1)
        s.ack(100)
        s.nak(100, 0)
        s.rnr_nak(100)
        s.expect_nothing()
        assert s.count(C.DROP_GHOST_ACK) >= 6


@pytest.mark.parametrize("syndrome", [0x40, 0x5F, 0x80, 0xA0, 0xE0, 0xFF])
def test_reserved_syndromes(syndrome: int) -> None:
    """9.7.5.2.1, table 45: bit 7 and kind 2 are reserved: such an answer is dropped."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.inject(Op.ACKNOWLEDGE, 100, syndrome=syndrome)
        s.nothing_completed()
        s.expect_nothing()
        assert s.count(C.BAD_RESPONSE) == 1
        s.ack(100)
        s.sent(1)


@pytest.mark.parametrize("code", range(31))
def test_credits_taken(code: int) -> None:
    """9.7.7.2, table 50: SENDs up to MSN + credits go out; of the next message, one packet as a probe."""
    with Script(cap=QpCap(16, 16)) as s:
        s.post(SEND, 1, wr_id=0)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100, msn=1, credit=code)
        s.sent(0)
        for i in range(16):
            s.post(SEND, 600, wr_id=i)
        allowed = min(16, CREDIT_TABLE[code])
        sent = s.flush_wire()
        if allowed == 0:
            assert [p.psn for p in sent] == [101]
            assert sent[0].ackreq == 1  # 9.7.7.2.5: the peer must say whether it could take it
        else:
            assert len(sent) == 3 * allowed
        s.qp.modify(QpState.RESET)


def test_limited_message() -> None:
    """9.7.7.2.5: without credits one packet at a time, until an acknowledgement brings credits."""
    with Script() as s:
        s.post(SEND, 1, wr_id=0)
        s.flush_wire()
        s.ack(100, msn=1, credit=0)
        s.sent(0)
        s.post(SEND, 600, wr_id=1)
        s.post(WRITE, 1, wr_id=2)
        s.expect(Op.SEND_FIRST, psn=101, ackreq=1)
        s.expect_nothing()
        s.ack(101, msn=1, credit=1)
        s.expect(Op.SEND_MIDDLE, psn=102)
        s.expect(Op.SEND_LAST, psn=103)
        s.expect(Op.WRITE_ONLY, psn=104)
        s.ack(104, msn=3, credit=0)
        s.sent(1)
        s.sent(2)


def test_limited_message_meets_rnr() -> None:
    """9.7.7.2.5: the probe may find no receive posted: then the RNR rules hold."""
    with Script() as s:
        s.post(SEND, 1, wr_id=0)
        s.flush_wire()
        s.ack(100, msn=1, credit=0)
        s.sent(0)
        s.post(SEND, 1, wr_id=1)
        s.expect(Op.SEND_ONLY, psn=101, ackreq=1)
        s.rnr_nak(101, timer=1)
        s.expect_nothing()
        s.advance(20_000)
        s.expect(Op.SEND_ONLY, psn=101, ackreq=1)
        s.ack(101, msn=2, credit=0)
        s.sent(1)


@pytest.mark.parametrize("opcode", [WRITE, WrOpcode.RDMA_READ, WrOpcode.ATOMIC_FETCH_AND_ADD])
def test_requests_without_receive_need_no_credits(opcode: WrOpcode) -> None:
    """9.7.7.2: only what takes a receive WQE is limited."""
    with Script() as s:
        s.post(SEND, 1, wr_id=0)
        s.flush_wire()
        s.ack(100, msn=1, credit=0)
        s.sent(0)
        s.post(opcode, 8, wr_id=1)
        s.post(opcode, 8, wr_id=2)
        assert len(s.flush_wire()) == 2
        s.qp.modify(QpState.RESET)


def test_unsolicited_ack_brings_credits() -> None:
    """9.7.7.2.5: the newest acknowledgement sent again may carry more credits."""
    with Script() as s:
        s.post(SEND, 1, wr_id=0)
        s.flush_wire()
        s.ack(100, msn=1, credit=1)
        s.sent(0)
        for i in range(3):
            s.post(SEND, 1, wr_id=i)
        s.expect(Op.SEND_ONLY, psn=101)
        s.expect_nothing()
        s.ack(101, msn=2, credit=0)
        s.sent(0)
        s.expect(Op.SEND_ONLY, psn=102, ackreq=1)
        s.expect_nothing()
        s.ack(101, msn=2, credit=2)
        s.expect(Op.SEND_ONLY, psn=103)
        s.ack(103, msn=4, credit=0)
        s.sent(1)
        s.sent(2)


def test_credits_become_invalid() -> None:
    """9.7.7.2: a peer that stops counting credits limits nothing."""
    with Script() as s:
        s.post(SEND, 1, wr_id=0)
        s.flush_wire()
        s.ack(100, msn=1, credit=0)
        s.sent(0)
        for i in range(4):
            s.post(SEND, 1, wr_id=i)
        assert len(s.flush_wire()) == 1
        s.ack(101, msn=2, credit=NO_CREDITS)
        s.sent(0)
        assert len(s.flush_wire()) == 3
        s.ack(104)
        for i in (1, 2, 3):
            s.sent(i)


def test_credits_across_the_ssn_wrap() -> None:
    """9.7.7.2: SSN and MSN are 24-bit numbers."""
    with Script() as s:
        s.qp.record["ssn"] = 0xFFFFFF
        for i in range(4):
            s.post(SEND, 1, wr_id=i)
            s.flush_wire()
            s.ack(100 + i, msn=0xFFFFFF + i & 0xFFFFFF, credit=1)
            s.sent(i)


# --- the last packet sent must not stay unacknowledged --------------------------------------------------------


def last_asks(s: Script) -> bool:
    """Whether what was sent last asks for an acknowledgement, so that the peer will say something."""
    sent = s.flush_wire()
    return bool(sent[-1].ackreq) or sent[-1].opcode == Op.READ_REQUEST


@pytest.mark.parametrize("count", [1, 2, 7])
def test_end_of_the_queue(count: int) -> None:
    """9.7.3, AckReq: what is posted last asks, signaled or not."""
    with Script() as s:
        for i in range(count):
            s.post(SEND, 1, wr_id=i, flags=UNSIGNALED)
        assert last_asks(s)
        s.ack(99 + count)


def test_before_a_fence() -> None:
    """A fenced request waits for a READ, whose answer covers what is before it."""
    with Script() as s:
        s.post(WrOpcode.RDMA_READ, 1, wr_id=1)
        s.post(SEND, 1, wr_id=2, flags=UNSIGNALED)
        s.post(SEND, 1, wr_id=3, flags=FENCE | SIGNALED)
        s.flush_wire()
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"x")
        s.sent(1)
        assert last_asks(s)
        s.ack(102)
        s.sent(3)


def test_before_a_local_operation() -> None:
    """A local operation completes after what is before it, so that must be acknowledged."""
    with Script() as s:
        spare = s.pd.reg_mr(bytearray(8))
        s.post(SEND, 1, wr_id=1, flags=UNSIGNALED)
        s.post(WrOpcode.LOCAL_INV, wr_id=2, rkey=spare.rkey)
        assert last_asks(s)
        s.ack(100)
        s.sent(2)


def test_before_a_request_that_fails() -> None:
    """10.8.6: the error completes in its turn: what was sent before it must be acknowledged first."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1, flags=UNSIGNALED)
        s.post(SEND, wr_id=2, sges=[s.mr.sge(0, 1)._replace(lkey=0xBAD)])
        assert last_asks(s)
        s.ack(100)
        s.sent(2, WcStatus.LOC_PROT_ERR)


def test_before_the_drain() -> None:
    """10.3.1.5: SQD stops between two requests; what is before must be acknowledged all the same."""
    with Script(cap=QpCap(128, 1), cqe=128) as s:
        for i in range(100):
            s.post(SEND, 1, wr_id=i, flags=UNSIGNALED)
        ring = s._tx
        assert s.device.engine.transmit(ring, s.now) == len(ring.frames)  # the ring is full, the queue is not empty
        started = int(s.qp.record["sq_hi"])
        s.qp.modify(QpState.SQD, en_sqd_async_notify=1)
        assert last_asks(s)
        s.ack(99 + started)
        s.expect_nothing()
        s.expect_event(EventType.SQ_DRAINED)
        s.qp.modify(QpState.RTS)
        assert len(s.flush_wire()) == 100 - started
        s.ack(199)


def test_retransmission_asks() -> None:
    """9.9.2.1: what is sent again after a timeout asks for an acknowledgement, so that the retry can succeed."""
    with Script(timeout=8) as s:
        for i in range(3):
            s.post(SEND, 1, wr_id=i, flags=UNSIGNALED)
        s.flush_wire()
        s.qp.record["cwnd"] = 1
        s.advance(1_100_000)
        assert last_asks(s)
        s.ack(102)
