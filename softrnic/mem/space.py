"""From a memory region's offset to host memory: ranges, then the address space with its slots, holes and pages.

Decides where bytes live and whether they may be touched now; never touches them. A run is the longest stretch from
the given offset that is contiguous in host memory.
"""

from __future__ import annotations

from typing import NamedTuple

from softrnic.counters import C
from softrnic.jit import atomic_or64, i64, inline, ld64
from softrnic.layout import MrKind, SpaceKind

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1

MEM_OK = 0
MEM_FAULT = 1  # a page is not present: eng fault_* says which
MEM_DENIED = 2


class Run(NamedTuple):
    """Host address, length, and MEM_OK or MEM_FAULT."""

    host: int
    length: int
    status: int


@inline
def _range_at(mr, offset):
    """Index of the range that holds `offset`: the last one that starts at or before it."""
    ranges = i64(mr["ranges"])
    lo, hi = 0, i64(mr["nranges"]) - 1
    while lo < hi:
        mid = (lo + hi + 1) >> 1
        if ld64(ranges + 16 * mid) <= offset:
            lo = mid
        else:
            hi = mid - 1
    return lo


@inline
def _slot_at(eng, space, addr):
    """Index relative to slot_first of the last slot that starts at or before `addr`, or -1."""
    first = i64(space["slot_first"])
    lo, hi = -1, i64(space["nslots"]) - 1
    while lo < hi:
        mid = (lo + hi + 1) >> 1
        if i64(eng["slots"][first + mid]["addr"]) <= addr:
            lo = mid
        else:
            hi = mid - 1
    return lo


@inline
def _hole(eng, space, addr, n, write):
    """A throw-away page: reads give zeros, writes vanish, both are counted."""
    at = addr & PAGE_MASK
    length = min(n, PAGE_SIZE - at)
    if write:
        eng["counters"][C.HOLE_WRITES] += 1
        return Run(i64(space["hole_write"]) + at, length, MEM_OK)
    eng["counters"][C.HOLE_READS] += 1
    return Run(i64(space["hole_read"]) + at, length, MEM_OK)


@inline
def _slot_run(eng, space, addr, n, write):
    i = _slot_at(eng, space, addr)
    first = i64(space["slot_first"])
    if i >= 0:
        slot = eng["slots"][first + i]
        inside = addr - i64(slot["addr"])
        if inside < i64(slot["length"]):
            return Run(i64(slot["host"]) + inside, min(n, i64(slot["length"]) - inside), MEM_OK)
    if i + 1 < i64(space["nslots"]):
        n = min(n, i64(eng["slots"][first + i + 1]["addr"]) - addr)
    return _hole(eng, space, addr, n, write)


@inline
def _present_bytes(space, addr, n):
    """How many bytes from `addr` lie in pages the device may touch."""
    shift = i64(space["page_shift"])
    bitmap = i64(space["present"])
    page = (addr - i64(space["first"])) >> shift
    last = min((addr + n - 1 - i64(space["first"])) >> shift, i64(space["npages"]) - 1)
    if page < 0:
        return 0
    while page <= last and (ld64(bitmap + ((page >> 6) << 3)) >> (page & 63)) & 1:
        page += 1
    return max(0, min(n, (page << shift) + i64(space["first"]) - addr))


@inline
def mark_dirty(space, addr, n):
    """Record that the device writes [addr, addr + n), as far as it lies in the pages of the space."""
    shift = i64(space["page_shift"])
    bitmap = i64(space["dirty"])
    page = max(0, (addr - i64(space["first"])) >> shift)
    last = min((addr + n - 1 - i64(space["first"])) >> shift, i64(space["npages"]) - 1)
    while page <= last:
        word = bitmap + ((page >> 6) << 3)
        bit = 1 << (page & 63)
        if ld64(word) & bit == 0:
            atomic_or64(word, bit)
        page += 1


@inline
def resolve(eng, mr_index, offset, n, write):
    """The run of at most `n` bytes at `offset` of a region that has already been checked for access."""
    mr = eng["mrs"][mr_index]
    if mr["kind"] != MrKind.MR:
        parent = eng["mrs"][i64(mr["parent"])]
        offset += i64(mr["iova"]) - i64(parent["iova"])
        mr = parent
    if i64(mr["nranges"]) == 1:
        addr = i64(mr["addr"]) + offset
    else:
        i = _range_at(mr, offset)
        entry = i64(mr["ranges"]) + 16 * i
        addr = ld64(entry + 8) + offset - ld64(entry)
        if i + 1 < i64(mr["nranges"]):
            n = min(n, ld64(entry + 16) - offset)
    space = eng["spaces"][i64(mr["space"])]
    if space["paged"] and mr["odp"]:
        have = _present_bytes(space, addr, n)
        if have == 0:
            eng["fault_space"] = mr["space"]
            eng["fault_addr"] = addr
            eng["fault_write"] = write
            return Run(0, 0, MEM_FAULT)
        n = min(n, have)
    run = Run(addr, n, MEM_OK)
    if space["kind"] != SpaceKind.IDENTITY:
        run = _slot_run(eng, space, addr, n, write)
    if write and space["tracking"]:
        mark_dirty(space, addr, run.length)
    return run
