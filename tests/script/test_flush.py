"""What happens to work requests when a QP stops: ERR, SQD, SQE, RESET, SUSPENDED (IBTA 10.3.1, 10.8.6)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import EventType, QpState, QpType, WcStatus, WrOpcode
from tests.script.harness import MS, UNSIGNALED, Nak, Op, S, Script

SEND, WRITE, READ = WrOpcode.SEND, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ
FLUSHED = WcStatus.WR_FLUSH_ERR

# --- ERR ------------------------------------------------------------------------------------------------------


def test_flush_order() -> None:
    """10.8.6: each queue is flushed in the order posted, signaled or not, sent or not."""
    with Script(max_rd_atomic=1) as s:
        for wr_id, opcode in enumerate((SEND, READ, READ, WrOpcode.LOCAL_INV, WRITE)):
            s.post(opcode, 8, wr_id=wr_id, flags=UNSIGNALED)
        for wr_id in range(10, 13):
            s.post_recv(10, wr_id=wr_id)
        s.flush_wire()
        s.qp.modify(QpState.ERR)
        for wr_id in range(5):
            s.sent(wr_id, FLUSHED)
        for wr_id in range(10, 13):
            s.received(wr_id, FLUSHED)


def test_receive_in_hand_is_flushed_first() -> None:
    """10.8.6: a message being received ends with the QP; its WQE was posted before the others."""
    with Script() as s:
        for wr_id in range(3):
            s.post_recv(600, wr_id=wr_id)
        s.inject(Op.SEND_FIRST, 500, bytes(256))
        s.qp.modify(QpState.ERR)
        for wr_id in range(3):
            s.received(wr_id, FLUSHED)


def test_failed_request_comes_before_the_flushed() -> None:
    """10.8.6: the completion that tells why, then the rest."""
    with Script() as s:
        for wr_id in range(3):
            s.post(SEND, 1, wr_id=wr_id)
        s.flush_wire()
        s.nak(100, Nak.REMOTE_OPERATIONAL_ERROR)
        s.sent(0, WcStatus.REM_OP_ERR)
        s.sent(1, FLUSHED)
        s.sent(2, FLUSHED)


def test_no_timer_survives() -> None:
    """10.3.1.7: nothing is retried in the error state."""
    with Script(timeout=8) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.qp.modify(QpState.ERR)
        s.sent(1, FLUSHED)
        s.advance(S)
        s.expect_nothing()


def test_rnr_wait_ends() -> None:
    """10.3.1.7."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, 0)
        s.qp.modify(QpState.ERR)
        s.sent(1, FLUSHED)
        s.advance(S)
        s.expect_nothing()


@pytest.mark.parametrize("state", [QpState.INIT, QpState.RTR, QpState.RTS, QpState.SQD])
def test_from_every_state(state: QpState) -> None:
    """10.3.1: receives may be posted from INIT on, and are flushed from wherever the QP was."""
    with Script(state=min(state, QpState.RTS)) as s:
        if state == QpState.SQD:
            s.qp.modify(QpState.SQD)
        s.post_recv(1, wr_id=1)
        s.qp.modify(QpState.ERR)
        s.received(1, FLUSHED)


def test_error_twice() -> None:
    """11.2.5.2: ERR to ERR changes nothing."""
    with Script() as s:
        s.post_recv(1, wr_id=1)
        s.qp.modify(QpState.ERR)
        s.qp.modify(QpState.ERR)
        s.received(1, FLUSHED)


# --- RESET ----------------------------------------------------------------------------------------------------


def test_reset_forgets_everything() -> None:
    """10.3.1.1: work requests vanish without completions; the QP can be used again from the beginning."""
    with Script(psn=100, peer_psn=500) as s:
        s.post(READ, 600, wr_id=1)
        s.post(SEND, 1, wr_id=2)
        s.post_recv(600, wr_id=3)
        s.flush_wire()
        s.inject(Op.SEND_FIRST, 500, bytes(256))
        s.inject(Op.WRITE_ONLY, 505, ackreq=1)
        s.qp.modify(QpState.RESET)
        s.expect_nothing()
        s.advance(S)
        s.inject(Op.WRITE_ONLY, 500, b"x", ackreq=1)
        s.expect_nothing()
        assert s.count(C.DROP_STATE) == 1
        s.init["port"] = 1
        s.rtr["rq_psn"], s.rts["sq_psn"] = 900, 700
        s.bring_to(QpState.RTS)
        s.expect_nothing()
        s.post_recv(10, wr_id=4)
        s.inject(Op.SEND_ONLY, 900, b"again", ackreq=1)
        s.received(4, byte_len=5)
        s.expect_ack(psn=900, msn=1)
        s.post(SEND, 3, wr_id=5)
        s.expect(Op.SEND_ONLY, psn=700)
        s.ack(700, msn=1)
        s.sent(5)


