"""Requests that must be refused, and both sides' view of it (IBTA 9.7.4.1, 9.9.3, 11.6.2)."""

from __future__ import annotations

from typing import Any

import pytest

from softrnic.counters import C
from softrnic.verbs import Access, EventType, QpState, WcStatus
from tests.script.harness import ALL_ACCESS, PAGE, SIZE, Nak, Op, Script

NO_ONE = Access.LOCAL_WRITE


def refused(s: Script, psn: int, code: Nak, event: EventType) -> None:
    """The request at `psn` is NAKed, the QP is in error and says so, nothing was written, and silence follows."""
    s.expect_nak(psn, code)
    s.expect_event(event)
    assert s.qp.state == QpState.ERR
    assert (s.buf == [i % 251 for i in range(SIZE)]).all()
    s.inject(Op.WRITE_ONLY, psn, ackreq=1)
    s.expect_nothing()


def access_error(s: Script, psn: int) -> None:
    refused(s, psn, Nak.REMOTE_ACCESS_ERROR, EventType.QP_ACCESS_ERR)


def invalid(s: Script, psn: int) -> None:
    refused(s, psn, Nak.INVALID_REQUEST, EventType.QP_REQ_ERR)


def ask(s: Script, op: Op, psn: int = 500, **fields: Any) -> None:
    """One READ, WRITE or atomic."""
    if op == Op.READ_REQUEST:
        fields.setdefault("dmalen", 8)
    s.inject(op, psn, b"8 bytes!" if op == Op.WRITE_ONLY else b"", ackreq=1, **fields)


ACCESSES = pytest.mark.parametrize("op", [Op.WRITE_ONLY, Op.READ_REQUEST, Op.FETCH_ADD, Op.COMPARE_SWAP])
RIGHT = {
    Op.WRITE_ONLY: Access.REMOTE_WRITE, Op.READ_REQUEST: Access.REMOTE_READ, Op.FETCH_ADD: Access.REMOTE_ATOMIC,
    Op.COMPARE_SWAP: Access.REMOTE_ATOMIC,
}  # fmt: skip

# --- keys -----------------------------------------------------------------------------------------------------


@ACCESSES
def test_unknown_rkey(op: Op) -> None:
    """9.4.1.1: remote access error."""
    with Script() as s:
        ask(s, op, rkey=s.mr.rkey ^ 1)
        access_error(s, 500)


@ACCESSES
def test_rkey_of_another_pd(op: Op) -> None:
    """10.6.3: a region and the QP must be of one protection domain."""
    with Script() as s:
        other = s.device.alloc_pd().reg_mr(s.buf, ALL_ACCESS)
        ask(s, op, rkey=other.rkey)
        access_error(s, 500)


@ACCESSES
def test_region_without_the_right(op: Op) -> None:
    """10.6.3.1: each kind of remote access is granted on its own."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS & ~RIGHT[op])
        ask(s, op, rkey=mr.rkey)
        access_error(s, 500)


@ACCESSES
def test_region_with_just_the_right(op: Op) -> None:
    """10.6.3.1: and is enough on its own."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, RIGHT[op] | Access.LOCAL_WRITE)
        ask(s, op, rkey=mr.rkey)
        assert len(s.flush_wire()) == 1
        assert s.qp.state == QpState.RTS


@ACCESSES
def test_qp_without_the_right(op: Op) -> None:
    """9.7.4.1.6, 11.2.5.2: what the QP does not allow is an invalid request, whatever the region allows."""
    with Script(access=ALL_ACCESS & ~RIGHT[op]) as s:
        ask(s, op)
        invalid(s, 500)


@ACCESSES
def test_region_that_was_deregistered(op: Op) -> None:
    """10.6.3: its key means nothing any more."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        mr.dereg()
        ask(s, op, rkey=mr.rkey)
        access_error(s, 500)


@pytest.mark.parametrize("op", [Op.WRITE_ONLY, Op.READ_REQUEST])
@pytest.mark.parametrize("offset", [-1, -8, SIZE - 7, SIZE, SIZE + PAGE])
def test_beyond_the_region(op: Op, offset: int) -> None:
    """9.4.1.1: every byte of the access lies in the region."""
    with Script() as s:
        ask(s, op, va=s.va + offset)
        access_error(s, 500)


@pytest.mark.parametrize("op", [Op.WRITE_ONLY, Op.READ_REQUEST, Op.FETCH_ADD])
@pytest.mark.parametrize("va", [0, 8, 1 << 63, (1 << 64) - 8, (1 << 63) - 8])
def test_wild_address(op: Op, va: int) -> None:
    """9.4.1.1: no address is so large that it wraps into a region."""
    with Script() as s:
        ask(s, op, va=va)
        access_error(s, 500)


@pytest.mark.parametrize("op", [Op.WRITE_ONLY, Op.READ_REQUEST])
def test_region_at_the_top_of_the_address_space(op: Op) -> None:
    """9.4.1.1: iova + length may reach 2^63 - 1 and the check must not overflow."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf[:8], ALL_ACCESS, iova=(1 << 63) - 1 - 8)
        ask(s, op, rkey=mr.rkey, va=(1 << 63) - 1 - 8)
        assert len(s.flush_wire()) == 1
        if op == Op.WRITE_ONLY:
            assert s.memory(0, 8) == b"8 bytes!"
            s.buf[:8] = range(8)
        ask(s, op, 501, rkey=mr.rkey, va=(1 << 63) - 8)
        access_error(s, 501)


