"""A device that moves at any packet of any message: every message arrives once, and the peer is an ordinary one."""

from __future__ import annotations

import pytest

from softrnic.verbs import QpType
from tests.migrate.moving import Everything, Results, all_good, move
from tests.pairs import Pair, Side

# Of the packet boundaries one in so many is tried, all of them by the slow form.
EVERY = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])


@pytest.fixture(scope="module")
def still() -> tuple[int, Results]:
    """What happens when nobody moves: packets, and the outcome."""
    script = Everything()
    count = script.run()
    outcome = script.outcome()
    assert all_good(outcome)
    assert len(outcome["a"][0]) > 25
    return count, outcome


@EVERY
@pytest.mark.parametrize("policy", ["silence", "rnr"])
@pytest.mark.parametrize("who", ["a", "b"])
def test_at_every_packet(who: str, policy: str, stride: int, still: tuple[int, Results]) -> None:
    count, expected = still
    for at in range(((who == "b") + 2 * (policy == "rnr")) % stride, count + 1, stride):
        script = Everything()

        def go(script: Everything = script, at: int = at) -> None:
            if at % 2:
                script.poll()
            move(script.pair, getattr(script.pair, who), policy)

        script.run(at, go)
        assert script.outcome() == expected, f"moved after packet {at}"


def speak_to_a_suspended(pair: Pair, side: Side) -> None:
    """Twenty milliseconds in which the peer does what it can."""
    old, other = side.device, pair.a if side is pair.b else pair.b
    for _ in range(20):
        n = other.device.engine.transmit(other.tx, pair.now)
        old.engine.receive(other.tx, n, pair.now)
        n = old.engine.transmit(side.tx, pair.now)
        other.device.engine.receive(side.tx, n, pair.now)
        pair.now += 1_000_000
        other.device.engine.on_timer(pair.now)


@EVERY
@pytest.mark.parametrize("policy", ["silence", "rnr", "stop"])
@pytest.mark.parametrize("who", ["a", "b"])
def test_with_a_pause_in_which_the_peer_goes_on(who: str, policy: str, stride: int) -> None:
    """RC alone: what the peer sends meanwhile is lost or held, and nothing of it counts against anybody."""
    stop = policy == "stop"
    script = Everything(kinds=(QpType.RC,), stop=stop)
    count = script.run()
    expected = script.outcome()
    assert all_good(expected)
    for at in range(((who == "b") + 2 * (policy == "rnr")) % stride, count + 1, stride):
        script = Everything(kinds=(QpType.RC,), stop=stop)
        side = getattr(script.pair, who)

        def go(script: Everything = script, side: Side = side) -> None:
            move(script.pair, side, policy, pause=lambda: speak_to_a_suspended(script.pair, side))

        script.run(at, go)
        assert script.outcome() == expected, f"moved after packet {at}"


@EVERY
def test_there_and_back(stride: int, still: tuple[int, Results]) -> None:
    count, expected = still
    for at in range(0, count, 2 * stride):
        script = Everything()

        def go(script: Everything = script) -> None:
            for side in (script.pair.a, script.pair.b):
                move(script.pair, side)
                move(script.pair, side, "rnr")

        script.run(at, go)
        assert script.outcome() == expected, f"moved after packet {at}"


@EVERY
@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_given_up_at_every_packet(policy: str, stride: int, still: tuple[int, Results]) -> None:
    """A move that is aborted leaves the source as if nothing had happened."""
    count, expected = still
    for at in range(0, count + 1, stride):
        script = Everything()

        def go(script: Everything = script) -> None:
            for side in (script.pair.a, script.pair.b):
                side.device.suspend_egress()
                side.device.suspend(policy)
            for side in (script.pair.a, script.pair.b):
                side.device.abort()

        script.run(at, go)
        assert script.outcome() == expected, f"aborted after packet {at}"
