"""RDMA READ, both sides (IBTA 9.4.4, 9.7.3.1, 9.7.5.1.4)."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.verbs import Access, EventType, Mtu, QpCap, Sge, WcOpcode, WcStatus, WrOpcode
from tests.script.harness import FENCE, MS, PAGE, PEER_RKEY, PEER_VA, SIGNALED, Nak, Op, Script, nak
from tests.script.messages import edges

READ = WrOpcode.RDMA_READ


def response_ops(npsn: int) -> list[Op]:
    """Opcodes of a READ answered in `npsn` packets."""
    if npsn == 1:
        return [Op.READ_RESPONSE_ONLY]
    return [Op.READ_RESPONSE_FIRST, *[Op.READ_RESPONSE_MIDDLE] * (npsn - 2), Op.READ_RESPONSE_LAST]


def answer(s: Script, data: bytes, psn: int, *, only: slice = slice(None)) -> None:
    """The peer answers a READ at `psn` with `data`."""
    npsn = max(1, -(-len(data) // s.pmtu))
    for i, op in list(enumerate(response_ops(npsn)))[only]:
        s.inject(op, psn + i & 0xFFFFFF, data[i * s.pmtu : (i + 1) * s.pmtu])


def expect_responses(s: Script, data: bytes, psn: int, msn: int) -> None:
    """The engine answers a READ with `data`; first and last packet carry an AETH (9.7.3.1)."""
    npsn = max(1, -(-len(data) // s.pmtu))
    for i, op in enumerate(response_ops(npsn)):
        aeth = {} if op == Op.READ_RESPONSE_MIDDLE else {"msn": msn}
        s.expect(op, psn=psn + i & 0xFFFFFF, ackreq=0, payload=data[i * s.pmtu : (i + 1) * s.pmtu], **aeth)


# --- requester ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", edges(256))
def test_requested(length: int) -> None:
    """9.7.3.1: one request packet stands for as many PSNs as its responses take."""
    with Script(psn=100) as s:
        data = bytes(i * 7 % 256 for i in range(length))
        s.post(READ, length, at=PAGE - 1, wr_id=1)
        s.post(WrOpcode.SEND, 1, wr_id=2)
        s.expect(Op.READ_REQUEST, psn=100, payload=b"", va=PEER_VA, rkey=PEER_RKEY, dmalen=length)
        after = 100 + max(1, -(-length // 256))
        s.expect(Op.SEND_ONLY, psn=after)
        before = s.memory()
        answer(s, data, 100)
        s.sent(1, opcode=WcOpcode.RDMA_READ, byte_len=length)
        assert s.memory() == before[: PAGE - 1] + data + before[PAGE - 1 + length :]
        s.ack(after)
        s.sent(2)


def test_psn_wraps_in_responses() -> None:
    """9.7.2: response PSNs wrap with the request's."""
    with Script(psn=0xFFFFFE) as s:
        data = bytes(range(256)) * 4
        s.post(READ, 1024, wr_id=1)
        s.post(READ, 1, wr_id=2)
        s.expect(Op.READ_REQUEST, psn=0xFFFFFE)
        s.expect(Op.READ_REQUEST, psn=2)
        answer(s, data, 0xFFFFFE)
        s.sent(1)
        assert s.memory(0, 1024) == data
        answer(s, b"z", 2)
        s.sent(2)


def test_scatter_list() -> None:
    """Responses fill the SGEs in order, across packets."""
    with Script() as s:
        m = s.mr
        s.post(READ, wr_id=1, sges=[m.sge(7, 100), m.sge(0, 0), m.sge(PAGE - 10, 300)])
        s.expect(Op.READ_REQUEST, psn=100, dmalen=400)
        data = bytes(200 - i % 200 for i in range(400))
        answer(s, data, 100)
        s.sent(1)
        assert s.memory(7, 100) + s.memory(PAGE - 10, 300) == data


