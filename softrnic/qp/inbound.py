"""From a frame to the file that handles each packet: ICRC, header checks, demultiplexing (IBTA 9.6; A17.9).

A packet that is not well formed, not ours, or not for the QP's state or peer is dropped and counted, each reason
under its own counter; it never raises.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.hash import hash_find
from softrnic.jit import i64, inline
from softrnic.layout import FrameFlag, Hold
from softrnic.qp.address import same_ip
from softrnic.qp.completer import receive_response
from softrnic.qp.forward import forward_frame
from softrnic.qp.pkt import Pkt
from softrnic.qp.responder import receive_datagram, receive_request
from softrnic.qp.stop import hold_request, receive_resume, resumed_elsewhere
from softrnic.spec import MULTICAST_QPN, QpState, QpType, Service
from softrnic.wire.frame import LinkError, parse_link
from softrnic.wire.headers import (
    BTH_LEN,
    ICRC_LEN,
    bth_ackreq,
    bth_dqpn,
    bth_opcode,
    bth_padcnt,
    bth_pkey,
    bth_psn,
    bth_se,
    bth_tver,
)
from softrnic.wire.icrc import icrc_base, icrc_check
from softrnic.wire.opcodes import OpFlag, op_ext_len, op_flags

GROUP = -2  # in place of a function: what is for all that are attached to a multicast group
_SERVICE_MASK = 0xE0
_RC, _UC, _UD = int(Service.RC), int(Service.UC), int(Service.UD)
_ID_UNKNOWN = int(FrameFlag.ID_UNKNOWN)


@inline
def qpn_key(func, qpn):
    """The hash key of a QP number of one function; never 0."""
    return ((func << 24) | qpn) + 1


@inline
def receive_frame(eng, rx, slot):
    """Every packet of one received frame."""
    frame = rx.frames[slot]
    buf = rx.slab
    eng["counters"][C.RCVD_FRAMES] += 1
    link = parse_link(buf, i64(frame["off"]), i64(frame["len"]), i64(frame["seg"]))
    if link.err != 0:
        reason = C.DROP_NOT_ROCE if link.err == LinkError.NOT_ROCE.value else C.DROP_MALFORMED
        eng["counters"][reason] += 1
        return
    func = _function_of(eng, buf, link.l3_off, link.is_v6)
    if func < 0 and i64(eng["ngroup"]) and _is_heard(eng, buf, link.l3_off, link.is_v6):
        func = GROUP
    if func < 0 and func != GROUP:
        if i64(eng["nforward"]) == 0 or not forward_frame(eng, rx, slot, link):
            eng["counters"][C.DROP_ADDRESS] += link.nseg
        return
    base = icrc_base(buf, link.l3_off, link.is_v6)
    unknown = i64(frame["flags"]) & _ID_UNKNOWN
    step = 1
    bth = link.bth_off
    for i in range(link.nseg):
        length = link.seg_len if i + 1 < link.nseg else link.last_len
        good = icrc_check(buf, bth, length, base, link.is_v6, (link.ip_id + i * step) & 0xFFFF, unknown)
        if not good and i and step:
            # Linux merges packets (GRO) whose identification counts up, and those that all have the same
            good = icrc_check(buf, bth, length, base, link.is_v6, link.ip_id, unknown)
            step = 0 if good else 1
        if good:
            eng["counters"][C.RCVD_PKTS] += 1
            eng["counters"][C.RCVD_BYTES] += link.bth_off - link.l3_off + length
            _receive_packet(eng, buf, func, bth, length, link.l3_off, link.is_v6)
        else:
            eng["counters"][C.DROP_ICRC] += 1
        bth += length


@inline
def _function_of(eng, buf, l3_off, is_v6):
    """The function that owns the destination address, or -1."""
    at = l3_off + (24 if is_v6 else 16)
    for i in range(i64(eng["ngid"])):
        gid = eng["gids"][i]
        if gid["valid"] and same_ip(gid["ip"], buf, at, is_v6):
            return i64(gid["func"])
    return -1


@inline
def _is_heard(eng, buf, l3_off, is_v6):
    """Whether a QP is attached to the destination address."""
    at = l3_off + (24 if is_v6 else 16)
    for i in range(i64(eng["ngroup"])):
        group = eng["groups"][i]
        if group["valid"] and same_ip(group["ip"], buf, at, is_v6):
            return True
    return False


@inline
def _receive_packet(eng, buf, func, bth, length, l3_off, is_v6):
    """One packet with a good ICRC: BTH checks, then the QP, or all that are attached to the group."""
    opcode = bth_opcode(buf, bth)
    flags = op_flags(opcode)
    padcnt = bth_padcnt(buf, bth)
    ext_len = op_ext_len(opcode)
    payload_len = length - BTH_LEN - ext_len - padcnt - ICRC_LEN
    if bth_tver(buf, bth) != 0 or length < BTH_LEN + ICRC_LEN:
        eng["counters"][C.DROP_BTH] += 1
        return
    if flags & (OpFlag.REQUEST | OpFlag.RESPONSE | OpFlag.RESUME) == 0:
        eng["counters"][C.DROP_OPCODE] += 1
        return
    if payload_len < 0 or (payload_len > 0 and flags & OpFlag.PAYLOAD == 0):
        eng["counters"][C.DROP_BTH] += 1
        return
    ext = bth + BTH_LEN
    pkt = Pkt(
        opcode, flags, bth_psn(buf, bth), bth_ackreq(buf, bth), bth_se(buf, bth), ext, ext + ext_len, payload_len,
        l3_off, is_v6,
    )  # fmt: skip
    dqpn = bth_dqpn(buf, bth)
    if func == GROUP:
        _to_group(eng, buf, bth, dqpn, pkt)
        return
    index = hash_find(eng["qpn_hash"], qpn_key(func, dqpn))
    if index < 0:
        eng["counters"][C.DROP_QPN] += 1
        return
    _to_qp(eng, buf, bth, index, pkt)


@inline
def _to_group(eng, buf, bth, dqpn, pkt):
    """A copy to each QP that is attached to the destination address (10.5.2.1)."""
    if dqpn != MULTICAST_QPN:
        eng["counters"][C.DROP_QPN] += 1
        return
    at = pkt.l3_off + (24 if pkt.is_v6 else 16)
    for i in range(i64(eng["ngroup"])):
        group = eng["groups"][i]
        if group["valid"] and same_ip(group["ip"], buf, at, pkt.is_v6):
            _to_qp(eng, buf, bth, i64(group["qp"]), pkt)


@inline
def _to_qp(eng, buf, bth, index, pkt):
    """To a QP, if it is of the packet's partition."""
    qp = eng["qps"][index]
    if not _pkey_matches(bth_pkey(buf, bth), i64(qp["pkey"])):
        eng["counters"][C.DROP_PKEY] += 1
        return
    _deliver(eng, buf, qp, index, pkt)


