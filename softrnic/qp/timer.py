"""One timer per QP in a hierarchical wheel: start, stop and expiry are O(1), and idle QPs are not in it.

A tick is 4096 ns, the unit of the local ACK timeout (IBTA 9.9.1.1). Level k has 32 slots of 32^k ticks; a bitmap per
level finds the next busy slot. Pushing a deadline later only writes QP["deadline"]: the wheel looks at the old time,
finds it is not due and moves the QP on, so that acknowledging a packet costs one store. A timer never fires early
and at most one tick late.
"""

from __future__ import annotations

from softrnic.jit import cttz64, i64, inline
from softrnic.layout import WHEEL_LEVELS, WHEEL_SLOTS, TimerKind

TICK_SHIFT = 12
_SLOT_BITS = 5
_SLOT_MASK = WHEEL_SLOTS - 1
_SPAN_TICKS = _SLOT_MASK << (_SLOT_BITS * (WHEEL_LEVELS - 1))  # so far ahead the top level reaches from anywhere
NO_DEADLINE = (1 << 63) - 1


@inline
def _insert(eng, qp, qp_index, when):
    """Link the QP into the slot for time `when` (ns); slots count absolute ticks, so a level wraps by itself."""
    now_tick = i64(eng["wheel_now"])
    tick = max((when + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT, now_tick + 1)
    tick = min(tick, now_tick + _SPAN_TICKS)
    level = 0
    while (tick >> (_SLOT_BITS * level)) - (now_tick >> (_SLOT_BITS * level)) >= WHEEL_SLOTS:
        level += 1
    at = (tick >> (_SLOT_BITS * level)) & _SLOT_MASK
    slot = level * WHEEL_SLOTS + at
    head = i64(eng["wheel"][slot])
    qp["timer_slot"] = slot
    qp["timer_prev"] = -1
    qp["timer_next"] = head
    qp["wheel_at"] = tick << TICK_SHIFT
    if head >= 0:
        eng["qps"][head]["timer_prev"] = qp_index
    eng["wheel"][slot] = qp_index
    _set_bit(eng, level, at)


@inline
def _set_bit(eng, level, at):
    eng["wheel_bits"][level] |= 1 << at


@inline
def _clear_bit(eng, level, at):
    eng["wheel_bits"][level] &= ~(1 << at)


@inline
def _unlink(eng, qp):
    slot = i64(qp["timer_slot"])
    before, after = i64(qp["timer_prev"]), i64(qp["timer_next"])
    if before >= 0:
        eng["qps"][before]["timer_next"] = after
    else:
        eng["wheel"][slot] = after
        if after < 0:
            _clear_bit(eng, slot >> _SLOT_BITS, slot & _SLOT_MASK)
    if after >= 0:
        eng["qps"][after]["timer_prev"] = before
    qp["timer_slot"] = -1


@inline
def start_timer(eng, qp, qp_index, kind, deadline):
    """(Re)start the QP's timer: `kind` expires at `deadline` (ns)."""
    qp["timer"] = kind
    qp["deadline"] = deadline
    if i64(qp["timer_slot"]) >= 0:
        if i64(qp["wheel_at"]) <= deadline:
            return
        _unlink(eng, qp)
    _insert(eng, qp, qp_index, deadline)


@inline
def stop_timer(qp):
    """Nothing is due any more; the wheel forgets the QP when it next comes by."""
    qp["timer"] = TimerKind.NONE


@inline
def drop_timer(eng, qp):
    """Take the QP out of the wheel at once: it is being destroyed."""
    qp["timer"] = TimerKind.NONE
    if i64(qp["timer_slot"]) >= 0:
        _unlink(eng, qp)


@inline
def _next_busy(bits, start):
    """Distance (0 to 31) from slot `start` to the next set bit going round, or -1."""
    if bits == 0:
        return -1
    ahead = bits >> start
    if ahead != 0:
        return cttz64(ahead)
    return cttz64(bits) + WHEEL_SLOTS - start


@inline
def next_deadline(eng):
    """When the wheel must next be looked at (ns), or NO_DEADLINE."""
    now_tick = i64(eng["wheel_now"])
    best = NO_DEADLINE
    for level in range(WHEEL_LEVELS):
        shift = _SLOT_BITS * level
        block = (now_tick >> shift) + 1
        distance = _next_busy(i64(eng["wheel_bits"][level]), block & _SLOT_MASK)
        if distance >= 0:
            best = min(best, ((block + distance) << shift) << TICK_SHIFT)
    return best


@inline
def take_expired(eng, now):
    """Index of a QP whose timer is due at `now`, or -1. Call until -1: the wheel then stands at `now`.

    Slots are visited in time order, higher levels first; a QP found before its true deadline moves on.
    """
    target = now >> TICK_SHIFT
    while True:
        tick = next_deadline(eng) >> TICK_SHIFT
        if tick > target:
            eng["wheel_now"] = max(target, i64(eng["wheel_now"]))
            return -1
        eng["wheel_now"] = tick
        for level in range(WHEEL_LEVELS - 1, -1, -1):
            shift = _SLOT_BITS * level
            if tick & ((1 << shift) - 1):
                continue
            slot = level * WHEEL_SLOTS + ((tick >> shift) & _SLOT_MASK)
            index = i64(eng["wheel"][slot])
            while index >= 0:
                qp = eng["qps"][index]
                _unlink(eng, qp)
                if qp["timer"] != TimerKind.NONE:
                    if i64(qp["deadline"]) <= now:
                        eng["wheel_now"] = tick - 1  # the rest of this slot is for the next call
                        return index
                    _insert(eng, qp, index, i64(qp["deadline"]))
                index = i64(eng["wheel"][slot])
