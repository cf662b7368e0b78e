"""Loss and how the requester comes back from it: timeouts, sequence errors, RNR, budgets (IBTA 9.7.5.2.8, 9.9.2)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import WcStatus, WrOpcode
from tests.script.harness import MS, TICK, US, Nak, Op, S, Script

SEND, WRITE, READ = WrOpcode.SEND, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ
# Table 47: RNR NAK timer field to the time to wait, in hundredths of a millisecond.
RNR_TABLE = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768, 49152,
]  # fmt: skip


def timeout_ns(code: int) -> int:
    """9.9.1.1: 4.096 us times a power of two."""
    return int(4.096 * US) << code


def sent_psns(s: Script) -> list[int]:
    """PSNs of whatever is sent now."""
    return [p.psn for p in s.flush_wire()]


# --- local ACK timeout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 8, 14, 20, 31])
def test_local_ack_timeout(code: int) -> None:
    """9.9.1.1: nothing is sent again before the timeout, and everything soon after it."""
    with Script(timeout=code) as s:
        s.post(SEND, 300, wr_id=1)
        assert sent_psns(s) == [100, 101]
        s.advance(timeout_ns(code) - 1)
        s.expect_nothing()
        s.advance(1 + 2 * TICK)
        again = sent_psns(s)
        assert again
        assert again[0] == 100
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 1
        s.ack(101)
        s.sent(1)


def test_no_timeout() -> None:
    """9.9.1.1: timeout 0 waits for ever."""
    with Script(timeout=0) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        assert s.device.engine.next_deadline() is None
        s.advance(3600 * S)
        s.expect_nothing()
        s.ack(100)
        s.sent(1)


def test_timer_stops_when_all_is_acknowledged() -> None:
    """9.9.1.1: no request outstanding, no timer."""
    with Script(timeout=8) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.ack(100)
        s.sent(1)
        s.advance(100 * timeout_ns(8))
        s.expect_nothing()
        assert s.device.engine.next_deadline() is None
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 0


def test_an_acknowledgement_restarts_the_timer() -> None:
    """9.9.1.1: the interval begins anew with every acknowledgement of something new."""
    with Script(timeout=10, retry_cnt=0) as s:
        for i in range(3):
            s.post(SEND, 1, wr_id=i)
        s.flush_wire()
        for i in range(3):
            s.advance(timeout_ns(10) * 9 // 10)
            s.flush_wire()
            s.ack(100 + i)
            s.sent(i)
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 0


@pytest.mark.parametrize("retry_cnt", [0, 1, 3, 7])
def test_retry_limit_exceeded(retry_cnt: int) -> None:
    """9.9.2.1.1: after retry_cnt retries in vain the request fails and the QP with it."""
    with Script(timeout=8, retry_cnt=retry_cnt) as s:
        s.post(SEND, 1, wr_id=1)
        s.post(SEND, 1, wr_id=2)
        assert sent_psns(s) == [100, 101]
        for _ in range(retry_cnt):
            s.advance(timeout_ns(8) + 2 * TICK)
            assert sent_psns(s)[0] == 100
            s.nothing_completed()
        s.advance(timeout_ns(8) + 2 * TICK)
        s.expect_nothing()
        s.sent(1, WcStatus.RETRY_EXC_ERR)
        s.sent(2, WcStatus.WR_FLUSH_ERR)
        assert s.count(C.RETRY_EXCEEDED_ERR) == 1
        assert s.device.engine.next_deadline() is None


@pytest.mark.parametrize("opcode", [SEND, WRITE, READ, WrOpcode.ATOMIC_CMP_AND_SWP])
def test_retry_limit_not_exceeded(opcode: WrOpcode) -> None:
    """9.9.2.1.1: the last retry may still succeed, and leaves a whole budget for the next request."""
    with Script(timeout=8, retry_cnt=3) as s:
        for wr_id in range(2):
            s.post(opcode, 8, wr_id=wr_id)
            assert sent_psns(s) == [100 + wr_id]
            for _ in range(3):
                s.advance(timeout_ns(8) + 2 * TICK)
                assert sent_psns(s) == [100 + wr_id]
            answer = {READ: Op.READ_RESPONSE_ONLY, WrOpcode.ATOMIC_CMP_AND_SWP: Op.ATOMIC_ACKNOWLEDGE}.get(opcode)
            if answer is None:
                s.ack(100 + wr_id)
            else:
                s.inject(answer, 100 + wr_id, bytes(8) if opcode == READ else b"")
            s.sent(wr_id)


def test_budget_with_a_known_round_trip() -> None:
    """9.9.1.1, 9.9.2.1.1: asking early, when the round trip is known, neither spends retries nor grants more time."""
    with Script(timeout=14, retry_cnt=2) as s:
        s.post(SEND, 1, wr_id=0)
        s.flush_wire()
        s.advance(10 * US)
        s.ack(100)
        s.sent(0)
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        began = s.now
        while not (done := s.scq.poll()):
            s.advance(2 * MS)
            assert set(sent_psns(s)) <= {101}
        assert done[0].status == WcStatus.RETRY_EXC_ERR
        assert 3 * timeout_ns(14) <= s.now - began <= 3.1 * timeout_ns(14)
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 3


def answer_read(s: Script, first: int, psns: range, count: int) -> None:
    """Responses to a READ of `count` packets that began at PSN `first`."""
    for psn in psns:
        place = psn - first
        op = Op.READ_RESPONSE_FIRST if place == 0 else Op.READ_RESPONSE_MIDDLE
        s.inject(Op.READ_RESPONSE_LAST if place == count - 1 else op, psn, bytes(256))


@pytest.mark.parametrize(("count", "early"), [(16, True), (17, False)])
def test_read_with_much_to_come_is_not_asked_for_early(count: int, early: bool) -> None:
    """9.9.1.1: where the round trip is known, but a peer that was merely slow would have to answer much again."""
    with Script(timeout=14) as s:
        s.post(READ, 1, wr_id=0)
        s.flush_wire()
        s.advance(10 * US)
        s.inject(Op.READ_RESPONSE_ONLY, 100, bytes(1))
        s.sent(0)
        s.post(READ, (count + 2) * 256, wr_id=1)
        assert sent_psns(s) == [101]
        answer_read(s, 101, range(101, 103), count + 2)
        s.advance(timeout_ns(14) // 2)
        again = s.flush_wire()
        assert bool(again) is early
        assert {(p.psn, p.dmalen) for p in again} <= {(103, count * 256)}
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 0
        s.advance(timeout_ns(14) // 2 + 2 * TICK)
        assert [(p.psn, p.dmalen) for p in s.flush_wire()][-1] == (103, count * 256)
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 1
        answer_read(s, 101, range(103, 103 + count), count + 2)
        s.sent(1)


def test_answers_to_a_read_asked_for_twice_are_a_sign_of_life() -> None:
    """9.9.1.1: a slow peer answers all of it twice, and nothing is lost while it does: no retry is spent."""
    with Script(timeout=8, retry_cnt=1) as s:
        s.post(READ, 40 * 256, wr_id=0)
        s.post(READ, 20 * 256, wr_id=1)
        s.flush_wire()
        s.advance(timeout_ns(8) + 2 * TICK)
        assert sent_psns(s)[0] == 100
        answer_read(s, 100, range(100, 140), 40)
        s.sent(0)
        s.flush_wire()
        for psn in range(100, 140):  # the second answer, slowly
            s.advance(timeout_ns(8) * 9 // 10)
            answer_read(s, 100, range(psn, psn + 1), 40)
            s.expect_nothing()
        answer_read(s, 140, range(140, 160), 20)
        s.sent(1)
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 1


def test_a_response_lost_twice_is_asked_for_at_once() -> None:
    """9.7.5.1.1: the peer answers again, and the first packet of that is lost too: its PSNs have gone back."""
    with Script() as s:
        s.post(READ, 40 * 256, wr_id=0)
        assert sent_psns(s) == [100]
        answer_read(s, 100, range(100, 102), 40)
        answer_read(s, 100, range(103, 106), 40)  # 102 is lost
        assert [(p.psn, p.dmalen) for p in s.flush_wire()] == [(102, 38 * 256)]
        answer_read(s, 100, range(106, 110), 40)  # still of the first answer
        s.expect_nothing()
        answer_read(s, 100, range(103, 106), 40)  # of the second, whose first packet is lost
        assert sent_psns(s) == [102]
        answer_read(s, 100, range(106, 108), 40)
        s.expect_nothing()
        answer_read(s, 100, range(102, 140), 40)
        s.sent(0)
        assert s.count(C.IMPLIED_NAK_SEQ_ERR) == 3 + 4 + 3 + 2


def test_a_read_known_to_be_lost_is_asked_for_early() -> None:
    """9.9.1.1: what was asked for again may be lost as well; no retry is spent on asking before the timeout."""
    with Script(timeout=14) as s:
        s.post(READ, 1, wr_id=0)
        s.flush_wire()
        s.advance(10 * US)
        s.inject(Op.READ_RESPONSE_ONLY, 100, bytes(1))
        s.sent(0)
        s.post(READ, 40 * 256, wr_id=1)
        s.flush_wire()
        answer_read(s, 101, range(102, 110), 40)  # 101 is lost
        assert sent_psns(s) == [101]
        for wait in (1, 4, 16):  # twice as long each time
            s.advance(wait * MS)
            assert set(sent_psns(s)) == {101}
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 0
        answer_read(s, 101, range(101, 141), 40)
        s.sent(1)


def test_timeout_is_set_anew_in_sqd() -> None:
    """11.2.5.2: with timeout 0 from now on, a timer that still runs costs no retry."""
    from softrnic.verbs import QpState

    with Script(timeout=8, retry_cnt=0) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.qp.modify(QpState.SQD)
        s.qp.modify(QpState.SQD, timeout=0)
        s.advance(10 * S)
        s.nothing_completed()
        s.ack(100)
        s.sent(1)
        s.expect_nothing()


# --- sequence errors: the requester ---------------------------------------------------------------------------


def test_sequence_error() -> None:
    """9.9.2.1.2: a NAK acknowledges what is before its PSN and sends the requester back to it."""
    with Script() as s:
        for i in range(4):
            s.post(SEND, 300, wr_id=i)
        assert sent_psns(s) == list(range(100, 108))
        s.nak(103, Nak.PSN_SEQUENCE_ERROR)
        s.sent(0)
        s.expect(Op.SEND_LAST, psn=103, payload=s.memory(256, 44))
        assert sent_psns(s) == [104, 105, 106, 107]
        s.ack(107)
        for i in (1, 2, 3):
            s.sent(i)
        assert s.count(C.RCVD_SEQ_ERR) == 1


def test_what_is_sent_again_asks_for_an_answer() -> None:
    """9.7.5.1.2: the first packet after a sequence error; its round trip is known even if all was sent twice."""
    with Script() as s:
        s.post(SEND, 8 * 256, wr_id=0)
        s.flush_wire()
        s.nak(102, Nak.PSN_SEQUENCE_ERROR)
        assert [p.ackreq for p in s.flush_wire()] == [1, 0, 0, 0, 1, 1]  # and the fourth, see FIRST_ASKED
        s.advance(30 * US)
        s.ack(102)
        assert int(s.qp.record["srtt"]) == int(s.qp.record["rtt_min"]) == 30 * US
        s.ack(107)
        s.sent(0)


@pytest.mark.parametrize("late", [False, True])
def test_the_window_shrinks_when_a_queue_lost_it(late: bool) -> None:
    """Where round trips are as short as ever there is no queue, and the loss was chance."""
    with Script() as s:
        for wr_id in range(9):
            s.post(SEND, 256, wr_id=wr_id)
            s.flush_wire()
            s.advance((200 if late and wr_id else 20) * US)
            s.ack(100 + wr_id)
            s.sent(wr_id)
        before = int(s.qp.record["cwnd"])
        for wr_id in (9, 10):
            s.post(SEND, 256, wr_id=wr_id)
        s.flush_wire()
        s.nak(109, Nak.PSN_SEQUENCE_ERROR)
        assert int(s.qp.record["cwnd"]) == (before // 2 if late else before)
        s.flush_wire()
        s.ack(110)
        s.sent(9)
        s.sent(10)


# --- asking before the local ACK timeout ----------------------------------------------------------------------

RTT = 100 * US
ASKED = RTT + 4 * (RTT // 2) + 2 * TICK  # RFC 6298 after one sample, and the timer's ticks


def begun(s: Script) -> None:
    """One message there and back, so that the round trip is known; then five packets are under way, 101 to 105."""
    s.post(SEND, 1, wr_id=0)
    s.flush_wire()
    s.advance(RTT)
    s.ack(100)
    s.sent(0)
    s.post(SEND, 5 * 256, wr_id=1)
    assert sent_psns(s) == [101, 102, 103, 104, 105]


def finished(s: Script, **counts: int) -> None:
    """All of it arrives in the end, and no retry was spent."""
    s.ack(105)
    s.sent(1)
    assert s.qp.record["retry_left"] == s.qp.record["retry_cnt"]
    assert {name: s.count(C[name]) for name in counts} == counts


def test_a_lost_answer_is_asked_for_with_one_packet() -> None:
    with Script() as s:
        begun(s)
        s.advance(ASKED)
        assert sent_psns(s) == [101]
        finished(s, LOCAL_ACK_TIMEOUT_ERR=0, RETRANSMITTED_PKTS=1)


def test_a_lost_nak_is_made_up_for() -> None:
    """It would have acknowledged 101 and 102; the answer to the probe does, and shows that 103 must be asked for."""
    with Script() as s:
        begun(s)
        s.advance(ASKED)
        assert sent_psns(s) == [101]
        s.advance(RTT)
        s.ack(102)
        assert sent_psns(s) == [103]
        s.advance(RTT)
        s.ack(103)
        assert sent_psns(s) == [104, 105]
        s.nak(104, Nak.PSN_SEQUENCE_ERROR)  # what came behind 102 at first: known already
        s.expect_nothing()
        finished(s, LOCAL_ACK_TIMEOUT_ERR=0)


def test_a_lost_retry_goes_back_once_and_asks_from_then_on() -> None:
    """The peer has said that it lacks 102; it throws away what follows until it has it."""
    with Script() as s:
        begun(s)
        s.nak(102, Nak.PSN_SEQUENCE_ERROR)
        assert sent_psns(s) == [102, 103, 104, 105]
        left = int(s.qp.record["retry_left"])
        s.advance(ASKED)
        assert sent_psns(s) == [102, 103, 104, 105]
        s.advance(2 * ASKED)
        assert sent_psns(s) == [102]
        assert s.qp.record["retry_left"] == left
        finished(s, LOCAL_ACK_TIMEOUT_ERR=0)


def test_a_nak_that_crosses_a_probe_is_no_round_trip() -> None:
    """What acknowledges the probe comes soon after the NAK: taken for a round trip, it would be the shortest ever."""
    with Script() as s:
        begun(s)
        s.advance(ASKED)
        assert sent_psns(s) == [101]
        s.nak(101, Nak.PSN_SEQUENCE_ERROR)
        assert sent_psns(s) == [101, 102, 103, 104, 105]
        s.advance(US)
        s.ack(101)
        assert s.qp.record["rtt_min"] == s.qp.record["srtt"] == RTT
        finished(s)


def test_a_slow_peer_is_asked_less_and_less() -> None:
    """Every packet is acknowledged, long after it was asked for: the time until the next doubles all the same."""
    with Script(timeout=14) as s:
        begun(s)
        s.advance(ASKED)
        assert sent_psns(s) == [101]
        for psn, due in ((101, 2), (102, 4), (103, 8)):
            s.ack(psn)
            s.flush_wire()
            s.advance(due * ASKED - ASKED)
            s.expect_nothing()
            s.advance(ASKED + 2 * TICK)
            assert sent_psns(s) == [psn + 1]
        finished(s, LOCAL_ACK_TIMEOUT_ERR=0)


def test_sequence_error_across_the_wrap() -> None:
    """9.7.2."""
    with Script(psn=0xFFFFFE) as s:
        s.post(SEND, 256 * 4, wr_id=1)
        s.flush_wire()
        s.nak(0, Nak.PSN_SEQUENCE_ERROR)
        s.expect(Op.SEND_MIDDLE, psn=0, payload=s.memory(512, 256))
        s.expect(Op.SEND_LAST, psn=1)
        s.ack(1)
        s.sent(1)


def test_second_nak_for_the_same_gap() -> None:
    """A NAK repeated for the same PSN while the packets are on their way again changes nothing."""
    with Script() as s:
        s.post(SEND, 300, wr_id=1)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        assert sent_psns(s) == [100, 101]
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        s.expect_nothing()
        s.ack(101)
        s.sent(1)


def test_sequence_errors_spend_the_budget() -> None:
    """9.9.2.1.2: every retry without progress counts, whatever its cause."""
    with Script(timeout=8, retry_cnt=1) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        assert sent_psns(s) == [100]
        s.advance(timeout_ns(8) + 2 * TICK)
        s.sent(1, WcStatus.RETRY_EXC_ERR)


def test_no_retry_for_a_sequence_error() -> None:
    """11.2.5.2: retry_cnt 0."""
    with Script(retry_cnt=0) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        s.sent(1, WcStatus.RETRY_EXC_ERR)


def test_progress_makes_the_budget_whole() -> None:
    """9.9.2.1: retries are counted per packet that does not get through."""
    with Script(retry_cnt=1) as s:
        s.post(SEND, 256 * 5, wr_id=1)
        s.flush_wire()
        for psn in range(100, 105):
            s.nak(psn, Nak.PSN_SEQUENCE_ERROR)
            assert sent_psns(s)[0] == psn
        s.ack(104)
        s.sent(1)


def test_a_nak_restarts_the_timer() -> None:
    """9.9.1.1: the peer is alive: what is sent again has a whole interval."""
    with Script(timeout=10, retry_cnt=1) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.advance(timeout_ns(10) * 9 // 10)
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        assert sent_psns(s) == [100]
        s.advance(timeout_ns(10) * 9 // 10)
        s.nothing_completed()
        s.flush_wire()
        s.ack(100)
        s.sent(1)


def test_nak_while_going_back() -> None:
    """A NAK for something later, while older packets are on their way again, is progress."""
    with Script() as s:
        for i in range(4):
            s.post(SEND, 1, wr_id=i)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        s.nak(102, Nak.PSN_SEQUENCE_ERROR)
        s.sent(0)
        s.sent(1)
        assert sent_psns(s) == [102, 103]
        s.ack(103)
        s.sent(2)
        s.sent(3)


def test_ack_while_going_back() -> None:
    """9.7.6: what was acknowledged meanwhile is not sent again."""
    with Script() as s:
        for i in range(4):
            s.post(SEND, 300, wr_id=i)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        s.ack(104)
        s.sent(0)
        s.sent(1)
        s.expect(Op.SEND_LAST, psn=105, payload=s.memory(256, 44))
        assert sent_psns(s) == [106, 107]
        s.ack(107)
        s.sent(2)
        s.sent(3)


def test_everything_acknowledged_while_going_back() -> None:
    """9.7.6: then there is nothing to send, and the next request continues the sequence."""
    with Script() as s:
        s.post(SEND, 300, wr_id=1)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        s.ack(101)
        s.sent(1)
        s.expect_nothing()
        s.post(SEND, 1, wr_id=2)
        s.expect(Op.SEND_ONLY, psn=102)
        s.ack(102)
        s.sent(2)


# --- sequence errors: the responder ---------------------------------------------------------------------------


def test_gap_is_naked_once() -> None:
    """9.7.5.2.8: one NAK for the expected PSN, then silence until that packet comes."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"x")
        for psn in (502, 503, 504):
            s.inject(Op.WRITE_ONLY, psn, b"x", ackreq=1)
        s.expect_nak(501, Nak.PSN_SEQUENCE_ERROR, msn=1)
        s.inject(Op.WRITE_ONLY, 505, b"x", ackreq=1)
        s.expect_nothing()
        assert s.count(C.SEND_SEQ_ERR) == 1
        assert s.count(C.OUT_OF_SEQ_REQUEST) == 4
        assert s.count(C.DROP_NAK_SENT) == 3
        s.inject(Op.WRITE_ONLY, 501, b"x", ackreq=1)
        s.expect_ack(psn=501, msn=2)
        s.inject(Op.WRITE_ONLY, 503, b"x")
        s.expect_nak(502, Nak.PSN_SEQUENCE_ERROR)


