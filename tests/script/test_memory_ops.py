"""Fast registration, invalidation and memory windows as work requests (IBTA 10.6.6 to 10.6.8)."""

from __future__ import annotations

from typing import Any

import pytest

from softrnic.verbs import Access, EventType, Mr, Mw, QpState, QpType, WcOpcode, WcStatus, WrOpcode
from tests.script.harness import ALL_ACCESS, FENCE, PAGE, SIGNALED, SIZE, UNSIGNALED, Nak, Op, Script

SEND, READ, LOCAL_INV, REG_MR, BIND = (
    WrOpcode.SEND, WrOpcode.RDMA_READ, WrOpcode.LOCAL_INV, WrOpcode.REG_MR, WrOpcode.BIND_MW,
)  # fmt: skip
RW = Access.REMOTE_READ | Access.REMOTE_WRITE


def reads(s: Script, psn: int, rkey: int, va: int, length: int = 8) -> bool:
    """Whether the peer may read there. If not, the QP has failed."""
    s.inject(Op.READ_REQUEST, psn, rkey=rkey, va=va, dmalen=length)
    answer = s.flush_wire()[0]
    if answer.opcode == Op.READ_RESPONSE_ONLY:
        return True
    assert answer.syndrome == 0x60 | Nak.REMOTE_ACCESS_ERROR
    s.expect_event(EventType.QP_ACCESS_ERR)
    return False


def writes(s: Script, psn: int, rkey: int, va: int) -> bool:
    """Whether the peer may write there."""
    s.inject(Op.WRITE_ONLY, psn, b"x", rkey=rkey, va=va, ackreq=1)
    answer = s.flush_wire()[0]
    if answer.syndrome == 0x60 | Nak.REMOTE_ACCESS_ERROR:
        s.expect_event(EventType.QP_ACCESS_ERR)
        return False
    return True


def do(s: Script, opcode: WrOpcode, status: WcStatus = WcStatus.SUCCESS, **wr: Any) -> None:
    """Post a local operation and see it complete."""
    s.post(opcode, wr_id=77, **wr)
    s.expect_nothing()
    s.sent(77, status)


# --- invalidation -------------------------------------------------------------------------------------------------


def test_local_invalidate() -> None:
    """10.6.7.2: the key means nothing from then on, locally and remotely."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        assert reads(s, 500, mr.rkey, s.va)
        do(s, LOCAL_INV, rkey=mr.rkey)
        assert not mr.valid
        assert not reads(s, 501, mr.rkey, s.va)


def test_local_use_after_invalidation() -> None:
    """10.6.7.2: an SGE may not name it either."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        s.post(LOCAL_INV, wr_id=1, rkey=mr.rkey)
        s.post(SEND, wr_id=2, sges=[mr.sge(0, 1)])
        s.expect_nothing()
        s.sent(1, opcode=WcOpcode.LOCAL_INV)
        s.sent(2, WcStatus.LOC_PROT_ERR)


def test_invalidation_keeps_its_place_in_the_queue() -> None:
    """10.8.3.3: it runs when its turn comes, and completes after what was posted before it."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        s.post(SEND, 300, wr_id=1)
        s.post(LOCAL_INV, wr_id=2, rkey=mr.rkey)
        s.post(SEND, 1, wr_id=3)
        assert len(s.flush_wire()) == 3
        s.nothing_completed()
        s.ack(101)
        s.sent(1)
        s.sent(2)
        s.ack(102)
        s.sent(3)


def test_fenced_invalidation_waits_for_reads() -> None:
    """10.6.7.2, 10.8.3.3: a fence keeps the key valid until the READ that uses it is answered."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        s.post(READ, wr_id=1, sges=[mr.sge(0, 4)])
        s.post(LOCAL_INV, wr_id=2, rkey=mr.rkey, flags=FENCE | SIGNALED)
        s.expect(Op.READ_REQUEST, psn=100)
        s.expect_nothing()
        assert mr.valid
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"data")
        s.sent(1)
        s.expect_nothing()
        s.sent(2)
        assert not mr.valid


