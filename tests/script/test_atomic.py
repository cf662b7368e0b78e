"""Atomic operations, both sides (IBTA 9.4.5, 9.7.5.1.3)."""

from __future__ import annotations

import pytest

from softrnic.counters import C
from softrnic.verbs import Access, EventType, WcOpcode, WcStatus, WrOpcode
from tests.script.harness import PAGE, PEER_RKEY, PEER_VA, Nak, Op, Script

CAS, FAA = WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD
BIG = 0xFEDC_BA98_7654_3210


def word(s: Script, at: int = 0) -> int:
    """The 64-bit number at `at`, in host order."""
    return int.from_bytes(s.memory(at, 8), "little")


def set_word(s: Script, value: int, at: int = 0) -> None:
    s.buf[at : at + 8] = list(value.to_bytes(8, "little"))


# --- requester ----------------------------------------------------------------------------------------------


def test_compare_and_swap_sent() -> None:
    """9.4.5, 9.3.4: the request names address, key, what to compare and what to store; the old value comes back."""
    with Script() as s:
        s.post(CAS, at=16, wr_id=1, compare_add=BIG, swap=0x0102030405060708)
        s.expect(
            Op.COMPARE_SWAP, psn=100, va=PEER_VA, rkey=PEER_RKEY, compare=BIG, swap=0x0102030405060708, payload=b""
        )
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 100, orig=BIG)
        s.sent(1, opcode=WcOpcode.COMP_SWAP, byte_len=8)
        assert word(s, 16) == BIG


def test_fetch_and_add_sent() -> None:
    """9.4.5: the number to add stands where a swap has its new value; the compare field is not used."""
    with Script() as s:
        s.post(FAA, at=16, wr_id=1, compare_add=BIG)
        s.expect(Op.FETCH_ADD, psn=100, swap=BIG, compare=0)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 100, orig=5)
        s.sent(1, opcode=WcOpcode.FETCH_ADD, byte_len=8)
        assert word(s, 16) == 5


def test_result_may_be_scattered() -> None:
    """The result goes to the SGE list like any answer."""
    with Script() as s:
        s.post(FAA, wr_id=1, sges=[s.mr.sge(1, 3), s.mr.sge(PAGE - 1, 5)])
        s.flush_wire()
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 100, orig=BIG)
        s.sent(1)
        assert s.memory(1, 3) + s.memory(PAGE - 1, 5) == BIG.to_bytes(8, "little")


@pytest.mark.parametrize("length", [0, 7, 9, 16])
def test_result_is_eight_bytes(length: int) -> None:
    """9.4.5: atomics work on 64 bits."""
    with Script() as s:
        s.post(FAA, wr_id=1, sges=[s.mr.sge(0, length)])
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_LEN_ERR)


def test_each_takes_one_psn() -> None:
    """9.7.3: an atomic is one request and one response with the same PSN, across the wrap too."""
    with Script(psn=0xFFFFFF) as s:
        s.post(FAA, wr_id=1)
        s.post(CAS, wr_id=2)
        s.expect(Op.FETCH_ADD, psn=0xFFFFFF)
        s.expect(Op.COMPARE_SWAP, psn=0)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 0xFFFFFF, orig=1)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 0, orig=2)
        s.sent(1)
        s.sent(2)


def test_lost_answer_is_asked_for_again() -> None:
    """9.7.6: the second answer shows that the first was lost; both go again with their own PSNs."""
    with Script() as s:
        s.post(FAA, at=0, wr_id=1, compare_add=1)
        s.post(FAA, at=8, wr_id=2, compare_add=1)
        s.flush_wire()
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 101, orig=1)
        s.expect(Op.FETCH_ADD, psn=100)
        s.expect(Op.FETCH_ADD, psn=101)
        s.nothing_completed()
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 100, orig=70)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 101, orig=71)
        s.sent(1)
        s.sent(2)
        assert (word(s, 0), word(s, 8)) == (70, 71)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 101, orig=99)
        assert word(s, 8) == 71
        assert s.count(C.DROP_GHOST_ACK) == 1


def test_plain_ack_is_no_answer() -> None:
    """9.7.5.1: an atomic is finished by its own response only."""
    with Script() as s:
        s.post(FAA, wr_id=1)
        s.flush_wire()
        s.ack(100)
        s.nothing_completed()
        assert s.count(C.IMPLIED_NAK_SEQ_ERR) == 1
        s.expect(Op.FETCH_ADD, psn=100)
        s.inject(Op.ATOMIC_ACKNOWLEDGE, 100)
        s.sent(1)


# --- responder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("compare", "after"), [(BIG, 42), (BIG ^ 1, BIG), (BIG & 0xFFFFFFFF, BIG)])
def test_compare_and_swap_done(compare: int, after: int) -> None:
    """9.4.5: stored only where all 64 bits are equal; the old value is returned either way."""
    with Script() as s:
        set_word(s, BIG, 8)
        s.inject(Op.COMPARE_SWAP, 500, va=s.va + 8, compare=compare, swap=42)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500, msn=1, orig=BIG, payload=b"")
        assert word(s, 8) == after


@pytest.mark.parametrize("add", [1, 0, (1 << 64) - 1, 1 << 63, 0x0123_4567_89AB_CDEF])
def test_fetch_and_add_done(add: int) -> None:
    """9.4.5: a 64-bit sum without carry out."""
    with Script() as s:
        set_word(s, BIG)
        s.inject(Op.FETCH_ADD, 500, swap=add, compare=0x5555)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500, orig=BIG)
        assert word(s) == (BIG + add) & (1 << 64) - 1


