"""Shared receive queues (IBTA 10.2.9; 11.6.3)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import EventType, QpState, QpType, RecvWr, VerbsError, WcStatus
from tests.script.harness import Nak, Op, Script


def fill(s: Script, count: int, length: int = 10) -> None:
    for wr_id in range(count):
        s.post_recv(length, wr_id=wr_id)


def arrive(s: Script, psn: int) -> None:
    s.inject(Op.SEND_ONLY, psn, b"x")


def test_taken_in_order() -> None:
    """10.2.9: receives are taken in the order posted, and completed on the QP's own receive CQ."""
    with Script(srq=8) as s:
        fill(s, 3)
        for i in range(3):
            arrive(s, 500 + i)
        for wr_id in range(3):
            s.received(wr_id)


def test_limit_event() -> None:
    """10.2.9.1, o11-5.2.5: when fewer than the limit are left, once per arming."""
    with Script(srq=8) as s:
        fill(s, 6)
        s.srq.modify(limit=4)
        arrive(s, 500)
        arrive(s, 501)
        assert s.events() == []
        assert s.srq.limit == 4
        arrive(s, 502)
        s.expect_event(EventType.SRQ_LIMIT_REACHED, s.srq)
        assert s.srq.limit == 0
        arrive(s, 503)
        assert s.events() == []
        s.srq.modify(limit=2)
        arrive(s, 504)
        s.expect_event(EventType.SRQ_LIMIT_REACHED, s.srq)
        for wr_id in range(5):
            s.received(wr_id)


def test_empty() -> None:
    """9.7.5.2.8: RNR as with an own queue."""
    with Script(srq=8) as s:
        arrive(s, 500)
        s.expect_rnr(500)
        fill(s, 1)
        arrive(s, 500)
        s.received(0)


def test_last_wqe_reached() -> None:
    """11.6.3: a QP in error has taken its last receive from the SRQ; those still in it belong to the others."""
    with Script(srq=8) as s:
        fill(s, 2)
        s.qp.modify(QpState.ERR)
        s.expect_event(EventType.QP_LAST_WQE_REACHED)
        s.nothing_completed()
        s.qp.modify(QpState.ERR)
        s.expect_nothing()
        assert s.events() == []


def test_receive_in_hand_is_flushed() -> None:
    """10.8.6, 11.6.3: only then has the last WQE been reached."""
    with Script(srq=8) as s:
        fill(s, 2, length=600)
        s.inject(Op.SEND_FIRST, 500, bytes(256))
        s.qp.modify(QpState.ERR)
        s.received(0, WcStatus.WR_FLUSH_ERR)
        s.expect_event(EventType.QP_LAST_WQE_REACHED)


def test_last_wqe_reached_after_a_failure() -> None:
    """11.6.3."""
    with Script(srq=8) as s:
        fill(s, 2, length=0)
        arrive(s, 500)
        s.received(0, WcStatus.LOC_LEN_ERR)
        s.expect_nak(500, Nak.INVALID_REQUEST)
        s.expect_event(EventType.QP_REQ_ERR)
        s.expect_event(EventType.QP_LAST_WQE_REACHED)


def test_two_qps_share() -> None:
    """10.2.9: whoever receives takes the next one."""
    with Script(QpType.UD, srq=8) as s:
        other = s.pd.create_qp(QpType.UD, s.scq, s.rcq, srq=s.srq)
        for state, attr in ((QpState.INIT, s.init), (QpState.RTR, {}), (QpState.RTS, {"sq_psn": 0})):
            other.modify(state, **attr)
        fill(s, 4, length=100)
        for qp in (s.qp, other, other, s.qp):
            s.inject(Op.SEND_ONLY, 0, b"x", dqpn=qp.qpn)
        assert [(wc.wr_id, wc.qpn) for wc in s.rcq.poll()] == [
            (0, s.qp.qpn), (1, other.qpn), (2, other.qpn), (3, s.qp.qpn),
        ]  # fmt: skip


def test_qp_with_an_srq_has_no_queue_of_its_own() -> None:
    """11.4.1.2: posting to the QP is an error."""
    with Script(srq=8) as s, pytest.raises(VerbsError, match="SRQ"):
        s.qp.post_recv(RecvWr([], 1))


def test_uc_with_an_srq() -> None:
    """10.2.9: a damaged message keeps its receive for the next one."""
    with Script(QpType.UC, srq=8) as s:
        fill(s, 1, length=600)
        s.inject(Op.SEND_FIRST, 500, bytes(256))
        s.inject(Op.SEND_LAST, 502, b"x")
        s.nothing_completed()
        s.inject(Op.SEND_ONLY, 503, b"next")
        s.received(0, byte_len=4)
        assert s.count(C.DROP_UC_SEQ) == 1