def test_read_ahead_of_its_turn() -> None:
    """9.7.4.1.2: a READ that overtook what is before it is refused, and answered when it comes again."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 501, dmalen=300)
        s.expect_nak(500, Nak.PSN_SEQUENCE_ERROR, msn=0)
        assert s.count(C.RX_READ_REQUESTS) == 0
        s.inject(Op.WRITE_ONLY, 500, b"before")
        s.inject(Op.READ_REQUEST, 501, dmalen=300)
        s.expect(Op.READ_RESPONSE_FIRST, psn=501, msn=2, payload=b"before" + s.memory(6, 250))
        s.expect(Op.READ_RESPONSE_LAST, psn=502)


def test_write_taken_up_in_mid_message() -> None:
    """9.7.5.2.8: the middle of a WRITE is lost; what follows is refused, and the message goes on from there."""
    with Script() as s:
        data = bytes(i % 199 for i in range(256 * 3 + 5))
        s.inject(Op.WRITE_FIRST, 500, data[:256], dmalen=len(data))
        s.inject(Op.WRITE_MIDDLE, 502, data[512:768])
        s.inject(Op.WRITE_LAST, 503, data[768:], ackreq=1)
        s.expect_nak(501, Nak.PSN_SEQUENCE_ERROR, msn=0)
        assert s.memory(256, 512) != data[256:768]
        s.inject(Op.WRITE_MIDDLE, 501, data[256:512])
        s.inject(Op.WRITE_MIDDLE, 502, data[512:768])
        s.inject(Op.WRITE_LAST, 503, data[768:], ackreq=1)
        s.expect_ack(psn=503, msn=1)
        assert s.memory(0, len(data)) == data


def test_gap_across_the_wrap() -> None:
    """9.7.2, 9.7.4.1.2."""
    with Script(peer_psn=0xFFFFFF) as s:
        s.inject(Op.WRITE_ONLY, 0, b"x")
        s.expect_nak(0xFFFFFF, Nak.PSN_SEQUENCE_ERROR)


def test_gap_does_nothing() -> None:
    """9.7.4.1.2: a request ahead of its turn is not executed, and takes no receive WQE."""
    with Script() as s:
        s.post_recv(10, wr_id=1)
        before = s.memory()
        s.inject(Op.SEND_ONLY, 501, b"xxx")
        s.inject(Op.WRITE_ONLY, 502, b"xxx")
        s.inject(Op.FETCH_ADD, 503, swap=1)
        assert s.memory() == before
        s.expect_nak(500, Nak.PSN_SEQUENCE_ERROR, msn=0)
        s.inject(Op.SEND_ONLY, 500, b"abc", ackreq=1)
        s.received(1, byte_len=3)
        s.expect_ack(psn=500, msn=1)


def test_gap_behind_an_unsent_ack() -> None:
    """9.7.5.1.2: the NAK acknowledges what came before it, so that one answer does."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"x", ackreq=1)
        s.inject(Op.WRITE_ONLY, 502, b"x", ackreq=1)
        s.expect_nak(501, Nak.PSN_SEQUENCE_ERROR, msn=1)