def test_go_back_does_not_repeat_a_local_operation() -> None:
    """What has run has run, whatever is sent again."""
    with Script() as s:
        mr = s.pd.alloc_mr(s.buf)
        s.post(SEND, 1, wr_id=1)
        s.post(REG_MR, wr_id=2, rkey=mr.rkey, remote_addr=s.va, access=ALL_ACCESS)
        s.post(SEND, 1, wr_id=3)
        s.flush_wire()
        s.nak(100, Nak.PSN_SEQUENCE_ERROR)
        assert [p.psn for p in s.flush_wire()] == [100, 101]
        s.ack(101)
        for wr_id in (1, 2, 3):
            s.sent(wr_id)


@pytest.mark.parametrize("what", ["unknown", "invalid", "pd", "type 1 window", "bound"])
def test_what_cannot_be_invalidated(what: str) -> None:
    """10.6.7.2, 11.6.2: a memory management operation error; the QP fails with it."""
    with Script() as s:
        mr = (s.device.alloc_pd() if what == "pd" else s.pd).reg_mr(s.buf, ALL_ACCESS)
        rkey = mr.rkey
        if what == "unknown":
            rkey ^= 1
        elif what == "invalid":
            do(s, LOCAL_INV, rkey=rkey)
        elif what in ("type 1 window", "bound"):
            mw = s.pd.alloc_mw(1)
            bind(s, mw, mr)
            rkey = mw.rkey if what == "type 1 window" else mr.rkey
        do(s, LOCAL_INV, WcStatus.MW_BIND_ERR, rkey=rkey)
        assert s.qp.state == QpState.ERR


def test_unsignaled_operations_are_silent() -> None:
    """10.8.2."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        s.post(LOCAL_INV, rkey=mr.rkey, flags=UNSIGNALED)
        s.expect_nothing()
        assert not mr.valid


@pytest.mark.parametrize("kind", [QpType.RC, QpType.UC])
def test_invalidation_on_every_connected_transport(kind: QpType) -> None:
    """10.6.7: local operations do not depend on the transport."""
    with Script(kind) as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        do(s, LOCAL_INV, rkey=mr.rkey)


def test_no_local_operations_on_ud() -> None:
    """10.6.7."""
    with Script(QpType.UD) as s:
        do(s, LOCAL_INV, WcStatus.LOC_QP_OP_ERR, rkey=s.mr.rkey)


# --- SEND with invalidate -----------------------------------------------------------------------------------------


def test_remote_invalidate() -> None:
    """10.6.7.3: the receiver learns which key is gone."""
    with Script() as s:
        mr = s.pd.reg_mr(bytearray(8), ALL_ACCESS)
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY_INV, 500, b"x", inv_rkey=mr.rkey, ackreq=1)
        s.received(1, imm=mr.rkey, wc_flags=16)
        s.expect_ack(psn=500, msn=1)
        assert not mr.valid
        assert not reads(s, 501, mr.rkey, mr.addr)


@pytest.mark.parametrize("what", ["unknown", "invalid", "pd", "type 1 window", "bound", "window of another QP"])
def test_what_the_peer_cannot_invalidate(what: str) -> None:
    """10.6.7.3: a remote access error; the receive fails."""
    with Script() as s:
        mr = (s.device.alloc_pd() if what == "pd" else s.pd).reg_mr(s.buf, ALL_ACCESS)
        rkey = mr.rkey
        if what == "unknown":
            rkey ^= 1
        elif what == "invalid":
            do(s, LOCAL_INV, rkey=rkey)
        elif what in ("type 1 window", "bound"):
            mw = s.pd.alloc_mw(1)
            bind(s, mw, mr)
            rkey = mw.rkey if what == "type 1 window" else mr.rkey
        elif what == "window of another QP":
            mw = s.pd.alloc_mw(2)
            bind(s, mw, mr)
            s.device.record["mrs"][mw.index]["qp"] += 1
            rkey = mw.rkey
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY_INV, 500, b"x", inv_rkey=rkey)
        s.expect_nak(500, Nak.REMOTE_ACCESS_ERROR)
        s.expect_event(EventType.QP_ACCESS_ERR)
        assert s.rcq.poll()[0].status != WcStatus.SUCCESS


def test_duplicate_does_not_invalidate_again() -> None:
    """9.7.5.1.3, 10.6.7.3: the key may be in use for something new by then."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY_INV, 500, b"x", inv_rkey=mr.rkey, ackreq=1)
        s.expect_ack(psn=500, msn=1)
        s.received(1)
        do(s, REG_MR, rkey=mr.rkey, remote_addr=s.va, access=ALL_ACCESS)
        s.inject(Op.SEND_ONLY_INV, 500, b"x", inv_rkey=mr.rkey, ackreq=1)
        s.expect_ack(psn=500, msn=1)
        assert mr.valid


