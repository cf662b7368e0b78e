"""From a memory region's offset to memory: ranges, then the address space with its page table, slots and holes.

Decides where bytes live and whether they may be touched now; never touches them. A run is the longest stretch from
the given offset that is in one piece there.
"""

from __future__ import annotations

from typing import NamedTuple

from softrnic.counters import C
from softrnic.jit import i64, inline, ld64
from softrnic.layout import FaultFlag, MrKind, Paging, SpaceKind

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1

MEM_OK = 0
MEM_FAULT = 1  # a page is not present: eng fault_* says which
MEM_DENIED = 2

# Run.pid beside process ids.
OURS = 0
HOLE = -1

_WRITE, _FAILED = int(FaultFlag.WRITE), int(FaultFlag.FAILED)


class Run(NamedTuple):
    """Where some bytes are: `length` of them at `host` of process `pid` (OURS, HOLE), if `status` is MEM_OK.

    `space` and `addr` say what they are in their address space; `space` is -1 when nobody wants to know. `fails` is
    the status of an access that the kernel refuses.
    """

    host: int
    length: int
    status: int
    pid: int
    space: int
    addr: int
    fails: int


@inline
def _range_at(mr, offset):
    """Index of the range that holds `offset`: the last one that starts at or before it."""
    ranges, count = i64(mr["ranges"]), i64(mr["nranges"])
    hint = i64(mr["hint"])
    if ld64(ranges + 16 * hint) <= offset and (hint + 1 == count or offset < ld64(ranges + 16 * hint + 16)):
        return hint
    lo, hi = 0, count - 1
    while lo < hi:
        mid = (lo + hi + 1) >> 1
        if ld64(ranges + 16 * mid) <= offset:
            lo = mid
        else:
            hi = mid - 1
    mr["hint"] = lo
    return lo


@inline
def _address_of(mr, offset, n):
    """Where `offset` lies in the address space, and how many of `n` bytes from there are in the same range."""
    if i64(mr["nranges"]) == 1:
        return i64(mr["addr"]) + offset, n
    shift = i64(mr["shift"])
    if shift:
        at = offset + i64(mr["skew"])
        inside = at & ((1 << shift) - 1)
        return ld64(i64(mr["ranges"]) + 8 * (at >> shift)) + inside, min(n, (1 << shift) - inside)
    i = _range_at(mr, offset)
    entry = i64(mr["ranges"]) + 16 * i
    if i + 1 < i64(mr["nranges"]):
        n = min(n, ld64(entry + 16) - offset)
    return ld64(entry + 8) + offset - ld64(entry), n


@inline
def _slot_at(eng, space, addr):
    """Index relative to slot_first of the last slot that starts at or before `addr`, or -1."""
    first = i64(space["slot_first"])
    hint = i64(space["slot_hint"])
    if hint < i64(space["nslots"]):
        inside = addr - i64(eng["slots"][first + hint]["addr"])
        if inside >= 0 and inside < i64(eng["slots"][first + hint]["length"]):
            return hint
    lo, hi = -1, i64(space["nslots"]) - 1
    while lo < hi:
        mid = (lo + hi + 1) >> 1
        if i64(eng["slots"][first + mid]["addr"]) <= addr:
            lo = mid
        else:
            hi = mid - 1
    space["slot_hint"] = max(lo, 0)
    return lo


@inline
def _hole(eng, space, index, addr, n, write, pinned):
    """Nothing is there: zeros to a reader, a void to a writer, both counted; an error where something was pinned."""
    if pinned:
        return Run(0, 0, MEM_DENIED, HOLE, index, addr, MEM_DENIED)
    if write:
        eng["counters"][C.HOLE_WRITES] += 1
        return Run(0, n, MEM_OK, HOLE, index, addr, MEM_DENIED)
    eng["counters"][C.HOLE_READS] += 1
    return Run(i64(space["zeros"]), min(n, PAGE_SIZE), MEM_OK, HOLE, index, addr, MEM_DENIED)