def test_no_more_than_max_rd_atomic_outstanding() -> None:
    """10.8.3.3 / max_rd_atomic: further READs and atomics wait; what follows them waits too."""
    with Script(max_rd_atomic=2) as s:
        for i in range(3):
            s.post(READ, 300, wr_id=i)
        s.post(WrOpcode.ATOMIC_FETCH_AND_ADD, wr_id=3)
        s.post(WrOpcode.SEND, 1, wr_id=4)
        s.expect(Op.READ_REQUEST, psn=100)
        s.expect(Op.READ_REQUEST, psn=102)
        s.expect_nothing()
        answer(s, bytes(300), 100)
        s.sent(0)
        s.expect(Op.READ_REQUEST, psn=104)
        s.expect_nothing()
        answer(s, bytes(300), 102)
        s.sent(1)
        s.expect(Op.FETCH_ADD, psn=106)
        s.expect(Op.SEND_ONLY, psn=107)
        answer(s, bytes(300), 104)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 106)
        s.ack(107)
        for i in (2, 3, 4):
            s.sent(i)


def test_max_rd_atomic_zero() -> None:
    """11.2.5.2: with no initiator depth a READ cannot be sent at all."""
    with Script(max_rd_atomic=0) as s:
        s.post(READ, 1, wr_id=1)
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_QP_OP_ERR)


def test_as_many_as_a_device_may_have_outstanding() -> None:
    """11.2.5.2: 128 READs at a time, and the 129th after the first answer."""
    with Script(max_rd_atomic=128, cap=QpCap(256, 1), cqe=256) as s:
        for i in range(130):
            s.post(READ, 1, at=i, wr_id=i)
        assert [p.psn for p in s.flush_wire()] == list(range(100, 228))
        for i in range(130):
            answer(s, bytes([i]), 100 + i)
            s.sent(i)
            assert [p.psn for p in s.flush_wire()] == ([228 + i] if i < 2 else [])
        assert s.memory(0, 130) == bytes(range(130))


def at_path_mtu_256(s: Script, length: int) -> Sge:
    """An SGE of gigabytes that nobody touches."""
    mr = s.pd.reg_mr(np.zeros(length, np.uint8))
    return mr.sge()


def test_read_may_not_span_half_of_all_psns() -> None:
    """9.7.2: PSNs 2^23 apart cannot be told to be before or after: 2 GiB at 256 bytes is one packet too long."""
    with Script() as s:
        s.post(READ, wr_id=1, sges=[at_path_mtu_256(s, 1 << 31)])
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_LEN_ERR)


def test_the_longest_read() -> None:
    """9.7.2: it is sent when nothing else is outstanding, and nothing after it before it is answered."""
    length = ((1 << 23) - 1) * 256
    with Script(psn=0x900000) as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(READ, wr_id=2, sges=[at_path_mtu_256(s, length)])
        s.post(WrOpcode.SEND, 1, wr_id=3)
        s.expect(Op.SEND_ONLY, psn=0x900000)
        s.expect_nothing()
        s.ack(0x900000)
        s.sent(1)
        s.expect(Op.READ_REQUEST, psn=0x900001, dmalen=length)
        s.expect_nothing()
        s.inject(Op.READ_RESPONSE_FIRST, 0x900001, bytes(256))
        s.inject(Op.READ_RESPONSE_MIDDLE, 0x900002, bytes(256))
        s.nothing_completed()
        assert s.count(C.DROP_GHOST_ACK) == 0
        s.nak(0x900003, Nak.PSN_SEQUENCE_ERROR)
        s.expect(Op.READ_REQUEST, psn=0x900003, dmalen=length - 512)
        s.expect_nothing()
        s.nak(0x900003, Nak.REMOTE_ACCESS_ERROR)
        s.sent(2, WcStatus.REM_ACCESS_ERR)
        s.sent(3, WcStatus.WR_FLUSH_ERR)


@pytest.mark.parametrize("opcode", [WrOpcode.SEND, WrOpcode.RDMA_WRITE, READ])
def test_more_than_two_gibibytes(opcode: WrOpcode) -> None:
    """9.7.7.1.3, C9-92: no message is longer than 2^31 bytes, however many SGEs it takes."""
    with Script(mtu=Mtu.MTU_4096) as s:
        sge = at_path_mtu_256(s, (1 << 30) + 1)
        s.post(opcode, wr_id=1, sges=[sge, sge])
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_LEN_ERR)