def test_length_beyond_the_region_is_found_at_the_first_packet() -> None:
    """9.7.4.1.6: the RETH names the whole message; not one byte of it is written."""
    with Script() as s:
        s.inject(Op.WRITE_FIRST, 500, bytes(256), va=s.va + SIZE - 600, dmalen=601)
        access_error(s, 500)


def test_region_taken_away_in_mid_message() -> None:
    """9.7.4.1.6: the rest of a WRITE is checked against the keys as they are when it arrives."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        s.inject(Op.WRITE_FIRST, 500, s.memory(0, 256), rkey=mr.rkey, dmalen=600)
        mr.dereg()
        s.inject(Op.WRITE_MIDDLE, 501, bytes(256))
        access_error(s, 501)


def test_receive_in_hand_completes_when_access_is_denied() -> None:
    """11.6.2: a WRITE with immediate that may not write fails the receive WQE it took: local access error."""
    with Script() as s:
        s.post_recv(10, wr_id=1)
        s.post_recv(10, wr_id=2)
        s.inject(Op.WRITE_ONLY_IMM, 500, b"x", rkey=0xBAD, imm=1)
        access_error(s, 500)
        s.received(1, WcStatus.LOC_ACCESS_ERR)
        s.received(2, WcStatus.WR_FLUSH_ERR)


# --- order of packets -----------------------------------------------------------------------------------------

FIRST = {
    "send": (Op.SEND_FIRST, Op.SEND_MIDDLE, Op.SEND_LAST),
    "write": (Op.WRITE_FIRST, Op.WRITE_MIDDLE, Op.WRITE_LAST),
}
CONTINUES = [
    Op.SEND_MIDDLE, Op.SEND_LAST, Op.SEND_LAST_IMM, Op.SEND_LAST_INV, Op.WRITE_MIDDLE, Op.WRITE_LAST, Op.WRITE_LAST_IMM,
]  # fmt: skip
BEGINS = [
    Op.SEND_FIRST, Op.SEND_ONLY, Op.SEND_ONLY_IMM, Op.SEND_ONLY_INV, Op.WRITE_FIRST, Op.WRITE_ONLY, Op.WRITE_ONLY_IMM,
    Op.READ_REQUEST, Op.COMPARE_SWAP, Op.FETCH_ADD,
]  # fmt: skip


@pytest.mark.parametrize("op", CONTINUES)
def test_continuation_of_nothing(op: Op) -> None:
    """9.7.4.1.5: a middle or last packet needs a first one."""
    with Script() as s:
        s.inject(op, 500, bytes(256))
        invalid(s, 500)


@pytest.mark.parametrize("op", [*BEGINS, *CONTINUES])
@pytest.mark.parametrize("message", FIRST)
def test_what_may_follow_a_first_packet(message: str, op: Op) -> None:
    """9.7.4.1.5: a message goes on with packets of its own kind and with no other request."""
    with Script() as s:
        s.post_recv(600, wr_id=1)
        same_kind = (op in (Op.SEND_LAST_IMM, Op.SEND_LAST_INV)) == (message == "send") and op in CONTINUES
        same_kind = op in FIRST[message][1:] or (same_kind and op.name.startswith(message.upper()))
        s.inject(FIRST[message][0], 500, s.memory(0, 256), dmalen=300 if "LAST" in op.name else 600)
        size = 44 if "LAST" in op.name else 256 if op.name.startswith(("SEND", "WRITE")) else 0
        s.inject(op, 501, s.memory(256, size), dmalen=size, inv_rkey=s.pd.reg_mr(bytearray(1)).rkey)
        if same_kind:
            assert s.qp.state == QpState.RTS
            s.rcq.poll()
            return
        invalid(s, 501)
        s.received(1, WcStatus.REM_INV_REQ_ERR if message == "send" else WcStatus.WR_FLUSH_ERR)


@pytest.mark.parametrize("op", [Op.SEND_FIRST, Op.WRITE_FIRST])
@pytest.mark.parametrize("size", [0, 255, 257])
def test_first_packet_is_a_full_one(op: Op, size: int) -> None:
    """9.7.4.1.6: all but the last packet of a message have exactly one path MTU of payload."""
    with Script() as s:
        s.inject(op, 500, bytes(size), dmalen=600)
        if op == Op.WRITE_FIRST:
            invalid(s, 500)
        else:
            s.expect_rnr(500)  # without a receive WQE the length is not looked at


@pytest.mark.parametrize("message", FIRST)
@pytest.mark.parametrize("size", [0, 255, 257])
def test_middle_packet_is_a_full_one(message: str, size: int) -> None:
    """9.7.4.1.6."""
    with Script() as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(FIRST[message][0], 500, s.memory(0, 256), dmalen=1000)
        s.inject(FIRST[message][1], 501, s.memory(256, size))
        invalid(s, 501)
        s.received(1, WcStatus.REM_INV_REQ_ERR if message == "send" else WcStatus.WR_FLUSH_ERR)


@pytest.mark.parametrize("message", FIRST)
@pytest.mark.parametrize("size", [0, 257])
def test_last_packet_is_neither_empty_nor_too_long(message: str, size: int) -> None:
    """9.7.4.1.6: 1 byte to one path MTU."""
    with Script() as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(FIRST[message][0], 500, s.memory(0, 256), dmalen=256 + (size or 44))
        s.inject(FIRST[message][2], 501, s.memory(256, size))
        invalid(s, 501)
        s.received(1, WcStatus.REM_INV_REQ_ERR if message == "send" else WcStatus.WR_FLUSH_ERR)


@pytest.mark.parametrize("op", [Op.SEND_ONLY, Op.WRITE_ONLY])
def test_only_packet_longer_than_the_path_mtu(op: Op) -> None:
    """9.7.4.1.6."""
    with Script() as s:
        s.post_recv(SIZE, wr_id=1)
        s.inject(op, 500, bytes(257))
        invalid(s, 500)
        s.received(1, WcStatus.REM_INV_REQ_ERR if op == Op.SEND_ONLY else WcStatus.WR_FLUSH_ERR)


@pytest.mark.parametrize(("size", "dmalen"), [(10, 9), (10, 11), (0, 1), (10, 0), (1, 0xFFFFFFFF)])
def test_write_only_of_another_length_than_its_reth(size: int, dmalen: int) -> None:
    """9.7.4.1.6: the payload is what the RETH says."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, bytes(size), dmalen=dmalen)
        invalid(s, 500)