@inline
def _in_slot(eng, space, index, addr, n, write, pinned, held, fails):
    """The run at an address of a space with slots."""
    i = _slot_at(eng, space, addr)
    first = i64(space["slot_first"])
    if i >= 0:
        slot = eng["slots"][first + i]
        inside = addr - i64(slot["addr"])
        if inside < i64(slot["length"]):
            if write and slot["readonly"]:
                return Run(0, 0, MEM_DENIED, OURS, index, addr, MEM_DENIED)
            n = min(n, i64(slot["length"]) - inside)
            pid = OURS if held else i64(slot["pid"])
            return Run(i64(slot["host"]) + inside, n, MEM_OK, pid, index, addr, fails)
    if i + 1 < i64(space["nslots"]):
        n = min(n, i64(eng["slots"][first + i + 1]["addr"]) - addr)
    return _hole(eng, space, index, addr, n, write, pinned)


@inline
def bit_at(bitmap, page):
    """One bit of a bitmap of 64-bit words."""
    return (ld64(bitmap + ((page >> 6) << 3)) >> (page & 63)) & 1


@inline
def _present_bytes(space, addr, n, write):
    """How many bytes from `addr` lie in pages the device may touch."""
    shift = i64(space["page_shift"])
    bitmap = i64(space["writable"]) if write else i64(space["present"])
    page = (addr - i64(space["first"])) >> shift
    last = min((addr + n - 1 - i64(space["first"])) >> shift, i64(space["npages"]) - 1)
    if page < 0:
        return 0
    while page <= last and bit_at(bitmap, page):
        page += 1
    return max(0, min(n, (page << shift) + i64(space["first"]) - addr))


@inline
def _is_refused(space, addr):
    """Whether a missing page is known never to come."""
    page = (addr - i64(space["first"])) >> i64(space["page_shift"])
    return page >= 0 and page < i64(space["npages"]) and bit_at(i64(space["refused"]), page) != 0


@inline
def _in_space(eng, index, mr_index, addr, n, write, pinned, odp, held):
    """The run at an address of a space, as far as the page table allows."""
    space = eng["spaces"][index]
    fails = MEM_DENIED
    if space["paged"] and (odp or space["paged"] == Paging.EVERY):
        have = _present_bytes(space, addr, n, write)
        if have == 0 and _is_refused(space, addr):
            return Run(0, 0, MEM_DENIED, OURS, index, addr, MEM_DENIED)
        eng["fault_space"] = index
        eng["fault_addr"] = addr
        eng["fault_flags"] = _WRITE if write else 0
        eng["fault_mr"] = mr_index
        eng["fault_len"] = n
        if have == 0:
            return Run(0, 0, MEM_FAULT, OURS, index, addr, MEM_DENIED)
        n = min(n, have)
        fails = MEM_FAULT
    if space["kind"] == SpaceKind.IDENTITY:
        return Run(addr, n, MEM_OK, OURS, index, addr, fails)
    return _in_slot(eng, space, index, addr, n, write, pinned, held, fails)


@inline
def resolve(eng, mr_index, offset, n, write):
    """The run of at most `n` bytes at `offset` of a region that has already been checked for access."""
    mr = eng["mrs"][mr_index]
    if mr["kind"] != MrKind.MR:
        mr_index = i64(mr["parent"])
        parent = eng["mrs"][mr_index]
        offset += i64(mr["iova"]) - i64(parent["iova"])
        mr = parent
    index = i64(mr["space"])
    addr, n = _address_of(mr, offset, n)
    if eng["spaces"][index]["plain"]:
        return Run(addr, n, MEM_OK, OURS, -1, addr, MEM_DENIED)
    pinned, odp, held = mr["pinned"] != 0, mr["odp"] != 0, mr["held"] != 0
    return _in_space(eng, index, mr_index, addr, n, write, pinned, odp, held)


@inline
def locate(eng, space_index, addr, n, write):
    """The run of at most `n` bytes at an address of a space itself, as a front-end's rings need it."""
    if eng["spaces"][space_index]["plain"]:
        return Run(addr, n, MEM_OK, OURS, -1, addr, MEM_DENIED)
    return _in_space(eng, space_index, -1, addr, n, write, False, True, False)


@inline
def run_at(eng, space_index, addr, n, write):
    """The same past the page table."""
    space = eng["spaces"][space_index]
    if space["kind"] == SpaceKind.IDENTITY:
        return Run(addr, n, MEM_OK, OURS, -1, addr, MEM_DENIED)
    return _in_slot(eng, space, space_index, addr, n, write, False, False, MEM_DENIED)


@inline
def fault_at(eng, addr):
    """The access that `resolve` allowed met a page the kernel refused: it is a fault after all, at `addr`."""
    eng["fault_addr"] = addr
    eng["fault_flags"] = i64(eng["fault_flags"]) | _FAILED
