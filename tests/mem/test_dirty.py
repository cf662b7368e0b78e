"""The dirty log and the page table of a space, as their kernels see them, against Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softrnic.mem import pages
from softrnic.verbs import Device, VerbsError
from softrnic.verbs.tracking import runs
from tests.mem.kernels import mark

PAGE = 4096
SPAN = 2 * 4096 + 100  # pages: more than two blocks of words
FIRST = 5 * PAGE

spots = st.integers(0, SPAN - 1) | st.sampled_from([0, 1, 63, 64, 65, 4095, 4096, 4097, 8191, SPAN - 64, SPAN - 1])
stretches = st.tuples(spots, st.integers(1, 200) | st.sampled_from([64, 4096, 5000])).map(
    lambda s: (s[0], min(s[1], SPAN - s[0]))
)


class Space:
    """A device with one space of SPAN pages from FIRST on, without memory: nobody touches it here."""

    def __init__(self, page_size: int = PAGE) -> None:
        import os

        from softrnic.verbs import ProcessMemory

        self.device = Device("d")
        self.space = self.device.create_space()
        self.space.add_slot(FIRST, ProcessMemory(os.getpid(), 1 << 30, SPAN * PAGE))
        self.space.start_tracking(page_size)

    def write(self, addr: int, n: int) -> None:
        mark(self.device.engine.tables, self.space.index, addr, n)


@pytest.fixture(scope="module")
def tracked() -> Space:
    return Space()


def bits(words: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


@settings(deadline=None)
@given(st.lists(stretches, max_size=8), st.lists(stretches, max_size=4))
def test_harvest(tracked: Space, writes: list[tuple[int, int]], reads: list[tuple[int, int]]) -> None:
    """Whatever piece is asked for comes out once, whole, and nothing else does."""
    dirty: set[int] = set()
    for first, count in writes:
        tracked.write(FIRST + first * PAGE + 17, (count - 1) * PAGE + 1)
        dirty |= set(range(first, first + count))
    for first, count in reads:
        got = bits(tracked.space.read_and_clear(FIRST + first * PAGE, count * PAGE))
        assert got == {page - first for page in dirty if first <= page < first + count}
        dirty -= set(range(first, first + count))
    assert bits(tracked.space.read_and_clear()) == dirty
    assert not tracked.space.read_and_clear().any()


@pytest.mark.parametrize("page_size", [4096, 8192, 1 << 16, 2 << 20, 1 << 30])
def test_page_sizes(page_size: int) -> None:
    """A write is reported by the page it touches, whatever the size of pages."""
    s = Space(page_size)
    low = FIRST // page_size * page_size
    rng = np.random.default_rng(page_size)
    expected = set()
    for _ in range(50):
        addr, n = FIRST + int(rng.integers(0, SPAN * PAGE - 9000)), int(rng.integers(1, 9000))
        s.write(addr, n)
        expected |= set(range((addr - low) // page_size, (addr + n - 1 - low) // page_size + 1))
    assert bits(s.space.read_and_clear()) == expected
    s.space.stop_tracking()
    s.device.close()


def test_beyond_the_space() -> None:
    """Asking for more than there is finds nothing there."""
    s = Space()
    s.write(FIRST, 1)
    s.write(FIRST + (SPAN - 1) * PAGE, 1)
    words = s.space.read_and_clear(0, 1 << 40)
    assert bits(words) == {5, 5 + SPAN - 1}


def test_written() -> None:
    """Runs of bytes."""
    s = Space()
    s.write(FIRST + 3 * PAGE, 130 * PAGE)
    s.write(FIRST + 200 * PAGE, 1)
    assert list(s.space.written()) == [(FIRST + 3 * PAGE, 130 * PAGE), (FIRST + 200 * PAGE, PAGE)]
    assert list(s.space.written()) == []


@given(st.sets(st.integers(0, 300)))
def test_runs(numbers: set[int]) -> None:
    words = np.zeros(5, np.uint64)
    for n in numbers:
        words[n // 64] |= np.uint64(1 << (n % 64))
    assert {n for first, count in runs(words) for n in range(first, first + count)} == numbers
    ends = [first + count for first, count in runs(words)]
    assert all(end not in numbers for end in ends)


def test_misuse() -> None:
    s = Space()
    with pytest.raises(VerbsError, match="already"):
        s.space.start_tracking()
    for args in ((FIRST + 1, PAGE), (-PAGE, PAGE), (FIRST, -1)):
        with pytest.raises(VerbsError, match="not from a page"):
            s.space.read_and_clear(*args)
    with pytest.raises(VerbsError, match="must be an array"):
        s.space.read_and_clear(FIRST, 65 * PAGE, out=np.zeros(1, np.uint64))
    s.space.stop_tracking()
    with pytest.raises(VerbsError, match="not being recorded"):
        s.space.read_and_clear()
    for size in (0, 2048, 4097, 12288, 1 << 31, "4096"):
        with pytest.raises(VerbsError, match="power of two"):
            s.space.start_tracking(size)  # type: ignore[arg-type]


# --- the page table -------------------------------------------------------------------------------------------

verbs = st.sampled_from(["read", "write", "refuse", "take"])


@settings(deadline=None)
@given(st.lists(st.tuples(verbs, stretches), max_size=12), st.lists(spots, max_size=20))
def test_page_table(script: list[tuple[str, tuple[int, int]]], looks: list[int]) -> None:
    """Each verb on any stretch, and what a device then may do to any page."""
    s = Space()
    s.space.stop_tracking()
    paged = s.device.create_space(paged=True)
    paged.add_slot(FIRST, s.space.slots[0].memory)
    read: set[int] = set()
    write: set[int] = set()
    for verb, (first, count) in script:
        these = set(range(first, first + count))
        addr, length = FIRST + first * PAGE, count * PAGE
        if verb in ("read", "write"):
            paged.resolve(addr, length, write=verb == "write")
            read |= these
            write |= these if verb == "write" else set()
        elif verb == "refuse":
            paged.refuse(addr, length)
            read, write = read - these, write - these
        else:
            taken = pages.take_away(s.device.engine.tables, paged.index, addr, length)
            assert taken == len(read & these)
            read, write = read - these, write - these
    for page in looks:
        assert paged.is_present(FIRST + page * PAGE) == (page in read)
        assert paged.is_present(FIRST + page * PAGE, write=True) == (page in write)
    gaps = [page for addr, n in paged.missing(FIRST, SPAN * PAGE) for page in range((addr - FIRST) // PAGE,
            (addr - FIRST + n) // PAGE)]  # fmt: skip
    assert gaps == [page for page in range(SPAN) if page not in read]
    s.device.close()


def test_growing_keeps_what_is_known() -> None:
    """Slots far below and above move the bitmaps; bits stay with their pages."""
    device = Device("d")
    space = device.create_space(paged=True)
    middle = 1 << 40
    space.add_slot(middle, bytearray(64 * PAGE))
    space.start_tracking()
    space.resolve(middle + PAGE, PAGE)
    space.resolve(middle + 2 * PAGE, PAGE, write=False)
    mark(device.engine.tables, space.index, middle + 5 * PAGE, 1)
    space.add_slot(0, bytearray(PAGE))
    space.add_slot(1 << 42, bytearray(PAGE))
    present = [space.is_present(middle + i * PAGE, write=w) for i in range(4) for w in (False, True)]
    assert present == [False, False, True, True, True, False, False, False]
    mark(device.engine.tables, space.index, 0, 1)
    mark(device.engine.tables, space.index, 1 << 42, 1)
    assert [addr for addr, _ in space.written(0, (1 << 42) + PAGE)] == [0, middle + 5 * PAGE, 1 << 42]
    device.close()
