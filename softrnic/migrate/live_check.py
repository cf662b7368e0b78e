"""What must fit together in the live part of a QP: check.py's rules for whole columns, compiled.

check.py is the reference: what passes here passes there (tests/migrate/test_live.py). Sizes are taken from the records
that the sketch has made. Nothing is written.
"""

from __future__ import annotations

from softrnic.jit import i64, inline, kernel
from softrnic.layout import AckState, RespMsg, WqeState
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.spec import MAX_MESSAGE, PSN_MASK, QpState, QpType, SendFlags, WrOpcode

MAX_NS = 1 << 40
LIMIT = 1 << 20
FIELDS = ("", "range", "req.sq", "req.cur", "req.off", "req.window", "resp", "resp.rq", "resp.rd", "lengths")  # by code
OK, RANGE, SQ, CUR, OFF, WINDOW, RESP, RQ, RD, LENGTHS = range(10)


@kernel
def check(engs, indices, live, where):
    """OK, or what is wrong; `where[0]` is the QP's place, `where[1]` that of the WQE or resource in it."""
    eng = engs[0]
    w = s = r = d = 0
    for i in range(len(indices)):
        q = eng["qps"][indices[i]]
        qp = live.qps[i]
        where[0] = i
        code = _ranges(qp)
        if code == OK:
            code = _sizes(q, qp, len(live.wqes) - w, len(live.recvs) - r, len(live.rds) - d)
        if code != OK:
            return code
        for k in range(i64(qp["sq"])):
            where[1] = k
            n = i64(live.wqes[w + k]["sges"])
            if n > len(live.sges) - s:
                return LENGTHS
            code = _wqe(q, qp, live.wqes[w + k], live.sges, s, k)
            if code != OK:
                return code
            s += n
        code = _requester(q, qp, live.wqes, w)
        if code != OK:
            return code
        w += i64(qp["sq"])
        held = max(0, i64(qp["held_sges"]))
        if held > len(live.sges) - s:
            return LENGTHS
        code = _responder(q, qp, live.sges, s)
        if code != OK:
            return code
        s += held
        for k in range(i64(qp["rq"])):
            where[1] = k
            n = i64(live.recvs[r + k]["sges"])
            if n < 0 or n > i64(q["rq_sge_max"]):
                return RQ
            if n > len(live.sges) - s:
                return LENGTHS
            s += n
        r += i64(qp["rq"])
        for k in range(i64(qp["rd"])):
            where[1] = k
            code = _resource(q, qp, live.rds[d + k], k)
            if code != OK:
                return code
        d += i64(qp["rd"])
    complete = w == len(live.wqes) and s == len(live.sges) and r == len(live.recvs) and d == len(live.rds)
    return OK if complete else LENGTHS


@inline
def _ranges(qp):
    psns = i64(qp["req_psn"]) | i64(qp["una_psn"]) | i64(qp["hi_psn"]) | i64(qp["ssn"]) | i64(qp["limit_ssn"])
    psns |= i64(qp["gap_psn"]) | i64(qp["epsn"]) | i64(qp["msn"]) | i64(qp["ack_psn"])
    flags = i64(qp["limit_valid"]) | i64(qp["gap_valid"]) | i64(qp["nak_sent"]) | i64(qp["sqd_notified"])
    flags |= i64(qp["comm_est"]) | i64(qp["last_wqe"])
    times = i64(qp["srtt_ns"]) | i64(qp["rttvar_ns"])
    if psns > PSN_MASK or flags > 1 or times < 0 or times >= MAX_NS or qp["rnr_fault_timer"] > 31:
        return RANGE
    if qp["rnr_wait_ns"] < -1 or qp["rnr_wait_ns"] > MAX_NS or qp["retry_left"] > 7 or qp["rnr_left"] > 7:
        return RANGE
    if qp["off"] < 0 or qp["off"] > MAX_MESSAGE or qp["unacked"] < 0 or qp["unacked"] > LIMIT:
        return RANGE
    if qp["resp_off"] < 0 or qp["resp_off"] > MAX_MESSAGE or qp["resp_resid"] < 0 or qp["resp_resid"] > MAX_MESSAGE:
        return RANGE
    return OK if qp["message"] <= RespMsg.SKIP and qp["ack"] <= AckState.NAK else RANGE


@inline
def _state(q):
    """Where the QP goes on; `state` is SUSPENDED for one on the wire."""
    return i64(q["resume_to"]) if q["state"] == QpState.SUSPENDED else i64(q["state"])


