"""The engine's five verbs, in bursts, sans-IO: receive, transmit, next_deadline, on_timer, events.

No socket, no clock, no thread: frames come and go in rings, time is an argument in integer nanoseconds that never goes
back. Whatever drives it - the pump, a test, the simulator - calls these and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from softrnic.jit import i64, inline, kernel
from softrnic.layout import EVENT_ENTRIES, FrameRing, make_engine
from softrnic.qp.answer import MORE as ANSWERS_MORE
from softrnic.qp.answer import answers_owed, responses_owed, send_answers
from softrnic.qp.finish import flush_rq
from softrnic.qp.inbound import receive_frame
from softrnic.qp.packet import begin_burst, close_frame
from softrnic.qp.requester import MORE, send_requests
from softrnic.qp.retransmit import expire
from softrnic.qp.sched import has_doorbells, next_scheduled, schedule, take_doorbells
from softrnic.qp.timer import NO_DEADLINE, next_deadline, take_expired
from softrnic.spec import EventType, QpState

QUANTUM = 64  # packets one QP may send before the next has its turn

# The three bursts are entry points of their own, so that every kernel around them - the pump, perf, a front-end - links
# their cached machine code instead of compiling the engine once more.


@kernel
def receive_burst(eng, rx, n, now):
    """Frames 0 to n-1 of `rx` have arrived."""
    eng["now"] = now
    for slot in range(n):
        receive_frame(eng, rx, slot)


@kernel
def transmit_burst(eng, tx, slots, now):
    """Fill the first `slots` frames of `tx` with what is due: how many. A full ring means there may be more."""
    eng["now"] = now
    take_doorbells(eng)
    begin_burst(eng, slots)
    while i64(eng["tx_n"]) < slots:
        index = next_scheduled(eng)
        if index < 0:
            break
        qp = eng["qps"][index]
        if qp["type"] != 0 and _send_turn(eng, tx, qp, index):
            schedule(eng, qp, index)
    close_frame(eng, tx)
    return i64(eng["tx_n"])


@inline
def _send_turn(eng, tx, qp, index):
    """One QP's turn: READ responses, requests, then what else is owed. True when it wants another.

    The peer waits for READ responses. An acknowledgement goes behind the requests, as the shorter last segment of their
    frame, where it costs no frame of its own; a place in the ring is kept for it.
    """
    if qp["state"] == QpState.ERR:
        flush_rq(eng, qp, index)
    if responses_owed(qp) and send_answers(eng, tx, qp, index, QUANTUM) == ANSWERS_MORE:
        return True
    kept = 1 if answers_owed(qp) else 0
    eng["tx_slots"] -= kept
    more = send_requests(eng, tx, qp, index, QUANTUM) == MORE
    eng["tx_slots"] += kept
    if answers_owed(qp):
        more = send_answers(eng, tx, qp, index, QUANTUM) == ANSWERS_MORE or more
    return more


@kernel
def expire_timers(eng, now):
    """Handle every timer that is due."""
    eng["now"] = now
    index = take_expired(eng, now)
    while index >= 0:
        expire(eng, eng["qps"][index], index)
        index = take_expired(eng, now)


@inline
def has_work(eng):
    """Whether `transmit_burst` would do anything."""
    return i64(eng["sched_head"]) >= 0 or has_doorbells(eng)


@kernel
def _receive(engs, frames, slab, n, now):
    """Entry point of `Engine.receive`."""
    receive_burst(engs[0], FrameRing(frames, slab), n, now)


@kernel
def _transmit(engs, frames, slab, now):
    """Entry point of `Engine.transmit`."""
    return transmit_burst(engs[0], FrameRing(frames, slab), len(frames), now)


@kernel
def _on_timer(engs, now):
    """Entry point of `Engine.on_timer`."""
    expire_timers(engs[0], now)


@kernel
def _next_deadline(engs):
    """Entry point of `Engine.next_deadline`."""
    return next_deadline(engs[0])


@kernel
def _has_work(engs):
    """Entry point of `Engine.has_work`."""
    return has_work(engs[0])


@dataclass(frozen=True, slots=True)
class Event:
    """Something the engine reports: type, index of the record concerned, argument."""

    type: EventType
    index: int
    arg: int


class Engine:
    """One RNIC's data path. Owns nothing but memory; see softrnic.verbs for the objects in it."""

    def __init__(self, *, max_frame: int = 0, max_segs: int = 1) -> None:
        """`max_frame`: bytes of a super-frame the port takes (0: none); `max_segs`: packets in one."""
        self.tables = make_engine()
        self.set_offload(max_frame, max_segs)

    @property
    def record(self) -> np.void:
        """The ENGINE record."""
        return self.tables[0]

    def set_offload(self, max_frame: int, max_segs: int) -> None:
        """What super-frames the port takes."""
        self.record["max_frame"] = max_frame
        self.record["max_segs"] = max(1, max_segs)

    def receive(self, rx: FrameRing, n: int, now: int) -> None:
        """Take frames 0 to n-1 of `rx` off the wire."""
        _receive(self.tables, rx.frames, rx.slab, n, now)

    def transmit(self, tx: FrameRing, now: int) -> int:
        """Fill `tx`; the number of frames. Call again while the ring comes back full."""
        return int(_transmit(self.tables, tx.frames, tx.slab, now))

    def next_deadline(self) -> int | None:
        """When `on_timer` must be called at the latest, or None. May be earlier than anything is due."""
        deadline = int(_next_deadline(self.tables))
        return None if deadline == NO_DEADLINE else deadline

    def on_timer(self, now: int) -> None:
        """Expire what is due at `now`."""
        _on_timer(self.tables, now)

    def has_work(self) -> bool:
        """Whether `transmit` has something to send."""
        return bool(_has_work(self.tables))

    def events(self) -> Iterator[Event]:
        """Take the events noted so far."""
        record = self.record
        while record["event_cons"] < record["event_prod"]:
            event = record["events"][int(record["event_cons"]) & (EVENT_ENTRIES - 1)]
            taken = Event(EventType(int(event["type"])), int(event["index"]), int(event["arg"]))
            record["event_cons"] += 1
            yield taken