def test_reset_out_of_error() -> None:
    """10.3.1: the way back from ERR leads through RESET."""
    with Script() as s:
        s.qp.modify(QpState.ERR)
        s.qp.modify(QpState.RESET)
        s.bring_to(QpState.RTS)
        s.post(SEND, 1, wr_id=1)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


# --- INIT and RTR -----------------------------------------------------------------------------------------------


def test_init_takes_nothing_from_the_wire() -> None:
    """10.3.1.2: incoming packets are dropped."""
    with Script(state=QpState.INIT) as s:
        s.post_recv(1, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"x", ackreq=1)
        s.expect_nothing()
        assert s.count(C.DROP_STATE) == 1


def test_rtr_receives_and_answers() -> None:
    """10.3.1.3: everything but sending of its own; the first request says that the connection is up (COMM_EST)."""
    with Script(state=QpState.RTR) as s:
        s.post_recv(1, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"x", ackreq=1)
        s.expect_event(EventType.COMM_EST)
        s.received(1)
        s.expect_ack(psn=500, msn=1)
        s.inject(Op.READ_REQUEST, 501, dmalen=1)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501)
        s.qp.modify(QpState.RTS, **s.rts)
        s.inject(Op.WRITE_ONLY, 502, ackreq=1)
        s.expect_ack(psn=502, msn=3)


