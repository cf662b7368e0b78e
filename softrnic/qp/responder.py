"""The responder: request packets become memory accesses, completions and answers (IBTA 9.7.4, 9.7.5, 9.8).

An ordered pipeline of small checks, named as rxe names them and standing in the order they run; the first that does
not say OK decides. Answers are not written here but noted - `ack_state` for an acknowledgement or NAK, RD_RES records
for READs and atomics - and go out in PSN order when the QP transmits, so that acknowledgements coalesce by themselves.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import i64, inline
from softrnic.layout import AckState, MrKind, RdState, RespMsg
from softrnic.mem.copy import MEM_SHORT, atomic_region, scatter, write_region
from softrnic.mem.mr import check_remote, find_mr
from softrnic.mem.space import MEM_DENIED, MEM_FAULT, MEM_OK
from softrnic.qp.event import push_event
from softrnic.qp.finish import complete_recv, enter_error, take_rwqe
from softrnic.qp.pagewait import fault_timer, report_fault
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.qp.requester import invalidate
from softrnic.qp.sched import schedule
from softrnic.spec import (
    GSI_QKEY,
    MAX_MESSAGE,
    Access,
    EventType,
    Nak,
    Op,
    QpState,
    QpType,
    WcFlags,
    WcOpcode,
    WcStatus,
)
from softrnic.wire.headers import (
    DETH_LEN,
    RETH_LEN,
    atomiceth_compare,
    atomiceth_rkey,
    atomiceth_swap,
    atomiceth_va,
    deth_qkey,
    deth_sqpn,
    ieth_rkey,
    immdt,
    reth_len,
    reth_rkey,
    reth_va,
)
from softrnic.wire.opcodes import OpFlag

# What a check says.
OK = 0
DROP = 1  # silently
DUPLICATE = 2
NAK_SEQUENCE = 3
NAK_RNR = 4  # no receive WQE
NAK_FAULT = 5  # a page is missing: also an RNR NAK
NAK_INVALID = 6
NAK_ACCESS = 7
NAK_OPERATIONAL = 8  # our own receive WQE names memory it must not
NAK_LENGTH = 9  # the receive WQE is too small: an invalid request to the peer, a length error to us

_SYNDROME_RNR = 0x20
_SYNDROME_NAK = 0x60

_RECV_GRH = int(WcFlags.GRH)
_RECV_IMM = int(WcFlags.WITH_IMM)
_RECV_INV = int(WcFlags.WITH_INV)
_REMOTE_WRITE = int(Access.REMOTE_WRITE)
_REMOTE_READ = int(Access.REMOTE_READ)
_REMOTE_ATOMIC = int(Access.REMOTE_ATOMIC)

GRH_BYTES = 40


@inline
def _has(pkt, flag):
    return pkt.flags & flag != 0


@inline
def receive_request(eng, buf, qp, qp_index, pkt):
    """One request packet for an RC or UC QP in a state that takes it."""
    step = check_psn(eng, qp, pkt)
    if step == OK:
        step = check_op_seq(qp, pkt)
    if step == OK:
        step = check_op_valid(qp, pkt)
    if step == OK:
        step = check_resource(eng, qp, qp_index, pkt)
    if step == OK:
        step = check_length(buf, qp, pkt)
    if step == OK:
        step = check_rkey(eng, buf, qp, qp_index, pkt)
    if step == OK:
        step = execute(eng, buf, qp, pkt)
    if step == OK:
        finish_packet(eng, buf, qp, qp_index, pkt)
        return
    if qp["type"] == QpType.UC:
        _drop_uc(eng, qp, qp_index, step)
    elif step == DUPLICATE:
        duplicate_request(eng, buf, qp, qp_index, pkt)
    elif step != DROP:
        refuse(eng, qp, qp_index, step)


@inline
def check_psn(eng, qp, pkt):
    """Where the request stands to the expected PSN (9.7.4.1.2, 9.8.2.2.1)."""
    ahead = psn_diff(pkt.psn, i64(qp["epsn"]))
    if qp["type"] == QpType.UC:
        if ahead != 0:
            qp["epsn"] = pkt.psn
            if not _has(pkt, OpFlag.FIRST):
                qp["resp_op"] = RespMsg.SKIP
        if _has(pkt, OpFlag.FIRST):
            qp["resp_op"] = RespMsg.NONE  # a new message ends a damaged or an unfinished one
        return OK
    if ahead == 0:
        qp["nak_sent"] = 0
        return OK
    if ahead < 0:
        return DUPLICATE
    eng["counters"][C.OUT_OF_SEQ_REQUEST] += 1
    if qp["nak_sent"]:
        eng["counters"][C.DROP_NAK_SENT] += 1
        return DROP
    return NAK_SEQUENCE


@inline
def check_op_seq(qp, pkt):
    """First, middle and last packets must follow one another (9.7.4.1.5)."""
    if qp["resp_op"] == RespMsg.SKIP:
        return DROP
    if qp["resp_op"] == RespMsg.NONE:
        return OK if _has(pkt, OpFlag.FIRST) else NAK_INVALID
    if _has(pkt, OpFlag.FIRST):
        return NAK_INVALID
    same = _has(pkt, OpFlag.SEND) if qp["resp_op"] == RespMsg.SEND else _has(pkt, OpFlag.WRITE)
    return OK if same else NAK_INVALID


@inline
def check_op_valid(qp, pkt):
    """What the QP was told to allow (9.7.4.1.6, C9-79)."""
    access = i64(qp["access"])
    if _has(pkt, OpFlag.WRITE) and access & _REMOTE_WRITE == 0:
        return NAK_INVALID
    if _has(pkt, OpFlag.READ) and access & _REMOTE_READ == 0:
        return NAK_INVALID
    if _has(pkt, OpFlag.ATOMIC) and access & _REMOTE_ATOMIC == 0:
        return NAK_INVALID
    return OK


@inline
def check_resource(eng, qp, qp_index, pkt):
    """A receive WQE, or a place to remember a READ or atomic (9.7.4.1.7, 9.7.5.2.8)."""
    if _has(pkt, OpFlag.NEEDS_RWQE):
        if not take_rwqe(eng, qp, qp_index):
            return NAK_RNR
    elif _has(pkt, OpFlag.SEND) and qp["resp_wqe"] == 0:
        return NAK_INVALID
    unanswered = i64(qp["rd_tail"]) - i64(qp["rd_done"])
    wants_data = _has(pkt, OpFlag.READ) or _has(pkt, OpFlag.ATOMIC)
    if wants_data and unanswered >= i64(qp["max_dest_rd_atomic"]):
        return NAK_INVALID  # C9-115: more than the peer was told is its mistake
    return OK


@inline
def check_length(buf, qp, pkt):
    """Packet length against the path MTU and the message (9.7.4.1.6, C9-89 to C9-92)."""
    n, pmtu = pkt.length, i64(qp["pmtu"])
    if not _has(pkt, OpFlag.PAYLOAD):
        return OK if n == 0 else NAK_INVALID
    if _has(pkt, OpFlag.LAST):
        if n > pmtu or (n == 0 and not _has(pkt, OpFlag.FIRST)):
            return NAK_INVALID
    elif n != pmtu:
        return NAK_INVALID
    if _has(pkt, OpFlag.WRITE):
        total = reth_len(buf, pkt.ext) if _has(pkt, OpFlag.RETH) else i64(qp["resp_resid"])
        if total > MAX_MESSAGE:
            return NAK_INVALID
        exact = n == total if _has(pkt, OpFlag.LAST) else n < total
        return OK if exact else NAK_INVALID
    if _has(pkt, OpFlag.SEND):
        placed = 0 if _has(pkt, OpFlag.FIRST) else i64(qp["resp_off"])
        return OK if placed + n <= i64(qp["resp_len"]) else NAK_LENGTH
    return OK


@inline
def check_rkey(eng, buf, qp, qp_index, pkt):
    """The right to touch what a RETH or AtomicETH names (9.7.4.1.6, 9.4.1.1); zero bytes need none (C9-88)."""
    if _has(pkt, OpFlag.RETH):
        length = reth_len(buf, pkt.ext)
        if length > MAX_MESSAGE:
            return NAK_INVALID
        qp["resp_mr"] = -1
        if length == 0:
            return OK
        need = _REMOTE_READ if _has(pkt, OpFlag.READ) else _REMOTE_WRITE
        rkey = reth_rkey(buf, pkt.ext)
        mr = check_remote(eng, qp, qp_index, rkey, reth_va(buf, pkt.ext), length, need)
        if mr < 0:
            return NAK_ACCESS
        qp["resp_mr"] = mr
        qp["resp_key"] = rkey
    elif _has(pkt, OpFlag.ATOMIC):
        va = atomiceth_va(buf, pkt.ext)
        if va & 7:
            return NAK_INVALID
        mr = check_remote(eng, qp, qp_index, atomiceth_rkey(buf, pkt.ext), va, 8, _REMOTE_ATOMIC)
        if mr < 0:
            return NAK_ACCESS
        qp["resp_mr"] = mr
    elif _has(pkt, OpFlag.WRITE) and i64(qp["resp_resid"]) > 0:
        # the region may have been taken away in mid-message
        mr = check_remote(
            eng, qp, qp_index, i64(qp["resp_key"]), i64(qp["resp_va"]), i64(qp["resp_resid"]), _REMOTE_WRITE
        )
        if mr < 0:
            return NAK_ACCESS
        qp["resp_mr"] = mr
    if _has(pkt, OpFlag.IETH):
        return _check_invalidate(eng, qp, qp_index, ieth_rkey(buf, pkt.ext))
    return OK


@inline
def _check_invalidate(eng, qp, qp_index, rkey):
    """Whether a SEND with invalidate may take this key away (10.6.7.3): invalidation itself comes last."""
    i = find_mr(eng, i64(qp["func"]), rkey)
    if i < 0:
        return NAK_ACCESS
    mr = eng["mrs"][i]
    if mr["valid"] == 0 or mr["kind"] == MrKind.MW1 or mr["pdn"] != qp["pdn"] or i64(mr["windows"]) > 0:
        return NAK_ACCESS
    if mr["kind"] == MrKind.MW2 and i64(mr["qp"]) != qp_index:
        return NAK_ACCESS
    return OK


@inline
def _memory_step(status):
    """A status of mem.copy as a step."""
    if status == MEM_OK:
        return OK
    if status == MEM_FAULT:
        return NAK_FAULT
    return NAK_LENGTH if status == MEM_SHORT else NAK_OPERATIONAL


@inline
def execute(eng, buf, qp, pkt):
    """Do what the packet asks. Nothing of the QP's state has moved if this does not say OK."""
    if _has(pkt, OpFlag.SEND):
        offset = 0 if _has(pkt, OpFlag.FIRST) else i64(qp["resp_off"])
        status = scatter(
            eng, qp, i64(qp["resp_sge_base"]), i64(qp["resp_nsge"]), offset, buf, pkt.payload, pkt.length
        )  # fmt: skip
        if status == MEM_OK:
            qp["resp_off"] = offset + pkt.length
        return _memory_step(status)
    if _has(pkt, OpFlag.WRITE):
        return _execute_write(eng, buf, qp, pkt)
    if _has(pkt, OpFlag.ATOMIC):
        return _execute_atomic(eng, buf, qp, pkt)
    return _execute_read(eng, buf, qp, pkt)


