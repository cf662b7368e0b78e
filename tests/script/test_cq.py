"""Completion queues: arming, solicited events, overrun, resizing (IBTA 10.2.4, 11.4.2; 11.6.3)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import EventType, QpState, QpType, WcStatus, WrOpcode
from tests.script.harness import SOLICITED, UNSIGNALED, Nak, Op, Script

SEND = WrOpcode.SEND


def arrive(s: Script, psn: int, se: int = 0) -> None:
    """One message of one byte arrives."""
    s.inject(Op.SEND_ONLY, psn, b"x", se=se)


def with_receives(s: Script, count: int) -> None:
    for wr_id in range(count):
        s.post_recv(10, wr_id=wr_id)


# --- arming -----------------------------------------------------------------------------------------------------


def test_not_armed() -> None:
    """11.4.2.2: nobody is called who did not ask."""
    with Script() as s:
        with_receives(s, 1)
        arrive(s, 500)
        s.expect_notified()
        s.received(0)


def test_next_completion() -> None:
    """11.4.2.2: one call per request, at the next completion."""
    with Script() as s:
        with_receives(s, 3)
        s.rcq.req_notify()
        arrive(s, 500)
        arrive(s, 501)
        s.expect_notified(s.rcq)
        s.rcq.req_notify()
        s.expect_notified()  # what is there already does not count
        arrive(s, 502)
        s.expect_notified(s.rcq)
        for wr_id in range(3):
            s.received(wr_id)


def test_next_solicited() -> None:
    """11.4.2.2, 9.2.3: completions without the SE bit do not call."""
    with Script() as s:
        with_receives(s, 3)
        s.rcq.req_notify(solicited_only=True)
        arrive(s, 500)
        s.expect_notified()
        arrive(s, 501, se=1)
        s.expect_notified(s.rcq)
        arrive(s, 502, se=1)
        s.expect_notified()
        for wr_id in range(3):
            s.received(wr_id)


def test_solicited_bit_of_an_earlier_packet() -> None:
    """9.2.3: SE counts in the last packet of the message."""
    with Script() as s:
        s.post_recv(600, wr_id=0)
        s.rcq.req_notify(solicited_only=True)
        s.inject(Op.SEND_FIRST, 500, bytes(256), se=1)
        s.inject(Op.SEND_LAST, 501, b"x")
        s.expect_notified()
        s.received(0)


@pytest.mark.parametrize("op", [Op.WRITE_ONLY_IMM, Op.SEND_ONLY_IMM, Op.SEND_ONLY])
def test_solicited_kinds(op: Op) -> None:
    """9.2.3: SENDs and WRITEs with immediate data."""
    with Script() as s:
        with_receives(s, 1)
        s.rcq.req_notify(solicited_only=True)
        s.inject(op, 500, b"x", se=1)
        s.expect_notified(s.rcq)
        s.received(0)


def test_solicited_datagram() -> None:
    """9.2.3."""
    with Script(QpType.UD) as s:
        s.post_recv(100, wr_id=0)
        s.rcq.req_notify(solicited_only=True)
        arrive(s, 0, se=1)
        s.expect_notified(s.rcq)
        s.received(0)


def test_error_is_always_solicited() -> None:
    """11.4.2.2: a completion in error calls whoever waits for solicited ones."""
    with Script() as s:
        s.post(SEND, 1, wr_id=0)
        with_receives(s, 1)
        s.scq.req_notify(solicited_only=True)
        s.rcq.req_notify(solicited_only=True)
        s.flush_wire()
        s.nak(100, Nak.REMOTE_OPERATIONAL_ERROR)
        s.expect_notified(s.scq, s.rcq)
        s.sent(0, WcStatus.REM_OP_ERR)
        s.received(0, WcStatus.WR_FLUSH_ERR)


def test_send_completions_are_not_solicited() -> None:
    """11.4.2.2: the SE bit one sends is for the other side."""
    with Script() as s:
        s.scq.req_notify(solicited_only=True)
        s.post(SEND, 1, wr_id=0, flags=SOLICITED | 2)
        s.flush_wire()
        s.ack(100)
        s.expect_notified()
        s.sent(0)


def test_any_is_not_weakened_to_solicited() -> None:
    """11.4.2.2: a CQ armed for any completion stays so."""
    with Script() as s:
        with_receives(s, 1)
        s.rcq.req_notify()
        s.rcq.req_notify(solicited_only=True)
        arrive(s, 500)
        s.expect_notified(s.rcq)
        s.received(0)


def test_solicited_is_strengthened_to_any() -> None:
    """11.4.2.2: and the other way round."""
    with Script() as s:
        with_receives(s, 1)
        s.rcq.req_notify(solicited_only=True)
        s.rcq.req_notify()
        arrive(s, 500)
        s.expect_notified(s.rcq)
        s.received(0)


def test_unsignaled_success_calls_nobody() -> None:
    """11.4.2.2: there is no completion."""
    with Script() as s:
        s.scq.req_notify()
        s.post(SEND, 1, wr_id=0, flags=UNSIGNALED)
        s.flush_wire()
        s.ack(100)
        s.expect_notified()


# --- overrun --------------------------------------------------------------------------------------------------


def test_exactly_full() -> None:
    """11.6.3.2: the last place may be used; poll makes room."""
    with Script(recv_cqe=4) as s:
        for round_ in range(3):
            with_receives(s, 4)
            for i in range(4):
                arrive(s, 500 + 4 * round_ + i)
            assert not s.rcq.overrun
            for wr_id in range(4):
                s.received(wr_id)


def test_receive_overrun() -> None:
    """11.6.3.2: a completion that finds no place: CQ error, and the QP's fatal error; what was there can be polled."""
    with Script(recv_cqe=2) as s:
        with_receives(s, 4)
        s.post(SEND, 1, wr_id=9)
        s.flush_wire()
        for i in range(3):
            arrive(s, 500 + i)
        s.expect_event(EventType.CQ_ERR, s.rcq)
        s.expect_event(EventType.QP_FATAL)
        assert s.rcq.overrun
        assert s.qp.state == QpState.ERR
        s.expect_nothing()
        s.sent(9, WcStatus.WR_FLUSH_ERR)
        for wr_id in range(2):
            s.received(wr_id)
        arrive(s, 503)
        assert s.count(C.DROP_STATE) == 1


