"""The CM's state machines, as data (IBTA 12.9, 12.11).

Theory of operation
-------------------
A conversation (a connection, or the resolution of a UD service) is in one `State`. What happens to it is an
`Input`: its own consumer wants something, its peer said something, or a timer ran out. `EDGES` says for each
pair what follows: the next state, the one message that is sent, and the one thing the consumer is told.
Independently of how it was reached, a state says in `TIMERS` what it waits for; entering a state starts that
timer, staying in it does not, and a RETRY starts it again.

A pair that is not in the table is not legal. For a message of the peer that means it is dropped and counted,
for a call of the consumer an error. A duplicate is legal: its edge leads back to the same state.

Three rules keep this file useful:

* everything that changes the state of a conversation is here, and nothing else is: lengths of timers,
  contents of messages and tables of conversations are in manager.py;
* this file does not know which side it plays: the active side goes through REQ_SENT and REP_RCVD, the passive
  side through REQ_RCVD and REP_SENT, and manager.py drops what only the other side could have sent;
* every state but LISTEN and ESTABLISHED has a timer and ends by it, so that a peer that falls silent, and a
  consumer that never answers, cost memory only for a while.

State names are those of the specification and of Linux. REJ_SENT and SIDR_REP_SENT are ours: a conversation
that is over but remembered for a while, so that a repeated REQ, REP or SIDR_REQ gets the same answer again.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class State(Enum):
    """Where a conversation stands."""

    IDLE          = auto()
    LISTEN        = auto()  # of a listener: its requests are conversations of their own, from IDLE
    REQ_SENT      = auto()
    REQ_RCVD      = auto()
    MRA_REQ_SENT  = auto()  # we asked the peer to be patient with its REQ
    MRA_REQ_RCVD  = auto()  # the peer asked us to be patient with our REQ
    REP_SENT      = auto()
    REP_RCVD      = auto()
    MRA_REP_SENT  = auto()
    MRA_REP_RCVD  = auto()
    ESTABLISHED   = auto()
    DREQ_SENT     = auto()
    DREQ_RCVD     = auto()
    TIMEWAIT      = auto()
    REJ_SENT      = auto()
    SIDR_REQ_SENT = auto()
    SIDR_REQ_RCVD = auto()
    SIDR_REP_SENT = auto()
    CLOSED        = auto()  # forgotten


class Input(Enum):
    """What happens to a conversation."""

    # of the consumer
    CONNECT       = auto()
    ACCEPT        = auto()
    CONFIRM       = auto()  # the active side's QP is ready: RTU
    DELAY         = auto()  # the answer will take longer: MRA
    REJECT        = auto()
    ESTABLISH     = auto()  # a packet came in on the QP before the RTU did
    DISCONNECT    = auto()
    RESOLVE       = auto()
    ANSWER        = auto()
    # of the peer
    RECV_REQ      = auto()
    RECV_MRA_REQ  = auto()
    RECV_MRA_REP  = auto()
    RECV_REP      = auto()
    RECV_RTU      = auto()
    RECV_REJ      = auto()
    RECV_DREQ     = auto()
    RECV_DREP     = auto()
    RECV_LAP      = auto()
    RECV_SIDR_REQ = auto()
    RECV_SIDR_REP = auto()
    # of time
    RETRY         = auto()  # no answer, retries left
    EXPIRE        = auto()  # no answer and no retry left, or the wait is over


class Timer(Enum):
    """What a state waits for."""

    NONE     = auto()
    RESPONSE = auto()  # the peer's answer; repeated when it does not come
    SERVICE  = auto()  # the peer's answer, after a MRA
    CONSUMER = auto()  # our own consumer
    TIMEWAIT = auto()  # the last packets in the network to die
    LINGER   = auto()  # the peer to have heard the answer, or to repeat its question


class Reply(Enum):
    """The message an edge sends."""

    NONE        = auto()
    REPEAT      = auto()  # the last one of this conversation, again
    REQ         = auto()
    MRA_REQ     = auto()
    MRA_REP     = auto()
    REP         = auto()
    RTU         = auto()
    REJ         = auto()  # with the consumer's reason
    REJ_TIMEOUT = auto()
    REJ_STALE   = auto()
    DREQ        = auto()
    DREP        = auto()
    APR         = auto()  # alternate paths: not supported
    SIDR_REQ    = auto()
    SIDR_REP    = auto()


class Notice(Enum):
    """What an edge tells the consumer; events.py has the events of these names."""

    NONE             = auto()
    CONNECT_REQUEST  = auto()
    CONNECT_RESPONSE = auto()
    ESTABLISHED      = auto()
    REJECTED         = auto()
    UNREACHABLE      = auto()
    CONNECT_ERROR    = auto()
    DISCONNECTED     = auto()
    TIMEWAIT_EXIT    = auto()
    RESOLVE_REQUEST  = auto()
    RESOLVE_RESPONSE = auto()


class Edge(NamedTuple):
    """What follows."""

    state: State
    reply: Reply = Reply.NONE
    notice: Notice = Notice.NONE


S, In, R, N = State, Input, Reply, Notice

_REQUESTING = (S.REQ_SENT, S.MRA_REQ_RCVD)  # active, waits for the REP
_REQUESTED = (S.REQ_RCVD, S.MRA_REQ_SENT)  # passive, its consumer has the REQ
_REPLYING = (S.REP_SENT, S.MRA_REP_RCVD)  # passive, waits for the RTU
_REPLIED = (S.REP_RCVD, S.MRA_REP_SENT)  # active, its consumer has the REP

EDGES: dict[State, dict[Input, Edge]] = {
    S.IDLE: {
        In.CONNECT:       Edge(S.REQ_SENT, R.REQ),
        In.RECV_REQ:      Edge(S.REQ_RCVD, R.NONE, N.CONNECT_REQUEST),
        In.RESOLVE:       Edge(S.SIDR_REQ_SENT, R.SIDR_REQ),
        In.RECV_SIDR_REQ: Edge(S.SIDR_REQ_RCVD, R.NONE, N.RESOLVE_REQUEST),
    },
    S.LISTEN: {},
    **{
        state: {
            In.RECV_REP:     Edge(S.REP_RCVD, R.NONE, N.CONNECT_RESPONSE),
            In.RECV_REJ:     Edge(S.CLOSED, R.NONE, N.REJECTED),
            In.RECV_MRA_REQ: Edge(S.MRA_REQ_RCVD),
            In.DISCONNECT:   Edge(S.REJ_SENT, R.REJ_TIMEOUT),  # the only way to take a REQ back
            In.RETRY:        Edge(S.REQ_SENT, R.REPEAT),
            In.EXPIRE:       Edge(S.REJ_SENT, R.REJ_TIMEOUT, N.UNREACHABLE),
        }
        for state in _REQUESTING
    },
    **{
        state: {
            In.ACCEPT:     Edge(S.REP_SENT, R.REP),
            In.REJECT:     Edge(S.REJ_SENT, R.REJ),
            In.DELAY:      Edge(S.MRA_REQ_SENT, R.MRA_REQ),
            # The peer runs out of patience before the consumer has answered: ask for some.
            In.RECV_REQ:   Edge(S.MRA_REQ_SENT, R.MRA_REQ),
            In.RECV_REJ:   Edge(S.TIMEWAIT, R.NONE, N.REJECTED),
            In.DISCONNECT: Edge(S.REJ_SENT, R.REJ),
            In.EXPIRE:     Edge(S.REJ_SENT, R.REJ_TIMEOUT, N.CONNECT_ERROR),
        }
        for state in _REQUESTED
    },
    **{
        state: {
            In.RECV_RTU:     Edge(S.ESTABLISHED, R.NONE, N.ESTABLISHED),
            In.ESTABLISH:    Edge(S.ESTABLISHED, R.NONE, N.ESTABLISHED),
            In.RECV_MRA_REP: Edge(S.MRA_REP_RCVD),
            In.RECV_REQ:     Edge(state, R.REPEAT),
            In.RECV_REJ:     Edge(S.TIMEWAIT, R.NONE, N.REJECTED),
            In.RECV_DREQ:    Edge(S.DREQ_RCVD, R.NONE, N.DISCONNECTED),  # the RTU was lost, not so the DREQ
            In.DISCONNECT:   Edge(S.REJ_SENT, R.REJ),
            In.RETRY:        Edge(S.REP_SENT, R.REPEAT),
            In.EXPIRE:       Edge(S.REJ_SENT, R.REJ_TIMEOUT, N.UNREACHABLE),
        }
        for state in _REPLYING
    },
    **{
        state: {
            In.CONFIRM:    Edge(S.ESTABLISHED, R.RTU, N.ESTABLISHED),
            In.REJECT:     Edge(S.REJ_SENT, R.REJ),
            In.DELAY:      Edge(S.MRA_REP_SENT, R.MRA_REP),
            In.RECV_REP:   Edge(S.MRA_REP_SENT, R.MRA_REP),
            In.RECV_REJ:   Edge(S.TIMEWAIT, R.NONE, N.REJECTED),
            In.DISCONNECT: Edge(S.REJ_SENT, R.REJ),
            In.EXPIRE:     Edge(S.REJ_SENT, R.REJ_TIMEOUT, N.CONNECT_ERROR),
        }
        for state in _REPLIED
    },
    S.ESTABLISHED: {
        In.DISCONNECT: Edge(S.DREQ_SENT, R.DREQ),
        In.ESTABLISH:  Edge(S.ESTABLISHED),
        In.RECV_REQ:   Edge(S.ESTABLISHED),
        In.RECV_REP:   Edge(S.ESTABLISHED, R.REPEAT),  # the RTU was lost
        In.RECV_RTU:   Edge(S.ESTABLISHED),
        In.RECV_REJ:   Edge(S.TIMEWAIT, R.NONE, N.DISCONNECTED),
        In.RECV_DREQ:  Edge(S.DREQ_RCVD, R.NONE, N.DISCONNECTED),
        In.RECV_LAP:   Edge(S.ESTABLISHED, R.APR),
    },
    S.DREQ_SENT: {
        In.RECV_DREP:  Edge(S.TIMEWAIT, R.NONE, N.DISCONNECTED),
        In.RECV_DREQ:  Edge(S.TIMEWAIT, R.DREP, N.DISCONNECTED),  # both sides at once
        In.RECV_REJ:   Edge(S.TIMEWAIT, R.NONE, N.DISCONNECTED),
        In.RECV_REQ:   Edge(S.DREQ_SENT),
        In.RECV_REP:   Edge(S.DREQ_SENT),
        In.RECV_RTU:   Edge(S.DREQ_SENT),
        In.DISCONNECT: Edge(S.DREQ_SENT),
        In.RETRY:      Edge(S.DREQ_SENT, R.REPEAT),
        In.EXPIRE:     Edge(S.TIMEWAIT, R.NONE, N.DISCONNECTED),
    },
    S.DREQ_RCVD: {
        In.DISCONNECT: Edge(S.TIMEWAIT, R.DREP),
        In.RECV_DREQ:  Edge(S.DREQ_RCVD),
        In.RECV_REJ:   Edge(S.DREQ_RCVD),
        In.RECV_REQ:   Edge(S.DREQ_RCVD),
        In.RECV_REP:   Edge(S.DREQ_RCVD),
        In.RECV_RTU:   Edge(S.DREQ_RCVD),
        In.EXPIRE:     Edge(S.TIMEWAIT, R.DREP),
    },
    S.TIMEWAIT: {
        In.DISCONNECT: Edge(S.TIMEWAIT),
        In.RECV_DREQ:  Edge(S.TIMEWAIT, R.DREP),
        In.RECV_REQ:   Edge(S.TIMEWAIT, R.REJ_STALE),
        In.RECV_REP:   Edge(S.TIMEWAIT, R.REJ_STALE),
        In.RECV_RTU:   Edge(S.TIMEWAIT),
        In.RECV_DREP:  Edge(S.TIMEWAIT),
        In.RECV_REJ:   Edge(S.TIMEWAIT),
        In.EXPIRE:     Edge(S.CLOSED, R.NONE, N.TIMEWAIT_EXIT),
    },
    S.REJ_SENT: {
        In.DISCONNECT: Edge(S.REJ_SENT),
        In.RECV_REQ:   Edge(S.REJ_SENT, R.REPEAT),
        In.RECV_REP:   Edge(S.REJ_SENT, R.REPEAT),
        In.RECV_RTU:   Edge(S.REJ_SENT, R.REPEAT),
        In.RECV_DREQ:  Edge(S.REJ_SENT, R.DREP),
        In.RECV_REJ:   Edge(S.REJ_SENT),
        In.EXPIRE:     Edge(S.CLOSED, R.NONE, N.TIMEWAIT_EXIT),
    },
    S.SIDR_REQ_SENT: {
        In.RECV_SIDR_REP: Edge(S.CLOSED, R.NONE, N.RESOLVE_RESPONSE),
        In.DISCONNECT:    Edge(S.CLOSED),
        In.RETRY:         Edge(S.SIDR_REQ_SENT, R.REPEAT),
        In.EXPIRE:        Edge(S.CLOSED, R.NONE, N.UNREACHABLE),
    },
    S.SIDR_REQ_RCVD: {
        In.ANSWER:        Edge(S.SIDR_REP_SENT, R.SIDR_REP),
        In.RECV_SIDR_REQ: Edge(S.SIDR_REQ_RCVD),
        In.DISCONNECT:    Edge(S.CLOSED),
        In.EXPIRE:        Edge(S.CLOSED),
    },
    S.SIDR_REP_SENT: {
        In.DISCONNECT:    Edge(S.SIDR_REP_SENT),
        In.RECV_SIDR_REQ: Edge(S.SIDR_REP_SENT, R.REPEAT),
        In.EXPIRE:        Edge(S.CLOSED),
    },
    S.CLOSED: {
        In.DISCONNECT: Edge(S.CLOSED),
    },
}  # fmt: skip

# A MRA that was answered to stays the answer: the consumer has been given its time once.
EDGES[S.MRA_REQ_SENT][In.RECV_REQ] = Edge(S.MRA_REQ_SENT, R.REPEAT)
EDGES[S.MRA_REP_SENT][In.RECV_REP] = Edge(S.MRA_REP_SENT, R.REPEAT)
del EDGES[S.MRA_REQ_SENT][In.DELAY], EDGES[S.MRA_REP_SENT][In.DELAY]

TIMERS: dict[State, Timer] = {
    S.IDLE:          Timer.NONE,
    S.LISTEN:        Timer.NONE,
    S.REQ_SENT:      Timer.RESPONSE,
    S.REQ_RCVD:      Timer.CONSUMER,
    S.MRA_REQ_SENT:  Timer.CONSUMER,
    S.MRA_REQ_RCVD:  Timer.SERVICE,
    S.REP_SENT:      Timer.RESPONSE,
    S.REP_RCVD:      Timer.CONSUMER,
    S.MRA_REP_SENT:  Timer.CONSUMER,
    S.MRA_REP_RCVD:  Timer.SERVICE,
    S.ESTABLISHED:   Timer.NONE,
    S.DREQ_SENT:     Timer.RESPONSE,
    S.DREQ_RCVD:     Timer.CONSUMER,
    S.TIMEWAIT:      Timer.TIMEWAIT,
    S.REJ_SENT:      Timer.LINGER,
    S.SIDR_REQ_SENT: Timer.RESPONSE,
    S.SIDR_REQ_RCVD: Timer.CONSUMER,
    S.SIDR_REP_SENT: Timer.LINGER,
    S.CLOSED:        Timer.NONE,
}  # fmt: skip

LINGERING = frozenset({S.TIMEWAIT, S.REJ_SENT, S.SIDR_REP_SENT})  # over, and only remembered
PENDING = frozenset({*_REQUESTED, *_REPLYING, S.SIDR_REQ_RCVD})  # counts against a listener's backlog


def step(state: State, event: Input) -> Edge | None:
    """What follows from `event` in `state`; None if it is not legal there."""
    return EDGES[state].get(event)
