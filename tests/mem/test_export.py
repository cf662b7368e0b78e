"""Dirty bitmaps in the forms of KVM, vhost, VFIO and a ring, against sets of pages."""

from __future__ import annotations

import errno
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.mem.export import RING_HEADER
from softrnic.verbs import VerbsError
from softrnic.verbs.exports import DirtyRing, KvmLog, Merged, VfioLog, VhostLog, pages_in, words_for

TOP_PAGE = 400


class Log:
    """A dirty log as a set of page numbers: slow and obvious."""

    def __init__(self, pages: set[int], size: int = 4096) -> None:
        self.pages, self.tracking = set(pages), size

    def read_and_clear(self, first_addr: int, length: int) -> np.ndarray:
        assert first_addr % self.tracking == 0
        first = first_addr // self.tracking
        count = -(-length // self.tracking)
        words = [0] * -(-count // 64)
        for page in [p for p in self.pages if first <= p < first + count]:
            self.pages.remove(page)
            words[(page - first) // 64] |= 1 << ((page - first) % 64)
        return np.array(words, np.uint64)

    def ranges(self) -> list[tuple[int, int]]:
        return [(p * self.tracking, (p + 1) * self.tracking) for p in self.pages]


def bits(words: np.ndarray) -> set[int]:
    """Which are set."""
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def touched(ranges: list[tuple[int, int]], iova: int, length: int, size: int) -> set[int]:
    """Pages of `size` from iova on that share a byte with a range, as far as that lies in [iova, iova + length)."""
    found = set()
    for start, end in ranges:
        low, high = max(start, iova), min(end, iova + length)
        if low < high:
            found |= set(range((low - iova) // size, (high - 1 - iova) // size + 1))
    return found


pages = st.sets(st.integers(0, TOP_PAGE), max_size=20)
sizes = st.sampled_from([4096, 8192, 65536, 1 << 18])


# --- KVM ------------------------------------------------------------------------------------------------------


@given(pages, st.integers(0, 200), st.integers(1, 300))
def test_kvm_get_clears(dirty: set[int], first: int, count: int) -> None:
    log = Log(dirty)
    kvm = KvmLog(log, first * 4096, count * 4096)
    inside = {p - first for p in dirty if first <= p < first + count}
    assert bits(kvm.get()) == inside
    assert bits(kvm.get()) == set()
    assert log.pages == {p for p in dirty if not first <= p < first + count}


@given(pages, pages, st.integers(0, 4), st.integers(1, 5))
def test_kvm_manual_clear(dirty: set[int], later: set[int], first: int, words: int) -> None:
    """Got and not cleared is got again; what becomes dirty between the two is never lost."""
    log = Log(dirty)
    kvm = KvmLog(log, 0, (TOP_PAGE + 1) * 4096, manual=True)
    got = kvm.get()
    assert bits(got) == dirty
    log.pages |= later
    count = min(words * 64, kvm.pages - first * 64)
    kvm.clear(first * 64, count, got[first : first + words])
    cleared = {p for p in dirty if first * 64 <= p < first * 64 + count}
    assert bits(kvm.get()) == (dirty - cleared) | later


@pytest.mark.parametrize(("first", "count"), [(1, 64), (0, 63), (0, 0), (-64, 64), (384, 64)])
def test_kvm_clear_refuses(first: int, count: int) -> None:
    kvm = KvmLog(Log(set()), 0, 401 * 4096, manual=True)
    with pytest.raises(VerbsError) as refused:
        kvm.clear(first, count, np.zeros(8, np.uint64))
    assert refused.value.errno == errno.EINVAL


# --- vhost ----------------------------------------------------------------------------------------------------


@given(pages, pages, sizes, st.integers(0, 20), st.integers(1, 100))
def test_vhost_log(dirty: set[int], before: set[int], size: int, first: int, count: int) -> None:
    """Bits are added to those that are there; a page larger than 4 KiB sets all it touches."""
    log = Log(dirty, size)
    shared = mmap.mmap(-1, 1 << 16)
    vhost = VhostLog(shared)
    view = np.frombuffer(shared, np.uint64)
    for page in before:
        view[page // 64] |= np.uint64(1 << page % 64)
    end = min((first + count) * size, vhost.bits * 4096)
    inside = [(low, high) for low, high in log.ranges() if first * size <= low < end]
    vhost.export(log, first * size, end - first * size)
    assert bits(view) == before | touched(inside, 0, vhost.bits * 4096, 4096)


def test_vhost_log_refuses() -> None:
    """What does not fit is refused before anything is taken out."""
    log = Log({10})
    vhost = VhostLog(bytearray(8))
    for addr, length in ((0, 65 * 4096), (64 * 4096, 1), (1, 4096), (0, 0)):
        with pytest.raises(VerbsError):
            vhost.export(log, addr, length)
    assert log.pages == {10}
    for memory in (bytes(8), bytearray(7), bytearray(0)):
        with pytest.raises(VerbsError):
            VhostLog(memory)


# --- VFIO -----------------------------------------------------------------------------------------------------


@given(pages, sizes, sizes, st.integers(0, 64), st.integers(1, 5000))
def test_vfio_report(dirty: set[int], size: int, report: int, first: int, count: int) -> None:
    """Any page size, finer or coarser, from any 4 KiB on; never a bit cleared."""
    log, iova, length = Log(dirty, size), first * 4096, count * 4096
    expected = touched(log.ranges(), iova, length, report)
    bitmap = np.zeros(words_for(pages_in(length, report)) + 1, np.uint64)
    bitmap[-1] = 5
    VfioLog(log).report(iova, length, report, bitmap)
    assert bits(bitmap[:-1]) == expected
    assert bitmap[-1] == 5


@given(pages, sizes, st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_vfio_reports_in_pieces_lose_nothing(dirty: set[int], size: int, cuts: list[int]) -> None:
    """A page of which one report covers a part is reported by the next for the rest."""
    log = Log(dirty, size)
    ranges = log.ranges()
    vfio, at = VfioLog(log), 0
    for count in cuts:
        bitmap = np.zeros(-(-count // 64), np.uint64)
        vfio.report(at * 4096, count * 4096, 4096, bitmap)
        assert bits(bitmap) == touched(ranges, at * 4096, count * 4096, 4096)
        at += count


@pytest.mark.parametrize(
    ("iova", "length", "size", "words", "code"),
    [
        (0, 4096, 2048, 1, errno.EINVAL),
        (0, 4096, 12288, 1, errno.EINVAL),
        (0, 0, 4096, 1, errno.EINVAL),
        (-4096, 4096, 4096, 1, errno.EINVAL),
        ((1 << 63) - 4096, 8192, 4096, 1, errno.EOVERFLOW),
        (0, 65 * 4096, 4096, 1, errno.EINVAL),
    ],
)
def test_vfio_refuses(iova: int, length: int, size: int, words: int, code: int) -> None:
    with pytest.raises(VerbsError) as refused:
        VfioLog(Log(set())).report(iova, length, size, np.zeros(words, np.uint64))
    assert refused.value.errno == code


def test_vfio_without_logging() -> None:
    with pytest.raises(VerbsError, match="not enabled"):
        VfioLog(Log(set(), 0)).report(0, 4096, 4096, np.zeros(1, np.uint64))


# --- ring -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(pages, st.integers(0, 40), st.booleans()), max_size=8), st.integers(1, 33))
def test_ring(rounds: list[tuple[set[int], int, bool]], slots: int) -> None:
    """Every page comes out, of the ring or of the bitmap behind it, exactly once for each time it became dirty."""
    log = Log(set())
    ring = DirtyRing(log, 0, (TOP_PAGE + 1) * 4096, np.zeros(RING_HEADER + slots, np.int64))
    waiting: set[int] = set()  # not in the ring yet
    queued: list[int] = []
    for dirty, take, harvest in rounds:
        log.pages |= dirty
        waiting |= dirty
        left = ring.fill()
        moved = sorted(waiting)[: slots - len(queued)]
        queued += moved
        waiting -= set(moved)
        assert left == len(waiting)
        assert ring.overflow == bool(waiting)
        assert list(ring.take(take)) == queued[:take]
        queued = queued[take:]
        if harvest:
            assert bits(ring.rest()) == waiting
            assert not ring.overflow
            waiting = set()
    assert list(ring.take()) == queued


def test_ring_counts_pages_from_address_zero() -> None:
    ring = DirtyRing(Log({70, 71}), 64 * 4096, 64 * 4096, np.zeros(RING_HEADER + 4, np.int64))
    assert ring.fill() == 0
    assert list(ring.take()) == [70, 71]


# --- several logs ---------------------------------------------------------------------------------------------


@given(pages, pages, sizes, sizes)
def test_merged(one: set[int], two: set[int], size_one: int, size_two: int) -> None:
    logs = Log(one, size_one), Log(two, size_two)
    merged = Merged(logs)
    size = max(size_one, size_two)
    length = size * 200
    expected = touched(logs[0].ranges() + logs[1].ranges(), 0, length, size)
    assert merged.tracking == size
    assert bits(merged.read_and_clear(0, length)) == expected
    assert bits(merged.read_and_clear(0, length)) == set()