def test_gap_behind_an_unanswered_read() -> None:
    """9.7.5.1: the READ is answered first."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=300)
        s.inject(Op.WRITE_ONLY, 503, b"x")
        s.expect(Op.READ_RESPONSE_FIRST, psn=500)
        s.expect(Op.READ_RESPONSE_LAST, psn=501)
        s.expect_nak(502, Nak.PSN_SEQUENCE_ERROR)


def test_duplicate_after_a_nak() -> None:
    """9.7.5.1.3: duplicates are answered while the responder waits for the packet it NAKed."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"x")
        s.inject(Op.WRITE_ONLY, 502, b"x")
        s.expect_nak(501, Nak.PSN_SEQUENCE_ERROR)
        s.inject(Op.WRITE_ONLY, 500, b"x", ackreq=1)
        s.expect_ack(psn=500, msn=1)


# --- RNR: the requester ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", range(32))
def test_rnr_timer(code: int) -> None:
    """9.7.5.2.8, table 47: nothing is sent before the time the responder asked for, and it is sent soon after."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, code)
        s.advance(RNR_TABLE[code] * 10 * US - 1)
        s.expect_nothing()
        s.advance(1 + 2 * TICK)
        s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


@pytest.mark.parametrize("opcode", [SEND, WRITE, READ, WrOpcode.ATOMIC_FETCH_AND_ADD, WrOpcode.RDMA_WRITE_WITH_IMM])
def test_any_request_may_meet_rnr(opcode: WrOpcode) -> None:
    """9.7.5.2.8: the requester waits whatever the request was."""
    with Script(rnr_retry=1) as s:
        s.post(opcode, 8, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100)
        s.expect_nothing()
        s.advance(10 * US + 2 * TICK)
        assert sent_psns(s) == [100]
        s.rnr_nak(100)
        s.sent(1, WcStatus.RNR_RETRY_EXC_ERR)


def test_rnr_acknowledges_what_is_before() -> None:
    """9.7.5.1.2; and all from its PSN on goes again."""
    with Script() as s:
        for i in range(3):
            s.post(SEND, 1, wr_id=i)
        s.flush_wire()
        s.rnr_nak(101)
        s.sent(0)
        s.advance(10 * US + 2 * TICK)
        assert sent_psns(s) == [101, 102]
        s.ack(102)
        s.sent(1)
        s.sent(2)


def test_requests_posted_while_waiting() -> None:
    """9.7.5.2.8: the QP as a whole waits."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, 14)
        s.post(WRITE, 1, wr_id=2)
        s.advance(1 * MS)
        s.expect_nothing()
        s.advance(1 * MS)
        assert sent_psns(s) == [100, 101]
        s.ack(101)
        s.sent(1)
        s.sent(2)