def test_fence() -> None:
    """10.8.3.3: a fenced request waits until every READ and atomic before it is answered."""
    with Script() as s:
        s.post(READ, 1, wr_id=1)
        s.post(WrOpcode.ATOMIC_CMP_AND_SWP, wr_id=2)
        s.post(WrOpcode.SEND, 1, wr_id=3, flags=FENCE | SIGNALED)
        s.post(WrOpcode.SEND, 1, wr_id=4)
        s.expect(Op.READ_REQUEST, psn=100)
        s.expect(Op.COMPARE_SWAP, psn=101)
        s.expect_nothing()
        answer(s, b"a", 100)
        s.sent(1)
        s.expect_nothing()
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 101)
        s.sent(2)
        s.expect(Op.SEND_ONLY, psn=102)
        s.expect(Op.SEND_ONLY, psn=103)
        s.ack(103)
        s.sent(3)
        s.sent(4)


def test_fence_does_not_wait_for_sends() -> None:
    """10.8.3.3: only READs and atomics hold a fence."""
    with Script() as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(WrOpcode.SEND, 1, wr_id=2, flags=FENCE | SIGNALED)
        s.expect(Op.SEND_ONLY, psn=100)
        s.expect(Op.SEND_ONLY, psn=101)
        s.ack(101)
        s.sent(1)
        s.sent(2)


def test_response_acknowledges_what_came_before() -> None:
    """9.7.5.1: a READ response acknowledges the SENDs and WRITEs before it."""
    with Script() as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(READ, 1, wr_id=2)
        s.expect(Op.SEND_ONLY, psn=100)
        s.expect(Op.READ_REQUEST, psn=101)
        answer(s, b"r", 101)
        s.sent(1)
        s.sent(2)


def test_ack_past_an_unanswered_read_is_an_implied_nak() -> None:
    """9.7.6: a later acknowledgement shows that the READ's response was lost: it is asked for again."""
    with Script() as s:
        s.post(READ, 600, wr_id=1)
        s.post(WrOpcode.SEND, 1, wr_id=2)
        s.expect(Op.READ_REQUEST, psn=100)
        s.expect(Op.SEND_ONLY, psn=103)
        s.ack(103)
        assert s.count(C.IMPLIED_NAK_SEQ_ERR) == 1
        s.expect(Op.READ_REQUEST, psn=100, dmalen=600, va=PEER_VA)
        s.expect(Op.SEND_ONLY, psn=103)
        s.nothing_completed()
        answer(s, bytes(600), 100)
        s.sent(1)
        s.ack(103)
        s.sent(2)


def test_implied_nak_retry_limit_exceeded() -> None:
    """9.9.2.1: an implied NAK spends a retry as a NAK does; with none left the READ fails."""
    with Script(retry_cnt=1) as s:
        s.post(READ, 600, wr_id=1)
        s.post(WrOpcode.SEND, 1, wr_id=2)
        s.flush_wire()
        s.ack(103)
        s.expect(Op.READ_REQUEST, psn=100)
        s.expect(Op.SEND_ONLY, psn=103)
        s.advance(70 * MS)
        s.sent(1, WcStatus.RETRY_EXC_ERR)
        s.sent(2, WcStatus.WR_FLUSH_ERR)
        assert s.count(C.RETRY_EXCEEDED_ERR) == 1


def test_implied_nak_retry_limit_not_exceeded() -> None:
    """9.9.2.1: each response that comes makes the budget whole, so one retry is enough for any number of losses."""
    with Script(retry_cnt=1) as s:
        s.post(READ, 256 * 5, wr_id=1)
        s.flush_wire()
        data = bytes(i % 199 for i in range(256 * 5))
        for lost in range(1, 4):  # what comes of each answer is its first packet, and one that is too early
            answer(s, data[256 * (lost - 1) :], 100 + lost - 1, only=slice(0, 1))
            answer(s, data[256 * lost :], 100 + lost, only=slice(1, 2))
            s.expect(Op.READ_REQUEST, psn=100 + lost, dmalen=256 * (5 - lost))
        answer(s, data[256 * 3 :], 103)
        s.sent(1)
        assert s.count(C.IMPLIED_NAK_SEQ_ERR) == 3


