"""Who has something to send: the run queue of QPs, and the doorbells that put them there.

The run queue is a singly linked FIFO through QP["sched_next"], so 16,384 idle QPs cost nothing. A doorbell is one bit
per QP plus a summary bit per 32 words, set atomically by any poster and taken by the engine when it next transmits.
"""

from __future__ import annotations

from softrnic.jit import atomic_or64, atomic_xchg64, cttz64, i64, inline, ld64
from softrnic.layout import DOORBELL_BITS, DOORBELL_WORDS, OFF_DOORBELL_ANY, OFF_DOORBELLS

_ANY_WORDS = (DOORBELL_WORDS + DOORBELL_BITS - 1) // DOORBELL_BITS
_SHIFT = 5
_MASK = DOORBELL_BITS - 1


@inline
def schedule(eng, qp, qp_index):
    """Let the QP send when its turn comes; it may be in the queue already."""
    if qp["sched"]:
        return
    qp["sched"] = 1
    qp["sched_next"] = -1
    tail = i64(eng["sched_tail"])
    if tail < 0:
        eng["sched_head"] = qp_index
    else:
        eng["qps"][tail]["sched_next"] = qp_index
    eng["sched_tail"] = qp_index


@inline
def next_scheduled(eng):
    """Take the first QP off the run queue: its index, or -1."""
    index = i64(eng["sched_head"])
    if index < 0:
        return -1
    qp = eng["qps"][index]
    eng["sched_head"] = qp["sched_next"]
    if i64(qp["sched_next"]) < 0:
        eng["sched_tail"] = -1
    qp["sched"] = 0
    return index


@inline
def ring_doorbell(eng, qp_index):
    """Tell the engine that a queue of this QP has grown. Safe from any thread."""
    base = i64(eng["base"])
    word = qp_index >> _SHIFT
    atomic_or64(base + OFF_DOORBELLS + 8 * word, 1 << (qp_index & _MASK))
    atomic_or64(base + OFF_DOORBELL_ANY + 8 * (word >> _SHIFT), 1 << (word & _MASK))


@inline
def has_doorbells(eng):
    """Whether any doorbell has been rung since the last `take_doorbells`."""
    base = i64(eng["base"])
    for a in range(_ANY_WORDS):
        if ld64(base + OFF_DOORBELL_ANY + 8 * a) != 0:
            return True
    return False


@inline
def take_doorbells(eng):
    """Put every QP whose doorbell was rung on the run queue."""
    base = i64(eng["base"])
    for a in range(_ANY_WORDS):
        any_addr = base + OFF_DOORBELL_ANY + 8 * a
        if ld64(any_addr) == 0:
            continue
        words = atomic_xchg64(any_addr, 0)
        while words != 0:
            word = DOORBELL_BITS * a + cttz64(words)
            words &= words - 1
            bits = atomic_xchg64(base + OFF_DOORBELLS + 8 * word, 0)
            while bits != 0:
                index = DOORBELL_BITS * word + cttz64(bits)
                bits &= bits - 1
                qp = eng["qps"][index]
                if qp["type"] != 0:
                    schedule(eng, qp, index)