@pytest.mark.parametrize("rnr_retry", [0, 1, 3, 6])
def test_rnr_retry_limit_exceeded(rnr_retry: int) -> None:
    """9.9.2.1.1: rnr_retry retries, then the request fails."""
    with Script(rnr_retry=rnr_retry) as s:
        s.post(SEND, 1, wr_id=1)
        s.post(SEND, 1, wr_id=2)
        s.flush_wire()
        for _ in range(rnr_retry):
            s.rnr_nak(100)
            s.nothing_completed()
            s.advance(10 * US + 2 * TICK)
            assert sent_psns(s) == [100, 101]
        s.rnr_nak(100)
        s.sent(1, WcStatus.RNR_RETRY_EXC_ERR)
        s.sent(2, WcStatus.WR_FLUSH_ERR)
        assert s.count(C.RETRY_RNR_EXCEEDED_ERR) == 1


def test_rnr_retry_limit_not_exceeded() -> None:
    """9.9.2.1.1: success makes the budget whole."""
    with Script(rnr_retry=2) as s:
        for wr_id in range(3):
            s.post(SEND, 1, wr_id=wr_id)
            s.flush_wire()
            for _ in range(2):
                s.rnr_nak(100 + wr_id)
                s.advance(10 * US + 2 * TICK)
                s.flush_wire()
            s.ack(100 + wr_id)
            s.sent(wr_id)