def test_lost_middle_response_is_asked_for_from_there() -> None:
    """9.7.6, 9.7.5.1.4: the READ is requested again from the first missing packet, with its own PSN."""
    with Script() as s:
        s.post(READ, 256 * 5, wr_id=1)
        s.expect(Op.READ_REQUEST, psn=100)
        data = bytes(i % 199 for i in range(256 * 5))
        answer(s, data, 100, only=slice(0, 2))
        answer(s, data, 100, only=slice(3, 4))
        s.expect(Op.READ_REQUEST, psn=102, va=PEER_VA + 512, dmalen=256 * 3)
        # what still arrives of the first answer is not taken twice, nor out of order
        answer(s, data, 100, only=slice(4, 5))
        s.expect_nothing()
        answer(s, data[512:], 102)
        s.sent(1)
        assert s.memory(0, len(data)) == data


def test_response_of_the_first_answer_may_still_serve() -> None:
    """9.7.6: a response that was late and not lost is as good as a new one."""
    with Script() as s:
        s.post(READ, 256 * 3, wr_id=1)
        s.expect(Op.READ_REQUEST, psn=100)
        data = bytes(i % 199 for i in range(256 * 3))
        answer(s, data, 100, only=slice(1, 2))
        s.expect(Op.READ_REQUEST, psn=100)
        answer(s, data, 100)
        s.sent(1)
        assert s.memory(0, len(data)) == data
        answer(s, data, 100)
        assert s.count(C.DROP_GHOST_ACK) == 3


def test_timeout_asks_again_for_the_rest() -> None:
    """9.9.2.1: after the local ACK timeout, from the oldest packet not received."""
    with Script(timeout=8) as s:
        s.post(READ, 256 * 3, wr_id=1)
        s.expect(Op.READ_REQUEST, psn=100)
        data = bytes(768)
        answer(s, data, 100, only=slice(0, 1))
        s.advance(4 * MS)
        s.expect(Op.READ_REQUEST, psn=101, va=PEER_VA + 256, dmalen=512)
        s.flush_wire()
        answer(s, data[256:], 101)
        s.sent(1)


@pytest.mark.parametrize(
    ("op", "size"),
    [
        (Op.READ_RESPONSE_FIRST, 255),
        (Op.READ_RESPONSE_FIRST, 0),
        (Op.READ_RESPONSE_ONLY, 256),
        (Op.READ_RESPONSE_LAST, 256),
        (Op.READ_RESPONSE_ONLY, 44),
    ],
)
def test_response_of_a_wrong_length_or_place(op: Op, size: int) -> None:
    """9.9.2: a response that contradicts its request completes it with a bad response error."""
    with Script() as s:
        s.post(READ, 300, wr_id=1)
        s.post(WrOpcode.SEND, 1, wr_id=2)
        s.post_recv(1, wr_id=3)
        s.flush_wire()
        s.inject(op, 100, bytes(size))
        s.sent(1, WcStatus.BAD_RESP_ERR)
        s.sent(2, WcStatus.WR_FLUSH_ERR)
        s.received(3, WcStatus.WR_FLUSH_ERR)


@pytest.mark.parametrize("size", [43, 45, 256])
def test_last_response_of_a_wrong_length(size: int) -> None:
    """The last packet must bring exactly what is missing."""
    with Script() as s:
        s.post(READ, 300, wr_id=1)
        s.flush_wire()
        s.inject(Op.READ_RESPONSE_FIRST, 100, bytes(256))
        s.inject(Op.READ_RESPONSE_LAST, 101, bytes(size))
        s.sent(1, WcStatus.BAD_RESP_ERR)