@inline
def _execute_write(eng, buf, qp, pkt):
    va, resid, done = i64(qp["resp_va"]), i64(qp["resp_resid"]), i64(qp["resp_off"])
    if _has(pkt, OpFlag.RETH):
        va, resid, done = reth_va(buf, pkt.ext), reth_len(buf, pkt.ext), 0
    if pkt.length > 0:
        mr = i64(qp["resp_mr"])
        status = write_region(eng, mr, va - i64(eng["mrs"][mr]["iova"]), buf, pkt.payload, pkt.length)
        if status != MEM_OK:
            return NAK_FAULT if status == MEM_FAULT else NAK_ACCESS
    if _has(pkt, OpFlag.FIRST):
        eng["counters"][C.RX_WRITE_REQUESTS] += 1
    qp["resp_va"] = va + pkt.length
    qp["resp_resid"] = resid - pkt.length
    qp["resp_off"] = done + pkt.length
    return OK


@inline
def _new_resource(eng, qp, pkt, npsn):
    """The next RD_RES of the ring, PENDING from the packet's PSN on."""
    tail = i64(qp["rd_tail"])
    res = eng["rd_res"][i64(qp["rd_base"]) + (tail & i64(qp["rd_mask"]))]
    res["first_psn"] = pkt.psn
    res["start_psn"] = pkt.psn
    res["cur_psn"] = pkt.psn
    res["last_psn"] = psn_add(pkt.psn, npsn - 1)
    res["end_psn"] = res["last_psn"]
    res["state"] = RdState.PENDING
    res["msn"] = psn_add(i64(qp["msn"]), 1)
    res["mr"] = qp["resp_mr"]
    qp["rd_tail"] = tail + 1
    # the slot may have belonged to a replay still under way: that one is forgotten
    qp["rd_head"] = max(i64(qp["rd_head"]), tail - i64(qp["rd_mask"]))
    return res


