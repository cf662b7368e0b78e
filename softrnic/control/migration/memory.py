"""The memory of a function as pieces, and which of their pages have been written since they were last looked at.

A piece is a stretch of this process's memory that one or several regions lie in; its name is the address it has at the
source, and a region is named by the piece and its offset, so that overlapping regions still overlap at the
destination. Or it is a slot of an address space. Written pages are found by comparing with a copy of what was sent,
which finds everybody's writes: the device's as well as the program's own.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from softrnic.errors import StateError, VerbsError
from softrnic.migrate import pages, schema
from softrnic.migrate.save import check_has_bytes
from softrnic.migrate.stream import MAX_PIECES, Piece
from softrnic.verbs import Device, Mr
from softrnic.verbs.slot import Slot


class Stretch(NamedTuple):
    """Memory of this process that moves as one piece; `keep`: what must live for the bytes to do."""

    piece: Piece
    addr: int
    keep: object


class SentMemory:
    """One piece at the source."""

    def __init__(self, stretch: Stretch) -> None:
        self.piece = stretch.piece
        self._data = np.ctypeslib.as_array((ctypes.c_uint8 * stretch.piece.length).from_address(stretch.addr))
        self._keep = stretch.keep
        self._copy = np.zeros(stretch.piece.length, np.uint8)
        self.todo = np.ones(self.piece.pages, bool)
        """Pages to be sent, again or for the first time."""

    def look(self) -> int:
        """Add the pages written since they were read to `todo`; how many pages are in it now."""
        self.todo |= pages.differing_pages(self._data, self._copy)
        return int(np.count_nonzero(self.todo))

    def read(self, first: int, count: int) -> np.ndarray:
        """Pages as they are now: a copy that changes no more until they are read again."""
        part = pages.span(first, count, self.piece.length)
        self._copy[part] = self._data[part]
        return self._copy[part]


def stretches_of(device: Device) -> tuple[list[Stretch], dict[int, str]]:
    """The memory of a device: what its regions of buffers lie in, and the slots of its address spaces.

    Also the name of each region by its key. EOPNOTSUPP for a slot that is another process's memory, and for a region
    over all of this one.
    """
    regions = [m for m in device.mrs.values() if isinstance(m, Mr) and m.space.is_ours]
    for mr in regions:
        check_has_bytes(mr)
    regions.sort(key=lambda m: m.addr)
    ends: list[list[int]] = []  # [first address, end]
    for mr in regions:
        if ends and mr.addr < ends[-1][1]:
            ends[-1][1] = max(ends[-1][1], mr.addr + mr.length)
        else:
            ends.append([mr.addr, mr.addr + mr.length])
    names, at = {}, 0
    for mr in regions:
        while mr.addr >= ends[at][1]:
            at += 1
        names[mr.key] = f"{ends[at][0]:#x}+{mr.addr - ends[at][0]:#x}"
    keep = [mr._view for mr in regions]
    found = [Stretch(Piece(f"{start:#x}", end - start), start, keep) for start, end in ends]
    found += [_slot(number, slot) for number, slots in slots_of(device) for slot in slots]
    if len(found) > MAX_PIECES:
        raise StateError("$.pieces", f"{len(found)} separate pieces of memory, at most {MAX_PIECES} can be moved")
    return found, names


def slots_of(device: Device) -> list[tuple[int, list[Slot]]]:
    """The slots of each address space, by the number that it has in the saved state."""
    return list(enumerate(space.slots for space in device.spaces if not space.is_ours))


def slot_name(number: int, slot: Slot) -> str:
    """As softrnic.migrate.save calls it."""
    return f"space {number} at {slot.addr:#x}"


def _slot(number: int, slot: Slot) -> Stretch:
    if not slot.is_ours:
        raise VerbsError(errno.EOPNOTSUPP, f"the slot at {slot.addr:#x} is memory of process {slot.pid}")
    return Stretch(Piece(slot_name(number, slot), slot.length), slot.host, slot._view)


def finder(memory: Mapping[str, np.ndarray]) -> Callable[[schema.Region | schema.Slot], Any]:
    """What `restore` asks for the bytes of each region and slot."""

    def find(region: schema.Region | schema.Slot) -> np.ndarray:
        if isinstance(region, schema.Slot) and region.name in memory:
            return memory[region.name]
        name, _, offset = region.name.partition("+")
        try:
            start = int(offset, 16)
            piece = memory[name]
        except (ValueError, KeyError):
            raise StateError("$.regions", f"{region.name!r} lies in no piece of the memory that was sent") from None
        if start < 0 or start + region.length > len(piece):
            raise StateError("$.regions", f"{region.name!r} is not within its piece")
        return piece[start : start + region.length]

    return find
