"""The requester: send WQEs become request packets (IBTA 9.7.3, 9.8.2, 9.8.3 and 10.7).

Decides what the QP may send next - segmentation, fences, READ and atomic credits, the window, the peer's receive
credits - and writes it. What comes back is the completer's; when to go back is retransmit's.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import frozen, i64, inline
from softrnic.layout import MAX_SGE, MrKind, PageWait, Probe, ReqWait, TimerKind, WqeState
from softrnic.mem.copy import gather, gather_inline
from softrnic.mem.mr import check_local, find_mr
from softrnic.mem.space import MEM_FAULT, MEM_OK
from softrnic.qp.event import push_event
from softrnic.qp.finish import complete_send, fail_send, flush_sq
from softrnic.qp.packet import NO_ROOM, cancel, header_crc, put_plain, reserve, seal, seal_plain
from softrnic.qp.pagewait import pause
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.qp.retransmit import CWND_MAX, arm_ack_timer, resume_interval_ns, resume_rnr_wait, rewind
from softrnic.qp.sched import schedule
from softrnic.qp.timer import start_timer
from softrnic.spec import (
    MAX_MESSAGE,
    Access,
    EventType,
    Op,
    QpState,
    QpType,
    SendFlags,
    WcStatus,
    WrOpcode,
)
from softrnic.wire.crc32 import crc32_update
from softrnic.wire.headers import (
    ATOMICETH_LEN,
    BTH_LEN,
    DETH_LEN,
    ICRC_LEN,
    IETH_LEN,
    IMMDT_LEN,
    RETH_LEN,
    put_atomiceth,
    put_bth,
    put_deth,
    put_ieth,
    put_immdt,
    put_reth,
)

FIRST_ASKED = 4  # packets that share a request for an acknowledgement, while no round trip is known

# What one call of `send_requests` ended with.
IDLE = 0  # nothing more to do until something happens
MORE = 1  # the QP's turn is over, or the ring is full: schedule it again

_FENCE = int(SendFlags.FENCE)
_SOLICITED = int(SendFlags.SOLICITED)
_SIGNALED = int(SendFlags.SIGNALED)
_INLINE = int(SendFlags.INLINE)
_LOCAL_WRITE = int(Access.LOCAL_WRITE)
_REMOTE_WRITERS = int(Access.REMOTE_WRITE | Access.REMOTE_ATOMIC)
_MW_BIND = int(Access.MW_BIND)
_MAX_SPAN = (1 << 23) - 1  # PSNs outstanding: with more, before and after cannot be told apart (9.7.2)

# Per ibv_wr_opcode: which QP types may post it, and the opcode of an only packet of it (RC).
_BY_RC, _BY_UC, _BY_UD = 1, 2, 4
_POSTED_BY = frozen([3, 3, 7, 7, 1, 1, 1, 3, 3, 3] + [0] * 22 + [3], "i8")
_SEND_LIKE = frozen([0, 0, 1, 1, 0, 0, 0, 0, 0, 1] + [0] * 23, "i8")
_FIRST_OP = frozen([6, 6, 0, 0, 0, 0, 0, 0, 0, 0] + [0] * 23, "i8")
_LAST_OP = frozen([8, 9, 2, 3, 0, 0, 0, 0, 0, 22] + [0] * 23, "i8")
_ONLY_OP = frozen([10, 11, 4, 5, 12, 19, 20, 0, 0, 23] + [0] * 23, "i8")


@inline
def _wqe_at(eng, qp, index):
    return eng["wqes"][i64(qp["sq_base"]) + (index & i64(qp["sq_mask"]))]


@inline
def wqe_sge_base(qp, index):
    """First SGE slot of the send WQE with this index."""
    return i64(qp["sq_sge_base"]) + (index & i64(qp["sq_mask"])) * i64(qp["sq_sge_max"])


@inline
def _is_local(opcode):
    return opcode == WrOpcode.LOCAL_INV or opcode == WrOpcode.BIND_MW or opcode == WrOpcode.REG_MR


@inline
def _is_rd_atomic(opcode):
    return (
        opcode == WrOpcode.RDMA_READ
        or opcode == WrOpcode.ATOMIC_CMP_AND_SWP
        or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD
    )


@inline
def _type_bit(qp):
    if qp["type"] == QpType.RC:
        return _BY_RC
    if qp["type"] == QpType.UC:
        return _BY_UC
    return _BY_UD


@inline
def _check_wqe(eng, qp, wqe, index):
    """Locally detected errors of a send WQE before its first packet (10.7.3, 11.4.1.1): a WcStatus."""
    opcode = i64(wqe["opcode"])
    if opcode >= len(_POSTED_BY) or (_POSTED_BY[opcode] & _type_bit(qp)) == 0:
        return WcStatus.LOC_QP_OP_ERR
    if _is_local(opcode):
        return WcStatus.SUCCESS
    if i64(wqe["flags"]) & _INLINE:
        if _is_rd_atomic(opcode) or i64(wqe["length"]) > i64(qp["sq_sge_max"]) * 16 or i64(wqe["length"]) < 0:
            return WcStatus.LOC_QP_OP_ERR
    else:
        nsge = i64(wqe["num_sge"])
        if nsge > i64(qp["sq_sge_max"]) or nsge > MAX_SGE:
            return WcStatus.LOC_QP_OP_ERR
        total = 0
        base = wqe_sge_base(qp, index)
        for i in range(nsge):
            sge = eng["sges"][base + i]
            length = i64(sge["length"])
            total += length
            if length and check_local(
                eng, qp, i64(sge["lkey"]), i64(sge["addr"]), length, _is_rd_atomic(opcode)
            ) < 0:  # fmt: skip
                return WcStatus.LOC_PROT_ERR
        wqe["length"] = total
    length = i64(wqe["length"])
    if length > MAX_MESSAGE:
        return WcStatus.LOC_LEN_ERR
    if _type_bit(qp) == _BY_UD:
        if length > i64(qp["pmtu"]):
            return WcStatus.LOC_LEN_ERR
        ah = i64(wqe["ah"])
        if ah < 0 or ah >= len(eng["avs"]) or eng["avs"][ah]["valid"] == 0 or eng["avs"][ah]["pdn"] != qp["pdn"]:
            return WcStatus.LOC_QP_OP_ERR
    if (opcode == WrOpcode.ATOMIC_CMP_AND_SWP or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD) and length != 8:
        return WcStatus.LOC_LEN_ERR
    if opcode == WrOpcode.RDMA_READ and length > i64(qp["pmtu"]) * _MAX_SPAN:
        return WcStatus.LOC_LEN_ERR
    if _is_rd_atomic(opcode) and qp["max_rd_atomic"] == 0:
        return WcStatus.LOC_QP_OP_ERR
    return WcStatus.SUCCESS


@inline
def _start_wqe(eng, qp, qp_index, wqe, index):
    """First touch of a WQE: check it and give it its PSNs and SSN. False when it cannot go out."""
    status = _check_wqe(eng, qp, wqe, index)
    qp["sq_hi"] = index + 1
    if status != WcStatus.SUCCESS:
        wqe["state"] = WqeState.FAILED
        wqe["status"] = status
        return False
    if _is_local(i64(wqe["opcode"])):
        wqe["state"] = WqeState.DONE
        ok = _run_local(eng, qp, qp_index, wqe)
        if not ok:
            wqe["state"] = WqeState.FAILED
            wqe["status"] = WcStatus.MW_BIND_ERR
        return ok
    pmtu = i64(qp["pmtu"])
    npsn = max(1, (i64(wqe["length"]) + pmtu - 1) // pmtu)
    if i64(wqe["opcode"]) == WrOpcode.ATOMIC_CMP_AND_SWP or i64(wqe["opcode"]) == WrOpcode.ATOMIC_FETCH_AND_ADD:
        npsn = 1
    wqe["first_psn"] = qp["req_psn"]
    wqe["last_psn"] = psn_add(i64(qp["req_psn"]), npsn - 1)
    wqe["ssn"] = qp["ssn"]
    qp["ssn"] = psn_add(i64(qp["ssn"]), 1)
    wqe["state"] = WqeState.STARTED
    return True


@inline
def _run_local(eng, qp, qp_index, wqe):
    """LOCAL_INV, REG_MR and BIND_MW act on the key tables when their turn comes (10.6.7, 10.6.8)."""
    i = find_mr(eng, i64(qp["func"]), i64(wqe["rkey"]))
    if i < 0:
        return False
    mr = eng["mrs"][i]
    opcode = i64(wqe["opcode"])
    if mr["pdn"] != qp["pdn"]:
        return False
    if opcode == WrOpcode.LOCAL_INV:
        if mr["kind"] == MrKind.MW1 or i64(mr["windows"]) > 0:
            return False
        return invalidate(eng, mr)
    if opcode == WrOpcode.REG_MR:
        if mr["kind"] != MrKind.MR or mr["valid"]:
            return False
        mr["iova"] = wqe["remote_addr"]
        mr["access"] = wqe["access"]
        mr["valid"] = 1
        return True
    return _bind_window(eng, qp, qp_index, wqe, mr)


@inline
def invalidate(eng, mr):
    """Take the access rights of a region or a type 2 window away."""
    if mr["valid"] == 0:
        return False
    mr["valid"] = 0
    if mr["kind"] == MrKind.MW2:
        eng["mrs"][i64(mr["parent"])]["windows"] -= 1
    return True


@inline
def _bind_window(eng, qp, qp_index, wqe, mw):
    """Bind a window to part of a region (10.6.6.2); a zero length unbinds a type 1 window."""
    length = i64(wqe["length"])
    if mw["kind"] == MrKind.MR or (mw["kind"] == MrKind.MW2 and mw["valid"]):
        return False
    parent_index = i64(wqe["bind_mr"])
    if parent_index < 0 or parent_index >= len(eng["mrs"]):
        return False
    parent = eng["mrs"][parent_index]
    va = i64(wqe["remote_addr"])
    if length:
        offset = va - i64(parent["iova"])
        inside = offset >= 0 and length > 0 and length <= i64(parent["length"]) - offset
        writes = (i64(wqe["access"]) & _REMOTE_WRITERS) != 0
        if parent["kind"] != MrKind.MR or parent["valid"] == 0 or parent["pdn"] != qp["pdn"] or not inside:
            return False
        if (i64(parent["access"]) & _MW_BIND) == 0:
            return False
        if writes and (i64(parent["access"]) & _LOCAL_WRITE) == 0:
            return False
    if mw["valid"]:
        eng["mrs"][i64(mw["parent"])]["windows"] -= 1
    mw["valid"] = 0
    if length:
        mw["parent"] = parent_index
        mw["iova"] = va
        mw["length"] = length
        mw["access"] = wqe["access"]
        mw["space"] = parent["space"]
        mw["qp"] = qp_index
        mw["valid"] = 1
        parent["windows"] += 1
    return True


@inline
def _window_full(qp):
    return psn_diff(i64(qp["req_psn"]), i64(qp["una_psn"])) >= i64(qp["cwnd"])


@inline
def _out_of_credits(qp, wqe):
    """End-to-end flow control (9.7.7.2): beyond the limit only one packet may be outstanding, as a probe."""
    opcode = i64(wqe["opcode"])
    if qp["credits_valid"] == 0:
        return False
    if _SEND_LIKE[opcode] == 0 and opcode != WrOpcode.RDMA_WRITE_WITH_IMM:
        return False
    if psn_diff(i64(wqe["ssn"]), i64(qp["limit_ssn"])) <= 0:
        return False
    return qp["req_psn"] != qp["una_psn"]


@inline
def _may_send(qp, wqe):
    """Whether the next packet of a started WQE may go now."""
    if _window_full(qp) or _out_of_credits(qp, wqe):
        return False
    if i64(qp["req_off"]) == 0 or _is_rd_atomic(i64(wqe["opcode"])):
        if (i64(wqe["flags"]) & _FENCE) and i64(qp["rd_out"]) > 0:  # o10-10, 10.8.3.3
            return False
        if _is_rd_atomic(i64(wqe["opcode"])):
            if i64(qp["rd_out"]) >= i64(qp["max_rd_atomic"]):
                return False
            # a long READ waits until its last PSN is still ahead of the oldest one outstanding (9.7.2)
            return psn_diff(psn_add(i64(wqe["last_psn"]), 1), i64(qp["una_psn"])) > 0
    return True


@inline
def _ask_every(qp):
    """How many packets share a request for an acknowledgement: few enough that the window never runs dry.

    Fewer while no round trip is known, as then only the local ACK timeout helps against some losses.
    """
    most = max(1, i64(qp["cwnd"]) >> 2)
    return most if i64(qp["srtt"]) else min(most, FIRST_ASKED)


@inline
def _note_sent(eng, qp, psn, npsn, ackreq):
    """Book-keeping of a packet that went out (or a READ request that stands for npsn of them)."""
    if qp["una_psn"] == qp["req_hi_psn"]:
        qp["progress_at"] = eng["now"]  # nothing was outstanding: the local ACK timeout begins
    if psn_diff(psn, i64(qp["req_hi_psn"])) < 0:
        eng["counters"][C.RETRANSMITTED_PKTS] += 1
    elif ackreq and qp["rtt_valid"] == 0:
        qp["rtt_valid"] = 1
        qp["rtt_psn"] = psn
        qp["rtt_at"] = eng["now"]
    nxt = psn_add(psn, npsn)
    qp["req_psn"] = nxt
    if psn_diff(nxt, i64(qp["req_hi_psn"])) > 0:
        qp["req_hi_psn"] = nxt


@inline
def _send_read(eng, tx, qp, qp_index, wqe):
    """READ request for what is still missing of the WQE (9.7.5.1.4); the responses carry its PSNs."""
    length = BTH_LEN + RETH_LEN + ICRC_LEN
    psn = i64(qp["req_psn"])
    bth = put_plain(eng, tx, qp, qp_index, Op.READ_REQUEST.value, psn, length)
    if bth == NO_ROOM:
        return False
    off = i64(qp["req_off"])
    put_reth(tx.slab, bth + BTH_LEN, i64(wqe["remote_addr"]) + off, i64(wqe["rkey"]), i64(wqe["length"]) - off)
    seal_plain(eng, tx, qp_index, bth, length)
    qp["rd_out"] += 1
    _note_sent(eng, qp, psn, psn_diff(i64(wqe["last_psn"]), psn) + 1, True)
    return True


@inline
def _send_atomic(eng, tx, qp, qp_index, wqe):
    length = BTH_LEN + ATOMICETH_LEN + ICRC_LEN
    psn = i64(qp["req_psn"])
    cas = i64(wqe["opcode"]) == WrOpcode.ATOMIC_CMP_AND_SWP
    opcode = Op.COMPARE_SWAP.value if cas else Op.FETCH_ADD.value
    bth = put_plain(eng, tx, qp, qp_index, opcode, psn, length)
    if bth == NO_ROOM:
        return False
    swap_add = i64(wqe["swap"]) if cas else i64(wqe["compare_add"])
    compare = i64(wqe["compare_add"]) if cas else 0
    put_atomiceth(tx.slab, bth + BTH_LEN, i64(wqe["remote_addr"]), i64(wqe["rkey"]), swap_add, compare)
    seal_plain(eng, tx, qp_index, bth, length)
    qp["rd_out"] += 1
    _note_sent(eng, qp, psn, 1, True)
    return True


@inline
def _packet_op(opcode, off, last):
    """The five low opcode bits of the packet at `off` of a SEND or WRITE."""
    if last:
        return _ONLY_OP[opcode] if off == 0 else _LAST_OP[opcode]
    return _FIRST_OP[opcode] if off == 0 else _FIRST_OP[opcode] + 1


@inline
def _put_ext(slab, at, wqe, op, opcode, last):
    """RETH, immediate or IETH behind the BTH (and DETH): offset of the payload."""
    if op == Op.WRITE_FIRST or op == Op.WRITE_ONLY or op == Op.WRITE_ONLY_IMM:
        put_reth(slab, at, i64(wqe["remote_addr"]), i64(wqe["rkey"]), i64(wqe["length"]))
        at += RETH_LEN
    if last:
        if opcode == WrOpcode.SEND_WITH_IMM or opcode == WrOpcode.RDMA_WRITE_WITH_IMM:
            put_immdt(slab, at, i64(wqe["imm"]))
            at += IMMDT_LEN
        elif opcode == WrOpcode.SEND_WITH_INV:
            put_ieth(slab, at, i64(wqe["imm"]))
            at += IETH_LEN
    return at


@inline
def _ext_len(op, opcode, last):
    n = 0
    if op == Op.WRITE_FIRST or op == Op.WRITE_ONLY or op == Op.WRITE_ONLY_IMM:
        n += RETH_LEN
    if last and (
        opcode == WrOpcode.SEND_WITH_IMM
        or opcode == WrOpcode.RDMA_WRITE_WITH_IMM
        or opcode == WrOpcode.SEND_WITH_INV
    ):
        n += IMMDT_LEN
    return n


@inline
def _put_payload(eng, tx, qp, wqe, index, off, n, at, crc):
    """Payload of one packet and its padding to four bytes: (status, crc)."""
    if i64(wqe["flags"]) & _INLINE:
        status, crc = MEM_OK, gather_inline(eng, wqe_sge_base(qp, index), off, tx.slab, at, n, crc)
    else:
        status, crc = gather(eng, qp, wqe_sge_base(qp, index), i64(wqe["num_sge"]), off, tx.slab, at, n, crc)
    return status, crc


@inline
def _must_ask(eng, qp, index):
    """Whether the end of this message must ask for an acknowledgement because nothing that follows will."""
    if index + 1 == i64(qp["sq_prod"]) or qp["req_psn"] != qp["req_hi_psn"]:
        return True  # the last one posted; or sent again, and the first time nobody answered
    return _is_local(i64(_wqe_at(eng, qp, index + 1)["opcode"]))


@inline
def _nothing_asks(qp):
    """Whether no outstanding packet asks for an acknowledgement, nor is a READ or atomic that must be answered."""
    return i64(qp["unacked_req"]) > 0 and qp["una_psn"] != qp["req_psn"] and i64(qp["rd_out"]) == 0


@inline
def _send_data(eng, tx, qp, qp_index, wqe, index):
    """One packet of a SEND or WRITE: MEM_OK, a MEM_ error, or NO_ROOM."""
    opcode = i64(wqe["opcode"])
    off = i64(qp["req_off"])
    n = min(i64(qp["pmtu"]), i64(wqe["length"]) - off)
    last = off + n == i64(wqe["length"])
    op = _packet_op(opcode, off, last)
    is_ud = _type_bit(qp) == _BY_UD
    header = BTH_LEN + (DETH_LEN if is_ud else 0) + _ext_len(op, opcode, last)
    pad = -n & 3
    length = header + n + pad + ICRC_LEN
    av = i64(wqe["ah"]) if is_ud else qp_index
    bth = reserve(eng, tx, av, length)
    if bth == NO_ROOM:
        return NO_ROOM
    service = 0
    dqpn = i64(qp["dqpn"])
    ackreq = False
    if is_ud:
        service = 0x60
        dqpn = i64(wqe["dqpn"])
    elif qp["type"] == QpType.UC:
        service = 0x20
    else:
        unacked = i64(qp["unacked_req"]) + 1
        ackreq = last and ((i64(wqe["flags"]) & _SIGNALED) != 0 or qp["sq_sig_all"] != 0)
        ackreq = ackreq or unacked >= _ask_every(qp) or (last and _must_ask(eng, qp, index))
        ackreq = ackreq or (qp["credits_valid"] != 0 and psn_diff(i64(qp["limit_ssn"]), i64(wqe["ssn"])) < 8)
        qp["unacked_req"] = 0 if ackreq else unacked
    se = 1 if last and (i64(wqe["flags"]) & _SOLICITED) else 0
    psn = i64(qp["req_psn"])
    put_bth(tx.slab, bth, op | service, se, pad, i64(qp["pkey"]), dqpn, 1 if ackreq else 0, psn)
    at = bth + BTH_LEN
    if is_ud:
        qkey = i64(wqe["qkey"])
        put_deth(tx.slab, at, i64(qp["qkey"]) if qkey & 0x80000000 else qkey, i64(qp["qpn"]))  # 10.2.5
        at += DETH_LEN
    at = _put_ext(tx.slab, at, wqe, op, opcode, last)
    crc = header_crc(eng, tx, av, bth, length, header)
    status, crc = _put_payload(eng, tx, qp, wqe, index, off, n, at, crc)
    if status != MEM_OK:
        cancel(eng, length)
        return status
    crc = _put_pad(tx.slab, at + n, pad, crc)
    seal(eng, tx, bth, length, crc)
    _note_sent(eng, qp, psn, 1, ackreq)
    qp["req_off"] = off + n
    return MEM_OK


@inline
def _put_pad(slab, at, pad, crc):
    for i in range(pad):
        slab[at + i] = 0
    return crc32_update(crc, slab, at, pad) if pad else crc


@inline
def _advance(qp):
    """To the next WQE."""
    qp["sq_cur"] += 1
    qp["req_off"] = 0


@inline
def retire_local(eng, qp, qp_index):
    """Complete what stands at the head of the queue without waiting for the peer: local operations, and errors.

    Called when the head moves; a failed WQE takes the QP to its error state.
    """
    while i64(qp["sq_head"]) < i64(qp["sq_hi"]):
        wqe = _wqe_at(eng, qp, i64(qp["sq_head"]))
        if wqe["state"] == WqeState.DONE:
            complete_send(eng, qp, qp_index, WcStatus.SUCCESS)
        elif wqe["state"] == WqeState.FAILED:
            fail_send(eng, qp, qp_index, i64(wqe["status"]))
            return
        else:
            return


@inline
def _check_drained(eng, qp, qp_index):
    """SQD: everything that was started has completed (10.3.1.5)."""
    if qp["sqd_notified"] == 0 and qp["sq_head"] == qp["sq_hi"]:
        qp["sqd_notified"] = 1
        push_event(eng, EventType.SQ_DRAINED, qp_index, 0)


@inline
def _fail_current(eng, qp, qp_index, wqe, status):
    """The WQE being sent met a local error in mid-message; it completes when all before it have."""
    wqe["state"] = WqeState.FAILED
    wqe["status"] = status
    retire_local(eng, qp, qp_index)


@inline
def _send_probe(eng, tx, qp, qp_index):
    """Send the oldest unacknowledged packet again, asking for an answer, and stay where we are. False: no room.

    A READ or an atomic is asked for again as a whole, by going back.
    """
    wqe = _wqe_at(eng, qp, i64(qp["sq_head"]))
    if qp["req_psn"] == qp["una_psn"]:
        qp["probe"] = Probe.NONE  # it is the next to be sent in any case
        return True
    if wqe["state"] != WqeState.STARTED or _is_rd_atomic(i64(wqe["opcode"])):
        rewind(eng, qp, qp_index)
        return True
    psn, cur, off, reads = i64(qp["req_psn"]), i64(qp["sq_cur"]), i64(qp["req_off"]), i64(qp["rd_out"])
    qp["req_psn"] = qp["una_psn"]
    qp["sq_cur"] = qp["sq_head"]
    qp["req_off"] = psn_diff(i64(qp["una_psn"]), i64(wqe["first_psn"])) * i64(qp["pmtu"])
    qp["unacked_req"] = CWND_MAX  # asks for an acknowledgement
    status = _send_data(eng, tx, qp, qp_index, wqe, i64(qp["sq_head"]))
    qp["req_psn"], qp["sq_cur"], qp["req_off"], qp["rd_out"] = psn, cur, off, reads
    if status == NO_ROOM:
        return False
    qp["probe"] = Probe.SENT if status == MEM_OK else Probe.NONE
    if status == MEM_FAULT:
        pause(eng, qp, qp_index, PageWait.REQUESTER.value)
    return True


@inline
def _send_resume(eng, tx, qp, qp_index):
    """Tell the peer that we go on: again and again until it acknowledges. False: no room (MigrOS, ATC'21 3.3)."""
    length = BTH_LEN + ICRC_LEN
    bth = reserve(eng, tx, qp_index, length)
    if bth == NO_ROOM:
        return False
    put_bth(tx.slab, bth, Op.RESUME.value, 0, 0, i64(qp["pkey"]), i64(qp["dqpn"]), 1, i64(qp["una_psn"]))
    seal_plain(eng, tx, qp_index, bth, length)
    eng["counters"][C.SEND_RESUME] += 1
    qp["probe"] = Probe.NONE
    start_timer(eng, qp, qp_index, TimerKind.STOP, i64(eng["now"]) + resume_interval_ns(qp))
    qp["probes"] = min(200, i64(qp["probes"]) + 1)
    return True


@inline
def _may_ask(eng, tx, qp, qp_index):
    """While the requester waits: whether it may send one packet, to ask whether the peer is still stopped."""
    if qp["req_wait"] == ReqWait.RESUMED:
        due = qp["probe"] == Probe.DUE or qp["timer"] != TimerKind.STOP
        if due and not _send_resume(eng, tx, qp, qp_index):
            schedule(eng, qp, qp_index)
        return False
    if qp["req_wait"] != ReqWait.STOPPED or qp["probe"] != Probe.DUE:
        return False
    qp["probe"] = Probe.NONE
    return True


@inline
def _is_sending(qp):
    return (qp["state"] == QpState.RTS or qp["state"] == QpState.SQD) and qp["quiet"] == 0


@inline
def send_requests(eng, tx, qp, qp_index, budget):
    """Send up to `budget` packets of the send queue: IDLE or MORE."""
    if qp["state"] == QpState.ERR or qp["state"] == QpState.SQE:
        flush_sq(eng, qp, qp_index)
        return IDLE
    if _is_sending(qp):
        resume_rnr_wait(eng, qp, qp_index)
    if not _is_sending(qp) or i64(qp["fault"]) & PageWait.REQUESTER.value:
        return IDLE
    asking = qp["req_wait"] != ReqWait.NONE
    if asking:
        if not _may_ask(eng, tx, qp, qp_index):
            return IDLE
        budget = 1
    if qp["probe"] == Probe.DUE and not _send_probe(eng, tx, qp, qp_index):
        return MORE
    outcome = MORE
    while budget > 0 and _is_sending(qp) and i64(qp["fault"]) & PageWait.REQUESTER.value == 0:
        index = i64(qp["sq_cur"])
        if index >= i64(qp["sq_hi"]):
            if qp["state"] == QpState.SQD:
                if _nothing_asks(qp):
                    rewind(eng, qp, qp_index)
                    continue
                _check_drained(eng, qp, qp_index)
                outcome = IDLE
                break
            if index >= i64(qp["sq_prod"]):
                outcome = IDLE
                break
        wqe = _wqe_at(eng, qp, index)
        if index >= i64(qp["sq_hi"]):
            if (i64(wqe["flags"]) & _FENCE) and i64(qp["rd_out"]) > 0:
                outcome = IDLE
                break
            wqe["state"] = WqeState.POSTED
            started = _start_wqe(eng, qp, qp_index, wqe, index)
            if not started or wqe["state"] == WqeState.DONE:
                retire_local(eng, qp, qp_index)
                if started:
                    _advance_past(qp, index)
                continue
        if wqe["state"] == WqeState.DONE:
            _advance(qp)
            continue
        if wqe["state"] == WqeState.FAILED and _nothing_asks(qp):
            rewind(eng, qp, qp_index)
            continue
        if wqe["state"] == WqeState.FAILED or (qp["type"] == QpType.RC and not _may_send(qp, wqe)):
            outcome = IDLE
            break
        budget -= 1
        status = _send_one(eng, tx, qp, qp_index, wqe, index)
        if status == NO_ROOM:
            break
        if status == MEM_FAULT:
            pause(eng, qp, qp_index, PageWait.REQUESTER.value)
            break
        if status != MEM_OK:
            _fail_current(eng, qp, qp_index, wqe, WcStatus.LOC_PROT_ERR)
    if i64(qp["fault"]) & PageWait.REQUESTER.value:
        outcome = IDLE
    if asking and qp["req_wait"] == ReqWait.STOPPED:
        rewind(eng, qp, qp_index)
        return IDLE
    unanswered = qp["type"] == QpType.RC and qp["una_psn"] != qp["req_hi_psn"]
    if unanswered and qp["timer"] == 0 and _is_sending(qp):
        qp["progress_at"] = eng["now"]  # nothing was outstanding, or the QP was not on the wire
        arm_ack_timer(eng, qp, qp_index)
    return outcome


@inline
def _advance_past(qp, index):
    """After a local operation: its completion may or may not have moved the head already."""
    qp["sq_cur"] = index + 1
    qp["req_off"] = 0


@inline
def _send_one(eng, tx, qp, qp_index, wqe, index):
    """One packet of the WQE; moves to the next WQE after its last: MEM_OK, an error, or NO_ROOM."""
    opcode = i64(wqe["opcode"])
    if opcode == WrOpcode.RDMA_READ:
        if not _send_read(eng, tx, qp, qp_index, wqe):
            return NO_ROOM
        _advance(qp)
        return MEM_OK
    if opcode == WrOpcode.ATOMIC_CMP_AND_SWP or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD:
        if not _send_atomic(eng, tx, qp, qp_index, wqe):
            return NO_ROOM
        _advance(qp)
        return MEM_OK
    status = _send_data(eng, tx, qp, qp_index, wqe, index)
    if status == MEM_OK and i64(qp["req_off"]) == i64(wqe["length"]):
        _advance(qp)
        if qp["type"] != QpType.RC:  # sent is done: nobody acknowledges
            qp["una_psn"] = qp["req_psn"]
            complete_send(eng, qp, qp_index, WcStatus.SUCCESS)
    return status