def test_response_to_a_send_is_ignored() -> None:
    """9.7.6: READ responses and atomic acknowledgements must answer what was asked."""
    with Script() as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(WrOpcode.ATOMIC_FETCH_AND_ADD, wr_id=2)
        s.flush_wire()
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"x")
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 100, orig=7)
        s.nothing_completed()
        s.ack(100)
        s.sent(1)
        s.inject(Op.READ_RESPONSE_ONLY, 101, bytes(8))
        s.nothing_completed()
        assert s.count(C.BAD_RESPONSE) == 3
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 101)
        s.sent(2)


@pytest.mark.parametrize("syndrome", [0x20, 0x60, nak(Nak.REMOTE_ACCESS_ERROR), 0x80, 0x9F])
def test_response_with_a_syndrome_that_is_no_ack(syndrome: int) -> None:
    """9.7.5.2.1: the AETH of a response is positive."""
    with Script() as s:
        s.post(READ, 1, wr_id=1)
        s.flush_wire()
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"x", syndrome=syndrome)
        s.nothing_completed()
        assert s.count(C.BAD_RESPONSE) == 1
        answer(s, b"y", 100)
        s.sent(1)


def test_nak_in_the_middle_of_a_read() -> None:
    """9.7.5.2.8: the responder may fail in mid-READ; what came before it is kept."""
    with Script() as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(READ, 256 * 3, wr_id=2)
        s.flush_wire()
        answer(s, bytes(768), 101, only=slice(0, 1))
        s.sent(1)
        s.nak(102, Nak.REMOTE_ACCESS_ERROR)
        s.sent(2, WcStatus.REM_ACCESS_ERR)


@pytest.mark.parametrize("change", [{"lkey": 0xBAD}, {"length": 17 * PAGE}])
def test_destination_is_checked_before_anything_is_sent(change: dict[str, int]) -> None:
    """10.6.3.1, 11.4.1.1: the SGEs of a READ need local write permission; an error completes in its turn."""
    with Script() as s:
        s.post(READ, wr_id=1, sges=[s.mr.sge(0, 10)._replace(**change)])
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_PROT_ERR)


def test_destination_without_local_write() -> None:
    """10.6.3.1: a region registered for reading only is no place for a READ's data."""
    with Script() as s:
        read_only = s.pd.reg_mr(bytearray(8), Access(0))
        s.post(READ, wr_id=1, sges=[read_only.sge()])
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_PROT_ERR)


# --- responder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", edges(256))
def test_answered(length: int) -> None:
    """9.7.3.1: responses carry the request's PSNs; the next request has the one after."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, va=s.va + PAGE - 3, dmalen=length)
        after = 500 + max(1, -(-length // 256))
        s.inject(Op.WRITE_ONLY, after, b"w", ackreq=1)
        expect_responses(s, s.memory(PAGE - 3, length), 500, msn=1)
        s.expect_ack(psn=after, msn=2)


def test_answers_wrap() -> None:
    """9.7.2: response PSNs wrap, and so does the expected PSN after them."""
    with Script(peer_psn=0xFFFFFE) as s:
        s.inject(Op.READ_REQUEST, 0xFFFFFE, dmalen=1024)
        s.inject(Op.READ_REQUEST, 2, dmalen=1)
        expect_responses(s, s.memory(0, 1024), 0xFFFFFE, msn=1)
        expect_responses(s, s.memory(0, 1), 2, msn=2)


@pytest.mark.parametrize("mtu", Mtu)
def test_answers_at_every_path_mtu(mtu: Mtu) -> None:
    """9.7.3.1: response packets are full ones but for the last."""
    with Script(mtu=mtu) as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=mtu.bytes + 1)
        expect_responses(s, s.memory(0, mtu.bytes + 1), 500, msn=1)


def test_zero_length_read_needs_no_key() -> None:
    """9.4.4, C9-88: the key and address of a READ of nothing are not looked at."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, va=0xFFFF_FFFF_FFFF_FFFF, rkey=0xBAD, dmalen=0)
        s.expect(Op.READ_RESPONSE_ONLY, psn=500, msn=1, payload=b"")


