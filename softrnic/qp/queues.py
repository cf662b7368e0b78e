"""The user's end of the queues, for compiled callers: post to a send or receive queue, poll a completion queue.

Mirrors what softrnic.verbs does in Python, at the speed of the data path: perf and front-ends stand on these. One
poster per queue, one poller per CQ.
"""

from __future__ import annotations

from softrnic.jit import fence, i64, inline
from softrnic.qp.sched import ring_doorbell


@inline
def sq_room(qp):
    """Free send WQEs."""
    return i64(qp["sq_mask"]) + 1 - (i64(qp["sq_prod"]) - i64(qp["sq_head"]))


@inline
def post_one_sided(eng, qp, opcode, flags, wr_id, addr, length, lkey, remote_addr, rkey):
    """Post a WRITE, READ or SEND of one SGE; the caller has made sure of room and rings the doorbell."""
    prod = i64(qp["sq_prod"])
    slot = prod & i64(qp["sq_mask"])
    wqe = eng["wqes"][i64(qp["sq_base"]) + slot]
    sge = eng["sges"][i64(qp["sq_sge_base"]) + slot * i64(qp["sq_sge_max"])]
    sge["addr"] = addr
    sge["length"] = length
    sge["lkey"] = lkey
    wqe["wr_id"] = wr_id
    wqe["opcode"] = opcode
    wqe["flags"] = flags
    wqe["num_sge"] = 1
    wqe["length"] = length
    wqe["remote_addr"] = remote_addr
    wqe["rkey"] = rkey
    fence()
    qp["sq_prod"] = prod + 1


@inline
def post_atomic(eng, qp, opcode, flags, wr_id, addr, lkey, remote_addr, rkey, compare_add, swap):
    """Post an atomic on 8 bytes."""
    prod = i64(qp["sq_prod"])
    wqe = eng["wqes"][i64(qp["sq_base"]) + (prod & i64(qp["sq_mask"]))]
    wqe["compare_add"] = compare_add
    wqe["swap"] = swap
    post_one_sided(eng, qp, opcode, flags, wr_id, addr, 8, lkey, remote_addr, rkey)


@inline
def publish(eng, qp_index):
    """Tell the engine about everything posted so far."""
    ring_doorbell(eng, qp_index)


@inline
def rq_room(qp):
    """Free receive WQEs."""
    return i64(qp["rq_mask"]) + 1 - (i64(qp["rq_prod"]) - i64(qp["rq_head"]))


@inline
def post_recv(eng, qp, wr_id, addr, length, lkey):
    """Post a receive of one SGE; the caller has made sure of room."""
    prod = i64(qp["rq_prod"])
    slot = prod & i64(qp["rq_mask"])
    rwqe = eng["rwqes"][i64(qp["rq_base"]) + slot]
    sge = eng["sges"][i64(qp["rq_sge_base"]) + slot * i64(qp["rq_sge_max"])]
    sge["addr"] = addr
    sge["length"] = length
    sge["lkey"] = lkey
    rwqe["wr_id"] = wr_id
    rwqe["num_sge"] = 1
    rwqe["length"] = length
    fence()
    qp["rq_prod"] = prod + 1


@inline
def poll_count(eng, cq):
    """Take every completion there is: (how many, status of the first that failed or 0)."""
    cons, prod = i64(cq["cons"]), i64(cq["prod"])
    fence()
    n = prod - cons
    status = 0
    while cons < prod:
        cqe = eng["cqes"][i64(cq["base"]) + (cons & i64(cq["mask"]))]
        if status == 0:
            status = i64(cqe["status"])
        cons += 1
    cq["cons"] = cons
    return n, status