# --- fast registration --------------------------------------------------------------------------------------------


def test_fast_registration() -> None:
    """10.6.8: an allocated region gets its address and its rights by a work request."""
    with Script() as s:
        mr: Mr = s.pd.alloc_mr(s.buf)
        assert not mr.valid
        do(s, REG_MR, rkey=mr.rkey, remote_addr=0x10000, access=Access.REMOTE_READ)
        assert mr.valid
        s.inject(Op.READ_REQUEST, 500, rkey=mr.rkey, va=0x10000 + PAGE, dmalen=8)
        s.expect(Op.READ_RESPONSE_ONLY, psn=500, payload=s.memory(PAGE, 8))
        assert not writes(s, 501, mr.rkey, 0x10000)


def test_key_before_registration() -> None:
    """10.6.8: a region without mapping has no access at all."""
    with Script() as s:
        mr = s.pd.alloc_mr(s.buf)
        assert not reads(s, 500, mr.rkey, s.va)


def test_registration_in_use() -> None:
    """10.6.8: a region must be invalidated before it is registered anew."""
    with Script() as s:
        mr = s.pd.alloc_mr(s.buf)
        do(s, REG_MR, rkey=mr.rkey, remote_addr=0, access=ALL_ACCESS)
        do(s, LOCAL_INV, rkey=mr.rkey)
        do(s, REG_MR, rkey=mr.rkey, remote_addr=PAGE, access=ALL_ACCESS)
        assert reads(s, 500, mr.rkey, PAGE)
        do(s, REG_MR, WcStatus.MW_BIND_ERR, rkey=mr.rkey, remote_addr=0, access=ALL_ACCESS)


def test_registered_and_used_in_one_go() -> None:
    """10.8.3.3: a request behind the registration may use the key at once."""
    with Script() as s:
        mr = s.pd.alloc_mr(s.buf)
        s.post(REG_MR, wr_id=1, rkey=mr.rkey, remote_addr=0, access=Access.LOCAL_WRITE)
        s.post(READ, wr_id=2, sges=[mr.sge(0, 4)._replace(addr=PAGE)])
        s.expect(Op.READ_REQUEST, psn=100)
        s.sent(1, opcode=WcOpcode.REG_MR)
        s.inject(Op.READ_RESPONSE_ONLY, 100, b"data")
        s.sent(2)
        assert s.memory(PAGE, 4) == b"data"


# --- memory windows -------------------------------------------------------------------------------------------------


def bind(s: Script, mw: Mw, mr: Mr, *, at: int = 0, length: int = PAGE, access: Access = RW,
         status: WcStatus = WcStatus.SUCCESS) -> None:  # fmt: skip
    """Bind a window to part of a region."""
    do(s, BIND, status, rkey=mw.rkey, bind_mr=mr, remote_addr=mr.iova + at, bind_length=length, access=access)


KINDS = pytest.mark.parametrize("kind", [1, 2])


@KINDS
def test_window_opens_a_part(kind: int) -> None:
    """10.6.6.2: what the window grants and not a byte more, whatever the region behind it allows."""
    with Script() as s:
        mw = s.pd.alloc_mw(kind)
        assert not mw.valid
        bind(s, mw, s.mr, at=PAGE, length=PAGE)
        assert mw.valid
        s.inject(Op.READ_REQUEST, 500, rkey=mw.rkey, va=s.va + PAGE, dmalen=8)
        s.expect(Op.READ_RESPONSE_ONLY, psn=500, payload=s.memory(PAGE, 8))
        assert reads(s, 501, mw.rkey, s.va + 2 * PAGE - 8)
        assert not reads(s, 502, mw.rkey, s.va + 2 * PAGE - 7)


