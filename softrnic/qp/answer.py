"""What the responder owes, in PSN order: READ responses, atomic acknowledgements, then one ACK or NAK (IBTA 9.7.5).

An acknowledgement for a later request must not overtake a READ response, or the requester would take the response
for lost; so the ACK waits until every pending resource has been answered.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import frozen, i64, inline
from softrnic.layout import AckState, Hold, PageWait, RdState
from softrnic.mem.copy import read_region
from softrnic.mem.mr import check_remote
from softrnic.mem.space import MEM_DENIED, MEM_FAULT, MEM_OK
from softrnic.qp.event import push_event
from softrnic.qp.finish import drop_answers, enter_error
from softrnic.qp.packet import NO_ROOM, cancel, header_crc, put_plain, seal, seal_plain
from softrnic.qp.pagewait import pause
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.spec import CREDITS_INVALID, Access, EventType, Nak, Op, QpState
from softrnic.wire.crc32 import crc32_update
from softrnic.wire.headers import (
    AETH_LEN,
    ATOMICACKETH_LEN,
    BTH_LEN,
    ICRC_LEN,
    put_aeth,
    put_atomicacketh,
)

ALL_SENT = 0
MORE = 1  # the turn is over or the ring is full
WAIT = 2  # a page is missing

_REMOTE_READ = int(Access.REMOTE_READ)
_NAK_ACCESS = 0x60 | Nak.REMOTE_ACCESS_ERROR
_NAK_STOPPED = 0x60 | Nak.STOPPED
# Credit count field to receive WQEs (9.7.7.2, table 50).
CREDITS = frozen(
    [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
     6144, 8192, 12288, 16384, 24576, 32768], "i8"
)  # fmt: skip


@inline
def credit_syndrome(qp):
    """ACK syndrome with our receive credits: the largest code not above what is posted; none for an SRQ."""
    if i64(qp["srq"]) >= 0:
        return CREDITS_INVALID
    posted = i64(qp["rq_prod"]) - i64(qp["rq_head"]) + i64(qp["resp_wqe"])
    code = 0
    while code + 1 < len(CREDITS) and CREDITS[code + 1] <= posted:
        code += 1
    return code


@inline
def _is_silent(qp):
    """Suspended without a word: only a READ response already begun is sent to its end."""
    return qp["state"] == QpState.SUSPENDED and qp["hold"] == Hold.SILENCE


@inline
def send_answers(eng, tx, qp, qp_index, budget):
    """Send up to `budget` answers: ALL_SENT, MORE or WAIT."""
    if i64(qp["fault"]) & PageWait.RESPONDER.value:
        return WAIT
    while i64(qp["rd_head"]) < i64(qp["rd_tail"]):
        index = i64(qp["rd_head"])
        res = eng["rd_res"][i64(qp["rd_base"]) + (index & i64(qp["rd_mask"]))]
        if res["state"] == RdState.PENDING:
            if _is_silent(qp) and res["cur_psn"] == res["start_psn"]:
                return ALL_SENT
            if budget <= 0:
                return MORE
            budget -= 1
            if res["atomic"]:
                status = _send_atomic_ack(eng, tx, qp, qp_index, res)
            else:
                status = _send_read_packet(eng, tx, qp, qp_index, res)
            if status == NO_ROOM:
                return MORE
            if status == MEM_FAULT:
                pause(eng, qp, qp_index, PageWait.RESPONDER.value)
                return WAIT
            if status != MEM_OK:
                _refuse_read(eng, qp, qp_index, res)
                break
            if res["state"] == RdState.PENDING:
                continue
        qp["rd_head"] = index + 1
        qp["rd_done"] = max(i64(qp["rd_done"]), index + 1)
    if _is_silent(qp):
        return ALL_SENT
    if qp["ack_state"] != AckState.NONE and not _send_ack(eng, tx, qp, qp_index):
        return MORE
    return ALL_SENT


@inline
def _send_atomic_ack(eng, tx, qp, qp_index, res):
    length = BTH_LEN + AETH_LEN + ATOMICACKETH_LEN + ICRC_LEN
    bth = put_plain(eng, tx, qp, qp_index, Op.ATOMIC_ACKNOWLEDGE.value, i64(res["first_psn"]), length)
    if bth == NO_ROOM:
        return NO_ROOM
    put_aeth(tx.slab, bth + BTH_LEN, credit_syndrome(qp), i64(res["msn"]))
    put_atomicacketh(tx.slab, bth + BTH_LEN + AETH_LEN, i64(res["orig"]))
    seal_plain(eng, tx, qp_index, bth, length)
    res["state"] = RdState.DONE
    return MEM_OK


@inline
def _response_op(first, last):
    if first:
        return Op.READ_RESPONSE_ONLY if last else Op.READ_RESPONSE_FIRST
    return Op.READ_RESPONSE_LAST if last else Op.READ_RESPONSE_MIDDLE


@inline
def _send_read_packet(eng, tx, qp, qp_index, res):
    """One READ response packet: NO_ROOM or a MEM_ status."""
    psn, pmtu = i64(res["cur_psn"]), i64(qp["pmtu"])
    first, last = psn == i64(res["start_psn"]), psn == i64(res["end_psn"])
    offset = psn_diff(psn, i64(res["first_psn"])) * pmtu
    n = min(pmtu, i64(res["stop"]) - offset)
    header = BTH_LEN + (AETH_LEN if first or last else 0)
    pad = -n & 3
    length = header + n + pad + ICRC_LEN
    va = i64(res["va"]) + offset
    mr = -1
    if n > 0:
        # the region may have been invalidated since the request was granted
        mr = check_remote(eng, qp, qp_index, i64(res["key"]), va, n, _REMOTE_READ)
        if mr < 0:
            return MEM_DENIED
    bth = put_plain(eng, tx, qp, qp_index, _response_op(first, last).value, psn, length)
    if bth == NO_ROOM:
        return NO_ROOM
    tx.slab[bth + 1] |= pad << 4
    if first or last:
        put_aeth(tx.slab, bth + BTH_LEN, credit_syndrome(qp), i64(res["msn"]))
    crc = header_crc(eng, tx, qp_index, bth, length, header)
    if n > 0:
        at = bth + header
        status, crc = read_region(eng, mr, va - i64(eng["mrs"][mr]["iova"]), tx.slab, at, n, crc)
        if status != MEM_OK:
            cancel(eng, length)
            return status
        for i in range(pad):
            tx.slab[at + n + i] = 0
        if pad:
            crc = crc32_update(crc, tx.slab, at + n, pad)
    seal(eng, tx, bth, length, crc)
    if last:
        res["state"] = RdState.DONE
    else:
        res["cur_psn"] = psn_add(psn, 1)
    return MEM_OK


@inline
def _refuse_read(eng, qp, qp_index, res):
    """The memory behind a granted READ is gone: a remote access error at the packet that failed."""
    psn = i64(res["cur_psn"])
    eng["counters"][C.SEND_REMOTE_ACCESS_ERR] += 1
    push_event(eng, EventType.QP_ACCESS_ERR, qp_index, 0)
    enter_error(eng, qp, qp_index)
    drop_answers(qp)
    qp["ack_state"] = AckState.NAK
    qp["ack_syndrome"] = _NAK_ACCESS
    qp["ack_psn"] = psn


@inline
def _send_ack(eng, tx, qp, qp_index):
    """The owed ACK or NAK; False when the ring is full."""
    length = BTH_LEN + AETH_LEN + ICRC_LEN
    # a NAK whose packet has come meanwhile is no longer true, unless it says that nothing more is taken
    timeless = qp["state"] == QpState.ERR or qp["ack_syndrome"] == _NAK_STOPPED
    nak = qp["ack_state"] == AckState.NAK and (qp["ack_psn"] == qp["epsn"] or timeless)
    psn = i64(qp["ack_psn"]) if nak else psn_add(i64(qp["epsn"]), -1)
    bth = put_plain(eng, tx, qp, qp_index, Op.ACKNOWLEDGE.value, psn, length)
    if bth == NO_ROOM:
        return False
    syndrome = i64(qp["ack_syndrome"]) if nak else credit_syndrome(qp)
    put_aeth(tx.slab, bth + BTH_LEN, syndrome, i64(qp["msn"]))
    seal_plain(eng, tx, qp_index, bth, length)
    qp["ack_state"] = AckState.NONE
    return True


@inline
def responses_owed(qp):
    """Whether a READ or an atomic has yet to be answered, and no page is waited for to do so."""
    return i64(qp["rd_head"]) < i64(qp["rd_tail"]) and i64(qp["fault"]) & PageWait.RESPONDER.value == 0


@inline
def answers_owed(qp):
    """Whether `send_answers` has anything to do, also in the error state: not while a page is waited for."""
    if i64(qp["fault"]) & PageWait.RESPONDER.value:
        return False
    return responses_owed(qp) or qp["ack_state"] != AckState.NONE