@pytest.mark.parametrize("dmalen", [256, 0, 100])
def test_write_first_that_says_it_is_whole(dmalen: int) -> None:
    """9.7.4.1.6: a first packet has more behind it."""
    with Script() as s:
        s.inject(Op.WRITE_FIRST, 500, bytes(256), dmalen=dmalen)
        invalid(s, 500)


@pytest.mark.parametrize(("last", "total"), [(43, 300), (45, 300), (256, 513), (1, 256 + 2)])
def test_write_that_ends_elsewhere(last: int, total: int) -> None:
    """9.7.4.1.6: the packets of a WRITE add up to its RETH length."""
    with Script() as s:
        s.inject(Op.WRITE_FIRST, 500, s.memory(0, 256), dmalen=total)
        s.inject(Op.WRITE_LAST, 501, s.memory(256, last))
        invalid(s, 501)


def test_write_that_goes_on_too_long() -> None:
    """9.7.4.1.6: a middle packet where the last should be."""
    with Script() as s:
        s.inject(Op.WRITE_FIRST, 500, s.memory(0, 256), dmalen=512)
        s.inject(Op.WRITE_MIDDLE, 501, s.memory(256, 256))
        invalid(s, 501)


@pytest.mark.parametrize("op", [Op.WRITE_FIRST, Op.READ_REQUEST])
@pytest.mark.parametrize("dmalen", [(1 << 31) + 1, 0xFFFFFFFF])
def test_message_longer_than_two_gibibytes(op: Op, dmalen: int) -> None:
    """9.7.7.1.3, C9-92: no message is longer than 2^31 bytes."""
    with Script() as s:
        s.inject(op, 500, bytes(256) if op == Op.WRITE_FIRST else b"", dmalen=dmalen)
        invalid(s, 500)


# --- receive WQEs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "room"), [(1, 0), (11, 10), (256, 255)])
def test_receive_too_small(size: int, room: int) -> None:
    """9.9.3, 11.6.2: the peer sees an invalid request, the receiver a local length error."""
    with Script() as s:
        s.post_recv(room, wr_id=1)
        s.post_recv(SIZE, wr_id=2)
        s.inject(Op.SEND_ONLY, 500, bytes(size), ackreq=1)
        invalid(s, 500)
        s.received(1, WcStatus.LOC_LEN_ERR)
        s.received(2, WcStatus.WR_FLUSH_ERR)