def test_acks_wait_for_responses() -> None:
    """9.7.5.1: answers leave in PSN order: an acknowledgement never overtakes a READ response."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"1", ackreq=1)
        s.inject(Op.READ_REQUEST, 501, dmalen=300)
        s.inject(Op.WRITE_ONLY, 503, b"2", ackreq=1)
        s.inject(Op.READ_REQUEST, 504, dmalen=1)
        for psn, op in ((501, Op.READ_RESPONSE_FIRST), (502, Op.READ_RESPONSE_LAST), (504, Op.READ_RESPONSE_ONLY)):
            s.expect(op, psn=psn)
        s.expect_ack(psn=504, msn=4)


def test_as_many_reads_as_agreed() -> None:
    """9.7.4.1.7: max_dest_rd_atomic requests may wait for their answers at a time."""
    with Script(max_dest_rd_atomic=3) as s:
        for round_ in range(3):
            for i in range(3):
                s.inject(Op.READ_REQUEST, 500 + 3 * round_ + i, va=s.va + i, dmalen=1)
            for i in range(3):
                s.expect(Op.READ_RESPONSE_ONLY, psn=500 + 3 * round_ + i, payload=s.memory(i, 1))


def test_one_read_more_than_agreed() -> None:
    """11.2.5.2, 9.7.4.1.7: a peer that asks for more at a time breaks its word: an invalid request."""
    with Script(max_dest_rd_atomic=2) as s:
        for i in range(3):
            s.inject(Op.READ_REQUEST, 500 + i, dmalen=1)
        s.expect(Op.READ_RESPONSE_ONLY, psn=500)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501)
        s.expect_nak(502, Nak.INVALID_REQUEST)
        s.expect_event(EventType.QP_REQ_ERR)


def test_as_many_reads_as_a_device_remembers() -> None:
    """11.2.5.2: 128 READs wait for their answers, all can be replayed, and one more is too many."""
    with Script(max_dest_rd_atomic=128) as s:
        for _ in range(2):
            for i in range(128):
                s.inject(Op.READ_REQUEST, 500 + i, va=s.va + i, dmalen=1)
            got = s.flush_wire()
            assert [(p.psn, p.payload) for p in got] == [(500 + i, s.memory(i, 1)) for i in range(128)]
        for i in range(129):
            s.inject(Op.READ_REQUEST, 628 + i, va=s.va + i, dmalen=1)
        got = s.flush_wire()
        assert len(got) == 129
        assert (got[-1].psn, got[-1].syndrome) == (756, nak(Nak.INVALID_REQUEST))
        s.expect_event(EventType.QP_REQ_ERR)


def test_max_dest_rd_atomic_zero() -> None:
    """11.2.5.2: a responder without resources takes no READ."""
    with Script(max_dest_rd_atomic=0) as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=1)
        s.expect_nak(500, Nak.INVALID_REQUEST)
        s.expect_event(EventType.QP_REQ_ERR)


def test_read_sees_the_write_before_it() -> None:
    """9.5: a READ returns what WRITEs before it have written."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, b"fresh")
        s.inject(Op.READ_REQUEST, 501, dmalen=5)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501, payload=b"fresh")


# --- duplicates ---------------------------------------------------------------------------------------------


def test_duplicate_read_is_answered_again() -> None:
    """9.7.5.1.3: a duplicate READ is executed again, from its own PSN."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=700)
        expect_responses(s, s.memory(0, 700), 500, msn=1)
        s.buf[:700] = 9
        s.inject(Op.READ_REQUEST, 500, dmalen=700)
        expect_responses(s, s.memory(0, 700), 500, msn=1)
        assert s.count(C.DUPLICATE_REQUEST) == 1


@pytest.mark.parametrize("skip", [1, 2])
def test_duplicate_read_of_the_rest(skip: int) -> None:
    """9.7.5.1.3: the peer may ask again for the end of a READ only; the answer begins with First or Only."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=700)
        s.flush_wire()
        at = skip * 256
        s.inject(Op.READ_REQUEST, 500 + skip, va=s.va + at, dmalen=700 - at)
        expect_responses(s, s.memory(at, 700 - at), 500 + skip, msn=1)


