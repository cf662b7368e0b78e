"""Completion queues: delivering an entry, arming, overrun (IBTA 11.4.2, 10.8).

The engine writes `prod`, the poller writes `cons`. An entry is complete before `prod` shows it.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import fence, full_fence, i64, inline
from softrnic.qp.event import push_event
from softrnic.spec import EventType, WcStatus

CQ_READY = 1
CQ_OVERRUN = 2

ARM_NONE = 0
ARM_NEXT = 1
ARM_SOLICITED = 2


@inline
def deliver(eng, cq_index, wr_id, status, opcode, byte_len, imm, qpn, src_qp, wc_flags, solicited):
    """Append a completion; False when the CQ was full and is now in error (the QP must follow)."""
    cq = eng["cqs"][cq_index]
    prod = i64(cq["prod"])
    if cq["state"] != CQ_READY or prod - i64(cq["cons"]) > i64(cq["mask"]):
        eng["counters"][C.CQ_OVERRUN] += 1
        if cq["state"] == CQ_READY:
            cq["state"] = CQ_OVERRUN
            push_event(eng, EventType.CQ_ERR, cq_index, 0)
        return False
    cqe = eng["cqes"][i64(cq["base"]) + (prod & i64(cq["mask"]))]
    cqe["wr_id"] = wr_id
    cqe["status"] = status
    cqe["opcode"] = opcode
    cqe["vendor_err"] = 0
    cqe["byte_len"] = byte_len
    cqe["imm"] = imm
    cqe["qpn"] = qpn
    cqe["src_qp"] = src_qp
    cqe["wc_flags"] = wc_flags
    fence()
    cq["prod"] = prod + 1
    full_fence()  # the poller arms, then looks again; we show the entry, then look whether it is armed
    armed = i64(cq["armed"])
    if armed == ARM_NEXT or (armed == ARM_SOLICITED and (solicited or status != WcStatus.SUCCESS)):
        cq["armed"] = ARM_NONE
        push_event(eng, EventType.CQ_NOTIFY, cq_index, 0)
    return True
