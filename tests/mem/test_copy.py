"""Scatter and gather over SGE lists against slices of bytes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.mem.copy import MEM_SHORT
from softrnic.mem.space import MEM_DENIED, MEM_OK
from softrnic.verbs import Access
from tests.mem.kernels import collect, collect_inline, put
from tests.mem.tables import add_mr, fresh, pages

SIZE = 4 * 4096
lists = st.lists(st.tuples(st.integers(0, SIZE - 700), st.sampled_from([0, 1, 2, 63, 64, 65, 699])), max_size=5)


class Buffers:
    """Two regions, and an SGE list that goes from one to the other and back."""

    def __init__(self, sges: list[tuple[int, int]]) -> None:
        self.engs = fresh()
        self.memory = [pages(4), pages(4)]
        for i, block in enumerate(self.memory):
            block[:] = np.arange(SIZE) % (247 + i)
            add_mr(self.engs, 1 + i, 11 + i, iova=1 << 20 << i, length=SIZE, addr=block.ctypes.data)
        self.places: list[tuple[int, int]] = []
        for i, (at, length) in enumerate(sges):
            which = i % 2
            self.engs[0]["sges"][i] = ((1 << 20 << which) + at, length, 11 + which)
            self.places += [(which, at + k) for k in range(length)]
        self.nsge = len(sges)

    def content(self) -> bytes:
        """What the SGE list names, in order."""
        return bytes(int(self.memory[which][at]) for which, at in self.places)


@given(lists, st.integers(0, 900), st.integers(0, 900))
def test_gather(sges: list[tuple[int, int]], offset: int, n: int) -> None:
    """Any piece of the list, with its CRC on the way; MEM_SHORT beyond its end."""
    b = Buffers(sges)
    buf = np.full(n + 2, 0xEE, np.uint8)
    status, crc = collect(b.engs, b.nsge, offset, buf, 1, n, 0xFFFFFFFF)
    data = b.content()
    if offset + n > len(data) and n:
        assert status == MEM_SHORT
        return
    assert status == MEM_OK
    assert buf.tobytes() == b"\xee" + data[offset : offset + n] + b"\xee"
    assert crc ^ 0xFFFFFFFF == zlib.crc32(data[offset : offset + n])


@given(lists, st.integers(0, 900), st.integers(0, 900))
def test_scatter(sges: list[tuple[int, int]], offset: int, n: int) -> None:
    """Byte by byte to where the list says, in order, and nowhere else."""
    b = Buffers(sges)
    data = bytes((i * 5 + 1) & 0xFF for i in range(n))
    model = [block.copy() for block in b.memory]
    for (which, at), byte in zip(b.places[offset : offset + n], data, strict=False):
        model[which][at] = byte
    status = put(b.engs, b.nsge, offset, np.frombuffer(b"<" + data + b">", np.uint8).copy(), 1, n)
    assert status == (MEM_SHORT if n and offset + n > len(b.places) else MEM_OK)
    for block, expected in zip(b.memory, model, strict=True):
        assert (block == expected).all()


@pytest.mark.parametrize(
    "change", [{"valid": 0}, {"pdn": 99}, {"access": 0}, {"length": 9}, {"kind": 2}], ids=lambda c: next(iter(c))
)
def test_scatter_checks_every_entry(change: dict[str, int]) -> None:
    """The second SGE names memory that must not be written: denied, and not a byte of it is."""
    b = Buffers([(0, 10), (0, 10)])
    for name, value in change.items():
        b.engs[0]["mrs"][2][name] = value
    before = b.memory[1].copy()
    assert put(b.engs, 2, 0, np.full(20, 7, np.uint8), 0, 20) == MEM_DENIED
    assert (b.memory[1] == before).all()


def test_gather_needs_no_right_to_write() -> None:
    b = Buffers([(0, 10)])
    b.engs[0]["mrs"][1]["access"] = 0
    buf = np.zeros(10, np.uint8)
    assert collect(b.engs, 1, 0, buf, 0, 10, 0)[0] == MEM_OK
    b.engs[0]["mrs"][1]["access"] = int(Access.LOCAL_WRITE)
    b.engs[0]["sges"][0]["lkey"] = 77
    assert collect(b.engs, 1, 0, buf, 0, 10, 0)[0] == MEM_DENIED


def test_keys_of_empty_entries_do_not_matter() -> None:
    b = Buffers([(0, 4), (0, 0), (8, 4)])
    b.engs[0]["sges"][1]["lkey"] = 77
    buf = np.zeros(8, np.uint8)
    assert collect(b.engs, 3, 0, buf, 0, 8, 0)[0] == MEM_OK
    assert buf.tobytes() == b.content()


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 200))
def test_inline(data: bytes, offset: int, n: int) -> None:
    """Inline data lies in the SGE slots themselves."""
    engs = fresh()
    offset = min(offset, len(data))
    n = min(n, len(data) - offset)
    room = engs[0]["sges"][3:20].view(np.uint8)
    room[: len(data)] = np.frombuffer(data, np.uint8)
    buf = np.full(n + 2, 0xEE, np.uint8)
    crc = collect_inline(engs, 3, offset, buf, 1, n, 0xFFFFFFFF)
    assert buf.tobytes() == b"\xee" + data[offset : offset + n] + b"\xee"
    assert crc ^ 0xFFFFFFFF == zlib.crc32(data[offset : offset + n])