@inline
def _pkey_matches(a, b):
    """Same partition, and not both limited members (10.9.3)."""
    return (a & 0x7FFF) == (b & 0x7FFF) and (a | b) & 0x8000 != 0 and (a & 0x7FFF) != 0


@inline
def _service_of(qp):
    kind = i64(qp["type"])
    if kind == QpType.RC:
        return _RC
    return _UC if kind == QpType.UC else _UD


@inline
def _from_peer(qp, buf, pkt):
    """A connected QP hears only its peer, and only at its own address (9.6.1.2.3)."""
    at = pkt.l3_off + (8 if pkt.is_v6 else 12)
    step = 16 if pkt.is_v6 else 4
    return same_ip(qp["dst_ip"], buf, at, pkt.is_v6) and same_ip(qp["src_ip"], buf, at + step, pkt.is_v6)


@inline
def _deliver(eng, buf, qp, index, pkt):
    service = _service_of(qp)
    if pkt.opcode & _SERVICE_MASK != service:
        eng["counters"][C.DROP_OPCODE] += 1
        return
    state = i64(qp["state"])
    if state == QpState.SUSPENDED:
        eng["counters"][C.DROP_SUSPENDED] += 1
        is_request = service == _RC and pkt.flags & OpFlag.REQUEST != 0
        if qp["hold"] != Hold.SILENCE and is_request and _from_peer(qp, buf, pkt):
            hold_request(eng, qp, index, pkt)
        return
    if state < QpState.RTR or state == QpState.ERR:
        eng["counters"][C.DROP_STATE] += 1
        return
    if service == _UD:
        receive_datagram(eng, buf, qp, index, pkt)
        return
    if not _from_peer(qp, buf, pkt):
        if pkt.flags & OpFlag.RESUME == 0 or not resumed_elsewhere(eng, buf, qp, index, pkt):
            eng["counters"][C.DROP_PEER] += 1
        return
    if pkt.flags & OpFlag.REQUEST:
        receive_request(eng, buf, qp, index, pkt)
    elif pkt.flags & OpFlag.RESUME:
        receive_resume(eng, qp, index)
    elif state == QpState.RTS or state == QpState.SQD:
        receive_response(eng, buf, qp, index, pkt)
    else:
        eng["counters"][C.DROP_STATE] += 1

