"""The live part of QPs into the records that a sketch has made, after live_check: the inverse of live.take."""

from __future__ import annotations

from softrnic.jit import i64, inline, kernel
from softrnic.layout import RdState, ReqWait, WqeState
from softrnic.migrate.live import NO_RESOURCE, NOT_WAITING
from softrnic.qp.psn import psn_add
from softrnic.spec import SendFlags, WrOpcode

_MOST = (1 << 31) - 1


@kernel
def put(engs, indices, live):
    """Write everything."""
    eng = engs[0]
    w = s = r = d = 0
    for i in range(len(indices)):
        q = eng["qps"][indices[i]]
        qp = live.qps[i]
        _put_requester(q, qp)
        reads = 0
        for k in range(i64(qp["sq"])):
            wqe = live.wqes[w + k]
            opcode = i64(wqe["opcode"])
            rd = opcode == WrOpcode.RDMA_READ or opcode == WrOpcode.ATOMIC_CMP_AND_SWP
            if k < i64(qp["cur"]) and wqe["state"] == WqeState.STARTED:
                reads += rd or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD
            s += _put_wqe(eng, q, k, wqe, live.sges, s)
        w += i64(qp["sq"])
        q["rd_out"] = reads
        _put_responder(q, qp)
        if qp["held_sges"] >= 0:
            n = i64(qp["held_sges"])
            q["resp_wqe"], q["resp_wr_id"], q["resp_nsge"] = 1, qp["held_wr_id"], n
            q["resp_len"] = min(_put_sges(eng, i64(q["resp_sge_base"]), n, live.sges, s), _MOST)
            s += n
        for k in range(i64(qp["rq"])):
            n = i64(live.recvs[r + k]["sges"])
            rwqe = eng["rwqes"][i64(q["rq_base"]) + k]
            first = i64(q["rq_sge_base"]) + k * i64(q["rq_sge_max"])
            rwqe["wr_id"], rwqe["num_sge"] = live.recvs[r + k]["wr_id"], n
            rwqe["length"] = min(_put_sges(eng, first, n, live.sges, s), _MOST)
            s += n
        r += i64(qp["rq"])
        for k in range(i64(qp["rd"])):
            _put_resource(eng["rd_res"][i64(q["rd_base"]) + k], live.rds[d + k])
        d += i64(qp["rd"])


@inline
def _put_requester(q, qp):
    q["sq_head"], q["sq_prod"], q["sq_cur"], q["sq_hi"] = 0, qp["sq"], qp["cur"], qp["hi"]
    q["req_off"], q["req_psn"], q["una_psn"], q["req_hi_psn"] = qp["off"], qp["req_psn"], qp["una_psn"], qp["hi_psn"]
    q["ssn"], q["unacked_req"] = qp["ssn"], qp["unacked"]
    q["retry_left"], q["rnr_left"] = qp["retry_left"], qp["rnr_left"]
    q["credits_valid"], q["limit_ssn"] = qp["limit_valid"], qp["limit_ssn"]
    q["gap_valid"], q["gap_psn"] = qp["gap_valid"], qp["gap_psn"]
    q["srtt"], q["rttvar"] = qp["srtt_ns"], qp["rttvar_ns"]
    waits = qp["rnr_wait_ns"] != NOT_WAITING
    q["req_wait"] = ReqWait.RNR if waits else ReqWait.NONE
    q["rnr_left_ns"] = i64(qp["rnr_wait_ns"]) if waits else 0
    q["rnr_fault_timer"], q["sqd_notified"] = qp["rnr_fault_timer"], qp["sqd_notified"]
    q["comm_est"], q["last_wqe"] = qp["comm_est"], qp["last_wqe"]


@inline
def _put_wqe(eng, q, slot, saved, sges, at):
    """One send WQE into its slot: how many SGE slots it has."""
    wqe = eng["wqes"][i64(q["sq_base"]) + slot]
    slots = i64(saved["sges"])
    inline_data = i64(saved["flags"]) & SendFlags.INLINE.value != 0
    total = _put_sges(eng, i64(q["sq_sge_base"]) + slot * i64(q["sq_sge_max"]), slots, sges, at)
    wqe["wr_id"], wqe["opcode"], wqe["flags"] = saved["wr_id"], saved["opcode"], saved["flags"]
    wqe["state"], wqe["status"] = saved["state"], saved["status"]
    wqe["num_sge"] = 0 if inline_data else slots
    wqe["length"] = i64(saved["length"]) if inline_data else total
    wqe["remote_addr"], wqe["rkey"], wqe["imm"] = saved["remote_addr"], saved["rkey"], saved["imm"]
    wqe["compare_add"], wqe["swap"] = saved["compare_add"], saved["swap"]
    wqe["first_psn"], wqe["last_psn"], wqe["ssn"] = saved["first_psn"], saved["last_psn"], saved["ssn"]
    wqe["ah"], wqe["bind_mr"], wqe["access"], wqe["dqpn"], wqe["qkey"] = -1, -1, 0, 0, 0
    return slots


@inline
def _put_sges(eng, first, count, sges, at):
    """SGEs into their slots: the bytes they name."""
    total = 0
    for k in range(count):
        sge, saved = eng["sges"][first + k], sges[at + k]
        sge["addr"], sge["length"], sge["lkey"] = saved["addr"], saved["length"], saved["lkey"]
        total += i64(saved["length"])
    return total


@inline
def _put_responder(q, qp):
    q["epsn"], q["msn"], q["resp_op"], q["nak_sent"] = qp["epsn"], qp["msn"], qp["message"], qp["nak_sent"]
    q["ack_state"], q["ack_syndrome"], q["ack_psn"] = qp["ack"], qp["ack_syndrome"], qp["ack_psn"]
    q["resp_off"], q["resp_va"], q["resp_resid"] = qp["resp_off"], qp["resp_va"], qp["resp_resid"]
    q["resp_key"], q["resp_wqe"] = qp["resp_key"], 0
    q["rq_head"], q["rq_prod"] = 0, qp["rq"]
    tail = i64(qp["rd"])
    q["rd_tail"], q["rd_done"], q["rd_head"] = tail, tail - i64(qp["rd_owed"]), tail - i64(qp["rd_head"])


@inline
def _put_resource(res, saved):
    res["first_psn"], res["last_psn"] = saved["first_psn"], psn_add(i64(saved["first_psn"]), i64(saved["npsn"]) - 1)
    res["state"] = RdState.DONE
    if saved["due"]:
        res["start_psn"], res["cur_psn"], res["end_psn"] = saved["start_psn"], saved["cur_psn"], saved["end_psn"]
        res["stop"], res["state"] = saved["stop"], RdState.PENDING
    res["msn"], res["key"], res["va"], res["length"] = saved["msn"], saved["key"], saved["va"], saved["length"]
    res["atomic"], res["orig"], res["mr"] = saved["atomic"], i64(saved["orig"]) if saved["atomic"] else 0, NO_RESOURCE
