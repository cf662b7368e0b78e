"""When to stop copying memory that is being written to: pure functions of what the rounds so far have shown.

A round sends every page written since the one before. The pause that a switch would take now is what is left to send
at the bandwidth of the last rounds, and the part that does not depend on memory. It is taken when it fits the limit.
Where rounds no longer bring it down, waiting longer is of no use: then the rest is fetched afterwards (post-copy), or
the move is given up and the function stays where it is. Never knows what is copied, or how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

_SECOND = 1_000_000_000
_RECENT = 3  # rounds the bandwidth is taken from


class Step(Enum):
    """What to do after a round."""

    AGAIN = "another round"
    SWITCH = "switch over"
    POSTCOPY = "switch over and fetch the rest afterwards"
    GIVE_UP = "give up"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the one who asked for the move puts up with."""

    downtime_ns: int = 300_000_000
    max_rounds: int = 30
    stalled_rounds: int = 4
    """So many rounds in a row without a new least rest mean that it will not get less."""
    postcopy: bool = False


@dataclass(frozen=True)
class Round:
    """One round: bytes sent, how long that took, and bytes written meanwhile, which are left to send."""

    sent_bytes: int
    elapsed_ns: int
    dirty_bytes: int

    @property
    def dirty_rate(self) -> float:
        """Bytes of distinct pages written per second."""
        return self.dirty_bytes * _SECOND / max(1, self.elapsed_ns)


@dataclass(frozen=True)
class Decision:
    """What to do; the pause it would take to switch now (None: nothing sent yet, so nobody knows); why."""

    step: Step
    downtime_ns: int | None
    reason: str


def bandwidth(rounds: Sequence[Round]) -> float:
    """Bytes per second of the last rounds that sent anything; 0 if none has."""
    sending = [r for r in rounds if r.sent_bytes][-_RECENT:]
    elapsed = sum(r.elapsed_ns for r in sending)
    return sum(r.sent_bytes for r in sending) * _SECOND / max(1, elapsed)


def downtime(rounds: Sequence[Round], fixed_ns: int) -> int | None:
    """The pause if the function were switched over now; `fixed_ns` is what it takes apart from memory."""
    left = rounds[-1].dirty_bytes if rounds else None
    if left == 0:
        return fixed_ns
    speed = bandwidth(rounds)
    return None if left is None or speed <= 0 else fixed_ns + int(left * _SECOND / speed)


def decide(rounds: Sequence[Round], limits: Limits, fixed_ns: int) -> Decision:
    """What to do after these rounds."""
    pause = downtime(rounds, fixed_ns)
    if pause is not None and pause <= limits.downtime_ns:
        return Decision(Step.SWITCH, pause, f"a pause of {_ms(pause)} fits {_ms(limits.downtime_ns)}")
    if fixed_ns > limits.downtime_ns:
        return Decision(Step.GIVE_UP, pause, f"{_ms(fixed_ns)} are needed even without memory")
    if limits.postcopy and rounds:  # all was sent once: what was written since can be fetched by whoever needs it
        return Decision(Step.POSTCOPY, fixed_ns, "all of the memory was sent once")
    if len(rounds) >= limits.max_rounds:
        return Decision(Step.GIVE_UP, pause, f"{len(rounds)} rounds, and the pause would still be {_ms(pause)}")
    if _stalled(rounds, limits.stalled_rounds):
        rate, speed = rounds[-1].dirty_rate / 1e6, bandwidth(rounds) / 1e6
        reason = f"memory is written at {rate:.0f} MB/s and sent at {speed:.0f} MB/s: it will not get less"
        return Decision(Step.GIVE_UP, pause, reason)
    return Decision(Step.AGAIN, pause, f"a pause of {_ms(pause)} is longer than {_ms(limits.downtime_ns)}")


def _stalled(rounds: Sequence[Round], count: int) -> bool:
    """Whether none of the last `count` rounds left less than the best before them."""
    if len(rounds) <= count:
        return False
    best = min(r.dirty_bytes for r in rounds[:-count])
    return all(r.dirty_bytes >= best for r in rounds[-count:])


def _ms(ns: int | None) -> str:
    return "unknown length" if ns is None else f"{ns / 1e6:.1f} ms"
