"""The completer: what the peer answers retires send WQEs or sends the requester back (IBTA 9.7.5.1, 9.7.6).

Answers are taken in PSN order only. One that is ahead shows that an earlier one was lost: everything that needs no
data is acknowledged by it, and the first READ or atomic without its answer is asked for again (implied NAK).
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import addr_of, i64, inline, st64
from softrnic.layout import PageWait, ReqWait, StopFlag, WqeState
from softrnic.mem.copy import scatter
from softrnic.mem.space import MEM_FAULT, MEM_OK
from softrnic.qp.answer import CREDITS
from softrnic.qp.finish import complete_send, fail_send
from softrnic.qp.pagewait import pause
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.qp.requester import retire_local, wqe_sge_base
from softrnic.qp.retransmit import (
    go_back,
    note_life,
    note_progress,
    peer_has_stopped,
    peer_is_awake,
    rewind,
    rnr_retry,
    sequence_retry,
)
from softrnic.qp.sched import schedule
from softrnic.spec import CREDITS_INVALID, AethKind, Nak, QpState, WcStatus, WrOpcode
from softrnic.wire.headers import AETH_LEN, aeth_msn, aeth_syndrome, atomicacketh_orig
from softrnic.wire.opcodes import OpFlag


@inline
def receive_response(eng, buf, qp, qp_index, pkt):
    """One response packet for an RC QP that may have requests outstanding."""
    if psn_diff(pkt.psn, i64(qp["req_hi_psn"])) >= 0:
        eng["counters"][C.DROP_GHOST_ACK] += 1
        return
    if psn_diff(pkt.psn, i64(qp["una_psn"])) < 0:
        _old_response(eng, buf, qp, qp_index, pkt)
        return
    if pkt.flags & OpFlag.ACK:
        _receive_ack(eng, buf, qp, qp_index, pkt)
    else:
        _receive_data(eng, buf, qp, qp_index, pkt)


@inline
def _old_response(eng, buf, qp, qp_index, pkt):
    """Nothing new, but the latest ACK may bring new credits (9.7.7.2.5)."""
    if pkt.flags & OpFlag.ACK and psn_add(pkt.psn, 1) == i64(qp["una_psn"]):
        syndrome = aeth_syndrome(buf, pkt.ext)
        if syndrome >> 5 == AethKind.ACK:
            if qp["req_wait"] == ReqWait.RESUMED:
                peer_is_awake(eng, qp, qp_index)
            take_credits(qp, syndrome, aeth_msn(buf, pkt.ext))
            schedule(eng, qp, qp_index)
            return
    if pkt.flags & OpFlag.READ:
        note_life(eng, qp, qp_index)
    eng["counters"][C.DROP_GHOST_ACK] += 1


@inline
def take_credits(qp, syndrome, msn):
    """The peer's receive credits count from its MSN (9.7.7.2.1)."""
    code = syndrome & 0x1F
    if code == CREDITS_INVALID:
        qp["credits_valid"] = 0
        return
    limit = psn_add(msn, i64(CREDITS[code]))
    if qp["credits_valid"] == 0 or psn_diff(limit, i64(qp["limit_ssn"])) > 0:
        qp["limit_ssn"] = limit
    qp["credits_valid"] = 1


@inline
def _head(eng, qp):
    return eng["wqes"][i64(qp["sq_base"]) + (i64(qp["sq_head"]) & i64(qp["sq_mask"]))]


@inline
def _wants_data(wqe):
    return (
        wqe["opcode"] == WrOpcode.RDMA_READ
        or wqe["opcode"] == WrOpcode.ATOMIC_CMP_AND_SWP
        or wqe["opcode"] == WrOpcode.ATOMIC_FETCH_AND_ADD
    )


@inline
def acknowledge_through(eng, qp, qp_index, psn):
    """Everything up to `psn` arrived. False: a READ or atomic at or before it has not been answered.

    una_psn never moves past such a READ or atomic.
    """
    start = i64(qp["una_psn"])
    answered = True
    while i64(qp["sq_head"]) < i64(qp["sq_hi"]):
        wqe = _head(eng, qp)
        if wqe["state"] != WqeState.STARTED:
            before = i64(qp["sq_head"])
            retire_local(eng, qp, qp_index)
            if i64(qp["sq_head"]) == before:
                break
            continue
        if psn_diff(psn, i64(wqe["first_psn"])) < 0:
            break
        if _wants_data(wqe):
            if psn_diff(i64(wqe["first_psn"]), i64(qp["una_psn"])) > 0:
                qp["una_psn"] = wqe["first_psn"]
            answered = psn_diff(psn, i64(qp["una_psn"])) < 0
            break
        if psn_diff(i64(wqe["last_psn"]), psn) > 0:
            qp["una_psn"] = psn_add(psn, 1)
            break
        qp["una_psn"] = psn_add(i64(wqe["last_psn"]), 1)
        complete_send(eng, qp, qp_index, WcStatus.SUCCESS)
    settle(eng, qp, qp_index, psn_diff(i64(qp["una_psn"]), start))
    return answered


