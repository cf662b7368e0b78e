"""The timer wheel against a dictionary of deadlines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.layout import WHEEL_LEVELS, WHEEL_SLOTS, make_engine
from softrnic.qp.timer import NO_DEADLINE
from tests.qp.kernels import deadline, drop, expired, start, stop

TICK = 4096
DAY = 86_400 * 10**9
N_QPS = 8


class Clock:
    """A wheel and its model: when each timer is due."""

    def __init__(self, now: int) -> None:
        self.engs = make_engine()
        self.engs[0]["qps"][:N_QPS]["timer_slot"] = -1
        self.now = now
        self.due: dict[int, int] = {}

    def start(self, index: int, delay: int) -> None:
        self.due[index] = self.now + delay
        start(self.engs, index, self.now + delay)

    def stop(self, index: int) -> None:
        self.due.pop(index, None)
        stop(self.engs, index)

    def drop(self, index: int) -> None:
        self.due.pop(index, None)
        drop(self.engs, index)

    def advance(self, ns: int) -> None:
        """Whatever has been due for a tick must fire, what is not yet due must not."""
        self.now += ns
        while (index := expired(self.engs, self.now)) >= 0:
            assert self.due.pop(index) <= self.now
            stop(self.engs, index)
        assert all(due > self.now - TICK for due in self.due.values())
        self.check()

    def follow(self, limit: int = 400) -> None:
        """As the pump does: sleep until the next deadline, again and again, until nothing is left."""
        for _ in range(limit):
            at = deadline(self.engs)
            if at == NO_DEADLINE:
                assert self.due == {}
                return
            self.advance(max(0, at - self.now))
        raise AssertionError("the wheel turns without end")

    def check(self) -> None:
        """The lists of the wheel are whole, the bitmaps say which are empty, and the deadline is not too late."""
        eng = self.engs[0]
        linked = set()
        for slot in range(WHEEL_LEVELS * WHEEL_SLOTS):
            index, before = int(eng["wheel"][slot]), -1
            busy = int(eng["wheel_bits"][slot // WHEEL_SLOTS]) >> slot % WHEEL_SLOTS & 1
            assert busy == (index >= 0)
            while index >= 0:
                qp = eng["qps"][index]
                assert (int(qp["timer_slot"]), int(qp["timer_prev"])) == (slot, before)
                assert index not in linked
                linked.add(index)
                before, index = index, int(qp["timer_next"])
        assert {i for i in range(N_QPS) if eng["qps"][i]["timer_slot"] >= 0} == linked
        assert set(self.due) <= linked
        if self.due:
            assert deadline(self.engs) <= min(self.due.values()) + TICK


# Delays around every power of two of a tick, up to hours; sleeps up to days.
delays = st.builds(
    lambda power, off: max(0, (TICK << power) + off), st.integers(0, 31), st.integers(-2 * TICK, 2 * TICK)
) | st.integers(0, 10 * TICK)
sleeps = delays | st.integers(0, 60 * DAY) | st.sampled_from([0, 1, TICK - 1, TICK, 32 * TICK, 39 * 3600 * 10**9])
indices = st.integers(0, N_QPS - 1)
steps = st.one_of(
    st.tuples(st.just("start"), indices, delays),
    st.tuples(st.just("start"), indices, delays),
    st.tuples(st.sampled_from(["stop", "drop"]), indices),
    st.tuples(st.just("advance"), sleeps),
)


@given(st.integers(0, 400 * DAY), st.lists(steps, max_size=30))
def test_against_a_dictionary(now: int, script: list[tuple[Any, ...]]) -> None:
    """Never early, at most one tick late, whatever came before and however long nobody looked."""
    clock = Clock(now)
    for name, *args in script:
        getattr(clock, name)(*args)
        clock.check()
    clock.follow()


def test_postponed_deadline_costs_no_move() -> None:
    """Pushing a deadline later leaves the QP where it is linked; the wheel finds out when it looks."""
    clock = Clock(0)
    clock.start(0, 100 * TICK)
    slot = int(clock.engs[0]["qps"][0]["timer_slot"])
    for _ in range(50):
        clock.start(0, 200 * TICK)
    assert int(clock.engs[0]["qps"][0]["timer_slot"]) == slot
    clock.advance(150 * TICK)
    assert 0 in clock.due
    clock.advance(51 * TICK)
    assert clock.due == {}


@pytest.mark.parametrize("idle", [39 * 3600 * 10**9, 40 * 3600 * 10**9, 365 * DAY])
@pytest.mark.parametrize("first", [1, (1 << 42) - 1, (1 << 42) + 1])
def test_after_a_long_idle_time(idle: int, first: int) -> None:
    """A wheel that nobody looked at for longer than it spans still takes a timer at its right time."""
    clock = Clock(first)
    clock.start(0, TICK)
    clock.advance(2 * TICK)
    clock.now += idle
    for index in range(N_QPS):
        clock.start(index, TICK << index * 4)
    clock.follow()
