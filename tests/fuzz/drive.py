"""The loop: a frame, the engine, the judge. Kernel code, entered once per epoch.

When the QP ends in its error state it is put back as verbs had made it, with other PSNs: from its records, because a
walk through verbs takes longer than all the rest. How each state is entered follows `Qp._enter`.
"""

from __future__ import annotations

from softrnic.engine import expire_timers, receive_burst, transmit_burst
from softrnic.jit import addr_of, i64, inline, memcpy
from softrnic.layout import MR, FrameRing
from softrnic.qp.admin import forget, to_error
from softrnic.qp.psn import psn_add
from softrnic.qp.sched import ring_doorbell
from softrnic.qp.timer import NO_DEADLINE, next_deadline
from softrnic.spec import QpState
from tests.fuzz.judge import (
    check_bystander,
    check_canaries,
    check_counted,
    check_counts,
    check_frame,
    check_receives,
    check_sends,
    check_shadow,
    complain,
    draw_shadow,
    keep_frame,
    traces,
)
from tests.fuzz.mutate import build_frame
from tests.fuzz.records import QP_BYTES, Verdict, World
from tests.sim.chance import below, draw
from tests.sim.compiled import kernel
from tests.sim.invariants import Broken, broken_cq, broken_lists, broken_qp

_MR_BYTES = MR.itemsize
_MAX_AGE = 2000  # frames a QP lives at most
_MAX_BURSTS = 1000  # transmits in a row before they are taken to be endless


@inline
def _qp(w):
    return w.engs[0]["qps"][i64(w.fz[0]["qp"])]


@inline
def _restart(w):
    """The QP as it was made, in the state it is to be in, with a receive queue and PSNs of its own."""
    fz, eng = w.fz[0], w.engs[0]
    index = i64(fz["qp"])
    forget(w.engs, index)
    memcpy(addr_of(eng["qps"]) + index * QP_BYTES, addr_of(w.saved), QP_BYTES)
    for i in range(len(w.regions)):
        mr = i64(w.regions[i]["mr"])
        if mr >= 0:
            memcpy(addr_of(eng["mrs"]) + mr * _MR_BYTES, addr_of(w.saved_mrs) + i * _MR_BYTES, _MR_BYTES)
    for cq in (i64(fz["scq"]), i64(fz["rcq"])):
        eng["cqs"][cq]["cons"] = eng["cqs"][cq]["prod"]
    fz["age"] = 0
    fz["restarts"] += 1
    fz["send_seen"] = fz["recv_seen"] = fz["send_failed"] = 0
    fz["nak_psn"] = -1
    qp, start = _qp(w), i64(fz["start"])
    if i64(fz["srq"]) >= 0:
        srq = eng["srqs"][i64(fz["srq"])]
        srq["head"] = 0
        srq["prod"] = 0
    if start == QpState.RESET:
        return
    _top_up(w)
    if start == QpState.INIT:
        return
    psn = draw(fz) & 0xFFFFFF if below(fz, 2) else psn_add(0, -1 - below(fz, 40))
    qp["epsn"] = psn
    if start == QpState.RTR:
        return
    psn = draw(fz) & 0xFFFFFF if below(fz, 2) else psn_add(0, -1 - below(fz, 40))
    qp["req_psn"] = qp["req_hi_psn"] = qp["una_psn"] = psn
    fz["state0"] = qp["state"]
    _post_sends(w)
    _send(w)
    _enter(w, qp, start, index)


@inline
def _enter(w, qp, start, index):
    """From RTS to `start`."""
    fz, eng = w.fz[0], w.engs[0]
    if start == QpState.ERR:
        to_error(w.engs, index)
        return
    if start == QpState.SUSPENDED:
        qp["quiet"] = 1
        qp["resume_to"] = qp["state"]
        qp["hold"] = fz["hold"]
        qp["hold_timer"] = 11
    qp["state"] = start
    ring_doorbell(eng, index)


@inline
def _top_up(w):
    """Post receives: what the slots held before is posted again."""
    fz, eng = w.fz[0], w.engs[0]
    if i64(fz["srq"]) >= 0:
        srq = eng["srqs"][i64(fz["srq"])]
        room = i64(srq["mask"]) + 1 - (i64(srq["prod"]) - i64(srq["head"]))
        srq["prod"] += below(fz, room + 1)
        return
    qp = _qp(w)
    room = i64(qp["rq_mask"]) + 1 - (i64(qp["rq_prod"]) - i64(qp["rq_head"]))
    qp["rq_prod"] += below(fz, room + 1)


@inline
def _post_sends(w):
    fz, qp = w.fz[0], _qp(w)
    room = i64(qp["sq_mask"]) + 1 - (i64(qp["sq_prod"]) - i64(qp["sq_head"]))
    qp["sq_prod"] += below(fz, min(room, 6) + 1)
    ring_doorbell(w.engs[0], i64(fz["qp"]))