def test_rnr_retry_seven_is_for_ever() -> None:
    """11.2.5.2: 7 means no limit."""
    with Script(rnr_retry=7) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        for _ in range(100):
            s.rnr_nak(100)
            s.advance(10 * US + 2 * TICK)
            s.expect(Op.SEND_ONLY, psn=100)
        s.ack(100)
        s.sent(1)


def test_rnr_spends_no_retry() -> None:
    """9.9.2.1.1: retry_cnt and rnr_retry are separate, and the wait is no ACK timeout."""
    with Script(rnr_retry=7, retry_cnt=0, timeout=8) as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, 0)
        s.advance(656 * MS)
        s.expect(Op.SEND_ONLY, psn=100)
        s.advance(MS // 4)
        s.nothing_completed()
        s.ack(100)
        s.sent(1)
        assert s.count(C.LOCAL_ACK_TIMEOUT_ERR) == 0


def test_acknowledged_while_waiting() -> None:
    """An acknowledgement of everything, late, ends the wait with nothing to send."""
    with Script() as s:
        s.post(SEND, 1, wr_id=1)
        s.flush_wire()
        s.rnr_nak(100, 14)
        s.ack(100)
        s.sent(1)
        s.advance(2 * MS)
        s.expect_nothing()


# --- RNR: the responder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 14, 31])
def test_no_receive_posted(code: int) -> None:
    """9.7.5.2.8: an RNR NAK with the QP's min_rnr_timer; later packets get silence; then the request is taken."""
    with Script(min_rnr_timer=code) as s:
        s.inject(Op.SEND_ONLY, 500, b"a", ackreq=1)
        s.inject(Op.SEND_ONLY, 501, b"b", ackreq=1)
        s.expect_rnr(500, code, msn=0)
        s.expect_nothing()
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"a", ackreq=1)
        s.received(1, byte_len=1)
        s.expect_ack(psn=500, msn=1)
        s.inject(Op.SEND_ONLY, 501, b"b", ackreq=1)
        s.expect_rnr(501, code, msn=1)
        assert s.count(C.SEND_RNR_ERR) == 2


