"""Queues of a front-end in guest memory: by slots, page table and dirty log, like all that a device touches."""

from __future__ import annotations

import numpy as np

from softrnic.mem.space import MEM_FAULT, MEM_OK
from softrnic.verbs import Device
from tests.mem.kernels import ring_read, ring_write

PAGE = 4096


def test_across_slots_pages_and_a_hole() -> None:
    device = Device("d")
    space = device.create_space(paged=True)
    low, high = np.zeros(2 * PAGE, np.uint8), np.zeros(PAGE, np.uint8)
    space.add_slot(0, low)
    space.add_slot(3 * PAGE, high)  # a page of nothing between them
    space.start_tracking()
    data = np.random.default_rng(1).integers(1, 256, 3 * PAGE, np.uint8)
    back = np.full(3 * PAGE, 7, np.uint8)
    tables, at = device.engine.tables, PAGE // 2
    assert ring_write(tables, space.index, at, data.ctypes.data, len(data)) == MEM_FAULT
    assert not low.any()
    assert list(space.written()) == []
    space.resolve(0, 4 * PAGE)
    assert ring_write(tables, space.index, at, data.ctypes.data, len(data)) == MEM_OK
    assert ring_read(tables, space.index, at, back.ctypes.data, len(back)) == MEM_OK
    expected = data.copy()
    expected[2 * PAGE - at : 3 * PAGE - at] = 0  # the hole swallowed it
    assert np.array_equal(back, expected)
    assert list(space.written()) == [(0, 2 * PAGE), (3 * PAGE, PAGE)]
