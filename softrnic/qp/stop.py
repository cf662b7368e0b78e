"""A QP that is suspended, and a QP whose peer is: what is said to hold it, and what lets it go on.

Holding by RNR NAK is of IBTA. NAK 5 and RESUME are of MigrOS (USENIX ATC'21): they are sent, and understood, only by
QPs that were told that their peer knows them; to any other they are what they always were, a fatal NAK and no opcode.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import addr_of, i64, inline, memcpy, st64
from softrnic.layout import Hold, ReqWait, StopFlag
from softrnic.qp.event import push_event
from softrnic.qp.psn import psn_diff
from softrnic.qp.responder import owe_ack, owe_nak
from softrnic.qp.retransmit import peer_is_awake
from softrnic.spec import EventType, Nak

_RNR = 0x20
_STOPPED = 0x60 | Nak.STOPPED


@inline
def hold_request(eng, qp, qp_index, pkt):
    """A suspended QP asks the peer to wait, after all answers owed before.

    An RNR NAK answers the expected PSN only. NAK 5 answers everything, each request under its own PSN, as all before it
    were executed; one that is ahead shows that the expected one was lost.
    """
    ahead = psn_diff(pkt.psn, i64(qp["epsn"]))
    if qp["hold"] == Hold.STOP:
        eng["counters"][C.SEND_STOP] += 1
        owe_nak(eng, qp, qp_index, _STOPPED)
        if ahead < 0:
            qp["ack_psn"] = pkt.psn
    elif ahead == 0:
        eng["counters"][C.SEND_RNR_ERR] += 1
        owe_nak(eng, qp, qp_index, _RNR | i64(qp["hold_timer"]))


@inline
def receive_resume(eng, qp, qp_index):
    """The peer goes on: so does our requester, and our responder takes what comes as if it had asked for it."""
    if i64(qp["stop"]) & StopFlag.STOP.value == 0:
        eng["counters"][C.DROP_OPCODE] += 1
        return
    eng["counters"][C.RCVD_RESUME] += 1
    qp["nak_sent"] = 0
    if qp["req_wait"] == ReqWait.STOPPED:
        peer_is_awake(eng, qp, qp_index)
    owe_ack(eng, qp, qp_index)


@inline
def resumed_elsewhere(eng, buf, qp, qp_index, pkt):
    """A RESUME from another address than the peer's: note where it is now, for the path to follow. False: not believed.

    It is acknowledged when it comes again, from what is then the peer's address.
    """
    agreed = StopFlag.STOP.value | StopFlag.MOVE.value
    if i64(qp["stop"]) & agreed != agreed or psn_diff(i64(qp["epsn"]), pkt.psn) < 0:
        return False
    vec = eng["avs"][qp_index]
    start = addr_of(buf) + pkt.l3_off
    ip = addr_of(qp["moved_ip"])
    if pkt.is_v6:
        memcpy(ip, start + 8, 16)
    else:
        st64(ip, 0)
        st64(ip + 8, 0)
        qp["moved_ip"][10] = 0xFF
        qp["moved_ip"][11] = 0xFF
        memcpy(ip + 12, start + 12, 4)
    memcpy(addr_of(qp["moved_mac"]), start - i64(vec["l3_off"]) + 6, 6)
    push_event(eng, EventType.PATH_MIG, qp_index, 0)
    return True