def test_receive_too_small_found_in_mid_message() -> None:
    """The same at the packet that does not fit any more; what fitted has been placed."""
    with Script() as s:
        s.post_recv(511, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, s.memory(0, 256))
        s.inject(Op.SEND_MIDDLE, 501, s.memory(256, 256))
        invalid(s, 501)
        s.received(1, WcStatus.LOC_LEN_ERR)


def test_receive_that_fits_exactly() -> None:
    """No byte is too many."""
    with Script() as s:
        s.post_recv(300, wr_id=1)
        s.inject(Op.SEND_FIRST, 500, bytes(256))
        s.inject(Op.SEND_LAST, 501, bytes(44), ackreq=1)
        s.received(1, byte_len=300)
        s.expect_ack(psn=501, msn=1)


def bad_sge(s: Script, how: str) -> Any:
    """An SGE of ten bytes that must not be written."""
    sge = s.mr.sge(0, 10)
    if how == "lkey":
        return sge._replace(lkey=sge.lkey ^ 1)
    if how == "beyond":
        return sge._replace(addr=s.va + SIZE - 9)
    if how == "before":
        return sge._replace(addr=s.va - 1)
    if how == "pd":
        return s.device.alloc_pd().reg_mr(s.buf, ALL_ACCESS).sge(0, 10)
    return s.pd.reg_mr(bytearray(10), Access(0)).sge()


BAD_SGES = pytest.mark.parametrize("how", ["lkey", "beyond", "before", "pd", "read-only"])


@BAD_SGES
def test_receive_that_names_wrong_memory(how: str) -> None:
    """9.9.3, 11.6.2: our own mistake: the peer sees an operational error, the receiver a local protection error."""
    with Script() as s:
        s.post_recv(wr_id=1, sges=[bad_sge(s, how)])
        s.post_recv(10, wr_id=2)
        s.inject(Op.SEND_ONLY, 500, b"0123456789", ackreq=1)
        refused(s, 500, Nak.REMOTE_OPERATIONAL_ERROR, EventType.QP_FATAL)
        s.received(1, WcStatus.LOC_PROT_ERR)
        s.received(2, WcStatus.WR_FLUSH_ERR)
        assert s.count(C.SEND_REMOTE_OP_ERR) == 1


@pytest.mark.parametrize("how", ["lkey", "beyond", "before", "pd"])
def test_send_that_names_wrong_memory(how: str) -> None:
    """11.6.2: nothing is sent; a local protection error, in its turn."""
    from softrnic.verbs import WrOpcode

    with Script() as s:
        s.post(WrOpcode.SEND, 1, wr_id=1)
        s.post(WrOpcode.SEND, wr_id=2, sges=[s.mr.sge(0, 1), bad_sge(s, how)])
        s.post(WrOpcode.SEND, 1, wr_id=3)
        s.post_recv(1, wr_id=4)
        s.expect(Op.SEND_ONLY, psn=100)
        s.flush_wire()
        s.nothing_completed()
        s.ack(100)
        s.sent(1)
        s.sent(2, WcStatus.LOC_PROT_ERR)
        s.sent(3, WcStatus.WR_FLUSH_ERR)
        s.received(4, WcStatus.WR_FLUSH_ERR)
        assert s.qp.state == QpState.ERR


def test_answers_before_the_error_still_go_out() -> None:
    """9.7.5.1, 9.9.3: READs and atomics before the bad request are answered, then comes the NAK."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=300)
        s.inject(Op.FETCH_ADD, 502, swap=0)
        s.inject(Op.WRITE_ONLY, 503, b"x", rkey=0xBAD)
        s.expect(Op.READ_RESPONSE_FIRST, psn=500, payload=s.memory(0, 256))
        s.expect(Op.READ_RESPONSE_LAST, psn=501)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=502)
        access_error(s, 503)


def test_acks_before_the_error_are_in_the_nak() -> None:
    """9.7.5.1.2: what came before the bad request is acknowledged by its NAK."""
    with Script() as s:
        s.inject(Op.WRITE_ONLY, 500, s.memory(0, 1), ackreq=1)
        s.inject(Op.WRITE_ONLY, 501, b"x", rkey=0xBAD)
        s.expect(Op.ACKNOWLEDGE, psn=501, msn=1, syndrome=0x62)
        s.expect_event(EventType.QP_ACCESS_ERR)


def test_error_by_modify_sends_nothing() -> None:
    """10.3.1.7: a QP taken to the error state is silent, whatever it owed."""
    with Script() as s:
        s.inject(Op.READ_REQUEST, 500, dmalen=300)
        s.inject(Op.WRITE_ONLY, 502, ackreq=1)
        s.inject(Op.WRITE_ONLY, 504, ackreq=1)
        s.qp.modify(QpState.ERR)
        s.expect_nothing()
