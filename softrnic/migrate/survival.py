"""Will an unmodified peer live through a pause of so many nanoseconds, and if not, what must change?

Pure arithmetic on what the standard promises (IBTA 9.7.5.2.8, 9.9): silence uses up the peer's retries, an RNR NAK
its RNR retries. The pause must be over before the peer sends for the last time, since that packet is what saves it;
real timers are only ever longer. What the network had lost already just before the pause is not reckoned with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from softrnic.spec import RNR_RETRY_INFINITE, RNR_TIMER_US, QpType, ack_timeout_ns
from softrnic.verbs import Qp

_FOREVER = None


@dataclass(frozen=True)
class Peer:
    """What decides how long the peer waits: its own attributes, and how it is treated."""

    timeout: int
    retry_cnt: int
    rnr_retry: int
    policy: str = "silence"  # or "rnr"
    rnr_timer: int = 20  # of the RNR NAKs it gets
    reliable: bool = True


@dataclass(frozen=True)
class Survival:
    """`survives` the pause; it would until `until_ns` (None: for ever), bounded by `limit`; `advice` is what helps."""

    survives: bool
    until_ns: int | None
    limit: str
    advice: tuple[str, ...] = ()


def survival(peer: Peer, pause_ns: int) -> Survival:
    """Whether `peer` keeps its connection if it hears nothing, or RNR NAKs only, for `pause_ns`."""
    until, limit = _bound(peer)
    survives = until is None or pause_ns < until
    return Survival(survives, until, limit, () if survives else _advice(peer, pause_ns))


def peer_of(qp: Qp, policy: str = "silence", rnr_timer: int = 20) -> Peer:
    """The peer of a QP, taken to be configured as the QP itself is: nothing on the wire tells."""
    q = qp.record
    return Peer(
        timeout=int(q["timeout"]), retry_cnt=int(q["retry_cnt"]), rnr_retry=int(q["rnr_retry"]), policy=policy,
        rnr_timer=rnr_timer, reliable=qp.type == QpType.RC,
    )  # fmt: skip


def _bound(peer: Peer) -> tuple[int | None, str]:
    if not peer.reliable:
        return _FOREVER, "nobody waits: datagrams and UC messages are lost"
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