@pytest.mark.parametrize("length", [0, 1, 256, 300, 512, 699])
def test_duplicate_read_of_a_part(length: int) -> None:
    """9.7.5.1.3: a duplicate may ask for less; it gets exactly what it asks for."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=700)
        s.flush_wire()
        s.inject(Op.READ_REQUEST, 500, dmalen=length)
        expect_responses(s, s.memory(0, length), 500, msn=1)


@pytest.mark.parametrize(
    "change", [{"dmalen": 701}, {"va": 8}, {"rkey": 0xBAD}, {"dmalen": 0xFFFFFFFF}], ids=lambda c: next(iter(c))
)
def test_duplicate_read_beyond_what_was_granted(change: dict[str, int]) -> None:
    """9.7.5.1.3: a duplicate that asks for something else is no duplicate: silence."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=700)
        s.flush_wire()
        change = {name: s.va + value if name == "va" else value for name, value in change.items()}
        s.inject(Op.READ_REQUEST, 500, **{"dmalen": 700, **change})
        s.expect_nothing()
        assert s.count(C.DROP_RD_ATOMIC_REPLAY) == 1


def test_duplicate_read_no_longer_known() -> None:
    """9.7.5.1.3: only the last max_dest_rd_atomic requests are remembered; an older one is dropped."""
    with Script(max_dest_rd_atomic=2) as s:
        for i in range(3):
            s.inject(Op.READ_REQUEST, 500 + i, va=s.va + i, dmalen=1)
            s.expect(Op.READ_RESPONSE_ONLY, psn=500 + i)
        s.inject(Op.READ_REQUEST, 500, dmalen=1)
        s.expect_nothing()
        assert s.count(C.DROP_RD_ATOMIC_REPLAY) == 1
        s.inject(Op.READ_REQUEST, 501, va=s.va + 1, dmalen=1)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501, payload=s.memory(1, 1), msn=2)


def test_duplicates_in_a_row_are_answered_in_order() -> None:
    """9.7.5.1.3: a peer that goes back sends everything again, and every answer is in PSN order."""
    with Script() as s:
        for again in range(2):
            s.inject(Op.READ_REQUEST, 500, dmalen=300)
            s.inject(Op.WRITE_ONLY, 502, b"w", ackreq=1)
            s.inject(Op.READ_REQUEST, 503, dmalen=1)
            s.expect(Op.READ_RESPONSE_FIRST, psn=500)
            s.expect(Op.READ_RESPONSE_LAST, psn=501, msn=1)
            s.expect(Op.READ_RESPONSE_ONLY, psn=503, msn=3)
            s.expect_ack(psn=503, msn=3)
            assert s.count(C.DUPLICATE_REQUEST) == 3 * again


def test_duplicate_read_wraps() -> None:
    """9.7.2: a duplicate on the far side of the wrap is one."""
    with Script(peer_psn=0xFFFFFE) as s:
        s.inject(Op.READ_REQUEST, 0xFFFFFE, dmalen=1024)
        s.flush_wire()
        s.inject(Op.READ_REQUEST, 0xFFFFFF, va=s.va + 256, dmalen=768)
        expect_responses(s, s.memory(256, 768), 0xFFFFFF, msn=1)


def test_region_that_went_away_before_the_replay() -> None:
    """9.7.5.1.3, 10.6.7: a replay is checked against the keys as they are now."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, Access.REMOTE_READ)
        s.inject(Op.READ_REQUEST, 500, rkey=mr.rkey, dmalen=700)
        s.flush_wire()
        mr.dereg()
        s.inject(Op.READ_REQUEST, 501, rkey=mr.rkey, va=s.va + 256, dmalen=444)
        s.expect_nak(501, Nak.REMOTE_ACCESS_ERROR)
        s.expect_event(EventType.QP_ACCESS_ERR)
