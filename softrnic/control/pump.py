"""The pump: carries bursts between a port and an engine, in one compiled loop for bare ports.

Decides only when to look where: receive, timers, transmit, and when nothing moved for a while, sleep. Returns to
Python when somebody wants the engine to stand still, or when there are events or slow frames to handle.
"""

from __future__ import annotations

import numpy as np
from numba import types

from netio.kernels import port_recv, port_send, port_slow_waiting, port_tx_room, port_wait
from netio.libc import sched_yield
from softrnic.control.spin import next_budget
from softrnic.engine import expire_timers, has_work, receive_burst, transmit_burst
from softrnic.jit import addr_of, full_fence, i64, inline, kernel, ld64, ld_acq64, pause
from softrnic.qp.timer import next_deadline

# Words of the control array, shared between the pump and whoever wants something of it.
CTL_PAUSE = 0  # how many want the engine to stand still
CTL_STOP = 1
CTL_CLOCK = 2  # two words: struct timespec
CTL_SPIN = 5  # how long the pump now looks before it sleeps, ns; word 4 is the programs'
CTL_WORDS = 8

CLOCK_MONOTONIC = 1
MAX_SLEEP_NS = 1_000_000_000
YIELD_NS = 5_000  # having found nothing for so long, let others have the processor while we look

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@inline
def monotonic_ns(ctl):
    """CLOCK_MONOTONIC, as time.monotonic_ns gives it; `ctl` lends the room for a timespec."""
    at = addr_of(ctl) + 8 * CTL_CLOCK
    _clock_gettime(CLOCK_MONOTONIC, at)
    return ld64(at) * 1_000_000_000 + ld64(at + 8)


@inline
def _send(eng, pt, tx, now):
    """One burst of what is due: the number of frames."""
    if not has_work(eng):
        return 0
    made = transmit_burst(eng, tx, min(len(tx.frames), port_tx_room(pt)), now)
    if made:
        port_send(pt, tx, made)
    return made


@kernel
def pump_once(eng, pt, rx, tx, now):
    """One round: the number of frames that moved.

    First out, then in: between two rounds a program sees what has arrived and posts its answer, which leaves in the
    next round together with the acknowledgement owed, not behind it.
    """
    expire_timers(eng, now)
    made = _send(eng, pt, tx, now)
    n = port_recv(pt, rx)
    if n:
        receive_burst(eng, rx, n, now)
    return n + made


@inline
def _sleep(eng, pt, now, until):
    """Until a frame, a doorbell, the next timer, or `until`."""
    eng["asleep"] = 1
    full_fence()  # whoever posts rings the doorbell, then looks whether we sleep
    if not has_work(eng):
        timeout = min(MAX_SLEEP_NS, next_deadline(eng) - now, until - now)
        if timeout > 0:
            port_wait(pt, timeout)
    eng["asleep"] = 0


@kernel
def run_pump(engs, pt, rx, tx, ctl, spin_ns, until):
    """Pump until CTL_PAUSE or CTL_STOP is set, or there is something for Python to do, at `until` (ns) at the latest.

    `spin_ns`: how long, at most, to look again and again before going to sleep.
    """
    eng = engs[0]
    words = addr_of(ctl)
    last = monotonic_ns(ctl)
    while True:
        now = monotonic_ns(ctl)
        if pump_once(eng, pt, rx, tx, now):
            ctl[CTL_SPIN] = next_budget(ctl[CTL_SPIN], now - last, spin_ns)
            last = now
        wanted = ld_acq64(words + 8 * CTL_PAUSE) != 0 or ld_acq64(words + 8 * CTL_STOP) != 0
        if wanted or i64(eng["event_cons"]) != i64(eng["event_prod"]) or port_slow_waiting(pt) or now >= until:
            # what arrived is acknowledged before anybody who heard of it can end the QP
            _send(eng, pt, tx, now)
            return
        if now - last > ctl[CTL_SPIN]:
            _sleep(eng, pt, now, until)
        elif now - last > YIELD_NS:
            sched_yield()
        else:
            pause()


def make_ctl() -> np.ndarray:
    """Control words, all zero."""
    return np.zeros(CTL_WORDS, np.int64)

