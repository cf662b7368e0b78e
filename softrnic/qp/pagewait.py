"""Waiting for a page: a QP half that needs one which is not present pauses, alone, until it is resolved.

Paused halves stand in a list per address space, so that resolving a page looks at those that wait and at nobody else.
A half that was reset or failed meanwhile stays in its list until the next look. Nothing waits on behalf of the peer:
its requests are answered with RNR NAKs.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import i64, inline
from softrnic.layout import EVENT_ENTRIES, PageWait
from softrnic.qp.sched import schedule
from softrnic.spec import EventType

_REQUESTER, _RESPONDER = int(PageWait.REQUESTER), int(PageWait.RESPONDER)
FAULT_TIMER_START = 6  # 80 us: a page of this host is there by then
FAULT_TIMER_STEP = 2  # RNR timer codes: about doubles the wait
FAULT_TIMER_MAX = 20  # 10.24 ms


@inline
def report_fault(eng):
    """Tell the control plane which page is missing. What does not fit into the ring is counted, and asked again."""
    eng["counters"][C.PAGE_FAULTS] += 1
    mr = i64(eng["fault_mr"])
    if mr >= 0:
        eng["mr_stats"][mr]["page_faults"] += 1
    prod = i64(eng["event_prod"])
    if prod - i64(eng["event_cons"]) >= EVENT_ENTRIES:
        eng["counters"][C.EVENTS_LOST] += 1
        return
    event = eng["events"][prod & (EVENT_ENTRIES - 1)]
    event["type"] = EventType.PAGE_FAULT
    event["index"] = eng["fault_space"]
    event["arg"] = eng["fault_addr"]
    event["length"] = eng["fault_len"]
    event["mr"] = mr
    event["flags"] = eng["fault_flags"]
    eng["event_prod"] = prod + 1


@inline
def pause(eng, qp, qp_index, half):
    """Stop one half of the QP (PageWait) until the page of the last fault is there; other QPs go on."""
    qp["fault"] = i64(qp["fault"]) | half
    report_fault(eng)
    node = 2 * qp_index + (1 if half == _RESPONDER else 0)
    wait = eng["waits"][node]
    if i64(wait["space"]):
        _unlink(eng, wait)
    space = eng["spaces"][i64(eng["fault_space"])]
    head = i64(space["wait_head"])
    wait["space"] = i64(eng["fault_space"]) + 1
    wait["addr"] = eng["fault_addr"]
    wait["prev"] = 0
    wait["next"] = head
    if head:
        eng["waits"][head - 1]["prev"] = node + 1
    space["wait_head"] = node + 1


@inline
def _unlink(eng, wait):
    before, after = i64(wait["prev"]), i64(wait["next"])
    if before:
        eng["waits"][before - 1]["next"] = after
    else:
        eng["spaces"][i64(wait["space"]) - 1]["wait_head"] = after
    if after:
        eng["waits"][after - 1]["prev"] = before
    wait["space"] = 0


@inline
def wake(eng, space_index, first, end):
    """Let everyone go on who waits for an address in [first, end): how many. Pages may still be missing to them."""
    woken = 0
    node = i64(eng["spaces"][space_index]["wait_head"])
    while node:
        wait = eng["waits"][node - 1]
        index, half = (node - 1) >> 1, _RESPONDER if (node - 1) & 1 else _REQUESTER
        node = i64(wait["next"])
        qp = eng["qps"][index]
        waits = i64(qp["fault"]) & half
        if waits and (i64(wait["addr"]) < first or i64(wait["addr"]) >= end):
            continue
        _unlink(eng, wait)
        if waits:
            qp["fault"] = i64(qp["fault"]) & ~half
            schedule(eng, qp, index)
            woken += 1
    return woken


@inline
def fault_timer(qp):
    """The RNR timer code for a request that needs a missing page: longer each time the same request finds it missing.

    A page that comes at once costs the peer a short wait, and one that takes long does not eat up its RNR retries.
    """
    code = i64(qp["rnr_fault_timer"])
    if qp["fault_psn"] != qp["epsn"] or qp["fault_tries"] == 0:
        qp["fault_tries"] = 0
        qp["fault_psn"] = qp["epsn"]
    else:
        code = max(code, min(code + FAULT_TIMER_STEP * i64(qp["fault_tries"]), FAULT_TIMER_MAX)) if code else 0
    qp["fault_tries"] = min(255, i64(qp["fault_tries"]) + 1)
    return code
