"""NAK codes and what they do to the request and its QP (IBTA 9.7.5.2.8, 9.9.2, 11.6.2)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import QpState, WcStatus, WrOpcode
from tests.script.harness import Nak, Op, Script

SEND, WRITE, READ = WrOpcode.SEND, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ
STATUS = {
    Nak.INVALID_REQUEST: WcStatus.REM_INV_REQ_ERR,
    Nak.REMOTE_ACCESS_ERROR: WcStatus.REM_ACCESS_ERR,
    Nak.REMOTE_OPERATIONAL_ERROR: WcStatus.REM_OP_ERR,
}


@pytest.mark.parametrize("code", STATUS)
@pytest.mark.parametrize("opcode", [SEND, WRITE, READ, WrOpcode.ATOMIC_FETCH_AND_ADD])
def test_fatal_nak(code: Nak, opcode: WrOpcode) -> None:
    """9.9.2.1.2, 11.6.2: the request at the NAK's PSN fails; those before it succeed, those after it are flushed."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.post(opcode, 8, wr_id=2)
        s.post(SEND, 1, wr_id=3, flags=0)
        s.post_recv(1, wr_id=4)
        s.flush_wire()
        s.nak(101, code)
        s.sent(1)
        s.sent(2, STATUS[code])
        s.sent(3, WcStatus.WR_FLUSH_ERR)
        s.received(4, WcStatus.WR_FLUSH_ERR)
        assert s.qp.state == QpState.ERR
        assert s.count(C.RCVD_REMOTE_ERR) == 1


@pytest.mark.parametrize("code", STATUS)
def test_fatal_nak_in_mid_message(code: Nak) -> None:
    """9.9.2.1.2: whichever packet of the message it is."""
    with Script() as s:
        s.post(WRITE, 256 * 4, wr_id=1)
        s.flush_wire()
        s.nak(102, code)
        s.sent(1, STATUS[code])


@pytest.mark.parametrize("code", STATUS)
def test_unsignaled_request_completes_when_it_fails(code: Nak) -> None:
    """10.8.2: an error is always reported."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1, flags=0)
        s.flush_wire()
        s.nak(100, code)
        s.sent(1, STATUS[code])


def test_fatal_nak_behind_an_unanswered_read() -> None:
    """9.7.6: the READ's response was lost, so the READ comes first: it is asked for again."""
    with Script() as s:
        s.post(READ, 1, wr_id=1)
        s.post(SEND, 1, wr_id=2)
        s.flush_wire()
        s.nak(101, Nak.REMOTE_OPERATIONAL_ERROR)
        s.nothing_completed()
        s.expect(Op.READ_REQUEST, psn=100)
        s.expect(Op.SEND_ONLY, psn=101)
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"r")
        s.sent(1)
        s.nak(101, Nak.REMOTE_OPERATIONAL_ERROR)
        s.sent(2, WcStatus.REM_OP_ERR)


@pytest.mark.parametrize("code", [*range(5, 32), Nak.INVALID_RD_REQUEST])
def test_unknown_nak_code(code: int) -> None:
    """Table 46: the codes from 5 on are reserved, and code 4 belongs to RD: a bad response."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.nak(100, code)
        s.sent(1, WcStatus.BAD_RESP_ERR)
        assert s.count(C.BAD_RESPONSE) == 1


@pytest.mark.parametrize("code", Nak)
def test_nak_for_what_was_not_sent(code: Nak) -> None:
    """9.7.6: a ghost."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.nak(101, code)
        s.nak(99, code)
        s.nothing_completed()
        s.expect_nothing()
        s.ack(100)
        s.sent(1)


def test_nothing_is_taken_in_the_error_state() -> None:
    """10.3.1.7: packets that arrive in the error state are dropped."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.nak(100, Nak.REMOTE_ACCESS_ERROR)
        s.sent(1, WcStatus.REM_ACCESS_ERR)
        s.ack(100)
        s.inject(Op.WRITE_ONLY, 500, b"x", ackreq=1)
        s.expect_nothing()
        assert s.count(C.DROP_STATE) == 2


def test_posts_in_the_error_state_are_flushed() -> None:
    """10.3.1.7: work requests may still be posted, and complete in error, in order."""
    with Script() as s:
        s.qp.modify(QpState.ERR)
        for wr_id in range(3):
            s.post(SEND, 1, wr_id=wr_id, flags=0)
            s.post_recv(1, wr_id=10 + wr_id)
        s.expect_nothing()
        for wr_id in range(3):
            s.sent(wr_id, WcStatus.WR_FLUSH_ERR)
            s.received(10 + wr_id, WcStatus.WR_FLUSH_ERR)
