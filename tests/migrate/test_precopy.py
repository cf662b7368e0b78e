"""When copying stops: worked examples, and what must hold whatever the rounds were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.migrate.postcopy import PageOrder
from softrnic.migrate.precopy import Limits, Round, Step, bandwidth, decide, downtime

MS, S = 1_000_000, 1_000_000_000
LIMITS = Limits(downtime_ns=100 * MS, max_rounds=10, stalled_rounds=3)


def test_bandwidth_is_of_the_last_rounds_that_sent_anything() -> None:
    assert bandwidth([]) == 0
    assert bandwidth([Round(1000, S, 5)]) == 1000
    slow = Round(1000, S, 5)
    fast = Round(5000, S, 5)
    assert bandwidth([slow, fast, fast, Round(0, S, 5), fast]) == 5000


def test_downtime() -> None:
    assert downtime([], 7) is None
    assert downtime([Round(0, S, 10)], 7) is None
    assert downtime([Round(0, S, 0)], 7) == 7
    assert downtime([Round(1000, S, 500)], 7) == 7 + S // 2
    assert Round(1000, S // 2, 500).dirty_rate == 1000


@pytest.mark.parametrize(
    ("dirty", "step"),
    [
        ([0], Step.SWITCH),
        ([94_000], Step.SWITCH),  # 94 ms and 5 that are fixed
        ([96_000], Step.AGAIN),
        ([900_000, 500_000, 300_000], Step.AGAIN),
        ([500_000, 500_000, 500_000, 500_000], Step.GIVE_UP),
        ([500_000, 600_000, 600_000, 400_000], Step.AGAIN),
        ([900_000 - 10_000 * i for i in range(9)], Step.AGAIN),
        ([900_000 - 10_000 * i for i in range(10)], Step.GIVE_UP),
    ],
)
def test_decisions(dirty: list[int], step: Step) -> None:
    """A megabyte a second, and so much left after each round."""
    rounds = [Round(1_000_000, S, left) for left in dirty]
    assert decide(rounds, LIMITS, 5 * MS).step is step


def test_a_pause_that_needs_too_long_without_memory_is_given_up_at_once() -> None:
    assert decide([Round(1000, S, 0)], LIMITS, 200 * MS).step is Step.GIVE_UP


def test_postcopy_after_one_round_if_needed_at_all() -> None:
    limits = Limits(downtime_ns=100 * MS, postcopy=True)
    assert decide([Round(1_000_000, S, 900_000)], limits, MS).step is Step.POSTCOPY
    assert decide([Round(1_000_000, S, 0)], limits, MS).step is Step.SWITCH


rounds_of_any_kind = st.lists(
    st.builds(Round, st.integers(0, 1 << 30), st.integers(0, 10 * S), st.integers(0, 1 << 30)), min_size=1, max_size=40
)


@given(rounds_of_any_kind, st.integers(0, S), st.booleans())
def test_whatever_the_rounds(rounds: list[Round], fixed: int, postcopy: bool) -> None:
    """It ends; it switches only within the limit, or by post-copy; it says why."""
    limits = Limits(downtime_ns=100 * MS, max_rounds=10, stalled_rounds=3, postcopy=postcopy)
    decision = decide(rounds, limits, fixed)
    assert decision.reason
    if decision.step is Step.SWITCH:
        assert decision.downtime_ns is not None
        assert decision.downtime_ns <= limits.downtime_ns
    if len(rounds) >= limits.max_rounds:
        assert decision.step is not Step.AGAIN
    if decision.step is Step.POSTCOPY:
        assert postcopy
        assert fixed <= limits.downtime_ns


# --- what is fetched afterwards -------------------------------------------------------------------------------


@given(st.data())
def test_every_page_goes_once_and_the_wanted_first(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    missing = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    order = PageOrder(missing)
    sent: list[int] = []
    while order.left:
        asked: list[int] = []
        if data.draw(st.booleans()):
            page = data.draw(st.integers(-2, count + 2))
            if order.want(page):
                asked.append(page)
                assert order.urgent
        most = data.draw(st.integers(1, 8))
        first, length = order.take(most) or (0, 0)
        assert 0 < length <= most
        if asked:
            assert (first, length) == (asked[0], 1)
        if not sent and data.draw(st.booleans()):
            order.again(first, length)
            continue
        sent += range(first, first + length)
    assert sorted(sent) == np.flatnonzero(missing).tolist()
    assert order.take(8) is None
    assert not order.urgent


def test_neighbours_of_what_was_wanted_follow() -> None:
    order = PageOrder(np.ones(20, bool))
    order.want(10)
    assert [order.take(4), order.take(4), order.take(4)] == [(10, 1), (11, 4), (15, 4)]
    assert not order.want(12)
    assert [order.take(4), order.take(9)] == [(19, 1), (0, 9)]