@inline
def settle(eng, qp, qp_index, npsn):
    """After una_psn moved by `npsn`: what was to be sent again but has arrived meanwhile is skipped."""
    if qp["state"] == QpState.ERR:
        return
    retire_local(eng, qp, qp_index)
    if qp["state"] == QpState.ERR:
        return
    if i64(qp["sq_cur"]) < i64(qp["sq_head"]) or psn_diff(i64(qp["una_psn"]), i64(qp["req_psn"])) > 0:
        _skip_acknowledged(eng, qp)
    if npsn > 0:
        note_progress(eng, qp, qp_index, npsn)
    schedule(eng, qp, qp_index)


@inline
def _skip_acknowledged(eng, qp):
    head = i64(qp["sq_head"])
    qp["sq_cur"] = head
    qp["req_psn"] = qp["una_psn"]
    qp["req_off"] = 0
    qp["rd_out"] = 0
    if head < i64(qp["sq_hi"]):
        wqe = _head(eng, qp)
        if wqe["state"] == WqeState.STARTED:
            done = psn_diff(i64(qp["una_psn"]), i64(wqe["first_psn"]))
            qp["req_off"] = max(0, done) * i64(qp["pmtu"])


@inline
def _will_ask_again(qp):
    """Data came for which there was no page; it and all that follows is asked for when there is."""
    return i64(qp["fault"]) & PageWait.REQUESTER.value != 0 and qp["req_psn"] == qp["una_psn"]


@inline
def _implied_nak(eng, qp, qp_index):
    if qp["req_wait"] == ReqWait.RESUMED:
        peer_is_awake(eng, qp, qp_index)  # it heard our RESUME; what is missing was lost on the move
        return
    if _will_ask_again(qp):
        return
    eng["counters"][C.IMPLIED_NAK_SEQ_ERR] += 1
    sequence_retry(eng, qp, qp_index)


@inline
def _is_replay(qp, psn):
    """Of a response ahead of the one awaited: whether its PSN has gone back since the last such one. Then the peer has
    begun to answer again, and the first packet of that is lost too. It is alive, so this spends no retry.
    """
    again = qp["gap_valid"] != 0 and qp["gap_psn"] == qp["una_psn"] and psn_diff(psn, i64(qp["ahead_psn"])) <= 0
    qp["ahead_psn"] = psn
    return again and qp["req_wait"] == ReqWait.NONE


@inline
def _receive_ack(eng, buf, qp, qp_index, pkt):
    syndrome = aeth_syndrome(buf, pkt.ext)
    kind = (syndrome >> 5) & 3
    if syndrome & 0x80 or kind == 2:
        eng["counters"][C.BAD_RESPONSE] += 1  # reserved (9.7.5.2.1)
        return
    if kind == AethKind.ACK:
        take_credits(qp, syndrome, aeth_msn(buf, pkt.ext))
        if not acknowledge_through(eng, qp, qp_index, pkt.psn) and qp["state"] != QpState.ERR:
            _implied_nak(eng, qp, qp_index)
        return
    # a NAK acknowledges everything before its PSN
    answered = acknowledge_through(eng, qp, qp_index, psn_add(pkt.psn, -1))
    if qp["state"] == QpState.ERR:
        return
    if not answered or qp["una_psn"] != pkt.psn:
        _implied_nak(eng, qp, qp_index)
    elif kind == AethKind.RNR_NAK:
        rnr_retry(eng, qp, qp_index, syndrome & 0x1F)
    else:
        _receive_nak(eng, qp, qp_index, syndrome & 0x1F)


