"""What must be true of an engine's records whenever it stands still, whatever came over the wire.

One number per rule, 0 when all hold. Kernel code, cheap enough to be asked after every instant of a simulation and
after every fuzzed frame. Says nothing about what a correct peer sees; that is the business of the oracles.
"""

from __future__ import annotations

from enum import IntEnum

from softrnic.jit import i64, inline
from softrnic.layout import MAX_QP, WHEEL_LEVELS, WHEEL_SLOTS, ReqWait, TimerKind, WqeState
from softrnic.qp.psn import psn_diff
from softrnic.spec import QpState, QpType

_TICK_NS = 4096
_REQUESTER_FAULT = 1


class Broken(IntEnum):
    """Which rule does not hold."""

    NONE           = 0
    SQ_ORDER       = 1  # sq_head <= sq_cur <= sq_hi <= sq_prod, no more than the queue holds
    RQ_ORDER       = 2  # rq_head <= rq_prod, no more than the queue holds
    PSN_ORDER      = 3  # una_psn <= req_psn <= req_hi_psn
    HEAD_PSN       = 4  # una_psn is one of the oldest WQE that was started, if any
    RD_RING        = 5  # rd_head, rd_done <= rd_tail; no more unanswered than the peer was told
    RD_OUT         = 6  # 0 <= rd_out <= max_rd_atomic
    OFFSET         = 7  # req_off lies within the WQE being sent and fits req_psn
    NO_TIMER       = 8  # something is outstanding, and no timer runs
    RNR_TIMER      = 9  # waiting for the RNR timer, which does not run
    STUCK          = 10  # something may be sent, nothing is outstanding, and the QP is not scheduled
    TIMER_LINK     = 11  # the timer runs, but the wheel will look too late or not at all
    WHEEL          = 12  # a slot's list and its bitmap do not agree
    RUN_QUEUE      = 13  # the run queue and QP["sched"] do not agree
    WINDOW         = 14  # cwnd is not positive
    NOT_FLUSHED    = 15  # an error state with work requests left
    CQ_ORDER       = 16  # cons <= prod, no more than the queue holds
    SENDING        = 17  # a frame is half built


@inline
def broken_qp(eng, qp, quiet):
    """The first broken rule of one QP; `quiet`: the engine has just sent all it had to send."""
    if qp["type"] == 0:
        return Broken.NONE.value
    head, cur, hi = i64(qp["sq_head"]), i64(qp["sq_cur"]), i64(qp["sq_hi"])
    prod = i64(qp["sq_prod"])
    if not (0 <= head <= cur <= hi <= prod and prod - head <= i64(qp["sq_mask"]) + 1):
        return Broken.SQ_ORDER.value
    if i64(qp["srq"]) < 0:
        posted = i64(qp["rq_prod"]) - i64(qp["rq_head"])
        if not 0 <= posted <= i64(qp["rq_mask"]) + 1:
            return Broken.RQ_ORDER.value
    if i64(qp["cwnd"]) <= 0:
        return Broken.WINDOW.value
    state = i64(qp["state"])
    if state == QpState.ERR:
        left = head != prod or (i64(qp["srq"]) < 0 and qp["rq_head"] != qp["rq_prod"])
        return Broken.NOT_FLUSHED.value if quiet and left else Broken.NONE.value
    if qp["type"] == QpType.RC:
        return _broken_rc(eng, qp, quiet)
    return Broken.NONE.value


@inline
def _broken_rc(eng, qp, quiet):
    una, psn, top = i64(qp["una_psn"]), i64(qp["req_psn"]), i64(qp["req_hi_psn"])
    if psn_diff(psn, una) < 0 or psn_diff(top, psn) < 0:
        return Broken.PSN_ORDER.value
    tail = i64(qp["rd_tail"])
    if not (0 <= i64(qp["rd_head"]) <= tail and 0 <= i64(qp["rd_done"]) <= tail):
        return Broken.RD_RING.value
    if tail - i64(qp["rd_done"]) > i64(qp["max_dest_rd_atomic"]):
        return Broken.RD_RING.value
    if not 0 <= i64(qp["rd_out"]) <= i64(qp["max_rd_atomic"]):
        return Broken.RD_OUT.value
    wrong = _broken_position(eng, qp)
    if wrong != Broken.NONE.value:
        return wrong
    wrong = _broken_timer(eng, qp)
    if wrong != Broken.NONE.value:
        return wrong
    return _broken_rest(eng, qp) if quiet else Broken.NONE.value


