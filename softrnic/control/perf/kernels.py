"""The user programs of perf: loops that post, poll and pump in one thread, as a busy-polling C program would.

Each runs inside `Nic.quiesced`, that is, instead of the NIC's own pump thread. All return 0, a WcStatus that was not
success, or STALLED when nothing moved for STALL_NS.
"""

from __future__ import annotations

from softrnic.control.pump import monotonic_ns, pump_once
from softrnic.jit import i64, inline, kernel, ld8, st8
from softrnic.qp.queues import poll_count, post_atomic, post_one_sided, post_recv, publish, rq_room, sq_room
from softrnic.spec import SendFlags, WrOpcode

STALLED = -1
STALL_NS = 10_000_000_000

_SIGNALED = int(SendFlags.SIGNALED)
_ATOMICS = int(WrOpcode.ATOMIC_CMP_AND_SWP)  # this opcode and the next

# Words of the control array behind those of the pump: progress, for whoever watches.
CTL_DONE = 4


@kernel
def stream(engs, pt, rx, tx, ctl, qp_index, opcode, local, lkey, remote, rkey, size, count, depth, cq_mod, stamps):
    """Post `count` requests of `size` bytes, at most `depth` at a time; stamps[i] is when request i was completed.

    Every `cq_mod`-th request is signalled, and the last.
    """
    eng = engs[0]
    qp = eng["qps"][qp_index]
    cq = eng["cqs"][i64(qp["scq"])]
    atomic = opcode >= _ATOMICS and opcode <= _ATOMICS + 1
    posted, done = 0, 0
    last = monotonic_ns(ctl)
    while done < count:
        fresh = 0
        while posted < count and posted - done < depth and sq_room(qp) > 0:
            flags = _SIGNALED if (posted + 1) % cq_mod == 0 or posted + 1 == count else 0
            if atomic:
                post_atomic(eng, qp, opcode, flags, posted, local, lkey, remote, rkey, 1, 1)
            else:
                post_one_sided(eng, qp, opcode, flags, posted, local, size, lkey, remote, rkey)
            posted += 1
            fresh += 1
        if fresh:
            publish(eng, qp_index)
        now = monotonic_ns(ctl)
        pump_once(eng, pt, rx, tx, now)
        n, status = poll_count(eng, cq)
        if status:
            return status
        if n:
            last = now
            until = min(count, done + n * cq_mod)
            while done < until:
                stamps[done] = now
                done += 1
            ctl[CTL_DONE] = done
        elif now - last > STALL_NS:
            return STALLED
    return 0


@kernel
def sink(engs, pt, rx, tx, ctl, qp_index, local, lkey, size, count):
    """Keep the receive queue full until `count` messages have arrived, then until the peer has its last answer."""
    eng = engs[0]
    qp = eng["qps"][qp_index]
    cq = eng["cqs"][i64(qp["rcq"])]
    done = 0
    last = monotonic_ns(ctl)
    while done < count:
        while rq_room(qp) > 0:
            post_recv(eng, qp, 0, local, size, lkey)
        now = monotonic_ns(ctl)
        moved = pump_once(eng, pt, rx, tx, now)
        n, status = poll_count(eng, cq)
        if status:
            return status
        done += n
        ctl[CTL_DONE] = done
        if moved:
            last = now
        elif now - last > STALL_NS:
            return STALLED
    return 0


@kernel
def ping(engs, pt, rx, tx, ctl, qp_index, opcode, local, lkey, remote, rkey, size, count, stamps):
    """One READ or atomic after the other; stamps[i] is how long number i took, in ns."""
    eng = engs[0]
    qp = eng["qps"][qp_index]
    cq = eng["cqs"][i64(qp["scq"])]
    for i in range(count):
        start = monotonic_ns(ctl)
        if opcode >= _ATOMICS and opcode <= _ATOMICS + 1:
            post_atomic(eng, qp, opcode, _SIGNALED, i, local, lkey, remote, rkey, 1, 1)
        else:
            post_one_sided(eng, qp, opcode, _SIGNALED, i, local, size, lkey, remote, rkey)
        publish(eng, qp_index)
        while True:
            now = monotonic_ns(ctl)
            pump_once(eng, pt, rx, tx, now)
            n, status = poll_count(eng, cq)
            if status:
                return status
            if n:
                break
            if now - start > STALL_NS:
                return STALLED
        stamps[i] = monotonic_ns(ctl) - start
        ctl[CTL_DONE] = i + 1
    return 0


