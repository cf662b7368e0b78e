"""Finishing work requests: completions of both queues, the error state and its flush (IBTA 10.8.6, 11.4.2).

Everything that turns a work request into a completion goes through here, in queue order.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import frozen, i64, inline
from softrnic.layout import AckState, RespMsg
from softrnic.qp.cq import deliver
from softrnic.qp.event import push_event
from softrnic.qp.sched import schedule
from softrnic.qp.timer import stop_timer
from softrnic.spec import EventType, QpState, QpType, SendFlags, WcOpcode, WcStatus

_WC_OPCODE = frozen([1, 1, 0, 0, 2, 3, 4, 6, 5, 0] + [0] * 22 + [32], "i8")  # ibv_wr_opcode to ibv_wc_opcode
_SIGNALED = int(SendFlags.SIGNALED)


@inline
def complete_send(eng, qp, qp_index, status):
    """Retire the oldest send WQE; errors are always reported, successes when they were asked for."""
    wqe = eng["wqes"][i64(qp["sq_base"]) + (i64(qp["sq_head"]) & i64(qp["sq_mask"]))]
    qp["sq_head"] += 1
    if status == WcStatus.SUCCESS:
        eng["counters"][C.RDMA_SENDS] += 1
        if (i64(wqe["flags"]) & _SIGNALED) == 0 and qp["sq_sig_all"] == 0:
            return
    else:
        eng["counters"][C.CQE_ERROR] += 1
    opcode = i64(wqe["opcode"])
    wc_opcode = _WC_OPCODE[opcode] if opcode < len(_WC_OPCODE) else 0
    byte_len = i64(wqe["length"]) if status == WcStatus.SUCCESS else 0
    if not deliver(
        eng, i64(qp["scq"]), wqe["wr_id"], status, wc_opcode, byte_len, 0, i64(qp["qpn"]), 0, 0, False
    ):
        _overrun(eng, qp, qp_index)


@inline
def complete_recv(eng, qp, qp_index, status, opcode, byte_len, imm, src_qp, wc_flags, solicited):
    """Complete the receive WQE in hand."""
    qp["resp_wqe"] = 0
    if status == WcStatus.SUCCESS:
        eng["counters"][C.RDMA_RECVS] += 1
    else:
        eng["counters"][C.CQE_ERROR] += 1
    if not deliver(
        eng, i64(qp["rcq"]), qp["resp_wr_id"], status, opcode, byte_len, imm, i64(qp["qpn"]), src_qp,
        wc_flags, solicited,
    ):  # fmt: skip
        _overrun(eng, qp, qp_index)


@inline
def drop_answers(qp):
    """READs and atomics not yet answered never will be."""
    qp["rd_head"] = qp["rd_tail"]
    qp["rd_done"] = qp["rd_tail"]


@inline
def _halt(qp):
    """In the error state: no more packets but a NAK already owed and the answers before it."""
    qp["state"] = QpState.ERR
    stop_timer(qp)
    qp["resp_op"] = RespMsg.NONE
    qp["fault"] = 0
    if qp["ack_state"] != AckState.NAK or qp["ack_psn"] != qp["epsn"]:  # what was refused may have come since
        qp["ack_state"] = AckState.NONE
        drop_answers(qp)


@inline
def _overrun(eng, qp, qp_index):
    """A completion was lost: the QP cannot go on (11.6.3.2). What its other queue holds is flushed at its turn."""
    if qp["state"] != QpState.ERR:
        _halt(qp)
        push_event(eng, EventType.QP_FATAL, qp_index, 0)
        schedule(eng, qp, qp_index)


@inline
def take_rwqe(eng, qp, qp_index):
    """Take the next receive WQE in hand, copied, so that its slot is free again: False when there is none."""
    if qp["resp_wqe"]:
        return True
    srq_index = i64(qp["srq"])
    if srq_index < 0:
        head = i64(qp["rq_head"])
        if head == i64(qp["rq_prod"]):
            return False
        slot = head & i64(qp["rq_mask"])
        rwqe = eng["rwqes"][i64(qp["rq_base"]) + slot]
        sge = i64(qp["rq_sge_base"]) + slot * i64(qp["rq_sge_max"])
        _hold(eng, qp, rwqe, sge)
        qp["rq_head"] = head + 1
        return True
    srq = eng["srqs"][srq_index]
    head = i64(srq["head"])
    if srq["state"] != 1 or head == i64(srq["prod"]):
        return False
    slot = head & i64(srq["mask"])
    _hold(eng, qp, eng["rwqes"][i64(srq["base"]) + slot], i64(srq["sge_base"]) + slot * i64(srq["sge_max"]))
    srq["head"] = head + 1
    if i64(srq["limit"]) > 0 and i64(srq["prod"]) - head - 1 < i64(srq["limit"]):
        srq["limit"] = 0  # o11-5.2.5: reported once per arming
        push_event(eng, EventType.SRQ_LIMIT_REACHED, srq_index, 0)
    return True


@inline
def _hold(eng, qp, rwqe, sge):
    qp["resp_wqe"] = 1
    qp["resp_wr_id"] = rwqe["wr_id"]
    qp["resp_nsge"] = rwqe["num_sge"]
    qp["resp_len"] = rwqe["length"]
    base = i64(qp["resp_sge_base"])
    for i in range(i64(rwqe["num_sge"])):
        eng["sges"][base + i]["addr"] = eng["sges"][sge + i]["addr"]
        eng["sges"][base + i]["length"] = eng["sges"][sge + i]["length"]
        eng["sges"][base + i]["lkey"] = eng["sges"][sge + i]["lkey"]


@inline
def flush_sq(eng, qp, qp_index):
    """Complete every send WQE with WR_FLUSH_ERR."""
    while i64(qp["sq_head"]) < i64(qp["sq_prod"]):
        complete_send(eng, qp, qp_index, WcStatus.WR_FLUSH_ERR)
    qp["sq_cur"] = qp["sq_head"]
    qp["sq_hi"] = qp["sq_head"]
    qp["req_off"] = 0


@inline
def flush_rq(eng, qp, qp_index):
    """Complete every receive WQE with WR_FLUSH_ERR; of a shared queue only the one in hand."""
    if i64(qp["srq"]) >= 0:
        if qp["resp_wqe"]:
            _flush_held(eng, qp, qp_index)
        if qp["last_wqe"] == 0:
            qp["last_wqe"] = 1
            push_event(eng, EventType.QP_LAST_WQE_REACHED, qp_index, 0)
        return
    while take_rwqe(eng, qp, qp_index):
        _flush_held(eng, qp, qp_index)


@inline
def _flush_held(eng, qp, qp_index):
    complete_recv(eng, qp, qp_index, WcStatus.WR_FLUSH_ERR, WcOpcode.RECV, 0, 0, 0, 0, False)


@inline
def enter_error(eng, qp, qp_index):
    """To the error state: everything posted is flushed."""
    _halt(qp)
    flush_sq(eng, qp, qp_index)
    flush_rq(eng, qp, qp_index)


@inline
def fail_send(eng, qp, qp_index, status):
    """The oldest send WQE failed: RC goes to ERR, UC and UD to SQE, where only the send queue is flushed."""
    complete_send(eng, qp, qp_index, status)
    if qp["type"] == QpType.RC:
        enter_error(eng, qp, qp_index)
    elif qp["state"] != QpState.ERR:
        qp["state"] = QpState.SQE
        flush_sq(eng, qp, qp_index)