def test_send_overrun() -> None:
    """11.6.3.2: the same on the sending side."""
    with Script(cqe=2) as s:
        for wr_id in range(4):
            s.post(SEND, 1, wr_id=wr_id)
        with_receives(s, 1)
        s.flush_wire()
        s.ack(103)
        s.expect_event(EventType.CQ_ERR, s.scq)
        s.expect_event(EventType.QP_FATAL)
        assert s.qp.state == QpState.ERR
        s.expect_nothing()
        s.sent(0)
        s.sent(1)
        s.received(0, WcStatus.WR_FLUSH_ERR)
        s.advance(10**9)


@pytest.mark.parametrize("kind", [QpType.UC, QpType.UD])
def test_send_overrun_stops_sending(kind: QpType) -> None:
    """11.6.3.2: what is posted behind the overrun is not sent any more."""
    with Script(kind, cqe=2) as s:
        for wr_id in range(6):
            s.post(SEND, 1, wr_id=wr_id)
        assert len(s.flush_wire()) == 3
        s.expect_event(EventType.CQ_ERR, s.scq)
        s.expect_event(EventType.QP_FATAL)
        assert s.qp.state == QpState.ERR
        s.sent(0)
        s.sent(1)


def test_overrun_owes_no_answer() -> None:
    """10.3.1.7: a QP that overran its CQ is silent."""
    with Script(recv_cqe=1) as s:
        with_receives(s, 2)
        s.inject(Op.READ_REQUEST, 500, dmalen=300)
        s.inject(Op.SEND_ONLY, 502, b"x", ackreq=1)
        s.inject(Op.SEND_ONLY, 503, b"x", ackreq=1)
        s.expect_nothing()
        s.expect_event(EventType.CQ_ERR, s.rcq)
        s.expect_event(EventType.QP_FATAL)
        s.received(0)


def test_flush_may_overrun() -> None:
    """11.6.3.2: flushed work requests need places too."""
    with Script(recv_cqe=2) as s:
        with_receives(s, 3)
        s.qp.modify(QpState.ERR)
        s.expect_event(EventType.CQ_ERR, s.rcq)
        s.received(0, WcStatus.WR_FLUSH_ERR)
        s.received(1, WcStatus.WR_FLUSH_ERR)


def test_overrun_takes_no_more() -> None:
    """11.6.3.2: a CQ in error stays so; another QP that uses it fails when it completes something."""
    with Script(recv_cqe=1) as s:
        with_receives(s, 2)
        arrive(s, 500)
        arrive(s, 501)
        s.expect_event(EventType.CQ_ERR, s.rcq)
        s.expect_event(EventType.QP_FATAL)
        s.received(0)
        other = s.pd.create_qp(QpType.UD, s.scq, s.rcq)
        other.modify(QpState.INIT, pkey_index=0, port=1, qkey=5)
        s.qp.destroy()
        from softrnic.verbs import RecvWr

        other.post_recv(RecvWr([], 1))
        other.modify(QpState.ERR)
        assert s.rcq.poll() == []


# --- resize -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 1024])
def test_resize_with_entries(size: int) -> None:
    """ibv_resize_cq: what lies in the CQ stays, in order, also across the ring's end."""
    with Script(recv_cqe=8) as s:
        psn = 500
        for _ in range(3):
            with_receives(s, 5)
            for _ in range(5):
                arrive(s, psn)
                psn += 1
            s.received(0)
            s.received(1)
            s.rcq.resize(size)
            for wr_id in (2, 3, 4):
                s.received(wr_id)
        assert s.rcq.size == size
        with_receives(s, 8)
        for i in range(8):
            arrive(s, psn + i)
        for wr_id in range(8):
            s.received(wr_id)


def test_shrink_below_what_is_in_it() -> None:
    """ibv_resize_cq: EINVAL, and nothing has changed."""
    import errno

    from softrnic.verbs import VerbsError

    with Script(recv_cqe=8) as s:
        with_receives(s, 5)
        for i in range(5):
            arrive(s, 500 + i)
        with pytest.raises(VerbsError) as refused:
            s.rcq.resize(4)
        assert refused.value.errno == errno.EINVAL
        assert s.rcq.size == 8
        for wr_id in range(5):
            s.received(wr_id)
        s.rcq.resize(4)
        assert s.rcq.size == 4


def test_resize_keeps_the_arming() -> None:
    """A CQ that was armed calls all the same."""
    with Script(recv_cqe=8) as s:
        with_receives(s, 1)
        s.rcq.req_notify()
        s.rcq.resize(32)
        arrive(s, 500)
        s.expect_notified(s.rcq)
        s.received(0)