@KINDS
def test_window_before_it_is_bound(kind: int) -> None:
    """10.6.6: an unbound window grants nothing."""
    with Script() as s:
        assert not reads(s, 500, s.pd.alloc_mw(kind).rkey, s.va)


@KINDS
def test_window_with_fewer_rights(kind: int) -> None:
    """10.6.6.2: read only."""
    with Script() as s:
        mw = s.pd.alloc_mw(kind)
        bind(s, mw, s.mr, access=Access.REMOTE_READ)
        assert reads(s, 500, mw.rkey, s.va)
        assert not writes(s, 501, mw.rkey, s.va)


@KINDS
def test_window_over_a_region_without_remote_rights(kind: int) -> None:
    """10.6.6.2: the window's rights count, not the region's; writing needs local write permission."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, Access.LOCAL_WRITE | Access.MW_BIND)
        mw = s.pd.alloc_mw(kind)
        bind(s, mw, mr)
        assert writes(s, 500, mw.rkey, s.va)
        assert not reads(s, 501, mr.rkey, s.va)


def test_atomics_through_a_window() -> None:
    """10.6.6.2."""
    with Script() as s:
        mw = s.pd.alloc_mw(2)
        bind(s, mw, s.mr, at=8, length=8, access=Access.REMOTE_ATOMIC)
        s.inject(Op.FETCH_ADD, 500, rkey=mw.rkey, va=s.va + 8, swap=1)
        s.expect(Op.ATOMIC_ACKNOWLEDGE, psn=500)


@KINDS
@pytest.mark.parametrize("what", ["no MW_BIND", "no LOCAL_WRITE", "pd of the region", "range", "before", "invalid"])
def test_what_cannot_be_bound(kind: int, what: str) -> None:
    """10.6.6.2, 11.6.2: a memory management operation error."""
    with Script() as s:
        access = {"no MW_BIND": ALL_ACCESS & ~Access.MW_BIND, "no LOCAL_WRITE": Access.MW_BIND}.get(what, ALL_ACCESS)
        pd = s.device.alloc_pd() if what == "pd of the region" else s.pd
        mr = pd.reg_mr(s.buf, access)
        if what == "invalid":
            do(s, LOCAL_INV, rkey=mr.rkey)
        at = {"range": SIZE - PAGE + 1, "before": -1}.get(what, 0)
        mw = s.pd.alloc_mw(kind)
        bind(s, mw, mr, at=at, status=WcStatus.MW_BIND_ERR)
        assert not mw.valid
        assert s.qp.state == QpState.ERR
        mr.dereg()


@KINDS
def test_window_of_another_pd(kind: int) -> None:
    """10.6.6.2: window, region and QP are of one protection domain."""
    with Script() as s:
        bind(s, s.device.alloc_pd().alloc_mw(kind), s.mr, status=WcStatus.MW_BIND_ERR)


def test_region_is_no_window() -> None:
    """10.6.6.2: the key of a region cannot be bound."""
    with Script() as s:
        do(s, BIND, WcStatus.MW_BIND_ERR, rkey=s.mr.rkey, bind_mr=s.mr, remote_addr=s.va, bind_length=8, access=RW)


def test_window_over_a_window() -> None:
    """10.6.6.2: only a region can be behind one."""
    with Script() as s:
        mw = s.pd.alloc_mw(1)
        bind(s, mw, s.mr)
        inner: Any = s.pd.alloc_mw(1)
        do(s, BIND, WcStatus.MW_BIND_ERR, rkey=inner.rkey, bind_mr=mw, remote_addr=s.va, bind_length=8, access=RW)


def test_type_1_is_bound_again_and_unbound() -> None:
    """10.6.6.2: a bind replaces the one before; a zero length takes it away."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        mw = s.pd.alloc_mw(1)
        bind(s, mw, s.mr, at=0)
        bind(s, mw, mr, at=PAGE)
        assert reads(s, 500, mw.rkey, s.va + PAGE)
        bind(s, mw, mr, length=0)
        assert not mw.valid
        mr.dereg()  # nothing is bound to it any more
        assert not reads(s, 501, mw.rkey, s.va + PAGE)