@inline
def _execute_read(eng, buf, qp, pkt):
    length, pmtu = reth_len(buf, pkt.ext), i64(qp["pmtu"])
    eng["counters"][C.RX_READ_REQUESTS] += 1
    npsn = max(1, (length + pmtu - 1) // pmtu)
    res = _new_resource(eng, qp, pkt, npsn)
    res["atomic"] = 0
    res["key"] = reth_rkey(buf, pkt.ext)
    res["va"] = reth_va(buf, pkt.ext)
    res["length"] = length
    res["stop"] = length
    qp["epsn"] = psn_add(pkt.psn, npsn - 1)  # finish_packet moves past the last one
    return OK


@inline
def _execute_atomic(eng, buf, qp, pkt):
    mr, va = i64(qp["resp_mr"]), atomiceth_va(buf, pkt.ext)
    is_cas = pkt.opcode & 0x1F == Op.COMPARE_SWAP
    operand = atomiceth_compare(buf, pkt.ext) if is_cas else atomiceth_swap(buf, pkt.ext)
    offset = va - i64(eng["mrs"][mr]["iova"])
    status, orig = atomic_region(eng, mr, offset, is_cas, operand, atomiceth_swap(buf, pkt.ext))
    if status == MEM_DENIED:
        return NAK_ACCESS
    if status != MEM_OK:
        return NAK_FAULT
    eng["counters"][C.RX_ATOMIC_REQUESTS] += 1
    res = _new_resource(eng, qp, pkt, 1)
    res["atomic"] = 1
    res["key"] = atomiceth_rkey(buf, pkt.ext)
    res["va"] = va
    res["length"] = 8
    res["orig"] = orig
    return OK


@inline
def finish_packet(eng, buf, qp, qp_index, pkt):
    """The packet was executed: move on, complete the receive WQE at the end of its message, owe an answer."""
    qp["epsn"] = psn_add(i64(qp["epsn"]), 1)
    _established(eng, qp, qp_index)
    if _has(pkt, OpFlag.LAST):
        qp["resp_op"] = RespMsg.NONE
        qp["msn"] = psn_add(i64(qp["msn"]), 1)
        if _has(pkt, OpFlag.COMPLETES_RECV):
            _complete_message(eng, buf, qp, qp_index, pkt)
    elif _has(pkt, OpFlag.SEND):
        qp["resp_op"] = RespMsg.SEND
    else:
        qp["resp_op"] = RespMsg.WRITE
    if qp["type"] != QpType.RC or qp["state"] == QpState.ERR:
        return
    if _has(pkt, OpFlag.READ) or _has(pkt, OpFlag.ATOMIC):
        schedule(eng, qp, qp_index)
    elif pkt.ackreq:
        owe_ack(eng, qp, qp_index)


@inline
def _established(eng, qp, qp_index):
    """The first request in RTR tells that the connection is up, should the RTU have been lost (12.9.8.3.1)."""
    if qp["comm_est"] == 0:
        qp["comm_est"] = 1
        if qp["state"] == QpState.RTR and qp["type"] == QpType.RC:
            push_event(eng, EventType.COMM_EST, qp_index, 0)


@inline
def _complete_message(eng, buf, qp, qp_index, pkt):
    opcode = WcOpcode.RECV
    flags, imm = 0, 0
    ext = pkt.ext
    if _has(pkt, OpFlag.WRITE):
        opcode = WcOpcode.RECV_RDMA_WITH_IMM
        ext += RETH_LEN if _has(pkt, OpFlag.RETH) else 0
    if _has(pkt, OpFlag.IMMDT):
        flags, imm = _RECV_IMM, immdt(buf, ext)
    elif _has(pkt, OpFlag.IETH):
        flags, imm = _RECV_INV, ieth_rkey(buf, ext)
        invalidate(eng, eng["mrs"][find_mr(eng, i64(qp["func"]), imm)])
    complete_recv(
        eng, qp, qp_index, WcStatus.SUCCESS, opcode, i64(qp["resp_off"]), imm, i64(qp["dqpn"]), flags, pkt.se != 0
    )


@inline
def owe_ack(eng, qp, qp_index):
    """Acknowledge everything before epsn at the next transmit; several requests share one answer."""
    if qp["ack_state"] == AckState.NONE:
        qp["ack_state"] = AckState.ACK
    else:
        eng["counters"][C.ACK_DEFERRED] += 1
    schedule(eng, qp, qp_index)


@inline
def owe_nak(eng, qp, qp_index, syndrome):
    """One negative answer for the expected PSN; silence follows until that packet comes (9.7.5.2.8)."""
    qp["ack_state"] = AckState.NAK
    qp["ack_syndrome"] = syndrome
    qp["ack_psn"] = qp["epsn"]
    qp["nak_sent"] = 1
    schedule(eng, qp, qp_index)


@inline
def refuse(eng, qp, qp_index, step):
    """Answer a request that failed a check; what is fatal also takes our own QP to its error state (9.9.2.4)."""
    if step == NAK_SEQUENCE:
        eng["counters"][C.SEND_SEQ_ERR] += 1
        owe_nak(eng, qp, qp_index, _SYNDROME_NAK | Nak.PSN_SEQUENCE_ERROR.value)
    elif step == NAK_RNR:
        eng["counters"][C.SEND_RNR_ERR] += 1
        owe_nak(eng, qp, qp_index, _SYNDROME_RNR | i64(qp["min_rnr_timer"]))
    elif step == NAK_FAULT:
        eng["counters"][C.SEND_RNR_ERR] += 1
        report_fault(eng)
        owe_nak(eng, qp, qp_index, _SYNDROME_RNR | fault_timer(qp))
    elif step == NAK_ACCESS:
        eng["counters"][C.SEND_REMOTE_ACCESS_ERR] += 1
        owe_nak(eng, qp, qp_index, _SYNDROME_NAK | Nak.REMOTE_ACCESS_ERROR.value)
        _fatal(eng, qp, qp_index, WcStatus.LOC_ACCESS_ERR, EventType.QP_ACCESS_ERR)
    elif step == NAK_OPERATIONAL:
        eng["counters"][C.SEND_REMOTE_OP_ERR] += 1
        owe_nak(eng, qp, qp_index, _SYNDROME_NAK | Nak.REMOTE_OPERATIONAL_ERROR.value)
        _fatal(eng, qp, qp_index, WcStatus.LOC_PROT_ERR, EventType.QP_FATAL)
    else:
        eng["counters"][C.SEND_INVALID_REQUEST_ERR] += 1
        owe_nak(eng, qp, qp_index, _SYNDROME_NAK | Nak.INVALID_REQUEST.value)
        status = WcStatus.LOC_LEN_ERR if step == NAK_LENGTH else WcStatus.REM_INV_REQ_ERR
        _fatal(eng, qp, qp_index, status, EventType.QP_REQ_ERR)


@inline
def _fatal(eng, qp, qp_index, status, event):
    if qp["resp_wqe"]:
        complete_recv(eng, qp, qp_index, status, WcOpcode.RECV, 0, 0, 0, 0, False)
    push_event(eng, event, qp_index, 0)
    enter_error(eng, qp, qp_index)


@inline
def _drop_uc(eng, qp, qp_index, step):
    """UC: a bad packet costs its message and nothing else; a receive WQE in hand serves the next (9.8.2.2)."""
    qp["epsn"] = psn_add(i64(qp["epsn"]), 1)
    qp["resp_op"] = RespMsg.SKIP
    if step == NAK_RNR:
        eng["counters"][C.DROP_NO_RECV] += 1
    elif step == NAK_FAULT:
        report_fault(eng)
        eng["counters"][C.DROP_PAGE_FAULT] += 1
    elif step == NAK_ACCESS:
        eng["counters"][C.DROP_UC_ACCESS] += 1
    elif step == NAK_OPERATIONAL:
        _fatal(eng, qp, qp_index, WcStatus.LOC_PROT_ERR, EventType.QP_FATAL)
    elif step == NAK_LENGTH:
        _fatal(eng, qp, qp_index, WcStatus.LOC_LEN_ERR, EventType.QP_REQ_ERR)
    else:
        eng["counters"][C.DROP_UC_SEQ] += 1


# --- duplicates -----------------------------------------------------------------------------------------------


@inline
def duplicate_request(eng, buf, qp, qp_index, pkt):
    """A request before epsn: acknowledge again, or replay what was answered (9.7.5.1.3, C9-105 to C9-110)."""
    eng["counters"][C.DUPLICATE_REQUEST] += 1
    if _has(pkt, OpFlag.READ):
        _replay_read(eng, buf, qp, qp_index, pkt)
    elif _has(pkt, OpFlag.ATOMIC):
        _replay_atomic(eng, buf, qp, qp_index, pkt)
    else:
        owe_ack(eng, qp, qp_index)


@inline
def _find_resource(eng, qp, psn, atomic):
    """Ring index of the resource that covers `psn`, or -1."""
    tail = i64(qp["rd_tail"])
    for back in range(1, min(i64(qp["max_dest_rd_atomic"]), tail) + 1):
        res = eng["rd_res"][i64(qp["rd_base"]) + ((tail - back) & i64(qp["rd_mask"]))]
        if res["state"] == RdState.FREE or i64(res["atomic"]) != atomic:
            continue
        if psn_diff(psn, i64(res["first_psn"])) >= 0 and psn_diff(i64(res["last_psn"]), psn) >= 0:
            return tail - back
    return -1


@inline
def _play(eng, qp, qp_index, index):
    qp["rd_head"] = min(i64(qp["rd_head"]), index)
    schedule(eng, qp, qp_index)


@inline
def _replay_read(eng, buf, qp, qp_index, pkt):
    """The peer asks again for a READ or for its rest: it must lie within what was granted (C9-107)."""
    index = _find_resource(eng, qp, pkt.psn, 0)
    if index < 0:
        eng["counters"][C.DROP_RD_ATOMIC_REPLAY] += 1
        return
    res = eng["rd_res"][i64(qp["rd_base"]) + (index & i64(qp["rd_mask"]))]
    pmtu = i64(qp["pmtu"])
    offset = psn_diff(pkt.psn, i64(res["first_psn"])) * pmtu
    length = reth_len(buf, pkt.ext)
    inside = reth_va(buf, pkt.ext) == i64(res["va"]) + offset and length <= i64(res["length"]) - offset
    if not inside or reth_rkey(buf, pkt.ext) != i64(res["key"]):
        eng["counters"][C.DROP_RD_ATOMIC_REPLAY] += 1
        return
    npsn = max(1, (length + pmtu - 1) // pmtu)
    res["start_psn"] = pkt.psn
    res["cur_psn"] = pkt.psn
    res["end_psn"] = psn_add(pkt.psn, npsn - 1)
    res["stop"] = offset + length
    res["state"] = RdState.PENDING
    _play(eng, qp, qp_index, index)


@inline
def _replay_atomic(eng, buf, qp, qp_index, pkt):
    """An atomic is never done twice: its saved result goes out again (C9-109)."""
    index = _find_resource(eng, qp, pkt.psn, 1)
    if index < 0:
        eng["counters"][C.DROP_RD_ATOMIC_REPLAY] += 1
        return
    res = eng["rd_res"][i64(qp["rd_base"]) + (index & i64(qp["rd_mask"]))]
    if atomiceth_va(buf, pkt.ext) != i64(res["va"]) or atomiceth_rkey(buf, pkt.ext) != i64(res["key"]):
        eng["counters"][C.DROP_RD_ATOMIC_REPLAY] += 1
        return
    res["cur_psn"] = res["first_psn"]
    res["state"] = RdState.PENDING
    _play(eng, qp, qp_index, index)


# --- datagrams ------------------------------------------------------------------------------------------------


@inline
def receive_datagram(eng, buf, qp, qp_index, pkt):
    """One UD packet (9.8.3): checked, placed behind 40 bytes of network header, completed; or dropped."""
    qkey = GSI_QKEY if qp["type"] == QpType.GSI else i64(qp["qkey"])
    if deth_qkey(buf, pkt.ext) != qkey:
        eng["counters"][C.DROP_QKEY] += 1
        return
    if pkt.length > i64(qp["pmtu"]):
        eng["counters"][C.DROP_LENGTH] += 1
        return
    if not take_rwqe(eng, qp, qp_index):
        eng["counters"][C.DROP_NO_RECV] += 1
        return
    if pkt.length + GRH_BYTES > i64(qp["resp_len"]):
        eng["counters"][C.DROP_LENGTH] += 1  # the receive WQE stays in hand for the next datagram
        return
    base, nsge = i64(qp["resp_sge_base"]), i64(qp["resp_nsge"])
    header = GRH_BYTES if pkt.is_v6 else 20  # A17.4.5.1: an IPv4 header lies in the last 20 bytes
    status = scatter(eng, qp, base, nsge, GRH_BYTES - header, buf, pkt.l3_off, header)
    if status == MEM_OK:
        status = scatter(eng, qp, base, nsge, GRH_BYTES, buf, pkt.payload, pkt.length)
    if status == MEM_FAULT:
        report_fault(eng)
        eng["counters"][C.DROP_PAGE_FAULT] += 1
        return
    if status != MEM_OK:
        _fatal(eng, qp, qp_index, WcStatus.LOC_PROT_ERR, EventType.QP_FATAL)
        return
    flags, imm = _RECV_GRH, 0
    if _has(pkt, OpFlag.IMMDT):
        flags, imm = _RECV_GRH | _RECV_IMM, immdt(buf, pkt.ext + DETH_LEN)
    complete_recv(
        eng, qp, qp_index, WcStatus.SUCCESS, WcOpcode.RECV, pkt.length + GRH_BYTES, imm, deth_sqpn(buf, pkt.ext),
        flags, pkt.se != 0,
    )  # fmt: skip