@inline
def _receive_nak(eng, qp, qp_index, code):
    """A NAK for the oldest packet (9.9.2.1.2): go back, or fail its WQE."""
    if code == Nak.PSN_SEQUENCE_ERROR:
        eng["counters"][C.RCVD_SEQ_ERR] += 1
        sequence_retry(eng, qp, qp_index)
        return
    if code == Nak.STOPPED and i64(qp["stop"]) & StopFlag.STOP.value:
        peer_has_stopped(eng, qp, qp_index)
        return
    eng["counters"][C.RCVD_REMOTE_ERR] += 1
    if code == Nak.INVALID_REQUEST:
        fail_send(eng, qp, qp_index, WcStatus.REM_INV_REQ_ERR)
    elif code == Nak.REMOTE_ACCESS_ERROR:
        fail_send(eng, qp, qp_index, WcStatus.REM_ACCESS_ERR)
    elif code == Nak.REMOTE_OPERATIONAL_ERROR:
        fail_send(eng, qp, qp_index, WcStatus.REM_OP_ERR)
    else:
        eng["counters"][C.BAD_RESPONSE] += 1
        fail_send(eng, qp, qp_index, WcStatus.BAD_RESP_ERR)


@inline
def _receive_data(eng, buf, qp, qp_index, pkt):
    """A READ response or atomic acknowledgement: data for the oldest WQE, which must be the one that asked."""
    if _will_ask_again(qp):
        return
    if pkt.psn != i64(qp["una_psn"]):
        answered = acknowledge_through(eng, qp, qp_index, psn_add(pkt.psn, -1))
        if qp["state"] == QpState.ERR:
            return
        if not answered or pkt.psn != i64(qp["una_psn"]):
            if _is_replay(qp, pkt.psn):
                eng["counters"][C.IMPLIED_NAK_SEQ_ERR] += 1
                go_back(eng, qp, qp_index)
            else:
                _implied_nak(eng, qp, qp_index)
            return
    wqe = _head(eng, qp)
    atomic = pkt.flags & OpFlag.ATOMIC != 0
    if wqe["state"] != WqeState.STARTED or not _wants_data(wqe) or (wqe["opcode"] != WrOpcode.RDMA_READ) != atomic:
        eng["counters"][C.BAD_RESPONSE] += 1
        return
    if pkt.flags & OpFlag.AETH:
        syndrome = aeth_syndrome(buf, pkt.ext)
        if syndrome & 0xE0:
            eng["counters"][C.BAD_RESPONSE] += 1
            return
        take_credits(qp, syndrome, aeth_msn(buf, pkt.ext))
    if atomic:
        _take_atomic(eng, buf, qp, qp_index, wqe, pkt)
    else:
        _take_read(eng, buf, qp, qp_index, wqe, pkt)


@inline
def _place(eng, buf, qp, qp_index, wqe, offset, src, n):
    """Write answered data to the WQE's SGEs; True when the packet counts as received."""
    base = wqe_sge_base(qp, i64(qp["sq_head"]))
    status = scatter(eng, qp, base, i64(wqe["num_sge"]), offset, buf, src, n)
    if status == MEM_OK:
        return True
    if status == MEM_FAULT:
        # drop the answer and ask again when the page is there
        pause(eng, qp, qp_index, PageWait.REQUESTER.value)
        rewind(eng, qp, qp_index)
    else:
        fail_send(eng, qp, qp_index, WcStatus.LOC_PROT_ERR)
    return False


@inline
def _take_read(eng, buf, qp, qp_index, wqe, pkt):
    pmtu = i64(qp["pmtu"])
    offset = psn_diff(pkt.psn, i64(wqe["first_psn"])) * pmtu
    last = pkt.psn == i64(wqe["last_psn"])
    if pkt.length != min(pmtu, i64(wqe["length"]) - offset) or (pkt.flags & OpFlag.LAST != 0) != last:
        eng["counters"][C.BAD_RESPONSE] += 1
        fail_send(eng, qp, qp_index, WcStatus.BAD_RESP_ERR)
        return
    if _place(eng, buf, qp, qp_index, wqe, offset, pkt.payload, pkt.length):
        _answered(eng, qp, qp_index, last)


@inline
def _take_atomic(eng, buf, qp, qp_index, wqe, pkt):
    """The old value goes to memory in host order."""
    at = pkt.ext + AETH_LEN
    st64(addr_of(buf) + at, atomicacketh_orig(buf, at))
    if _place(eng, buf, qp, qp_index, wqe, 0, at, 8):
        _answered(eng, qp, qp_index, True)


@inline
def _answered(eng, qp, qp_index, last):
    """One more packet of the oldest WQE's answer is in place."""
    qp["una_psn"] = psn_add(i64(qp["una_psn"]), 1)
    if last:
        if i64(qp["sq_head"]) < i64(qp["sq_cur"]):
            qp["rd_out"] = max(0, i64(qp["rd_out"]) - 1)
        complete_send(eng, qp, qp_index, WcStatus.SUCCESS)
    settle(eng, qp, qp_index, 1)
