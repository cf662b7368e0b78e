"""What a NIC may answer to a frame, and what a frame may change: one check per rule. Kernel code.

Knows the rules of the wire and the frame that was just delivered, and nothing of how the engine decides. The first
rule that does not hold stays in fz["verdict"].
"""

from __future__ import annotations

import ctypes

from softrnic.jit import JIT, addr_of, i64, inline, ld8, ld64, memcpy
from softrnic.layout import Hold, RespMsg
from softrnic.qp.answer import CREDITS
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.spec import CREDITS_INVALID, Access, Nak, Op, QpState, Service, WcOpcode, WcStatus
from softrnic.wire.fields import get16
from softrnic.wire.frame import parse_link
from softrnic.wire.headers import (
    aeth_msn,
    aeth_syndrome,
    atomiceth_rkey,
    atomiceth_va,
    bth_dqpn,
    bth_opcode,
    bth_padcnt,
    bth_pkey,
    bth_psn,
    bth_tver,
    reth_len,
    reth_rkey,
    reth_va,
)
from softrnic.wire.icrc import icrc_base, icrc_check
from softrnic.wire.opcodes import OpFlag, op_ext_len, op_flags
from tests.fuzz.records import KEPT_BYTES, QP_BYTES, Verdict

_PEER_QPN = 0x456
_PORT = 4791
_REMOTE_READ = int(Access.REMOTE_READ)
_REMOTE_WRITE = int(Access.REMOTE_WRITE)
_REMOTE_ATOMIC = int(Access.REMOTE_ATOMIC)


@inline
def complain(fz, verdict, detail):
    """Note the first finding."""
    if i64(fz["verdict"]) == Verdict.NONE.value:
        fz["verdict"] = verdict.value
        fz["detail"] = detail


def _same_bytes(a, b, n):
    for i in range(n >> 3):
        if ld64(a + 8 * i) != ld64(b + 8 * i):
            return False
    for i in range(n & ~7, n):
        if ld8(a + i) != ld8(b + i):
            return False
    return True


def _same_bytes_interpreted(a, b, n):
    return ctypes.string_at(int(a), int(n)) == ctypes.string_at(int(b), int(n))


same_bytes = inline(_same_bytes) if JIT else _same_bytes_interpreted


# --- memory ---


@inline
def check_canaries(w):
    """Nothing was written where nothing may be."""
    fz = w.fz[0]
    now, then = addr_of(w.arena), addr_of(w.picture)
    for i in range(len(w.canaries)):
        at, n = i64(w.canaries[i]["offset"]), i64(w.canaries[i]["length"])
        if not same_bytes(now + at, then + at, n):
            complain(fz, Verdict.CANARY, at)
            return


@inline
def check_bystander(w):
    """Frames for one QP leave another alone."""
    fz = w.fz[0]
    record = addr_of(w.engs[0]["qps"]) + i64(fz["bystander"]) * QP_BYTES
    if not same_bytes(record, addr_of(w.saved) + QP_BYTES, QP_BYTES):
        complain(fz, Verdict.BYSTANDER, 0)


@inline
def draw_shadow(w):
    """Remember all memory as it is."""
    memcpy(addr_of(w.shadow), addr_of(w.arena), len(w.arena))


@inline
def check_shadow(w):
    """Of single requests only the expected one changes memory; of a QP that takes none, none."""
    fz, slab = w.fz[0], w.rx.slab
    bth = i64(fz["bth"])
    opcode = bth_opcode(slab, bth)
    flags = op_flags(opcode)
    state, service = i64(fz["state0"]), i64(fz["service"])
    deaf = state < QpState.RTR or state == QpState.ERR or state == QpState.SUSPENDED
    allowed = not deaf and (opcode & 0xE0) == service
    if allowed and service == Service.RC and flags & OpFlag.REQUEST:
        allowed = bth_psn(slab, bth) == i64(fz["epsn0"])
    if not allowed and not same_bytes(addr_of(w.shadow), addr_of(w.arena), len(w.arena)):
        complain(fz, Verdict.STRAY_WRITE, opcode)


@inline
def _grants(w, key, va, length, need):
    """Index of the region that gives the peer `need` on these bytes, or -1: the whole of 9.4.1.1 once more."""
    for i in range(len(w.regions)):
        r = w.regions[i]
        if i64(r["key"]) == key and i64(r["rights"]) & need == need:
            inside = va - i64(r["iova"])
            if inside >= 0 and inside + length <= i64(r["length"]):
                return i
    return -1