@inline
def _wqe(eng, qp, index):
    return eng["wqes"][i64(qp["sq_base"]) + (index & i64(qp["sq_mask"]))]


@inline
def _broken_position(eng, qp):
    """Where the requester stands: una_psn in the oldest started WQE, req_psn and req_off in the current one."""
    una, psn = i64(qp["una_psn"]), i64(qp["req_psn"])
    if i64(qp["sq_head"]) < i64(qp["sq_hi"]):
        wqe = _wqe(eng, qp, i64(qp["sq_head"]))
        inside = psn_diff(una, i64(wqe["first_psn"])) >= 0 and psn_diff(i64(wqe["last_psn"]), una) >= 0
        if wqe["state"] == WqeState.STARTED and not inside:
            return Broken.HEAD_PSN.value
    elif una != i64(qp["req_hi_psn"]):
        return Broken.HEAD_PSN.value
    if i64(qp["sq_cur"]) < i64(qp["sq_hi"]):
        wqe = _wqe(eng, qp, i64(qp["sq_cur"]))
        if wqe["state"] == WqeState.STARTED:
            done = psn_diff(psn, i64(wqe["first_psn"]))
            if done < 0 or psn_diff(psn, i64(wqe["last_psn"])) > 0 or done * i64(qp["pmtu"]) != i64(qp["req_off"]):
                return Broken.OFFSET.value
    elif psn != i64(qp["req_hi_psn"]):
        return Broken.OFFSET.value
    return Broken.NONE.value


@inline
def _broken_timer(eng, qp):
    if qp["timer"] == TimerKind.NONE:
        return Broken.NONE.value
    if i64(qp["timer_slot"]) < 0 or i64(qp["wheel_at"]) > i64(qp["deadline"]) + 2 * _TICK_NS:
        return Broken.TIMER_LINK.value
    return Broken.NONE.value


@inline
def _broken_rest(eng, qp):
    """A QP in RTS or SQD that has had its turn waits for something that will come."""
    state = i64(qp["state"])
    if (state != QpState.RTS and state != QpState.SQD) or i64(qp["fault"]) & _REQUESTER_FAULT:
        return Broken.NONE.value
    if qp["req_wait"] == ReqWait.RNR:
        return Broken.NONE.value if qp["timer"] == TimerKind.RNR else Broken.RNR_TIMER.value
    if qp["una_psn"] != qp["req_hi_psn"]:
        if i64(qp["timeout"]) > 0 and qp["timer"] != TimerKind.ACK:
            return Broken.NO_TIMER.value
    elif i64(qp["sq_cur"]) < i64(qp["sq_prod"]) and state == QpState.RTS and qp["sched"] == 0:
        return Broken.STUCK.value
    return Broken.NONE.value


@inline
def broken_lists(eng):
    """The first broken rule of the engine as a whole: run queue and timer wheel."""
    if i64(eng["tx_slot"]) >= 0:
        return Broken.SENDING.value
    index, seen = i64(eng["sched_head"]), 0
    while index >= 0:
        seen += 1
        if seen > MAX_QP or eng["qps"][index]["sched"] == 0:
            return Broken.RUN_QUEUE.value
        if i64(eng["qps"][index]["sched_next"]) < 0 and i64(eng["sched_tail"]) != index:
            return Broken.RUN_QUEUE.value
        index = i64(eng["qps"][index]["sched_next"])
    if seen == 0 and i64(eng["sched_tail"]) >= 0:
        return Broken.RUN_QUEUE.value
    for level in range(WHEEL_LEVELS):
        bits = i64(eng["wheel_bits"][level])
        if bits == 0:
            continue
        for at in range(WHEEL_SLOTS):
            index = i64(eng["wheel"][level * WHEEL_SLOTS + at])
            if ((bits >> at) & 1 == 1) != (index >= 0):
                return Broken.WHEEL.value
            before, seen = -1, 0
            while index >= 0:
                seen += 1
                qp = eng["qps"][index]
                if seen > MAX_QP or i64(qp["timer_prev"]) != before:
                    return Broken.WHEEL.value
                if i64(qp["timer_slot"]) != level * WHEEL_SLOTS + at:
                    return Broken.WHEEL.value
                before, index = index, i64(qp["timer_next"])
    return Broken.NONE.value


@inline
def broken_cq(cq):
    """Whether a completion queue holds what it can."""
    have = i64(cq["prod"]) - i64(cq["cons"])
    return Broken.NONE.value if 0 <= have <= i64(cq["mask"]) + 1 else Broken.CQ_ORDER.value
