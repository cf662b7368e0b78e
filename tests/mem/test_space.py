"""Address spaces: slots, holes, presence and the dirty log, against a dictionary of bytes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.counters import C
from softrnic.layout import MrKind, SpaceKind
from softrnic.mem.space import MEM_DENIED, MEM_FAULT, MEM_OK, PAGE_SIZE
from tests.mem.kernels import atomic, read, write
from tests.mem.tables import add_mr, fresh, pages

FIRST = 16 * PAGE_SIZE  # address of the first page of the space
SPAN = 8  # pages
MR, KEY, SPACE = 5, 99, 1
# Bitmaps stand between canaries: a mark beyond the pages of the space would be a wild write.
CANARY = 0x5A5A5A5A5A5A5A5A
PRESENT, DIRTY, WRITABLE, REFUSED, BLOCKS = 1, 3, 5, 7, 9


class World:
    """A space of SPAN pages with slots, and a region over ranges of it; and what should happen to each byte."""

    def __init__(self, slots: list[tuple[int, int]], ranges: list[tuple[int, int]], *, npages: int = SPAN) -> None:
        """`slots` and `ranges` are (first, count): pages of the space, and (address, length) of the region."""
        self.engs = fresh()
        eng, space = self.engs[0], self.engs[0]["spaces"][SPACE]
        self.zeros = pages(1)
        space["kind"], space["page_shift"], space["first"], space["npages"] = SpaceKind.SLOTS, 12, FIRST, npages
        space["dirty_shift"], space["dirty_first"], space["dirty_pages"] = 12, FIRST, npages
        space["zeros"] = self.zeros.ctypes.data
        self.memory: dict[int, int] = {}  # address -> byte, where there is a slot
        self.backing = []
        for i, (first, count) in enumerate(slots):
            block = pages(count)
            block[:] = np.arange(len(block)) * 7 + i
            addr = FIRST + first * PAGE_SIZE
            eng["slots"][10 + i] = (addr, count * PAGE_SIZE, block.ctypes.data, 0, 0)
            self.backing.append((addr, block))
            self.memory |= {addr + at: int(byte) for at, byte in enumerate(block)}
        space["slot_first"], space["nslots"] = 10, len(slots)
        self.bitmaps = np.full(13, CANARY, np.uint64)
        self.bitmaps[1::2] = 0
        for i, name in enumerate(("present", "dirty", "writable", "refused", "dirty_blocks")):
            space[name] = self.bitmaps.ctypes.data + 8 + 16 * i
        self.ranges, at = [], 0
        table = np.zeros((len(ranges), 2), np.int64)
        for i, (addr, length) in enumerate(ranges):
            table[i] = at, addr
            self.ranges.append((at, addr, length))
            at += length
        self.table, self.length = table, at
        addr = ranges[0][0]
        add_mr(
            self.engs, MR, KEY, iova=0, length=at, space=SPACE, nranges=len(ranges), addr=addr, ranges=table.ctypes.data
        )  # fmt: skip
        self.dirty: set[int] = set()
        self.tracking = self.paged = False

    def track(self) -> None:
        self.engs[0]["spaces"][SPACE]["tracking"] = 1
        self.tracking = True

    def page(self, present: int, writable: int | None = None) -> None:
        """Make it pageable: bit i says whether page i may be touched, and written."""
        self.engs[0]["spaces"][SPACE]["paged"], self.engs[0]["mrs"][MR]["odp"] = 1, 1
        self.bitmaps[PRESENT], self.bitmaps[WRITABLE] = present, present if writable is None else writable
        self.paged = True

    def address(self, offset: int) -> int:
        start, addr, _ = max(r for r in self.ranges if r[0] <= offset)
        return addr + offset - start

    def absent(self, addr: int, write: bool) -> bool:
        index = (addr - FIRST) >> 12
        return self.paged and not (0 <= index < SPAN and int(self.bitmaps[WRITABLE if write else PRESENT]) >> index & 1)

    def write(self, offset: int, data: bytes) -> None:
        """Write, and expect what the model says."""
        buf = np.frombuffer(b"<" + data + b">", np.uint8).copy()
        status = write(self.engs, MR, offset, buf, 1, len(data))
        assert status == self.expect(offset, len(data), True)
        for at, byte in enumerate(data):
            addr = self.address(offset + at)
            if self.absent(addr, True):
                break
            if addr in self.memory:
                self.memory[addr] = byte
                if self.tracking:
                    self.dirty.add((addr - FIRST) >> 12)
        self.check()

    def read(self, offset: int, length: int) -> None:
        """Read, and expect what the model says."""
        buf = np.full(length + 2, 0xEE, np.uint8)
        status, crc = read(self.engs, MR, offset, buf, 1, length, 0xFFFFFFFF)
        assert status == self.expect(offset, length, False)
        if status == MEM_OK:
            data = bytes(self.memory.get(self.address(offset + at), 0) for at in range(length))
            assert buf.tobytes() == b"\xee" + data + b"\xee"
            assert crc ^ 0xFFFFFFFF == zlib.crc32(data)
        self.check()

    def expect(self, offset: int, length: int, write: bool) -> int:
        """MEM_FAULT names the first address that is not present."""
        for at in range(length):
            addr = self.address(offset + at)
            if self.absent(addr, write):
                record = self.engs[0]
                assert (int(record["fault_space"]), int(record["fault_addr"])) == (SPACE, addr)
                return MEM_FAULT
        return MEM_OK

    def check(self) -> None:
        """All memory is as the model has it, the zeros are still zero, and the dirty log is exact."""
        for addr, block in self.backing:
            assert block.tobytes() == bytes(self.memory[addr + at] for at in range(len(block)))
        assert not self.zeros.any()
        in_space = {page for page in self.dirty if 0 <= page < SPAN}
        assert int(self.bitmaps[DIRTY]) == sum(1 << page for page in in_space)
        assert int(self.bitmaps[BLOCKS]) == bool(in_space)
        assert {int(word) for word in self.bitmaps[::2]} == {CANARY}


def sorted_slots(cuts: list[int]) -> list[tuple[int, int]]:
    """Disjoint runs of pages, with and without holes between them."""
    edges = sorted(set(cuts))
    return [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=False)]


slot_lists = st.lists(st.integers(0, SPAN), max_size=8).map(sorted_slots)
range_lists = st.lists(
    st.tuples(st.integers(FIRST, FIRST + (SPAN - 3) * PAGE_SIZE), st.integers(1, 3 * PAGE_SIZE)), min_size=1, max_size=4
)
accesses = st.lists(
    st.tuples(st.booleans(), st.integers(0, 1 << 20), st.sampled_from([0, 1, 7, 8, 100, PAGE_SIZE, 2 * PAGE_SIZE + 1])),
    min_size=1, max_size=6,
)  # fmt: skip


def play(world: World, script: list[tuple[bool, int, int]]) -> None:
    for is_write, where, size in script:
        offset = where % world.length
        length = min(size, world.length - offset)
        if is_write:
            world.write(offset, bytes((where + at) & 0xFF for at in range(length)))
        else:
            world.read(offset, length)


@given(slot_lists, range_lists, accesses)
def test_slots_and_holes(
    slots: list[tuple[int, int]], ranges: list[tuple[int, int]], script: list[tuple[bool, int, int]]
) -> None:
    """Bytes go where their slot is; holes give zeros and swallow writes."""
    play(World(slots, ranges), script)


@given(slot_lists, range_lists, accesses)
def test_dirty_log(
    slots: list[tuple[int, int]], ranges: list[tuple[int, int]], script: list[tuple[bool, int, int]]
) -> None:
    """Exactly the pages written are marked; not by reads, and not where a hole swallowed it."""
    world = World(slots, ranges)
    world.track()
    play(world, script)


@given(slot_lists, range_lists, accesses, st.integers(0, (1 << SPAN) - 1), st.integers(0, (1 << SPAN) - 1))
def test_presence(
    slots: list[tuple[int, int]], ranges: list[tuple[int, int]], script: list[tuple[bool, int, int]], present: int,
    writable: int,
) -> None:  # fmt: skip
    """A page that is not present, or not for writing, is not touched, and is named; what lies before has been done."""
    world = World(slots, ranges)
    world.page(present, present & writable)
    world.track()
    play(world, script)


@pytest.mark.parametrize("where", [-1, SPAN])
def test_beyond_the_bitmaps(where: int) -> None:
    """A region may reach further than the pages of its space: nothing there is present, and nothing is marked."""
    addr = FIRST + where * PAGE_SIZE
    world = World([(0, SPAN)], [(addr, PAGE_SIZE), (FIRST, PAGE_SIZE)])
    world.track()
    world.write(PAGE_SIZE - 8, bytes(16))
    world.page((1 << SPAN) - 1)
    world.read(PAGE_SIZE - 8, 16)
    world.read(PAGE_SIZE, 16)


def test_last_present_page() -> None:
    """An access that runs off the end of the space gets what is present, and a fault for the rest."""
    last = FIRST + (SPAN - 1) * PAGE_SIZE
    world = World([(0, SPAN)], [(last, 2 * PAGE_SIZE)])
    world.page((1 << SPAN) - 1)
    world.read(0, PAGE_SIZE)
    world.write(PAGE_SIZE - 4, b"12345678")


def test_holes_are_counted() -> None:
    world = World([(1, 1)], [(FIRST, 3 * PAGE_SIZE)])
    world.write(PAGE_SIZE - 1, b"xyz")
    world.read(2 * PAGE_SIZE - 1, 3)
    counters = world.engs[0]["counters"]
    assert (int(counters[C.HOLE_WRITES]), int(counters[C.HOLE_READS])) == (1, 1)


def test_window_over_ranges() -> None:
    """A window's offsets count from its own start; the region behind it knows where the bytes are."""
    world = World([(0, SPAN)], [(FIRST, 100), (FIRST + 3 * PAGE_SIZE, 200)])
    add_mr(world.engs, MR + 1, KEY + 1, kind=MrKind.MW2, iova=90, length=50, parent=MR, space=SPACE, nranges=0)
    buf = np.zeros(20, np.uint8)
    assert read(world.engs, MR + 1, 5, buf, 0, 20, 0)[0] == MEM_OK
    assert buf.tobytes() == bytes(world.memory[world.address(95 + at)] for at in range(20))