# --- answers ---


@inline
def check_frame(w, slot):
    """One frame that the engine sent."""
    fz, frame, slab = w.fz[0], w.tx.frames[slot], w.tx.slab
    off = i64(frame["off"])
    link = parse_link(slab, off, i64(frame["len"]), i64(frame["seg"]))
    header = addr_of(w.engs[0]["avs"][i64(fz["bystander"])]["hdr"])  # has the same path
    if link.err != 0 or link.is_v6 != i64(fz["is_v6"]) or get16(slab, link.udp_off + 2) != _PORT:
        complain(fz, Verdict.FORM, link.err)
        return
    addresses = 32 if link.is_v6 else 8
    at = link.udp_off - addresses
    if not same_bytes(addr_of(slab) + off, header, 12) or not same_bytes(
        addr_of(slab) + at, header + at - off, addresses
    ):  # fmt: skip
        complain(fz, Verdict.FORM, 100)
        return
    base = icrc_base(slab, link.l3_off, link.is_v6)
    bth = link.bth_off
    for i in range(link.nseg):
        length = link.seg_len if i + 1 < link.nseg else link.last_len
        if not icrc_check(slab, bth, length, base, link.is_v6, (link.ip_id + i) & 0xFFFF, 0):
            complain(fz, Verdict.FORM, 101)
            return
        _check_packet(w, bth, length)
        bth += length


@inline
def keep_frame(w, slot):
    """Put an answer aside for the other codec, the first few of an epoch."""
    fz, frame = w.fz[0], w.tx.frames[slot]
    at, n = i64(fz["kept"]), i64(frame["len"])
    if at < len(w.kept) and n <= KEPT_BYTES - 4 and i64(frame["seg"]) == 0:
        row = w.kept[at]
        row[0], row[1] = n & 0xFF, n >> 8
        memcpy(addr_of(row) + 4, addr_of(w.tx.slab) + i64(frame["off"]), n)
        fz["kept"] = at + 1


@inline
def _check_packet(w, bth, length):
    fz, slab = w.fz[0], w.tx.slab
    qp = w.engs[0]["qps"][i64(fz["qp"])]
    opcode = bth_opcode(slab, bth)
    flags = op_flags(opcode)
    payload = length - 12 - op_ext_len(opcode) - bth_padcnt(slab, bth) - 4
    if (opcode & 0xE0) != i64(fz["service"]) or flags & (OpFlag.REQUEST | OpFlag.RESPONSE) == 0:
        complain(fz, Verdict.OPCODE, opcode)
        return
    right = bth_dqpn(slab, bth) == _PEER_QPN and bth_pkey(slab, bth) == 0xFFFF and bth_tver(slab, bth) == 0
    if not right or payload < 0 or payload > i64(qp["pmtu"]) or (payload > 0 and flags & OpFlag.PAYLOAD == 0):
        complain(fz, Verdict.FORM, 102)
        return
    fz["answers"] += 1
    fz["sent_ops"][opcode & 0x1F] += 1
    if flags & OpFlag.REQUEST:
        _check_request(fz, qp, opcode, bth_psn(slab, bth))
    else:
        _check_response(w, qp, bth, flags, payload)


@inline
def _check_request(fz, qp, opcode, psn):
    """What we ask of the peer ourselves: only in RTS, or what SQD still waits for, and within the window."""
    state = i64(fz["state0"])
    if state != QpState.RTS and not (state == QpState.SQD and fz["service"] == Service.RC):
        complain(fz, Verdict.OPCODE, opcode)
    elif fz["service"] == Service.RC:
        top = i64(fz["begun0"]) if state == QpState.SQD else i64(qp["req_hi_psn"])
        dead = qp["state"] == QpState.ERR  # una_psn has gone past what was flushed
        if psn_diff(psn, top) >= 0 or (psn_diff(psn, i64(qp["una_psn"])) < 0 and not dead):
            complain(fz, Verdict.WINDOW, psn)


