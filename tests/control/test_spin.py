"""How long a pump looks before it sleeps (softrnic.control.spin), over gaps between frames that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.control.spin import FIRST_NS, next_budget
from softrnic.jit import kernel

LIMIT = 50_000
GAPS = st.lists(st.one_of(st.integers(0, 2 * LIMIT), st.integers(0, 10**9)), max_size=60)


@kernel
def one(budget: int, gap: int, limit: int) -> int:
    """next_budget."""
    return next_budget(budget, gap, limit)


def replay(gaps: Iterable[int], limit: int = LIMIT, budget: int = 0) -> tuple[list[bool], int, int]:
    """The slow model of a pump: whether each frame found it awake, how long it looked in vain, and its last budget."""
    caught, wasted = [], 0
    for gap in gaps:
        caught.append(gap <= budget)
        wasted += 0 if caught[-1] else budget
        budget = int(one(budget, gap, limit))
        assert 0 <= budget <= limit
    return caught, wasted, budget


@pytest.mark.parametrize("gap", [0, 1, FIRST_NS, FIRST_NS + 1, LIMIT // 2, LIMIT - 1, LIMIT])
def test_steady_short_gaps_are_soon_all_caught(gap: int) -> None:
    caught, wasted, _ = replay([gap] * 20)
    assert all(caught[4:])
    assert wasted < 2 * LIMIT


@pytest.mark.parametrize("gap", [LIMIT + 1, 10 * LIMIT, 10**9])
@pytest.mark.parametrize("budget", [0, 1, FIRST_NS, LIMIT])
def test_steady_long_gaps_soon_cost_nothing(gap: int, budget: int) -> None:
    caught, wasted, last = replay([gap] * 20, budget=budget)
    assert not any(caught)
    assert last == 0
    assert wasted < 2 * LIMIT


def test_a_long_gap_now_and_then_does_not_end_it() -> None:
    """Bursts: of every hundred frames the last comes late; of the next burst one is missed."""
    caught, _, _ = replay(([5_000] * 99 + [10 * LIMIT]) * 10)
    assert sum(caught) == 10 * 98


@given(GAPS)
def test_without_a_limit_to_spend_it_sleeps_at_once(gaps: list[int]) -> None:
    _, wasted, _ = replay(gaps, limit=0)
    assert wasted == 0


@given(GAPS)
def test_a_limit_beyond_every_gap_never_sleeps_for_long(gaps: list[int]) -> None:
    """Every frame that is missed doubles the budget: so few are."""
    caught, _, _ = replay(gaps, limit=10**9)
    assert caught.count(False) <= 18  # FIRST_NS doubled so often is more than a second


@given(GAPS, st.integers(0, LIMIT))
def test_looking_in_vain_is_paid_for_by_short_gaps(gaps: list[int], budget: int) -> None:
    """However the gaps lie: a short gap buys at most two limits of vain looking, and the start another two."""
    short = sum(gap <= LIMIT for gap in gaps)
    assert replay(gaps, budget=budget)[1] <= 2 * LIMIT * (short + 1)


@given(GAPS, st.integers(0, 10**9))
def test_a_limit_that_was_lowered_holds_at_once(gaps: list[int], budget: int) -> None:
    assert int(one(budget, 0, LIMIT)) <= LIMIT
