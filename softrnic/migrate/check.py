"""What must fit together in a saved QP, beyond the ranges of its fields: everything the engine relies on unasked.

Saved state is hostile input. The data path trusts its own records - that a started WQE has the PSNs its length asks
for, that a cursor lies inside its message - so what could break that trust is refused here, by the path of the field.
"""

from __future__ import annotations

from softrnic.errors import StateError
from softrnic.layout import AckState, RespMsg, WqeState
from softrnic.migrate import schema
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.spec import MAX_MESSAGE, Mtu, QpState, QpType, SendFlags, WrOpcode

_ATOMICS = (WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD)
_LOCAL = (WrOpcode.LOCAL_INV, WrOpcode.BIND_MW, WrOpcode.REG_MR)
_SENDS = (WrOpcode.SEND, WrOpcode.SEND_WITH_IMM)
_WRITES = (WrOpcode.RDMA_WRITE, WrOpcode.RDMA_WRITE_WITH_IMM, WrOpcode.SEND_WITH_INV)
_STARTABLE = {
    QpType.RC: (*_SENDS, *_WRITES, WrOpcode.RDMA_READ, *_ATOMICS),
    QpType.UC: (*_SENDS, *_WRITES),
    QpType.UD: _SENDS,
    QpType.GSI: _SENDS,
}
_BROKEN = (QpState.SQE, QpState.ERR)  # nothing outstanding is ever looked at again


def require(holds: bool, path: str, reason: str) -> None:
    """Raise StateError for the field at `path` unless it holds."""
    if not holds:
        raise StateError(path, reason)