@inline
def _check_response(w, qp, bth, flags, payload):
    """What we say to the peer's requests."""
    fz, slab = w.fz[0], w.tx.slab
    state = i64(fz["state0"])
    held = state == QpState.SUSPENDED and fz["hold"] == Hold.RNR
    if not (state == QpState.RTR or state == QpState.RTS or state == QpState.SQD or held):
        complain(fz, Verdict.OPCODE, 256 + bth_opcode(slab, bth))
        return
    if flags & OpFlag.ACK:
        _check_ack(w, qp, bth, held)
        return
    if held:
        complain(fz, Verdict.OPCODE, 512 + bth_opcode(slab, bth))
    if flags & OpFlag.AETH:
        _check_credits(fz, qp, aeth_syndrome(slab, bth + 12))
        if psn_diff(i64(qp["msn"]), aeth_msn(slab, bth + 12)) < 0:
            complain(fz, Verdict.MSN, aeth_msn(slab, bth + 12))
    if flags & OpFlag.ATOMIC:
        fz["atomics"] += 1
    else:
        fz["reads"] += 1
        _check_read(w, qp, bth, flags, payload)


@inline
def _check_credits(fz, qp, syndrome):
    """The syndrome of a positive answer: never more credits than there are receives."""
    posted = i64(qp["rq_prod"]) - i64(qp["rq_head"]) + i64(qp["resp_wqe"])
    bad = syndrome >> 5 != 0
    if not bad and i64(fz["srq"]) >= 0:
        bad = syndrome != CREDITS_INVALID
    elif not bad and syndrome != CREDITS_INVALID:
        bad = i64(CREDITS[syndrome]) > posted
    if bad:
        complain(fz, Verdict.SYNDROME, syndrome)


@inline
def _check_ack(w, qp, bth, held):
    fz, slab = w.fz[0], w.tx.slab
    syndrome, psn, epsn = aeth_syndrome(slab, bth + 12), bth_psn(slab, bth), i64(qp["epsn"])
    fz["acks"] += 1
    fz["sent_kinds"][syndrome >> 5 & 3] += 1
    if aeth_msn(slab, bth + 12) != i64(qp["msn"]):
        complain(fz, Verdict.MSN, aeth_msn(slab, bth + 12))
    if held and syndrome != (0x20 | i64(qp["hold_timer"])):
        complain(fz, Verdict.SYNDROME, syndrome)
    if syndrome >> 5 == 0:
        _check_credits(fz, qp, syndrome)
        if psn != psn_add(epsn, -1):
            complain(fz, Verdict.ACK_PSN, psn)
    elif syndrome >> 5 == 1:
        if syndrome & 0x1F != i64(qp["hold_timer"] if held else qp["min_rnr_timer"]):
            complain(fz, Verdict.SYNDROME, syndrome)
        if psn != epsn:
            complain(fz, Verdict.ACK_PSN, psn)
    elif syndrome >> 5 == 3 and syndrome & 0x1F <= Nak.REMOTE_OPERATIONAL_ERROR.value:
        fz["sent_naks"][syndrome & 7] += 1
        _check_nak(w, qp, syndrome & 0x1F, psn)
    else:
        complain(fz, Verdict.SYNDROME, syndrome)


@inline
def _check_nak(w, qp, code, psn):
    fz = w.fz[0]
    epsn = i64(qp["epsn"])
    replayed = code == Nak.REMOTE_ACCESS_ERROR and psn_diff(psn, epsn) < 0  # a READ whose region is gone
    if psn != epsn and not replayed:
        complain(fz, Verdict.ACK_PSN, psn)
    if code == Nak.PSN_SEQUENCE_ERROR:
        if i64(fz["nak_psn"]) == psn:
            complain(fz, Verdict.NAK_TWICE, psn)
        fz["nak_psn"] = psn
    elif qp["state"] != QpState.ERR:
        complain(fz, Verdict.OPCODE, 1024 + code)  # 9.9.2.4: the responder goes to its error state


@inline
def _check_read(w, qp, bth, flags, payload):
    """A READ response, if only one frame came in: the right to it, and its bytes."""
    fz, slab, rx = w.fz[0], w.tx.slab, w.rx.slab
    if i64(fz["burst"]) != 1 or i64(fz["nseg"]) != 1:
        return
    asked = i64(fz["bth"])
    if bth_opcode(rx, asked) != Op.READ_REQUEST.value:
        complain(fz, Verdict.READ_RANGE, 0)
        return
    va, length, key = reth_va(rx, asked + 12), reth_len(rx, asked + 12), reth_rkey(rx, asked + 12)
    if length == 0:
        if payload:
            complain(fz, Verdict.READ_DATA, 0)
        return
    region = _grants(w, key, va, length, _REMOTE_READ)
    if region < 0:
        complain(fz, Verdict.READ_RANGE, 1)
        return
    offset = psn_diff(bth_psn(slab, bth), bth_psn(rx, asked)) * i64(qp["pmtu"])
    if offset < 0 or payload != min(i64(qp["pmtu"]), length - offset):
        complain(fz, Verdict.READ_RANGE, 2)
        return
    host = i64(w.regions[region]["host"]) + va - i64(w.regions[region]["iova"]) + offset
    at = bth + 12 + (4 if flags & OpFlag.AETH else 0)
    if not same_bytes(addr_of(slab) + at, host, payload):
        complain(fz, Verdict.READ_DATA, 1)