# --- atomics ------------------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.booleans())
def test_atomics(before: int, operand: int, swap: int, is_cas: bool) -> None:
    """64 bits in host order, modulo 2^64; the value before is returned."""
    world = World([(0, 1)], [(FIRST, PAGE_SIZE)])
    world.track()
    block = world.backing[0][1]
    block[8:16] = list(before.to_bytes(8, "little"))
    signed = [value - (value >> 63 << 64) for value in (operand, swap)]
    status, old = atomic(world.engs, MR, 8, is_cas, *signed)
    after = (swap if before == operand else before) if is_cas else (before + operand) % (1 << 64)
    assert (status, old % (1 << 64)) == (MEM_OK, before)
    assert int.from_bytes(block[8:16].tobytes(), "little") == after
    assert int(world.bitmaps[DIRTY]) == (not is_cas or before == operand)  # a comparison that fails writes nothing


def test_atomic_on_a_missing_page() -> None:
    world = World([(0, 1)], [(FIRST, PAGE_SIZE)])
    world.page(0)
    assert atomic(world.engs, MR, 8, False, 1, 0)[0] == MEM_FAULT
    assert world.expect(8, 1, True) == MEM_FAULT
    world.check()


@pytest.mark.parametrize("offset", [PAGE_SIZE - 4, 4])
def test_atomic_that_is_not_in_one_piece(offset: int) -> None:
    """Eight bytes of two ranges, or not aligned in memory, are not to be had atomically."""
    world = World([(0, 2)], [(FIRST, PAGE_SIZE), (FIRST + PAGE_SIZE, 100)])
    assert atomic(world.engs, MR, offset, False, 1, 0)[0] == MEM_DENIED
    world.check()


def test_atomic_on_a_hole() -> None:
    """Reads as zero however often it is written; nothing else is touched."""
    world = World([], [(FIRST, PAGE_SIZE)])
    assert atomic(world.engs, MR, 8, False, 1, 0) == atomic(world.engs, MR, 8, False, 1, 0) == (MEM_OK, 0)
    world.check()
