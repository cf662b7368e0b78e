"""Events for whoever drives the engine: a ring of (type, object index, argument), names as ibv_event_type.

When nobody fetches them the ring fills and further events are counted as lost; the data path never waits.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import i64, inline
from softrnic.layout import EVENT_ENTRIES


@inline
def push_event(eng, kind, index, arg):
    """Report an event; `index` is that of the QP, CQ, SRQ or address space concerned."""
    prod = i64(eng["event_prod"])
    if prod - i64(eng["event_cons"]) >= EVENT_ENTRIES:
        eng["counters"][C.EVENTS_LOST] += 1
        return
    event = eng["events"][prod & (EVENT_ENTRIES - 1)]
    event["type"] = kind
    event["index"] = index
    event["arg"] = arg
    eng["event_prod"] = prod + 1
