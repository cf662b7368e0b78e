"""24-bit sequence numbers against plain integers (IBTA 9.7.1)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.qp.kernels import add, diff

MODULUS, HALF = 1 << 24, 1 << 23
psns = st.integers(0, MODULUS - 1) | st.sampled_from([0, 1, HALF - 1, HALF, HALF + 1, MODULUS - 1])
steps = st.integers(-HALF, HALF - 1) | st.sampled_from([-HALF, -1, 0, 1, HALF - 1])


@given(psns, st.integers(-(1 << 40), 1 << 40))
def test_add(psn: int, n: int) -> None:
    assert add(psn, n) == (psn + n) % MODULUS


@given(psns, steps)
def test_diff_undoes_add(psn: int, n: int) -> None:
    """Any distance of less than half the circle is found again, either way round."""
    assert diff(add(psn, n), psn) == n


@given(psns, psns)
def test_diff_is_the_short_way(a: int, b: int) -> None:
    """And it leads there."""
    distance = diff(a, b)
    assert -HALF <= distance < HALF
    assert (b + distance) % MODULUS == a
    assert distance == -HALF or diff(b, a) == -distance


def test_around_the_wrap() -> None:
    assert diff(0, MODULUS - 1) == 1
    assert diff(MODULUS - 1, 0) == -1
    assert add(MODULUS - 1, 1) == 0
    assert add(0, -1) == MODULUS - 1
