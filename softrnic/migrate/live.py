"""What changes in queue pairs while they run, as columns: the part of the state that must go during the pause.

A sketch (sketch.py) holds the objects and their attributes, and is restored while the function still runs. On top of it
comes this: for every QP of the sketch, in its order, the dynamic half of schema.Qp, with the same meaning field by
field - queues begin at their oldest entry, cursors are places in them, timers are time left. The arrays go as they are,
so that thousands of QPs take milliseconds; they are of one version of the software only, which is why this is no
format for files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from softrnic.errors import StateError
from softrnic.jit import i64, inline, kernel
from softrnic.layout import AckState, RdState, ReqWait, RespMsg, TimerKind, WqeState
from softrnic.qp.psn import psn_diff
from softrnic.spec import QpType, SendFlags, WrOpcode

VERSION = 1
NOT_WAITING = -1
NO_RESOURCE = -1


def _row(fields: list[tuple[str, str]]) -> np.dtype:
    return np.dtype([(name, "<" + kind) for name, kind in fields], align=True)


LIVE_QP = _row(
    [
        ("off", "i8"), ("rnr_wait_ns", "i8"), ("srtt_ns", "i8"), ("rttvar_ns", "i8"),
        ("resp_off", "i8"), ("resp_va", "i8"), ("resp_resid", "i8"), ("held_wr_id", "u8"),
        ("sq", "i4"), ("cur", "i4"), ("hi", "i4"), ("unacked", "i4"),  # sq: how many WQEs, and so on
        ("rq", "i4"), ("rd", "i4"), ("rd_owed", "i4"), ("rd_head", "i4"), ("held_sges", "i4"),  # -1: none is held
        ("req_psn", "u4"), ("una_psn", "u4"), ("hi_psn", "u4"), ("ssn", "u4"), ("limit_ssn", "u4"), ("gap_psn", "u4"),
        ("epsn", "u4"), ("msn", "u4"), ("ack_psn", "u4"), ("resp_key", "u4"),
        ("limit_valid", "u1"), ("gap_valid", "u1"), ("retry_left", "u1"), ("rnr_left", "u1"),
        ("message", "u1"), ("nak_sent", "u1"), ("ack", "u1"), ("ack_syndrome", "u1"),
        ("rnr_fault_timer", "u1"), ("sqd_notified", "u1"), ("comm_est", "u1"), ("last_wqe", "u1"),
    ]
)  # fmt: skip
LIVE_WQE = _row(
    [
        ("wr_id", "u8"), ("length", "i8"), ("remote_addr", "i8"), ("compare_add", "i8"), ("swap", "i8"),
        ("rkey", "u4"), ("imm", "u4"), ("first_psn", "u4"), ("last_psn", "u4"), ("ssn", "u4"), ("status", "u4"),
        ("opcode", "u1"), ("flags", "u1"), ("state", "u1"), ("sges", "u1"),  # slots of 16 bytes, also for inline data
    ]
)  # fmt: skip
LIVE_SGE = _row([("addr", "i8"), ("length", "u4"), ("lkey", "u4")])
LIVE_RECV = _row([("wr_id", "u8"), ("sges", "i4")])
LIVE_RD = _row(
    [
        ("va", "i8"), ("length", "i8"), ("orig", "i8"), ("stop", "i8"),
        ("first_psn", "u4"), ("npsn", "u4"), ("msn", "u4"), ("key", "u4"),
        ("start_psn", "u4"), ("cur_psn", "u4"), ("end_psn", "u4"), ("atomic", "u1"), ("due", "u1"),
    ]
)  # fmt: skip
_DTYPES = (LIVE_QP, LIVE_WQE, LIVE_SGE, LIVE_RECV, LIVE_RD)


class Live(NamedTuple):
    """The arrays. WQEs, receives and resources of all QPs behind one another; so are their SGEs: WQEs' first, then
    the one of a receive in hand, then receives'.
    """

    qps: np.ndarray
    wqes: np.ndarray
    sges: np.ndarray
    recvs: np.ndarray
    rds: np.ndarray


def allocate(counts: Sequence[int]) -> tuple[memoryview, Live]:
    """Arrays of so many rows, as parts of the buffer in which they travel."""
    size = 4 * (1 + len(_DTYPES))
    places = []
    for dtype, count in zip(_DTYPES, counts, strict=True):
        places.append(size)
        size += count * dtype.itemsize
    buffer = np.zeros(size, np.uint8)
    buffer[: 4 * (1 + len(_DTYPES))] = np.array([VERSION, *counts], "<u4").view(np.uint8)
    arrays = (
        np.frombuffer(buffer.data, dtype, count, place)
        for dtype, count, place in zip(_DTYPES, counts, places, strict=True)
    )
    return buffer.data, Live(*arrays)


def to_bytes(live: Live) -> bytes:
    """The buffer in which these arrays travel."""
    buffer, arrays = allocate([len(array) for array in live])
    for mine, theirs in zip(arrays, live, strict=True):
        mine[:] = theirs
    return bytes(buffer)


def from_bytes(data: bytes | memoryview) -> Live:
    """The inverse; StateError if the lengths do not fit."""
    size = 4 * (1 + len(_DTYPES))
    if len(data) < size:
        raise StateError("$.live", "cut short")
    version, *counts = np.frombuffer(data, "<u4", 1 + len(_DTYPES)).tolist()
    if version != VERSION:
        raise StateError("$.live", f"version {version}, this one reads {VERSION}")
    arrays = []
    for dtype, count in zip(_DTYPES, counts, strict=True):
        if len(data) - size < count * dtype.itemsize:
            raise StateError("$.live", "cut short")
        arrays.append(np.frombuffer(data, dtype, count, size).copy())
        size += count * dtype.itemsize
    if size != len(data):
        raise StateError("$.live", f"{len(data) - size} bytes too many")
    return Live(*arrays)


# --- out of the records ---------------------------------------------------------------------------------------


@inline
def _slots(wqe):
    """SGE slots of a send WQE, its inline bytes included."""
    if i64(wqe["flags"]) & SendFlags.INLINE.value:
        return (i64(wqe["length"]) + 15) // 16
    return i64(wqe["num_sge"])


@inline
def _first_resource(q):
    """Ring index of the first READ or atomic that may still matter."""
    return max(0, min(i64(q["rd_head"]), i64(q["rd_tail"]) - i64(q["max_dest_rd_atomic"])))


@kernel
def measure(engs, indices, totals):
    """How many WQEs, SGEs, receives and resources there are; False if some can only be saved in full."""
    eng = engs[0]
    for i in range(len(indices)):
        q = eng["qps"][indices[i]]
        for k in range(i64(q["sq_head"]), i64(q["sq_prod"])):
            wqe = eng["wqes"][i64(q["sq_base"]) + (k & i64(q["sq_mask"]))]
            opcode = i64(wqe["opcode"])
            if opcode == WrOpcode.BIND_MW or opcode == WrOpcode.REG_MR:
                return False  # names a region
            totals[0] += 1
            totals[1] += _slots(wqe)
        if i64(q["sq_prod"]) > i64(q["sq_head"]) and (q["type"] == QpType.UD or q["type"] == QpType.GSI):
            return False  # each with an address handle
        for k in range(i64(q["rq_head"]), i64(q["rq_prod"])):
            totals[1] += i64(eng["rwqes"][i64(q["rq_base"]) + (k & i64(q["rq_mask"]))]["num_sge"])
            totals[2] += 1
        if q["resp_wqe"]:
            totals[1] += i64(q["resp_nsge"])
        totals[3] += i64(q["rd_tail"]) - _first_resource(q)
    return True


@kernel
def take(engs, indices, live):
    """Fill the arrays, which are as large as `measure` said."""
    eng = engs[0]
    w = s = r = d = 0
    for i in range(len(indices)):
        q = eng["qps"][indices[i]]
        out = live.qps[i]
        _take_requester(eng, q, out)
        for k in range(i64(q["sq_head"]), i64(q["sq_prod"])):
            s += _take_wqe(eng, q, k, live.wqes[w], live.sges, s)
            w += 1
        _take_responder(q, out)
        if q["resp_wqe"]:
            s += _take_sges(eng, i64(q["resp_sge_base"]), i64(q["resp_nsge"]), live.sges, s)
        for k in range(i64(q["rq_head"]), i64(q["rq_prod"])):
            slot = k & i64(q["rq_mask"])
            rwqe = eng["rwqes"][i64(q["rq_base"]) + slot]
            live.recvs[r]["wr_id"], live.recvs[r]["sges"] = rwqe["wr_id"], rwqe["num_sge"]
            first = i64(q["rq_sge_base"]) + slot * i64(q["rq_sge_max"])
            s += _take_sges(eng, first, i64(rwqe["num_sge"]), live.sges, s)
            r += 1
        for k in range(_first_resource(q), i64(q["rd_tail"])):
            _take_resource(q, k, eng["rd_res"][i64(q["rd_base"]) + (k & i64(q["rd_mask"]))], live.rds[d])
            d += 1


@inline
def _take_requester(eng, q, out):
    head = i64(q["sq_head"])
    hi = max(head, i64(q["sq_hi"]))
    cur = max(head, i64(q["sq_cur"]))
    out["sq"], out["cur"], out["hi"] = i64(q["sq_prod"]) - head, cur - head, hi - head
    sending = False
    if cur < hi:
        sending = eng["wqes"][i64(q["sq_base"]) + (cur & i64(q["sq_mask"]))]["state"] == WqeState.STARTED
    out["off"] = i64(q["req_off"]) if sending else 0
    out["req_psn"], out["una_psn"], out["hi_psn"] = q["req_psn"], q["una_psn"], q["req_hi_psn"]
    out["ssn"], out["unacked"] = q["ssn"], q["unacked_req"]
    out["limit_valid"], out["limit_ssn"] = q["credits_valid"], i64(q["limit_ssn"]) if q["credits_valid"] else 0
    out["gap_valid"], out["gap_psn"] = q["gap_valid"], i64(q["gap_psn"]) if q["gap_valid"] else 0
    out["retry_left"], out["rnr_left"] = q["retry_left"], q["rnr_left"]
    out["srtt_ns"], out["rttvar_ns"] = q["srtt"], q["rttvar"]
    wait = NOT_WAITING
    if q["req_wait"] == ReqWait.RNR:
        wait = i64(q["rnr_left_ns"])
        if q["timer"] != TimerKind.NONE:
            wait = max(0, i64(q["deadline"]) - i64(eng["now"]))
    out["rnr_wait_ns"] = wait
    out["rnr_fault_timer"], out["sqd_notified"] = q["rnr_fault_timer"], q["sqd_notified"]
    out["comm_est"], out["last_wqe"] = q["comm_est"], q["last_wqe"]


@inline
def _take_wqe(eng, q, index, out, sges, at):
    """One send WQE and its SGEs or inline data from `at` on: how many slots those are."""
    slot = index & i64(q["sq_mask"])
    wqe = eng["wqes"][i64(q["sq_base"]) + slot]
    started = index < i64(q["sq_hi"])
    state = i64(wqe["state"]) if started else WqeState.POSTED.value
    numbered = state == WqeState.STARTED or state == WqeState.FAILED
    opcode = i64(wqe["opcode"])
    atomic = opcode == WrOpcode.ATOMIC_CMP_AND_SWP or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD
    imm = opcode == WrOpcode.RDMA_WRITE_WITH_IMM or opcode == WrOpcode.SEND_WITH_IMM or opcode == WrOpcode.SEND_WITH_INV
    inline_data = i64(wqe["flags"]) & SendFlags.INLINE.value != 0
    slots = _slots(wqe)
    out["wr_id"], out["opcode"], out["flags"], out["state"] = wqe["wr_id"], opcode, wqe["flags"], state
    out["length"] = i64(wqe["length"]) if inline_data else 0
    out["status"] = i64(wqe["status"]) if state == WqeState.FAILED else 0
    out["remote_addr"], out["rkey"], out["imm"] = wqe["remote_addr"], wqe["rkey"], i64(wqe["imm"]) if imm else 0
    out["compare_add"], out["swap"] = i64(wqe["compare_add"]) if atomic else 0, i64(wqe["swap"]) if atomic else 0
    out["first_psn"] = i64(wqe["first_psn"]) if numbered else 0
    out["last_psn"] = i64(wqe["last_psn"]) if numbered else 0
    out["ssn"] = i64(wqe["ssn"]) if numbered else 0
    out["sges"] = slots
    return _take_sges(eng, i64(q["sq_sge_base"]) + slot * i64(q["sq_sge_max"]), slots, sges, at)


@inline
def _take_sges(eng, first, count, sges, at):
    for k in range(count):
        sge = eng["sges"][first + k]
        sges[at + k]["addr"], sges[at + k]["length"], sges[at + k]["lkey"] = sge["addr"], sge["length"], sge["lkey"]
    return count


@inline
def _take_responder(q, out):
    message, ack = i64(q["resp_op"]), i64(q["ack_state"])
    writing = message == RespMsg.WRITE
    nak = ack == AckState.NAK
    tail, head = i64(q["rd_tail"]), i64(q["rd_head"])
    count = tail - _first_resource(q)
    out["epsn"], out["msn"], out["message"], out["nak_sent"] = q["epsn"], q["msn"], message, q["nak_sent"] != 0
    out["ack"], out["ack_syndrome"] = ack, i64(q["ack_syndrome"]) if nak else 0
    out["ack_psn"] = i64(q["ack_psn"]) if nak else 0
    out["resp_off"] = i64(q["resp_off"]) if writing or message == RespMsg.SEND else 0
    out["resp_va"] = i64(q["resp_va"]) if writing else 0
    out["resp_resid"] = i64(q["resp_resid"]) if writing else 0
    out["resp_key"] = i64(q["resp_key"]) if writing else 0
    out["held_sges"], out["held_wr_id"] = -1, 0
    if q["resp_wqe"]:
        out["held_sges"], out["held_wr_id"] = q["resp_nsge"], q["resp_wr_id"]
    out["rq"] = i64(q["rq_prod"]) - i64(q["rq_head"])
    out["rd"], out["rd_owed"], out["rd_head"] = count, tail - i64(q["rd_done"]), min(tail - head, count)


@inline
def _take_resource(q, index, res, out):
    atomic = res["atomic"] != 0
    due = index >= i64(q["rd_head"]) and res["state"] == RdState.PENDING
    out["first_psn"], out["npsn"] = res["first_psn"], psn_diff(i64(res["last_psn"]), i64(res["first_psn"])) + 1
    out["msn"], out["key"], out["va"], out["length"] = res["msn"], res["key"], res["va"], res["length"]
    out["atomic"], out["orig"], out["due"] = atomic, i64(res["orig"]) if atomic else 0, due
    first = i64(res["first_psn"])
    out["start_psn"] = (first if atomic else i64(res["start_psn"])) if due else 0
    out["cur_psn"] = (first if atomic else i64(res["cur_psn"])) if due else 0
    out["end_psn"] = (first if atomic else i64(res["end_psn"])) if due else 0
    out["stop"] = (8 if atomic else i64(res["stop"])) if due else 0
