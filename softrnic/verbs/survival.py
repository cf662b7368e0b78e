"""Will a peer live through a pause of so many nanoseconds, and if not, what must change?

Pure arithmetic on what the standard promises (IBTA 9.7.5.2.8, 9.9): silence uses up the peer's retries, an RNR NAK
its RNR retries, NAK 5 nothing. The pause must be over before the peer sends for the last time, since that packet is
what saves it; real timers are only ever longer. An answer that the network has lost is the one thing that a hold cannot
help with: the peer asks for it again, and is not heard. `if_lost_ns` is how long it bears that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from softrnic.spec import RNR_RETRY_INFINITE, RNR_TIMER_US, ack_timeout_ns

_FOREVER = None
POLICIES = ("silence", "rnr", "stop")


@dataclass(frozen=True)
class Peer:
    """What decides how long the peer waits: its own attributes, and how it is treated."""

    timeout: int
    retry_cnt: int
    rnr_retry: int
    policy: str = "silence"  # or "rnr", "stop"
    rnr_timer: int = 20  # of the RNR NAKs it gets
    reliable: bool = True


@dataclass(frozen=True)
class Survival:
    """`survives` the pause; it would until `until_ns` (None: for ever), bounded by `limit`; `advice` is what helps.

    `if_lost_ns`: until when, if an answer that was sent before the pause has not arrived. `waiting`: what the peer is
    known to wait for already, so that its clock runs from the first moment on; nothing there means that it may be idle.
    """

    survives: bool
    until_ns: int | None
    limit: str
    advice: tuple[str, ...] = ()
    if_lost_ns: int | None = None
    waiting: tuple[str, ...] = ()


def survival(peer: Peer, pause_ns: int, waiting: tuple[str, ...] = ()) -> Survival:
    """Whether `peer` keeps its connection if it hears nothing, or is only told to wait, for `pause_ns`."""
    until, limit = _bound(peer)
    survives = until is None or pause_ns < until
    lost = until if peer.policy == "stop" else _bound(replace(peer, policy="silence"))[0]
    return Survival(survives, until, limit, () if survives else _advice(peer, pause_ns), lost, waiting)


def _bound(peer: Peer) -> tuple[int | None, str]:
    if not peer.reliable:
        return _FOREVER, "nobody waits: datagrams and UC messages are lost"
    if peer.policy == "stop":
        return _FOREVER, "the peer waits until it is told to go on"
    if peer.policy == "rnr":
        if peer.rnr_retry == RNR_RETRY_INFINITE:
            return _FOREVER, "rnr_retry is 7: without end"
        return peer.rnr_retry * RNR_TIMER_US[peer.rnr_timer] * 1000, "rnr_retry"
    if peer.timeout == 0:
        return _FOREVER, "timeout is 0: it waits for ever, and never repeats what was lost"
    return peer.retry_cnt * ack_timeout_ns(peer.timeout), "timeout and retry_cnt"


def _advice(peer: Peer, pause_ns: int) -> tuple[str, ...]:
    if peer.policy == "rnr":
        timer = _smallest(range(1, 33), lambda code: replace(peer, rnr_timer=code & 31), pause_ns)
        hint = () if timer is None else (f"an rnr_timer of {timer & 31} or longer",)
        return (*hint, "rnr_retry 7 at the peer")
    hints = []
    timeout = _smallest(range(peer.timeout + 1, 32), lambda code: replace(peer, timeout=code), pause_ns)
    if timeout is not None:
        hints.append(f"a timeout of {timeout} or more at the peer")
    retries = _smallest(range(peer.retry_cnt + 1, 8), lambda n: replace(peer, retry_cnt=n), pause_ns)
    if retries is not None:
        hints.append(f"a retry_cnt of {retries} or more at the peer")
    held = survival(replace(peer, policy="rnr", rnr_timer=0), pause_ns)
    if held.survives:
        hints.append('the policy "rnr"')
    return tuple(hints)


def _smallest(values: Iterable[int], changed: Callable[[int], Peer], pause_ns: int) -> int | None:
    """The first value with which the peer would live."""
    for value in values:
        until, _ = _bound(changed(value))
        if until is None or pause_ns < until:
            return value
    return None
