"""Who runs the function: the two halves of the agreement between source and destination, as tables.

At no time do both run it, whatever is lost, cut or repeated, and whoever is restarted:

* The destination runs it only after COMMIT, and the source sends COMMIT only after it has suspended the function and
  given up the right to resume it by itself (COMMITTED).
* From COMMITTED the source resumes only when the destination says that it has dropped the function, and a destination
  says so only if it never ran it and, having dropped it, never will: a COMMIT for what it does not hold is refused.
* Before COMMITTED the source may resume at any time, and the destination may drop what it holds at any time: neither
  needs to ask, so neither waits for the other while the connection is broken.

What remains is what no protocol can do away with: a source that has sent COMMIT and cannot reach the destination any
more does not know whether it runs. It stays suspended (IN_DOUBT is COMMITTED without a connection) until it can ask, or
until a person who does know decides. A destination that was restarted has forgotten, which it shows by another
`instance`: what it says about the function is then no answer.
"""

from __future__ import annotations

from enum import Enum

from softrnic.errors import StateError


class Source(Enum):
    """Where the source stands."""

    RUNNING = "running"  # here; memory may be under way
    SUSPENDED = "suspended"  # here, and may resume
    COMMITTED = "committed"  # nowhere known: the destination decides
    GONE = "gone"  # at the destination


class Target(Enum):
    """Where the destination stands with one migration; on the wire by value."""

    UNKNOWN = "unknown"  # never heard of it, or dropped it
    RECEIVING = "receiving"  # memory
    HOLDING = "holding"  # all of it, suspended
    RUNNING = "running"  # here
    COMPLETE = "complete"  # here, and nothing more is needed of the source


class Event(Enum):
    """What makes either side change its mind."""

    SUSPEND = "suspend"
    RESUME = "resume"  # the source gives up, for whatever reason
    COMMIT = "commit"
    RUNS = "runs"  # the destination says so
    DROPPED = "dropped"  # the destination says that it does not have it
    BEGIN = "begin"
    HOLD = "hold"  # all of the state is restored
    RETRACT = "retract"  # the source has resumed: back to receiving memory
    DROP = "drop"
    FINISH = "finish"  # the last page is here


_SOURCE = {
    (Source.RUNNING, Event.SUSPEND): Source.SUSPENDED,
    (Source.SUSPENDED, Event.RESUME): Source.RUNNING,
    (Source.RUNNING, Event.RESUME): Source.RUNNING,
    (Source.SUSPENDED, Event.COMMIT): Source.COMMITTED,
    (Source.COMMITTED, Event.COMMIT): Source.COMMITTED,  # said again
    (Source.COMMITTED, Event.RUNS): Source.GONE,
    (Source.COMMITTED, Event.DROPPED): Source.RUNNING,
}
_TARGET = {
    (Target.UNKNOWN, Event.BEGIN): Target.RECEIVING,
    (Target.RECEIVING, Event.HOLD): Target.HOLDING,
    (Target.HOLDING, Event.RETRACT): Target.RECEIVING,
    (Target.RECEIVING, Event.RETRACT): Target.RECEIVING,
    (Target.HOLDING, Event.COMMIT): Target.RUNNING,
    (Target.RUNNING, Event.COMMIT): Target.RUNNING,  # heard again
    (Target.COMPLETE, Event.COMMIT): Target.COMPLETE,
    (Target.RUNNING, Event.FINISH): Target.COMPLETE,
    (Target.UNKNOWN, Event.DROP): Target.UNKNOWN,
    (Target.RECEIVING, Event.DROP): Target.UNKNOWN,
    (Target.HOLDING, Event.DROP): Target.UNKNOWN,
}


def source_after(state: Source, event: Event) -> Source:
    """The source's next state; StateError for what must not be."""
    try:
        return _SOURCE[state, event]
    except KeyError:
        raise StateError("$.source", f"no {event.value} when {state.value}") from None


def target_after(state: Target, event: Event) -> Target:
    """The destination's next state; StateError for what must not be."""
    try:
        return _TARGET[state, event]
    except KeyError:
        raise StateError("$.destination", f"no {event.value} when {state.value}") from None