def test_no_comm_est_in_rts() -> None:
    """11.6.3.1: only a QP that is not yet in RTS is told."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, ackreq=1)
        s.expect_ack(psn=500, msn=1)


def test_answers_in_rtr_are_dropped() -> None:
    """10.3.1.3: nothing was asked."""
    with Script(state=QpState.RTR) as s:
        s.ack(99)
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"x")
        assert s.count(C.DROP_STATE) == 2


# --- SQD ------------------------------------------------------------------------------------------------------


def test_drain_and_go_on() -> None:
    """10.3.1.5: what was begun is finished, new work waits, and the QP says when it is quiet."""
    with Script() as s:
        s.post(SEND, 600, wr_id=1)
        s.flush_wire()
        s.qp.modify(QpState.SQD, en_sqd_async_notify=1)
        s.post(SEND, 1, wr_id=2)
        s.expect_nothing()
        assert s.qp.query()["sq_draining"]
        assert s.events() == []
        s.ack(102)
        s.sent(1)
        s.expect_nothing()
        s.expect_event(EventType.SQ_DRAINED)
        assert not s.qp.query()["sq_draining"]
        s.qp.modify(QpState.RTS)
        s.expect(Op.SEND_ONLY, psn=103)
        s.ack(103)
        s.sent(2)


def test_drain_of_an_idle_queue() -> None:
    """10.3.1.5: there is nothing to wait for."""
    with Script() as s:
        s.qp.modify(QpState.SQD, en_sqd_async_notify=1)
        s.expect_nothing()
        s.expect_event(EventType.SQ_DRAINED)


def test_drain_without_notification() -> None:
    """11.2.5.2: the event comes only where it was asked for."""
    with Script() as s:
        s.qp.modify(QpState.SQD)
        s.expect_nothing()
        assert s.events() == []


def test_each_drain_is_reported() -> None:
    """10.3.1.5: once per entry to SQD."""
    with Script() as s:
        for _ in range(2):
            s.qp.modify(QpState.SQD, en_sqd_async_notify=1)
            s.expect_nothing()
            s.expect_event(EventType.SQ_DRAINED)
            s.qp.modify(QpState.RTS)


def test_drain_retries() -> None:
    """10.3.1.5: what was begun is also sent again when it is lost."""
    with Script(timeout=8) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.qp.modify(QpState.SQD)
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        s.expect(Op.SEND_ONLY, psn=100)
        s.advance(2 * MS)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


def test_receiving_goes_on_while_draining() -> None:
    """10.3.1.5: SQD concerns the send queue."""
    with Script() as s:
        s.qp.modify(QpState.SQD)
        s.post_recv(5, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"hello", ackreq=1)
        s.received(1)
        s.expect_ack(psn=500, msn=1)
        s.inject(Op.READ_REQUEST, 501, dmalen=1)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501)


def test_path_changed_in_sqd() -> None:
    """11.2.5.2: a new path is used from then on, and only what comes along it is heard."""
    from dataclasses import replace

    with Script() as s:
        s.qp.modify(QpState.SQD)
        s.qp.modify(QpState.SQD, ah=replace(s.ah_attr, traffic_class=0x20, hop_limit=7))
        s.qp.modify(QpState.RTS)
        s.post(SEND, 1, wr_id=1)
        packet = s.expect(Op.SEND_ONLY, psn=100).packet
        assert (packet["IP"].tos, packet["IP"].ttl) == (0x20, 7)
        s.ack(100)
        s.sent(1)


# --- SQE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [QpType.UC, QpType.UD])
def test_send_queue_error_and_back(kind: QpType) -> None:
    """10.3.1.6: UC and UD go to SQE: the send queue is flushed, receiving goes on, RTS is one modify away."""
    with Script(kind) as s:
        s.post(SEND, wr_id=1, sges=[s.mr.sge(0, 1)._replace(lkey=0xBAD)])
        s.post(SEND, 1, wr_id=2)
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_PROT_ERR)
        s.sent(2, FLUSHED)
        assert s.qp.state == QpState.SQE
        s.post(SEND, 1, wr_id=3)
        s.expect_nothing()
        s.sent(3, FLUSHED)
        s.post_recv(64, wr_id=4)
        s.inject(Op.SEND_ONLY, 500, b"in")
        s.received(4)
        s.qp.modify(QpState.RTS)
        s.post(SEND, 2, wr_id=5)
        s.expect(Op.SEND_ONLY, psn=100, payload=s.memory(0, 2))
        s.sent(5)


@pytest.mark.parametrize("kind", [QpType.UC, QpType.UD])
def test_requests_before_the_error_are_sent(kind: QpType) -> None:
    """10.3.1.6."""
    with Script(kind) as s:
        s.post(SEND, 1, wr_id=1)
        s.post(SEND, wr_id=2, sges=[s.mr.sge(0, 1)._replace(lkey=0xBAD)])
        s.expect(Op.SEND_ONLY, psn=100)
        s.sent(1)
        s.sent(2, WcStatus.LOC_PROT_ERR)


# --- SUSPENDED ------------------------------------------------------------------------------------------------


def test_suspended_is_silent_and_keeps_everything() -> None:
    """A suspended QP sends nothing, hears nothing and loses nothing."""
    with Script(timeout=8, retry_cnt=0) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.inject(Op.WRITE_ONLY, 500, b"w", ackreq=1)
        s.inject(Op.READ_REQUEST, 501, dmalen=300)
        s.qp.modify(QpState.SUSPENDED)
        s.post(SEND, 1, wr_id=2)
        s.expect_nothing()
        s.ack(100)
        s.inject(Op.WRITE_ONLY, 503, b"w", ackreq=1)
        assert s.count(C.DROP_SUSPENDED) == 2
        s.advance(10 * S)
        s.expect_nothing()
        s.nothing_completed()
        s.qp.modify(QpState.RTS)
        sent = s.flush_wire()
        assert [p.psn for p in sent if p.opcode == Op.SEND_ONLY] == [101]
        assert [p.psn for p in sent if p.opcode in (Op.READ_RESPONSE_FIRST, Op.READ_RESPONSE_LAST)] == [501, 502]
        s.ack(101)
        s.sent(1)
        s.sent(2)
        s.advance(S)
        s.expect_nothing()


@pytest.mark.parametrize("away_ns", [MS // 2, 2 * MS, S])
def test_time_away_is_no_timeout(away_ns: int) -> None:
    """The local ACK timeout of a resumed QP runs in full, however long it was away."""
    with Script(timeout=8, retry_cnt=0) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.advance(MS // 2)
        s.qp.modify(QpState.SUSPENDED)
        s.advance(away_ns)
        s.qp.modify(QpState.RTS)
        s.expect_nothing()
        s.advance(MS)
        s.nothing_completed()
        s.advance(MS // 5)
        s.sent(1, WcStatus.RETRY_EXC_ERR)


def test_rnr_wait_ends_while_suspended() -> None:
    """What was to be sent again goes out on resume."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, 14)
        s.qp.modify(QpState.SUSPENDED)
        s.advance(S)
        s.expect_nothing()
        s.qp.modify(QpState.RTS)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


def test_rnr_wait_goes_on_after_a_suspension() -> None:
    """A short absence does not shorten the responder's wait."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, 14)
        s.qp.modify(QpState.SUSPENDED)
        s.advance(MS // 2)
        s.qp.modify(QpState.RTS)
        s.expect_nothing()
        s.advance(MS // 2)
        s.expect_nothing()
        s.advance(MS // 2)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


def test_a_nak_that_came_true_is_not_sent_by_the_dead() -> None:
    """Found by tools/fuzz: refused for want of a receive, taken as a WRITE, then our own request fails, all at once.

    The packet that the RNR NAK asks for has come, so in the error state there is nothing left to say.
    """
    with Script() as s:
        s.post(WrOpcode.RDMA_READ, 8, wr_id=1)
        s.expect(Op.READ_REQUEST, psn=100)
        s.inject(Op.SEND_ONLY, 500, bytes(8))
        s.inject(Op.WRITE_ONLY, 500, bytes(8))
        s.inject(Op.READ_RESPONSE_ONLY, 100, bytes(3))
        s.expect_nothing()
        s.sent(wr_id=1, status=WcStatus.BAD_RESP_ERR)
        assert s.qp.state == QpState.ERR
