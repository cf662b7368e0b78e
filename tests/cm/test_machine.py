"""Properties of the transition table, for every state and every input (IBTA 12.9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.cm.machine import (
    EDGES,
    LINGERING,
    PENDING,
    TIMERS,
    Input,
    Notice,
    Reply,
    State,
    Timer,
    step,
)

CONSUMER = {input_ for input_ in Input if not input_.name.startswith("RECV_")} - {Input.RETRY, Input.EXPIRE}
PEER = {input_ for input_ in Input if input_.name.startswith("RECV_")}
ACTIVE = {
    *(State.REQ_SENT, State.MRA_REQ_RCVD, State.REP_RCVD, State.MRA_REP_SENT, State.SIDR_REQ_SENT),
}
PASSIVE = {
    *(State.REQ_RCVD, State.MRA_REQ_SENT, State.REP_SENT, State.MRA_REP_RCVD),
    *(State.SIDR_REQ_RCVD, State.SIDR_REP_SENT),
}


def reachable(start: State) -> set[State]:
    found, new = {start}, {start}
    while new:
        new = {edge.state for state in new for edge in EDGES[state].values()} - found
        found |= new
    return found


def test_every_state_has_a_row_and_a_timer() -> None:
    assert set(EDGES) == set(State) == set(TIMERS)


def test_every_state_can_be_reached() -> None:
    assert reachable(State.IDLE) == set(State) - {State.LISTEN}


@pytest.mark.parametrize("state", [s for s in State if s is not State.LISTEN], ids=lambda state: state.name)
def test_every_state_can_end(state: State) -> None:
    assert State.CLOSED in reachable(state)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_a_timer_leads_somewhere_and_nothing_waits_for_ever(state: State) -> None:
    edges = EDGES[state]
    repeats = TIMERS[state] in (Timer.RESPONSE, Timer.SERVICE)
    assert (Input.RETRY in edges) == repeats
    assert (Input.EXPIRE in edges) == (TIMERS[state] is not Timer.NONE)
    if TIMERS[state] is not Timer.NONE:
        assert edges[Input.EXPIRE].state is not state


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_silence_alone_ends_every_conversation_but_an_established_one(state: State) -> None:
    """From any state, timers alone lead to CLOSED in a few steps."""
    for _ in range(4):
        if TIMERS[state] is Timer.NONE:
            break
        state = EDGES[state][Input.EXPIRE].state
    assert state in (State.CLOSED, State.ESTABLISHED, State.IDLE, State.LISTEN)


@pytest.mark.parametrize("state", [s for s in State if s not in (State.IDLE, State.LISTEN)], ids=lambda s: s.name)
def test_the_consumer_can_always_disconnect(state: State) -> None:
    edge = step(state, Input.DISCONNECT)
    assert edge is not None
    assert edge.state in {State.CLOSED, State.DREQ_SENT, *LINGERING}


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_staying_in_a_state_tells_the_consumer_nothing(state: State) -> None:
    """A peer that repeats itself cannot flood the consumer with events."""
    for event, edge in EDGES[state].items():
        if edge.state is state and event is not Input.RETRY:
            assert edge.notice is Notice.NONE


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_what_the_consumer_did_itself_is_not_told(state: State) -> None:
    for event in CONSUMER - {Input.CONFIRM, Input.ESTABLISH}:
        edge = step(state, event)
        assert edge is None or edge.notice is Notice.NONE


@given(st.sampled_from(State), st.sampled_from(sorted(PEER, key=lambda i: i.name)))
def test_a_peer_moves_a_conversation_at_most_to_where_it_may(state: State, event: Input) -> None:
    """States the peer alone must not bring about: anything that asserts what our consumer has done."""
    edge = step(state, event)
    if edge is None or edge.state is state:
        return
    assert edge.state not in {State.REQ_SENT, State.REP_SENT, State.DREQ_SENT, State.SIDR_REP_SENT}
    if edge.state is State.ESTABLISHED:
        assert state in (State.REP_SENT, State.MRA_REP_RCVD)


def test_a_conversation_has_one_side() -> None:
    """Short of ESTABLISHED, the states of the active side do not lead to those of the passive side."""
    for state, edges in EDGES.items():
        for edge in edges.values():
            assert not (state in ACTIVE and edge.state in PASSIVE)
            assert not (state in PASSIVE and edge.state in ACTIVE)


def test_an_answer_is_sent_to_whatever_needs_one() -> None:
    """A REQ, REP, DREQ or SIDR_REQ that comes too late is answered, so that the peer stops repeating it."""
    for state in LINGERING - {State.SIDR_REP_SENT}:
        for event in (Input.RECV_REQ, Input.RECV_REP, Input.RECV_DREQ):
            edge = step(state, event)
            assert edge is not None
            assert edge.reply is not Reply.NONE


def test_backlog_and_lingering_are_disjoint() -> None:
    assert PENDING.isdisjoint(LINGERING)
    assert State.ESTABLISHED not in PENDING | LINGERING