def test_answers_wrap() -> None:
    """9.7.2: the response has the PSN of its request."""
    with Script(peer_psn=0xFFFFFF) as s:
        set_word(s, 10)
        for psn, value in ((0xFFFFFF, 10), (0, 11), (1, 12)):
            s.inject(Op.FETCH_ADD, psn, swap=1)
            s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=psn, orig=value)


def test_last_word_of_a_region() -> None:
    """9.4.1.1: the eight bytes lie in the region, up to its end."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf[:64], Access.LOCAL_WRITE | Access.REMOTE_ATOMIC)
        s.inject(Op.FETCH_ADD, 500, va=s.va + 56, rkey=mr.rkey, swap=0)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500)
        s.inject(Op.FETCH_ADD, 501, va=s.va + 64, rkey=mr.rkey, swap=0)
        s.expect_nak(501, Nak.REMOTE_ACCESS_ERROR)
        s.expect_event(EventType.QP_ACCESS_ERR)


@pytest.mark.parametrize("op", [Op.FETCH_ADD, Op.COMPARE_SWAP])
@pytest.mark.parametrize("offset", [1, 4, 7])
def test_misaligned(op: Op, offset: int) -> None:
    """9.7.4.1.6: the address of an atomic is a multiple of 8: else an invalid request."""
    with Script() as s:
        before = s.memory()
        s.inject(op, 500, va=s.va + offset, swap=1)
        s.expect_nak(500, Nak.INVALID_REQUEST)
        s.expect_event(EventType.QP_REQ_ERR)
        assert s.memory() == before


def test_region_that_is_aligned_on_the_wire_only() -> None:
    """An iova may be aligned where the memory is not: no processor is atomic across that; access denied."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf[1:65], Access.LOCAL_WRITE | Access.REMOTE_ATOMIC, iova=0x1000)
        s.inject(Op.FETCH_ADD, 500, va=0x1000, rkey=mr.rkey, swap=1)
        s.expect_nak(500, Nak.REMOTE_ACCESS_ERROR)
        s.expect_event(EventType.QP_ACCESS_ERR)


@pytest.mark.parametrize("op", [Op.FETCH_ADD, Op.COMPARE_SWAP])
def test_duplicate_is_answered_and_not_done_again(op: Op) -> None:
    """9.7.5.1.3: the saved result of an atomic is returned for a duplicate."""
    with Script() as s:
        set_word(s, 10)
        for _ in range(3):
            s.inject(op, 500, swap=1, compare=10)
            s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500, orig=10, msn=1)
        assert word(s) == (11 if op == Op.FETCH_ADD else 1)
        assert s.count(C.RX_ATOMIC_REQUESTS) == 1


def test_duplicates_among_others_in_order() -> None:
    """9.7.5.1.3: after going back, READs, atomics and WRITEs are answered in PSN order, atomics with saved results."""
    with Script() as s:
        set_word(s, 10)
        for _ in range(2):
            s.inject(Op.FETCH_ADD, 500, swap=1)
            s.inject(Op.READ_REQUEST, 501, dmalen=8)
            s.inject(Op.FETCH_ADD, 502, swap=1)
            s.inject(Op.WRITE_ONLY, 503, ackreq=1)
            s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500, orig=10, msn=1)
            s.expect(Op.READ_RESPONSE_ONLY, psn=501, msn=2)
            s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=502, orig=11, msn=3)
            s.expect_ack(psn=503, msn=4)
        assert word(s) == 12


def test_duplicate_no_longer_known() -> None:
    """9.7.5.1.3: as many results are saved as READs and atomics were agreed on; older duplicates get silence."""
    with Script(max_dest_rd_atomic=2) as s:
        set_word(s, 0)
        for i in range(3):
            s.inject(Op.FETCH_ADD, 500 + i, swap=1)
            s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500 + i, orig=i)
        s.inject(Op.FETCH_ADD, 500, swap=1)
        s.expect_nothing()
        assert s.count(C.DROP_RD_ATOMIC_REPLAY) == 1
        s.inject(Op.FETCH_ADD, 501, swap=1)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=501, orig=1)
        assert word(s) == 3


@pytest.mark.parametrize("change", ["va", "rkey", "kind"])
def test_duplicate_that_asks_for_something_else(change: str) -> None:
    """9.7.5.1.3: it is not the request that was answered: silence."""
    with Script() as s:
        set_word(s, 10)
        s.inject(Op.FETCH_ADD, 500, swap=1)
        s.flush_wire()
        if change == "kind":
            s.inject(Op.READ_REQUEST, 500, dmalen=8)
        else:
            s.inject(Op.FETCH_ADD, 500, swap=1, **{change: {"va": s.va + 8, "rkey": 0xBAD}[change]})
        s.expect_nothing()
        assert s.count(C.DROP_RD_ATOMIC_REPLAY) == 1
        assert word(s) == 11


def test_unanswered_atomics_count_against_the_agreement() -> None:
    """11.2.5.2: READs and atomics share the responder's resources."""
    with Script(max_dest_rd_atomic=2) as s:
        set_word(s, 10)
        s.inject(Op.FETCH_ADD, 500, swap=1)
        s.inject(Op.READ_REQUEST, 501, dmalen=1)
        s.inject(Op.FETCH_ADD, 502, swap=1)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500)
        s.expect(Op.READ_RESPONSE_ONLY, psn=501)
        s.expect_nak(502, Nak.INVALID_REQUEST)
        s.expect_event(EventType.QP_REQ_ERR)
        assert word(s) == 11