def test_receive_posted_before_the_answer_left() -> None:
    """9.7.5.2.8: a NAK that is overtaken by the packet it asks for is not sent any more."""
    with Script() as s:
        s.inject(Op.SEND_ONLY, 500, b"a", ackreq=1)
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY, 500, b"a", ackreq=1)
        s.received(1)
        s.expect_ack(psn=500, msn=1)


def test_gap_closed_before_the_answer_left() -> None:
    """9.7.5.2.8: the same for a sequence error."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 501, b"b")
        s.inject(Op.WRITE_ONLY, 500, b"a")
        s.inject(Op.WRITE_ONLY, 501, b"b", ackreq=1)
        s.expect_ack(psn=501, msn=2)


def test_rnr_again_while_there_is_no_receive() -> None:
    """9.7.5.2.8: every retry is answered."""
    with Script() as s:
        for _ in range(3):
            s.inject(Op.SEND_ONLY, 500, b"a")
            s.expect_rnr(500)


def test_write_with_immediate_meets_rnr_at_its_end() -> None:
    """9.7.5.2.8: the receive WQE is taken by the last packet; the data before it is already written."""
    with Script() as s:
        s.inject(Op.WRITE_FIRST, 500, b"w" * 256, dmalen=300)
        s.inject(Op.WRITE_LAST_IMM, 501, b"v" * 44, imm=7)
        s.expect_rnr(501, msn=0)
        assert s.memory(0, 300) == b"w" * 256 + bytes([i % 251 for i in range(256, 300)])
        s.post_recv(wr_id=1, sges=[])
        s.inject(Op.WRITE_LAST_IMM, 501, b"v" * 44, imm=7, ackreq=1)
        s.received(1, byte_len=300, imm=7)
        assert s.memory(0, 300) == b"w" * 256 + b"v" * 44
        s.expect_ack(psn=501, msn=1)


def test_write_needs_no_receive() -> None:
    """9.7.5.2.8: only what consumes a receive WQE can be refused for want of one."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"w", ackreq=1)
        s.expect_ack(psn=500, msn=1)
        s.inject(Op.READ_REQUEST, 501, dmalen=1)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501)