@inline
def _sizes(q, qp, wqes, recvs, rds):
    """Queues are no longer than their rings, and than what has come."""
    slots = i64(q["rd_mask"]) + 1 if i64(q["max_dest_rd_atomic"]) > 0 else 0
    own = i64(q["rq_mask"]) + 1 if i64(q["srq"]) < 0 else 0
    if qp["sq"] < 0 or qp["sq"] > i64(q["sq_mask"]) + 1:
        return SQ
    if qp["rq"] < 0 or qp["rq"] > own:
        return RQ
    if qp["rd"] < 0 or qp["rd"] > slots:
        return RD
    if qp["held_sges"] < -1 or qp["held_sges"] > i64(q["rq_sge_max"]):
        return RESP
    return OK if qp["sq"] <= wqes and qp["rq"] <= recvs and qp["rd"] <= rds else LENGTHS


@inline
def _is_atomic(opcode):
    return opcode == WrOpcode.ATOMIC_CMP_AND_SWP or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD


@inline
def _may_start(kind, opcode):
    """check._STARTABLE, as far as QPs are taken live."""
    if opcode == WrOpcode.SEND or opcode == WrOpcode.SEND_WITH_IMM or opcode == WrOpcode.SEND_WITH_INV:
        return True
    if opcode == WrOpcode.RDMA_WRITE or opcode == WrOpcode.RDMA_WRITE_WITH_IMM:
        return True
    return kind == QpType.RC and (opcode == WrOpcode.RDMA_READ or _is_atomic(opcode))


@inline
def _length(wqe, sges, at):
    """Payload bytes."""
    if i64(wqe["flags"]) & SendFlags.INLINE.value:
        return i64(wqe["length"])
    total = 0
    for k in range(i64(wqe["sges"])):
        total += i64(sges[at + k]["length"])
    return total