# --- after a frame ---


@inline
def check_counts(w):
    """No more answers than one frame asked for; the expected PSN moves by the expected packet only."""
    fz, rx = w.fz[0], w.rx.slab
    qp = w.engs[0]["qps"][i64(fz["qp"])]
    bth = i64(fz["bth"])
    if i64(fz["acks"]) > i64(fz["packets"]) or i64(fz["successes"]) > i64(fz["packets"]):
        complain(fz, Verdict.TOO_MANY, i64(fz["acks"]))
    if i64(fz["packets"]) != 1 or i64(fz["burst"]) != 1:
        return
    pmtu = i64(qp["pmtu"])
    npsn, atomics = 0, 0
    opcode = bth_opcode(rx, bth)
    flags = op_flags(opcode)
    if flags & OpFlag.READ and flags & OpFlag.RETH:
        npsn = max(1, (reth_len(rx, bth + 12) + pmtu - 1) // pmtu)
    elif flags & OpFlag.ATOMICETH:
        atomics = 1
    if i64(fz["reads"]) > npsn or i64(fz["atomics"]) > atomics:
        complain(fz, Verdict.TOO_MANY, 1000 + i64(fz["reads"]))
    if i64(fz["service"]) != Service.RC:
        return
    moved = psn_diff(i64(qp["epsn"]), i64(fz["epsn0"]))
    if moved != 0 and (moved != max(1, npsn) or bth_psn(rx, bth) != i64(fz["epsn0"])):
        complain(fz, Verdict.EPSN, moved)
    elif moved != 0:
        wrong = _wrong_to_take(w, qp, bth, opcode, flags)
        if wrong:
            complain(fz, Verdict.TAKEN, wrong)
    if flags & OpFlag.REQUEST and bth_psn(rx, bth) == i64(fz["epsn0"]):
        fz["nak_psn"] = -1


@inline
def _wrong_to_take(w, qp, bth, opcode, flags):
    """Why a request should not have been executed (9.7.4.1): 0, or the detail of Verdict.TAKEN."""
    fz, rx = w.fz[0], w.rx.slab
    state, before = i64(fz["state0"]), i64(fz["resp_op0"])
    if (opcode & 0xE0) != i64(fz["service"]) or not (QpState.RTR <= state <= QpState.SQD):
        return 1
    if flags & OpFlag.FIRST:
        in_order = before == RespMsg.NONE
    else:
        in_order = (before == RespMsg.SEND and flags & OpFlag.SEND != 0) or (
            before == RespMsg.WRITE and flags & OpFlag.WRITE != 0
        )
    if not in_order:
        return 2
    n, pmtu = i64(fz["packet_len"]) - 16 - op_ext_len(opcode) - bth_padcnt(rx, bth), i64(qp["pmtu"])
    if n > pmtu or (flags & OpFlag.PAYLOAD and flags & OpFlag.LAST == 0 and n != pmtu):
        return 3
    need = 0
    if flags & OpFlag.READ:
        need = _REMOTE_READ
    elif flags & OpFlag.WRITE:
        need = _REMOTE_WRITE
    elif flags & OpFlag.ATOMIC:
        need = _REMOTE_ATOMIC
    if i64(qp["access"]) & need != need:
        return 4
    if flags & OpFlag.RETH and reth_len(rx, bth + 12) > 0:
        if _grants(w, reth_rkey(rx, bth + 12), reth_va(rx, bth + 12), reth_len(rx, bth + 12), need) < 0:
            return 4
    elif flags & OpFlag.ATOMICETH:
        va = atomiceth_va(rx, bth + 12)
        if va & 7 or _grants(w, atomiceth_rkey(rx, bth + 12), va, 8, need) < 0:
            return 4
    return 0


@inline
def traces(eng):
    """The sum of all counters that say what became of a packet."""
    total = 0
    for i in range(4, len(eng["counters"])):
        if i != 23:  # RCVD_FRAMES counts them all
            total += i64(eng["counters"][i])
    return total


@inline
def check_counted(w, before):
    """A packet that changed nothing in the QP was counted as something; `before`: `traces` then."""
    fz, eng = w.fz[0], w.engs[0]
    record = addr_of(eng["qps"]) + i64(fz["qp"]) * QP_BYTES
    unchanged = same_bytes(record, addr_of(w.saved) + 2 * QP_BYTES, QP_BYTES)
    if unchanged and traces(eng) == before and not _leaves_no_trace(w):
        complain(fz, Verdict.UNCOUNTED, bth_opcode(w.rx.slab, i64(fz["bth"])))


@inline
def _leaves_no_trace(w):
    """An ACK said again may bring credits, which need not be new (9.7.7.2.5); UC begins the same message once more."""
    opcode = bth_opcode(w.rx.slab, i64(w.fz[0]["bth"]))
    begins = op_flags(opcode) & OpFlag.FIRST != 0 and (opcode & 0xE0) == Service.UC
    return opcode == Op.ACKNOWLEDGE.value or begins


# --- completions ---


@inline
def check_sends(w):
    """Take the send completions: in order of posting, successes first."""
    fz, eng = w.fz[0], w.engs[0]
    qp, cq = eng["qps"][i64(fz["qp"])], eng["cqs"][i64(fz["scq"])]
    while i64(cq["cons"]) < i64(cq["prod"]):
        cqe = eng["cqes"][i64(cq["base"]) + (i64(cq["cons"]) & i64(cq["mask"]))]
        status = i64(cqe["status"])
        if i64(cqe["wr_id"]) != i64(fz["send_seen"]) & i64(qp["sq_mask"]) or i64(cqe["qpn"]) != i64(qp["qpn"]):
            complain(fz, Verdict.CQE, i64(cqe["wr_id"]))
        if i64(fz["send_failed"]) and status != WcStatus.WR_FLUSH_ERR:
            complain(fz, Verdict.CQE, 1000 + status)
        if not _send_may_end(status):
            complain(fz, Verdict.CQE, 2000 + status)
        if status != WcStatus.SUCCESS:
            fz["send_failed"] = 1
        fz["send_status"][status] += 1
        fz["send_seen"] += 1
        cq["cons"] += 1


@inline
def _send_may_end(status):
    return (
        status == WcStatus.SUCCESS or status == WcStatus.WR_FLUSH_ERR or status == WcStatus.REM_INV_REQ_ERR
        or status == WcStatus.REM_ACCESS_ERR or status == WcStatus.REM_OP_ERR or status == WcStatus.BAD_RESP_ERR
        or status == WcStatus.RETRY_EXC_ERR or status == WcStatus.RNR_RETRY_EXC_ERR
    )  # fmt: skip


@inline
def check_receives(w):
    """Take the receive completions: in order of posting, no longer than what was posted."""
    fz, eng = w.fz[0], w.engs[0]
    qp, cq = eng["qps"][i64(fz["qp"])], eng["cqs"][i64(fz["rcq"])]
    if i64(fz["srq"]) >= 0:
        srq = eng["srqs"][i64(fz["srq"])]
        mask, base = i64(srq["mask"]), i64(srq["base"])
    else:
        mask, base = i64(qp["rq_mask"]), i64(qp["rq_base"])
    while i64(cq["cons"]) < i64(cq["prod"]):
        cqe = eng["cqes"][i64(cq["base"]) + (i64(cq["cons"]) & i64(cq["mask"]))]
        status, opcode = i64(cqe["status"]), i64(cqe["opcode"])
        slot = i64(fz["recv_seen"]) & mask
        if i64(cqe["wr_id"]) != slot or i64(cqe["qpn"]) != i64(qp["qpn"]):
            complain(fz, Verdict.CQE, 3000 + slot)
        if status == WcStatus.SUCCESS:
            fz["successes"] += 1
            if opcode == WcOpcode.RECV and i64(cqe["byte_len"]) > i64(eng["rwqes"][base + slot]["length"]):
                complain(fz, Verdict.CQE, 4000 + slot)
        if not _receive_may_end(status):
            complain(fz, Verdict.CQE, 5000 + status)
        fz["recv_status"][status] += 1
        fz["recv_seen"] += 1
        cq["cons"] += 1


@inline
def _receive_may_end(status):
    return (
        status == WcStatus.SUCCESS or status == WcStatus.WR_FLUSH_ERR or status == WcStatus.LOC_LEN_ERR
        or status == WcStatus.LOC_PROT_ERR or status == WcStatus.LOC_ACCESS_ERR or status == WcStatus.REM_INV_REQ_ERR
    )  # fmt: skip