@kernel
def write_pingpong(engs, pt, rx, tx, ctl, qp_index, local, inbox, lkey, remote, rkey, size, count, first, stamps):
    """WRITE to and fro: each side waits for the last byte of its inbox to become the round's number.

    `first`: this side begins. stamps[i] is the time of round i there and back, in ns.
    """
    eng = engs[0]
    qp = eng["qps"][qp_index]
    cq = eng["cqs"][i64(qp["scq"])]
    begun = monotonic_ns(ctl)
    for i in range(count):
        token = (i % 255) + 1
        if not first:
            status = _await_byte(eng, pt, rx, tx, ctl, inbox + size - 1, token)
            if status:
                return status
        begun = monotonic_ns(ctl)
        st8(local + size - 1, token)
        post_one_sided(eng, qp, 0, _SIGNALED, i, local, size, lkey, remote, rkey)
        publish(eng, qp_index)
        if first:
            status = _await_byte(eng, pt, rx, tx, ctl, inbox + size - 1, token)
            if status:
                return status
        n, status = poll_count(eng, cq)
        while n == 0 and sq_room(qp) == 0:
            pump_once(eng, pt, rx, tx, monotonic_ns(ctl))
            n, status = poll_count(eng, cq)
        if status:
            return status
        stamps[i] = monotonic_ns(ctl) - begun
        ctl[CTL_DONE] = i + 1
    return _drain(eng, pt, rx, tx, ctl, qp)


@inline
def _await_byte(eng, pt, rx, tx, ctl, addr, token):
    """Pump until the byte at `addr` is `token`."""
    start = monotonic_ns(ctl)
    while ld8(addr) != token:
        now = monotonic_ns(ctl)
        pump_once(eng, pt, rx, tx, now)
        if now - start > STALL_NS:
            return STALLED
    return 0


@kernel
def send_pingpong(engs, pt, rx, tx, ctl, qp_index, local, inbox, lkey, size, count, first, stamps):
    """SEND to and fro, as `write_pingpong`."""
    eng = engs[0]
    qp = eng["qps"][qp_index]
    scq, rcq = eng["cqs"][i64(qp["scq"])], eng["cqs"][i64(qp["rcq"])]
    arrived = 0
    for i in range(count):
        while rq_room(qp) > 0:
            post_recv(eng, qp, 0, inbox, size, lkey)
        wanted = i if first else i + 1
        begun = monotonic_ns(ctl)
        while arrived < wanted:
            now = monotonic_ns(ctl)
            pump_once(eng, pt, rx, tx, now)
            n, status = poll_count(eng, rcq)
            if status:
                return status
            arrived += n
            if now - begun > STALL_NS:
                return STALLED
        begun = monotonic_ns(ctl)
        post_one_sided(eng, qp, 2, _SIGNALED, i, local, size, lkey, 0, 0)
        publish(eng, qp_index)
        while arrived < i + 1:
            now = monotonic_ns(ctl)
            pump_once(eng, pt, rx, tx, now)
            n, status = poll_count(eng, rcq)
            if status:
                return status
            arrived += n
            if now - begun > STALL_NS:
                return STALLED
        n, status = poll_count(eng, scq)
        if status:
            return status
        stamps[i] = monotonic_ns(ctl) - begun
        ctl[CTL_DONE] = i + 1
    return _drain(eng, pt, rx, tx, ctl, qp)


@inline
def _drain(eng, pt, rx, tx, ctl, qp):
    """Pump until the peer has acknowledged everything."""
    start = monotonic_ns(ctl)
    while i64(qp["sq_head"]) != i64(qp["sq_prod"]):
        now = monotonic_ns(ctl)
        pump_once(eng, pt, rx, tx, now)
        if now - start > STALL_NS:
            return STALLED
    return 0

