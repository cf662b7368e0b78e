"""How long an idle pump looks again and again before it sleeps: decides, and reads no clock.

Looking is worth it if the next frame comes before a wake-up would be over; for a frame that comes later it was all in
vain. So what is learnt from each gap between two frames is only whether the next will probably be short. The rule is
that of KVM's halt polling (Linux, virt/kvm/kvm_main.c, grow_halt_poll_ns): quick to begin, quick to stop, and never
more than a limit, which is the trade-off and the user's to set: 0 always sleeps at once, a second never sleeps. With
a limit of about one wake-up (SPIN_NS), looking in vain costs at most about as much as what it was to avoid.
"""

from __future__ import annotations

from softrnic.jit import inline

FIRST_NS = 10_000  # what a pump that does not spin begins with


@inline
def next_budget(budget: int, gap: int, limit: int) -> int:
    """How long to look before the next sleep, given the last budget and the gap that has just ended; all ns.

    A gap within the budget shows that it does; one within the limit, that more would have caught the frame; a longer
    one, that looking was wasted.
    """
    if gap <= budget:
        return min(budget, limit)
    if gap <= limit:
        return min(limit, max(FIRST_NS, 2 * budget))
    shorter = budget >> 1
    return shorter if shorter >= FIRST_NS else 0