@inline
def _npsn(length, pmtu):
    return max(1, (length + pmtu - 1) // pmtu)


@inline
def _wqe(q, qp, wqe, sges, at, index):
    """One send WQE by itself; a started one has the PSNs that its length asks for."""
    inline_data = i64(wqe["flags"]) & SendFlags.INLINE.value != 0
    slots = i64(wqe["sges"])
    opcode = i64(wqe["opcode"])
    if (i64(wqe["first_psn"]) | i64(wqe["last_psn"]) | i64(wqe["ssn"])) > PSN_MASK or wqe["status"] > 21:
        return RANGE
    if not (q["type"] == QpType.RC or q["type"] == QpType.UC) or slots > i64(q["sq_sge_max"]):
        return SQ
    if opcode == WrOpcode.BIND_MW or opcode == WrOpcode.REG_MR:
        return SQ
    if inline_data:
        if wqe["length"] < 0 or wqe["length"] > 16 * i64(q["sq_sge_max"]) or slots != (i64(wqe["length"]) + 15) // 16:
            return SQ
    elif wqe["length"] != 0:
        return SQ
    state = i64(wqe["state"])
    if (state == WqeState.POSTED) != (index >= i64(qp["hi"])) or state > WqeState.FAILED:
        return SQ
    if state == WqeState.DONE and opcode != WrOpcode.LOCAL_INV:
        return SQ
    if (state == WqeState.FAILED) != (wqe["status"] != 0):
        return SQ
    return _started(q, wqe, opcode, _length(wqe, sges, at), inline_data) if state == WqeState.STARTED else OK


@inline
def _started(q, wqe, opcode, length, inline_data):
    if not _may_start(i64(q["type"]), opcode) or length > MAX_MESSAGE:
        return SQ
    if _is_atomic(opcode) and length != 8:
        return SQ
    if (_is_atomic(opcode) or opcode == WrOpcode.RDMA_READ) and (inline_data or q["max_rd_atomic"] == 0):
        return SQ
    npsn = psn_diff(i64(wqe["last_psn"]), i64(wqe["first_psn"])) + 1
    return OK if npsn == _npsn(length, i64(q["pmtu"])) else SQ


@inline
def _requester(q, qp, wqes, w):
    """Cursors, and PSNs that follow one another."""
    sq, cur, hi = i64(qp["sq"]), i64(qp["cur"]), i64(qp["hi"])
    state = _state(q)
    if cur < 0 or cur > hi or hi > sq:
        return CUR
    if qp["rnr_wait_ns"] >= 0 and q["type"] != QpType.RC:
        return RANGE
    if state == QpState.RESET or state == QpState.INIT:
        return OK if sq == 0 else SQ
    if state == QpState.SQE or state == QpState.ERR:
        return OK if hi == 0 and qp["off"] == 0 else CUR
    if hi > 0 and state == QpState.RTR:
        return CUR
    expected = -1
    for k in range(hi):
        wqe = wqes[w + k]
        if wqe["state"] == WqeState.STARTED:
            if expected >= 0 and i64(wqe["first_psn"]) != expected:
                return SQ
            expected = psn_add(i64(wqe["last_psn"]), 1)
        elif wqe["state"] == WqeState.FAILED:
            expected = -1
    return _cursor(q, qp, wqes, w)


@inline
def _cursor(q, qp, wqes, w):
    cur, hi, off = i64(qp["cur"]), i64(qp["hi"]), i64(qp["off"])
    pmtu = i64(q["pmtu"])
    if cur < hi and wqes[w + cur]["state"] == WqeState.STARTED:
        wqe = wqes[w + cur]
        npsn = psn_diff(i64(wqe["last_psn"]), i64(wqe["first_psn"])) + 1
        if off % pmtu != 0 or off // pmtu >= npsn:
            return OFF
        if i64(qp["req_psn"]) != psn_add(i64(wqe["first_psn"]), off // pmtu):
            return WINDOW
    elif off != 0:
        return OFF
    return _window(qp, wqes, w) if q["type"] == QpType.RC else OK


@inline
def _window(qp, wqes, w):
    """check._check_window."""
    hi = i64(qp["hi"])
    una, req, top = i64(qp["una_psn"]), i64(qp["req_psn"]), i64(qp["hi_psn"])
    sent = psn_diff(top, una)
    if psn_diff(req, una) < 0 or psn_diff(req, una) > sent:
        return WINDOW
    if hi == 0:
        return OK if sent == 0 else WINDOW
    head = wqes[w]
    if head["state"] == WqeState.STARTED:
        done = psn_diff(una, i64(head["first_psn"]))
        if done < 0 or done > psn_diff(i64(head["last_psn"]), i64(head["first_psn"])):
            return WINDOW
    if wqes[w + hi - 1]["state"] == WqeState.STARTED:
        last = psn_add(i64(wqes[w + hi - 1]["last_psn"]), 1)
        if psn_diff(top, last) > 0 or (i64(qp["cur"]) == hi and req != last):
            return WINDOW
    return OK


@inline
def _responder(q, qp, sges, at):
    message, off = i64(qp["message"]), i64(qp["resp_off"])
    state = _state(q)
    rd, head, owed = i64(qp["rd"]), i64(qp["rd_head"]), i64(qp["rd_owed"])
    if owed < 0 or owed > head or head > rd:
        return RD
    if state == QpState.RESET or state == QpState.INIT:
        idle = message == RespMsg.NONE and rd == 0 and qp["ack"] == AckState.NONE and qp["held_sges"] < 0
        return OK if idle and (state == QpState.INIT or qp["rq"] == 0) else RESP
    held = -1
    if qp["held_sges"] >= 0:
        held = 0
        for k in range(i64(qp["held_sges"])):
            held += i64(sges[at + k]["length"])
    if message == RespMsg.SEND:
        if off <= 0 or off > held:
            return RESP
    elif message == RespMsg.WRITE:
        if qp["resp_resid"] <= 0 or off + i64(qp["resp_resid"]) > MAX_MESSAGE:
            return RESP
    elif off != 0:
        return RESP
    quiet = qp["ack"] == AckState.NONE and rd == 0
    if q["type"] == QpType.UC:
        return OK if quiet else RESP
    return OK if q["type"] == QpType.RC or (quiet and message == RespMsg.NONE) else RESP


@inline
def _resource(q, qp, res, index):
    """check._check_resource, and that just those are due that should be."""
    atomic = res["atomic"] != 0
    length = i64(res["length"])
    psns = i64(res["first_psn"]) | i64(res["msn"]) | i64(res["start_psn"]) | i64(res["cur_psn"]) | i64(res["end_psn"])
    if psns > PSN_MASK or length < 0 or length > MAX_MESSAGE or res["atomic"] > 1 or res["due"] > 1:
        return RD
    npsn = 1 if atomic else _npsn(length, i64(q["pmtu"]))
    if (atomic and length != 8) or i64(res["npsn"]) != npsn:
        return RD
    owed = index >= i64(qp["rd"]) - i64(qp["rd_owed"])
    may = index >= i64(qp["rd"]) - i64(qp["rd_head"])
    if (owed and not res["due"]) or (res["due"] and not may):
        return RD
    if not res["due"]:
        return OK
    pmtu = i64(q["pmtu"])
    start = psn_diff(i64(res["start_psn"]), i64(res["first_psn"]))
    offset = start * pmtu
    stop = i64(res["stop"])
    if start < 0 or start >= npsn or offset > stop or stop > length:
        return RD
    last = start + _npsn(stop - offset, pmtu) - 1
    cur = psn_diff(i64(res["cur_psn"]), i64(res["first_psn"]))
    if psn_diff(i64(res["end_psn"]), i64(res["first_psn"])) != last or cur < start or cur > last:
        return RD
    return OK