def npsn_of(length: int, pmtu: int) -> int:
    """Packets of a message."""
    return max(1, (length + pmtu - 1) // pmtu)


def length_of(wqe: schema.SendWqe) -> int:
    """Payload bytes of a send WQE."""
    return len(wqe.inline) if wqe.inline is not None else sum(s.length for s in wqe.sges)


def check_qp(qp: schema.Qp, pmtu: int, path: str) -> None:
    """Refuse what does not fit together."""
    on_wire = qp.state in (QpState.RTR, QpState.RTS, QpState.SQD, QpState.SQE)
    require(qp.suspended == on_wire, f"{path}.suspended", "a QP on the wire must be suspended, and no other")
    needed = {QpState.INIT: 1, QpState.RTR: 2, QpState.RTS: 3, QpState.SQD: 3, QpState.SQE: 3}
    level = needed.get(QpState(qp.state), 0)
    exact = qp.state <= QpState.RTS
    require(qp.reached == level if exact else qp.reached >= level, f"{path}.reached", "does not fit the state")
    require(qp.state != QpState.SQE or qp.type != QpType.RC, f"{path}.state", "an RC QP is never in SQE")
    used = (qp.used_timeout, qp.used_retry_cnt, qp.used_rnr_retry) != (None, None, None)
    waits = qp.type == QpType.RC and qp.reached == QpState.RTS
    require(waits or not used, f"{path}.used_timeout", "only an RC QP that has come to RTS waits for anybody")
    agreed = qp.peer_may_stop or qp.peer_may_move
    require(qp.type == QpType.RC or not agreed, f"{path}.peer_may_stop", "only RC waits")
    connected = qp.type in (QpType.RC, QpType.UC)
    wants_path = connected and qp.reached >= QpState.RTR
    require((qp.path is not None) == wants_path, f"{path}.path", "missing, or not used by such a QP")
    _check_sizes(qp, path)
    if qp.state not in (QpState.RESET, QpState.INIT):
        _check_requester(qp, pmtu, f"{path}.req")
        _check_responder(qp, pmtu, f"{path}.resp")
    else:
        idle = qp.req.hi == 0 and not qp.req.sq and qp.resp.message == RespMsg.NONE and not qp.resp.rd
        idle = idle and qp.resp.ack == AckState.NONE and qp.resp.held is None
        require(idle and qp.req.cur == 0, f"{path}.state", "a QP that was never connected has nothing under way")
        require(not qp.resp.rd_head and not qp.resp.rd_owed, f"{path}.resp.rd_head", "there are no READs")
    require(qp.state != QpState.RESET or not qp.resp.rq, f"{path}.resp.rq", "a QP in RESET has no receives")


def _check_sizes(qp: schema.Qp, path: str) -> None:
    cap = qp.cap
    require(len(qp.req.sq) <= cap.max_send_wr, f"{path}.req.sq", f"{len(qp.req.sq)} in a queue of {cap.max_send_wr}")
    require(len(qp.resp.rq) <= cap.max_recv_wr, f"{path}.resp.rq", f"{len(qp.resp.rq)} in {cap.max_recv_wr}")
    for i, wqe in enumerate(qp.req.sq):
        at = f"{path}.req.sq[{i}]"
        require(len(wqe.sges) <= cap.max_send_sge, at, f"{len(wqe.sges)} SGEs, the queue takes {cap.max_send_sge}")
        inline = wqe.flags & SendFlags.INLINE != 0
        require(inline == (wqe.inline is not None) and not (inline and wqe.sges), at, "inline data or SGEs")
        require(len(wqe.inline or b"") <= cap.max_send_sge * 16, at, "too much inline data")
    for i, recv in enumerate(qp.resp.rq):
        require(len(recv.sges) <= cap.max_recv_sge, f"{path}.resp.rq[{i}]", "too many SGEs")
    if qp.resp.held is not None:
        require(len(qp.resp.held.sges) <= cap.max_recv_sge, f"{path}.resp.held", "too many SGEs")


def _check_requester(qp: schema.Qp, pmtu: int, path: str) -> None:
    req = qp.req
    require(req.cur <= req.hi <= len(req.sq), f"{path}.cur", f"{req.cur} <= {req.hi} <= {len(req.sq)} does not hold")
    require(req.rnr_wait_ns is None or qp.type == QpType.RC, f"{path}.rnr_wait_ns", "only RC waits")
    if qp.state in _BROKEN:
        require(req.hi == 0 and req.off == 0, f"{path}.hi", "nothing is outstanding after an error")
        return
    require(req.hi == 0 or qp.reached == QpState.RTS, f"{path}.hi", "nothing was ever sent")
    expected: int | None = None  # first PSN of the next started WQE
    for i, wqe in enumerate(req.sq):
        at = f"{path}.sq[{i}]"
        require((wqe.state == WqeState.POSTED) == (i >= req.hi), at, "started and waiting WQEs are mixed up")
        require((wqe.state == WqeState.DONE) <= (wqe.opcode in _LOCAL), at, "no local operation can be done already")
        require((wqe.state == WqeState.FAILED) == (wqe.status != 0), at, "a status without a failure, or none with")
        if wqe.state == WqeState.STARTED:
            _check_started(qp, wqe, pmtu, at)
            require(expected is None or wqe.first_psn == expected, at, f"starts at PSN {wqe.first_psn}, not {expected}")
            expected = psn_add(wqe.last_psn, 1)
        elif wqe.state == WqeState.FAILED:
            expected = None
    _check_cursor(req, pmtu, path)
    if qp.type == QpType.RC:
        _check_window(req, path)


def _check_started(qp: schema.Qp, wqe: schema.SendWqe, pmtu: int, at: str) -> None:
    """A started WQE has passed the checks of its start: they are not made again."""
    require(wqe.opcode in _STARTABLE[QpType(qp.type)], at, f"a {QpType(qp.type).name} QP starts no opcode {wqe.opcode}")
    length = length_of(wqe)
    require(length <= MAX_MESSAGE, at, f"{length} bytes")
    if wqe.opcode in _ATOMICS:
        require(length == 8, at, "an atomic is of 8 bytes")
    if wqe.opcode in (*_ATOMICS, WrOpcode.RDMA_READ):
        require(wqe.inline is None and qp.max_rd_atomic > 0, at, "READs and atomics need SGEs, and credits")
    if qp.type in (QpType.UD, QpType.GSI):
        require(length <= pmtu and wqe.ah is not None, at, "a datagram of one packet, with an address handle")
    npsn = psn_diff(wqe.last_psn, wqe.first_psn) + 1
    require(npsn == npsn_of(length, pmtu), at, f"{npsn} PSNs for {length} bytes")


def _check_cursor(req: schema.Requester, pmtu: int, path: str) -> None:
    if req.cur < req.hi and req.sq[req.cur].state == WqeState.STARTED:
        wqe = req.sq[req.cur]
        inside = req.off % pmtu == 0 and req.off < max(1, length_of(wqe))
        require(inside, f"{path}.off", f"{req.off} is no packet boundary of a message of {length_of(wqe)}")
        psn = psn_add(wqe.first_psn, req.off // pmtu)
        require(req.req_psn == psn, f"{path}.req_psn", f"{req.req_psn}, the next packet has {psn}")
    else:
        require(req.off == 0, f"{path}.off", "no message is being sent")


def _check_window(req: schema.Requester, path: str) -> None:
    """una_psn lies in the oldest WQE; nothing was sent beyond the last one started."""
    sent = psn_diff(req.hi_psn, req.una_psn)
    require(0 <= psn_diff(req.req_psn, req.una_psn) <= sent, f"{path}.req_psn", "not between una_psn and hi_psn")
    if req.hi == 0:
        require(sent == 0, f"{path}.hi_psn", "nothing is outstanding")
        return
    head = req.sq[0]
    if head.state == WqeState.STARTED:
        done = psn_diff(req.una_psn, head.first_psn)
        inside = 0 <= done <= psn_diff(head.last_psn, head.first_psn)
        require(inside, f"{path}.una_psn", "not a PSN of the oldest WQE")
    started = [w for w in req.sq[: req.hi] if w.state == WqeState.STARTED]
    if started:
        last = psn_add(started[-1].last_psn, 1)
        ends = req.sq[req.hi - 1].state == WqeState.STARTED
        require(not ends or psn_diff(req.hi_psn, last) <= 0, f"{path}.hi_psn", f"beyond the last WQE's end, {last}")
        at_end = req.cur == req.hi and ends
        require(not at_end or req.req_psn == last, f"{path}.req_psn", f"all is sent up to {last}, not {req.req_psn}")


def _check_responder(qp: schema.Qp, pmtu: int, path: str) -> None:
    resp = qp.resp
    held = sum(s.length for s in resp.held.sges) if resp.held is not None else -1
    if resp.message == RespMsg.SEND:
        require(0 < resp.off <= held, f"{path}.off", f"{resp.off} bytes of a receive of {held}")
    elif resp.message == RespMsg.WRITE:
        require(resp.resid > 0 and resp.off + resp.resid <= MAX_MESSAGE, f"{path}.resid", "no WRITE is that long")
    else:
        require(resp.off == 0, f"{path}.off", "no message is being received")
    if qp.type != QpType.RC:
        require(resp.ack == AckState.NONE and not resp.rd, f"{path}.ack", "only RC answers")
        connected = qp.type == QpType.UC
        require(connected or resp.message == RespMsg.NONE, f"{path}.message", "a datagram is one packet")
    slots = 1 << max(0, qp.max_dest_rd_atomic - 1).bit_length() if qp.max_dest_rd_atomic else 0
    require(len(resp.rd) <= slots, f"{path}.rd", f"{len(resp.rd)} of at most {slots}")
    require(resp.rd_owed <= resp.rd_head <= len(resp.rd), f"{path}.rd_head", "more due than there are")
    for i, res in enumerate(resp.rd):
        _check_resource(res, pmtu, f"{path}.rd[{i}]")
        owed, due = i >= len(resp.rd) - resp.rd_owed, i >= len(resp.rd) - resp.rd_head
        require(res.play is not None if owed else res.play is None or due, f"{path}.rd[{i}].play", "due, or not due")


def _check_resource(res: schema.RdRes, pmtu: int, path: str) -> None:
    atomic = res.orig is not None
    require(not atomic or res.length == 8, f"{path}.length", "an atomic is of 8 bytes")
    npsn = 1 if atomic else npsn_of(res.length, pmtu)
    require(res.npsn == npsn, f"{path}.npsn", f"{res.npsn} PSNs for {res.length} bytes")
    if res.play is None:
        return
    play = res.play
    start = psn_diff(play.start_psn, res.first_psn)
    offset = start * pmtu
    require(0 <= start < npsn and offset <= play.stop <= res.length, f"{path}.play", "outside of what was granted")
    last = start + npsn_of(play.stop - offset, pmtu) - 1
    require(psn_diff(play.end_psn, res.first_psn) == last, f"{path}.play", "its last PSN does not fit its length")
    require(start <= psn_diff(play.cur_psn, res.first_psn) <= last, f"{path}.play", "its next PSN is outside")


def pmtu_of(qp: schema.Qp, port_mtu: int) -> int:
    """Payload bytes of a full packet of this QP."""
    return Mtu(qp.path_mtu).bytes if qp.type in (QpType.RC, QpType.UC) else port_mtu
