"""Address spaces: which addresses there are, what stands behind them, and that this may change while traffic runs.

    space = device.create_space()
    ram = space.add_slot(0, guest_memory)
    mr = pd.reg_physical_mr(space, iova, [(0x1000, 4096), (0x8000, 512)], access)

A hole between slots reads as zeros and swallows writes; both are counted. Regions name addresses, never host memory,
so adding and removing slots needs no word to them.
"""

from __future__ import annotations

import errno
import mmap
from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from softrnic.errors import VerbsError
from softrnic.layout import SPACE, Paging, SpaceKind
from softrnic.mem import pages, raw
from softrnic.mem.ranges import cover
from softrnic.mem.space import MEM_OK, PAGE_SIZE
from softrnic.verbs.pagetable import prepare
from softrnic.verbs.paging import PagedSpace
from softrnic.verbs.slot import NOBODY, TOP, ProcessMemory, Slot, view_of
from softrnic.verbs.tracking import TrackedSpace, check_page_size

if TYPE_CHECKING:
    from softrnic.verbs.device import Device
    from softrnic.verbs.mr import Mr

PROCESS_TOP = 1 << 47  # user addresses of this host


class AddressSpace(PagedSpace, TrackedSpace):
    """Made by `Device.create_space`; `Device.space` is that of this process, in which every address stands for itself.

    `paged`: regions registered on demand look at a page table, in which at first nothing is present.
    """

    def __init__(
        self, device: Device, page_size: int = 4096, *, paged: bool = False, is_process: bool = False
    ) -> None:  # fmt: skip
        PagedSpace.__init__(self)
        TrackedSpace.__init__(self)
        check_page_size(page_size)
        self.device = device
        self.page_size = page_size
        self.slots: list[Slot] = []
        self.regions: set[Mr] = set()
        self.is_process = is_process  # every address stands for itself
        self.is_ours = is_process  # of this process, made for regions of buffers
        self._zeros = mmap.mmap(-1, PAGE_SIZE)
        self._slot_run = (0, 0)
        self.index = device.pools.spaces.alloc()
        if paged:
            prepare()
        with device.quiesced():
            device.record["spaces"][self.index : self.index + 1] = np.zeros(1, SPACE)
            record = device.record["spaces"][self.index]
            record["zeros"] = np.frombuffer(self._zeros, np.uint8).ctypes.data
            self._on_demand = paged
            self._set_paging(Paging.ODP if paged else Paging.NONE)
            record["kind"] = SpaceKind.IDENTITY if self.is_process else SpaceKind.SLOTS
            self._refresh()
        device.adapter.spaces[self.index] = self

    @property
    def alive(self) -> bool:
        """False once it is destroyed."""
        return self.device.adapter.spaces.get(self.index) is self

    def _span(self) -> tuple[int, int]:
        if self.is_process:
            return 0, PROCESS_TOP
        return (self.slots[0].addr, max(s.end for s in self.slots)) if self.slots else (0, 0)

    def _refresh(self) -> None:
        """The one byte that tells the engine it need not look."""
        record = self.device.record["spaces"][self.index]
        plain = int(record["kind"]) == SpaceKind.IDENTITY and not record["tracking"] and not record["paged"]
        record["plain"] = plain

    # --- slots ---

    def add_slot(self, addr: int, memory: Any) -> Slot:
        """Put memory at [addr, addr + its length), also while traffic runs; EEXIST where there is some already.

        `memory` is a buffer, a FileMemory or a ProcessMemory. A page table has none of the new pages present.
        """
        self._check_slots()
        slot = Slot(self, addr, memory)
        try:
            with self._still():
                i = bisect_right(self.slots, addr, key=lambda s: s.addr)
                for near in self.slots[max(0, i - 1) : i + 1]:
                    if near.addr < slot.end and addr < near.end:
                        raise VerbsError(errno.EEXIST, f"{slot.length} bytes at {addr:#x}: a slot is at {near.addr:#x}")
                self._write_slots([*self.slots[:i], slot, *self.slots[i:]])
        except BaseException:
            slot.close()
            raise
        return slot

    def remove_slot(self, slot: Slot, *, force: bool = False) -> None:
        """Take memory away, also while traffic runs: a hole is left.

        EBUSY while regions are pinned to it. `force`: all the same, as when its process has died; their accesses to it
        then are local protection or remote access errors.
        """
        self._check_slots()
        with self._still():
            if slot not in self.slots:
                raise VerbsError(errno.EINVAL, "the slot is not, or no longer, in this address space")
            if slot.pins and not force:
                raise VerbsError(errno.EBUSY, f"{slot.pins} regions are pinned to the slot at {slot.addr:#x}")
            self._write_slots([s for s in self.slots if s is not slot])
            if self._table is not None:
                pages.take_away(self.device.engine.tables, self.index, slot.addr, slot.length)
                self._seq += 1
                self._look_again()
        slot.close()

    def _check_slots(self) -> None:
        if not self.alive:
            raise VerbsError(errno.EINVAL, f"address space {self.index} was destroyed")
        if self.is_process:
            raise VerbsError(errno.EINVAL, "in the address space of this process everything has its place")

    def _write_slots(self, slots: list[Slot]) -> None:
        """Inside `_still`, so that every packet sees the old or the new ones."""
        slabs, (old, room) = self.device.slabs, self._slot_run
        run = self._slot_run
        if len(slots) > room:
            run = slabs.slots.alloc(len(slots)), 1 << (len(slots) - 1).bit_length()
        before, self.slots = self.slots, slots
        try:
            if self._table is not None:
                self._make_table()
            if self._log is not None:
                self._make_log()
        except BaseException:
            self.slots = before
            raise
        record, table = self.device.record["spaces"][self.index], self.device.record["slots"]
        for i, slot in enumerate(slots):
            table[run[0] + i] = (slot.addr, slot.length, slot.host, slot.pid, slot.readonly)
        record["slot_first"], record["nslots"], record["slot_hint"] = run[0], len(slots), 0
        if run != self._slot_run:
            if room:
                slabs.slots.free(old, room)
            self._slot_run = run

    def slot_at(self, addr: int) -> Slot | None:
        """The slot that has some byte of the page at an address."""
        i = bisect_right(self.slots, addr, key=lambda s: s.addr) - 1
        near = self.slots[max(0, i) : i + 2]
        return next((s for s in near if s.addr < addr + self.page_size and addr < s.end), None)

    def move_slot(self, slot: Slot, address: int) -> None:
        """The memory of another process behind a slot, all of it, has moved there to `address`."""
        if slot not in self.slots or not isinstance(slot.memory, ProcessMemory):
            raise VerbsError(errno.EINVAL, "only memory of a process moves, and only while it is in the address space")
        with self._lock:
            slot.memory = replace(slot.memory, address=address)
            slot.host = address
            self._write_slots(self.slots)

    def sweep(self) -> None:
        """Processes that have died are not asked again, since their numbers may come back to life as others."""
        for i, slot in enumerate(self.slots):
            if slot.pid not in (0, NOBODY) and slot.lost:
                slot.pid = NOBODY
                self.device.record["slots"][self._slot_run[0] + i]["pid"] = NOBODY

    # --- regions ---

    def pin(self, ranges: np.ndarray, *, write: bool) -> list[Slot]:
        """The slots under some ranges; EFAULT where there is none, EACCES where `write` is asked of a read-only one."""
        if self.is_process:
            raise VerbsError(errno.EINVAL, "memory of this process is registered as a buffer")
        starts = np.array([s.addr for s in self.slots], np.int64)
        ends = np.array([s.end for s in self.slots], np.int64)
        used = np.zeros(len(starts), np.uint8)
        outside = int(cover(ranges, starts, ends, used))
        if outside >= 0:
            addr, length = (int(value) for value in ranges[outside])
            raise VerbsError(errno.EFAULT, f"not all of the {length} bytes at {addr:#x} are in slots")
        slots = [self.slots[i] for i in np.flatnonzero(used)]
        if write and (locked := next((s for s in slots if s.readonly), None)):
            raise VerbsError(errno.EACCES, f"the slot at {locked.addr:#x} is read-only")
        return slots

    # --- bytes ---

    def peek(self, addr: int, length: int) -> np.ndarray:
        """The bytes as the owner of the memory sees them, whatever the page table says; holes are zeros."""
        if length < 0 or addr < 0 or addr > TOP - length:
            raise VerbsError(errno.EINVAL, f"{length} bytes at {addr:#x} wrap around")
        out = np.empty(length, np.uint8)
        with self.device.quiesced():
            status = raw.peek(self.device.engine.tables, self.index, addr, int(out.ctypes.data), length)
        if status != MEM_OK:
            raise VerbsError(errno.EFAULT, f"{length} bytes at {addr:#x} cannot be read")
        return out

    def poke(self, addr: int, data: Any) -> None:
        """Write bytes as the owner of the memory would: no page table is asked and no write recorded."""
        view = view_of(data)
        if addr < 0 or addr > TOP - view.nbytes:
            raise VerbsError(errno.EINVAL, f"{view.nbytes} bytes at {addr:#x} wrap around")
        with self.device.quiesced():
            status = raw.poke(self.device.engine.tables, self.index, addr, int(view.ctypes.data), view.nbytes)
        if status != MEM_OK:
            raise VerbsError(errno.EFAULT, f"{view.nbytes} bytes at {addr:#x} cannot be written")

    # --- life ---

    def destroy(self) -> None:
        """Give everything back; EBUSY while there are regions in it."""
        if not self.alive:
            return
        if self.regions:
            raise VerbsError(errno.EBUSY, f"{len(self.regions)} regions are in address space {self.index}")
        with self.device.quiesced():
            pages.set_paging(self.device.engine.tables, self.index, int(Paging.NONE))
            self.device.record["spaces"][self.index]["kind"] = SpaceKind.FREE
        del self.device.adapter.spaces[self.index]
        if self._slot_run[1]:
            self.device.slabs.slots.free(*self._slot_run)
        for slot in self.slots:
            slot.close()
        self.slots = []
        self.device.pools.spaces.free(self.index)

    def __enter__(self) -> AddressSpace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()