def test_type_2_is_bound_once() -> None:
    """10.6.6.2: it must be invalidated first."""
    with Script() as s:
        mw = s.pd.alloc_mw(2)
        bind(s, mw, s.mr)
        do(s, LOCAL_INV, rkey=mw.rkey)
        assert not mw.valid
        bind(s, mw, s.mr, at=PAGE)
        assert reads(s, 500, mw.rkey, s.va + PAGE)
        bind(s, mw, s.mr, status=WcStatus.MW_BIND_ERR)


def test_type_2_belongs_to_its_qp() -> None:
    """10.6.6, o10-36: it is of no use on another QP."""
    with Script() as s:
        mw = s.pd.alloc_mw(2)
        other = s.pd.create_qp(QpType.RC, s.scq, s.rcq)
        for state, attr in ((QpState.INIT, s.init), (QpState.RTR, s.rtr), (QpState.RTS, s.rts)):
            other.modify(state, **attr)
        bind(s, mw, s.mr)
        s.inject(Op.READ_REQUEST, 500, rkey=mw.rkey, va=s.va, dmalen=8, dqpn=other.qpn)
        s.expect_nak(500, Nak.REMOTE_ACCESS_ERROR)
        s.expect_event(EventType.QP_ACCESS_ERR, other)
        assert reads(s, 500, mw.rkey, s.va)


def test_type_1_belongs_to_its_pd() -> None:
    """10.6.6: any QP of the domain may be the way to it."""
    with Script() as s:
        mw = s.pd.alloc_mw(1)
        other = s.pd.create_qp(QpType.RC, s.scq, s.rcq)
        for state, attr in ((QpState.INIT, s.init), (QpState.RTR, s.rtr), (QpState.RTS, s.rts)):
            other.modify(state, **attr)
        bind(s, mw, s.mr)
        s.inject(Op.READ_REQUEST, 500, rkey=mw.rkey, va=s.va, dmalen=8, dqpn=other.qpn)
        s.expect(Op.READ_RESPONSE_ONLY, psn=500)


def test_type_2_is_remotely_invalidated() -> None:
    """10.6.7.3: by a SEND on its own QP; the region behind it is free again."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        mw = s.pd.alloc_mw(2)
        bind(s, mw, mr)
        s.post_recv(10, wr_id=1)
        s.inject(Op.SEND_ONLY_INV, 500, b"x", inv_rkey=mw.rkey, ackreq=1)
        s.expect_ack(psn=500, msn=1)
        s.received(1, imm=mw.rkey)
        assert not mw.valid
        mr.dereg()


def test_window_dies_with_its_qp() -> None:
    """10.6.6: a type 2 window bound on a QP that is destroyed is unbound."""
    with Script() as s:
        mr = s.pd.reg_mr(s.buf, ALL_ACCESS)
        mw = s.pd.alloc_mw(2)
        bind(s, mw, mr)
        s.qp.destroy()
        assert not mw.valid
        mr.dereg()


@KINDS
def test_window_in_mid_message(kind: int) -> None:
    """9.7.4.1.6: the rest of a WRITE is checked against the window as it is by then."""
    with Script() as s:
        mw = s.pd.alloc_mw(kind)
        bind(s, mw, s.mr)
        s.inject(Op.WRITE_FIRST, 500, bytes(256), rkey=mw.rkey, dmalen=300)
        mw.dealloc()
        s.inject(Op.WRITE_LAST, 501, bytes(44))
        s.expect_nak(501, Nak.REMOTE_ACCESS_ERROR)
        s.expect_event(EventType.QP_ACCESS_ERR)


@KINDS
def test_window_is_no_lkey(kind: int) -> None:
    """10.6.6: a window grants remote access only."""
    with Script() as s:
        mw = s.pd.alloc_mw(kind)
        bind(s, mw, s.mr)
        s.post(SEND, wr_id=1, sges=[s.mr.sge(0, 1)._replace(lkey=mw.rkey)])
        s.expect_nothing()
        s.sent(1, WcStatus.LOC_PROT_ERR)