@inline
def _send(w):
    """All that the engine has to say, each word judged."""
    fz, eng = w.fz[0], w.engs[0]
    for _ in range(_MAX_BURSTS):
        n = transmit_burst(eng, w.tx, len(w.tx.frames), i64(fz["now"]))
        for i in range(n):
            check_frame(w, i)
            keep_frame(w, i)
        if n < len(w.tx.frames):
            return
    complain(fz, Verdict.ENDLESS, 0)


@inline
def _pass_time(w):
    """A little time, or all of it up to the next timer."""
    fz, eng = w.fz[0], w.engs[0]
    now = i64(fz["now"]) + below(fz, 3000)
    deadline = next_deadline(eng)
    if deadline != NO_DEADLINE and (deadline <= now or below(fz, 48) == 0):
        now = max(now, deadline)
        fz["now"] = now
        expire_timers(eng, now)
        return
    fz["now"] = now


@inline
def _check_rules(w):
    """What must hold of the records whatever came."""
    fz, eng = w.fz[0], w.engs[0]
    bad = broken_qp(eng, _qp(w), True)
    if bad == Broken.NONE.value:
        bad = max(broken_cq(eng["cqs"][i64(fz["scq"])]), broken_cq(eng["cqs"][i64(fz["rcq"])]))
    if bad != Broken.NONE.value:
        complain(fz, Verdict.INVARIANT, bad)


@inline
def _check_all_memory(w):
    check_canaries(w)
    check_bystander(w)
    bad = broken_lists(w.engs[0])
    if bad != Broken.NONE.value:
        complain(w.fz[0], Verdict.INVARIANT, bad)


@inline
def _begun(eng, qp):
    """One past the last PSN of the messages begun: a queue that drains still sends those to their end."""
    if i64(qp["sq_hi"]) == i64(qp["sq_head"]):
        return i64(qp["req_hi_psn"])
    last = eng["wqes"][i64(qp["sq_base"]) + ((i64(qp["sq_hi"]) - 1) & i64(qp["sq_mask"]))]
    return psn_add(i64(last["last_psn"]), 1)


@inline
def _one_frame(w):
    """Build, deliver, hear the answers, judge."""
    fz, eng = w.fz[0], w.engs[0]
    qp = _qp(w)
    burst, now = i64(fz["burst"]), i64(fz["now"])
    fz["state0"] = qp["state"]
    fz["epsn0"] = qp["epsn"]
    fz["resp_op0"] = qp["resp_op"]
    fz["begun0"] = _begun(eng, qp)
    fz["packets"] = 0
    fz["acks"] = fz["reads"] = fz["atomics"] = fz["successes"] = 0
    for slot in range(burst):
        build_frame(w, slot)
        fz["packets"] += fz["nseg"]
    single = burst == 1
    watched = single and i64(fz["nseg"]) == 1
    shadowed = watched and below(fz, i64(fz["every"])) == 0
    if shadowed:
        draw_shadow(w)
    memcpy(addr_of(w.saved) + 2 * QP_BYTES, addr_of(eng["qps"]) + i64(fz["qp"]) * QP_BYTES, QP_BYTES)
    before = traces(eng)
    receive_burst(eng, FrameRing(w.rx.frames[:burst], w.rx.slab), burst, now)
    if watched:
        check_counted(w, before)
    _send(w)
    if shadowed:
        check_shadow(w)
    check_sends(w)
    check_receives(w)
    check_counts(w)
    _check_rules(w)
    fz["frames"] += burst
    fz["age"] += burst


@inline
def _is_over(w):
    """Whether this QP's life has ended."""
    fz, state = w.fz[0], i64(_qp(w)["state"])
    if i64(fz["age"]) > _MAX_AGE:
        return True
    return state != i64(fz["start"]) and (state == QpState.ERR or below(w.fz[0], 8) == 0)


@kernel
def run(w: World, until: int) -> int:
    """Go on to `until` frames in all, or to the first finding: the Verdict."""
    fz, eng = w.fz[0], w.engs[0]
    if i64(fz["restarts"]) == 0:
        _restart(w)
    steps = 0
    while i64(fz["frames"]) < until and i64(fz["verdict"]) == Verdict.NONE.value:
        _one_frame(w)
        steps += 1
        if steps % i64(fz["every"]) == 0:
            _check_all_memory(w)
        eng["event_cons"] = eng["event_prod"]
        if _is_over(w):
            _check_all_memory(w)
            _restart(w)
            continue
        if i64(fz["start"]) != QpState.RESET and below(fz, 4) == 0:
            _top_up(w)
            if _qp(w)["state"] == QpState.ERR:
                ring_doorbell(eng, i64(fz["qp"]))
        if _qp(w)["state"] == QpState.RTS and below(fz, 6) == 0:
            _post_sends(w)
        _pass_time(w)
    _check_all_memory(w)
    return i64(fz["verdict"])
