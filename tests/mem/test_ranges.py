"""Lists of (address, length): what is refused, and where each byte of a region is found, against a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.mem.ranges import as_array, cover, plan
from softrnic.verbs import VerbsError
from tests.mem.kernels import where
from tests.mem.tables import add_mr, fresh

PAGE = 4096
TOP = (1 << 63) - 1
# Pieces of any size, and of whole pages with a ragged beginning and end, as a guest's buffer has them.
ragged = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 3 * PAGE)), min_size=1, max_size=30)
paged = st.builds(
    lambda first, middle, last: [(PAGE - first, first), *((a * PAGE, n * PAGE) for a, n in middle), (0, last)],
    st.integers(1, PAGE), st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 3)), max_size=40),
    st.integers(1, PAGE),
)  # fmt: skip


def addresses(ranges: list[tuple[int, int]], offset: int, n: int) -> list[int]:
    """Address of each of n bytes from an offset on."""
    found, start = [], 0
    for addr, length in ranges:
        found += [addr + at - start for at in range(max(offset, start), min(offset + n, start + length))]
        start += length
    return found


@given(ragged | paged, st.data())
def test_every_byte_is_found(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    """By runs that never leave a piece, in whatever order one looks."""
    planned = plan(as_array(ranges))
    assert planned.length == sum(length for _, length in ranges)
    engs = fresh()
    add_mr(engs, 5, 9, length=planned.length, addr=planned.addr, nranges=planned.npieces if planned.npieces == 1 else
           len(planned.table), ranges=planned.table.ctypes.data, shift=planned.shift, skew=planned.skew)  # fmt: skip
    for _ in range(8):
        offset = data.draw(st.integers(0, planned.length - 1))
        want = addresses(ranges, offset, min(5000, planned.length - offset))
        got: list[int] = []
        while len(got) < len(want):
            host, n = where(engs, 5, offset + len(got), len(want) - len(got))
            got += range(host, host + n)
        assert got == want


@given(ragged | paged)
def test_pieces(ranges: list[tuple[int, int]]) -> None:
    """The table says again what went into it."""
    planned = plan(as_array(ranges))
    addrs, lengths = planned.pieces()
    assert int(lengths.sum()) == planned.length
    again = list(zip(addrs.tolist(), lengths.tolist(), strict=True))
    step = max(1, planned.length // 50)
    for offset in range(0, planned.length, step):
        assert addresses(again, offset, 1) == addresses(ranges, offset, 1)


def test_neighbours_become_one() -> None:
    planned = plan(as_array([(4096 * i, 4096) for i in range(100)]))
    assert (planned.npieces, planned.addr, planned.length) == (1, 0, 409600)


def test_pages_are_a_table() -> None:
    """Single pages are found by one load, a list of odd pieces by halving."""
    assert plan(as_array([(8192 * i, 4096) for i in range(100)])).shift == 12
    assert plan(as_array([((1 << 22) * i, 1 << 21) for i in range(100)])).shift == 21
    assert plan(as_array([(8192 * i, 4095) for i in range(100)])).shift == 0


@pytest.mark.parametrize(
    ("ranges", "what"),
    [
        ([], "not an empty one"),
        ([1, 2], "list of"),
        ([(1, 2, 3)], "list of"),
        ([(1,), (1, 2)], "list of"),
        ([(1.0, 2.0)], "integers"),
        ([("a", "b")], "integers"),
        ([(0, 4096), (-1, 5)], "range 1, 5 bytes at -0x1, has an address"),
        (np.array([[1 << 63, 5]], np.uint64), "range 0, .* has an address"),
        ([(0, 0)], "no bytes"),
        ([(0, -1)], "no bytes"),
        ([(TOP, 2)], "wraps around"),
        ([(TOP - 1, 2)], "wraps around"),
        ([(0, TOP), (0, 1)], "range 1, .* more than a region can have"),
        ([(0, 1 << 64)], "integers|list of"),
    ],
)
def test_refused(ranges: object, what: str) -> None:
    with pytest.raises(VerbsError, match=what):
        plan(as_array(ranges))


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=8, unique=True),
    ragged.map(lambda ranges: [(addr % 22, length % 5 + 1) for addr, length in ranges]),
)
def test_cover(edges: list[int], ranges: list[tuple[int, int]]) -> None:
    """Exactly the stretches under some byte, or the first range that is not under all of them."""
    cuts = sorted(edges)
    stretches = list(zip(cuts[::2], cuts[1::2], strict=False))
    starts, ends = (np.array([s[i] for s in stretches], np.int64) for i in (0, 1))
    used = np.zeros(len(starts), np.uint8)
    owner = {at: i for i, (a, b) in enumerate(stretches) for at in range(a, b)}
    missing = [i for i, (a, n) in enumerate(ranges) if any(at not in owner for at in range(a, a + n))]
    assert cover(as_array(ranges), starts, ends, used) == (missing[0] if missing else -1)
    if not missing:
        assert set(np.flatnonzero(used)) == {owner[at] for a, n in ranges for at in range(a, a + n)}
