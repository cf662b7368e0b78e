"""The device's page table of an address space, as its owner changes it: pages come, go, or are known never to come.

Two bits per page that may be touched (`present`: read, `writable`: write, which implies present) and one for those that
never will be (`refused`). Everything here runs while the engine stands still, so that when a page is taken away no
access to it is under way.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import i64, inline, kernel, ld64, st64
from softrnic.layout import Paging
from softrnic.mem.raw import store
from softrnic.mem.space import MEM_DENIED, MEM_OK, bit_at
from softrnic.qp.pagewait import wake

LANDED = MEM_OK
LATE = 4  # beside the MEM_ statuses

_ALL = -1  # a word of ones
_MAX = (1 << 63) - 1


@inline
def _mask(word, first, last):
    """Which bits of a word belong to pages `first` to `last`."""
    low = max(first - (word << 6), 0)
    high = min(last - (word << 6), 63)
    upper = _ALL if high == 63 else (1 << (high + 1)) - 1
    return upper & ~((1 << low) - 1)


@inline
def _ones(word):
    """How many bits of a word are set."""
    count = 0
    while word != 0:
        word &= word - 1
        count += 1
    return count


@inline
def _ones64(word):
    """The same of a signed word, whose sign is a bit as well."""
    return _ones(word & _MAX) + (1 if word < 0 else 0)


@inline
def _fill(bitmap, first, last, value):
    """Set (or clear) the bits of pages `first` to `last`: how many changed."""
    changed = 0
    for word in range(first >> 6, (last >> 6) + 1):
        at = bitmap + (word << 3)
        old = ld64(at)
        mask = _mask(word, first, last)
        new = old | mask if value else old & ~mask
        if new != old:
            st64(at, new)
            changed += _ones64(old ^ new)
    return changed


@inline
def _last_page(space, addr, length):
    return min((addr + length - 1 - i64(space["first"])) >> i64(space["page_shift"]), i64(space["npages"]) - 1)


@inline
def _first_page(space, addr):
    return max(0, (addr - i64(space["first"])) >> i64(space["page_shift"]))


@kernel
def make_present(engs: np.ndarray, space_index: int, addr: int, length: int, write: bool) -> int:
    """The pages that touch [addr, addr + length) are there, writable or not: how many are new. Who waits goes on."""
    eng = engs[0]
    space = eng["spaces"][space_index]
    first, last = _first_page(space, addr), _last_page(space, addr, length)
    fresh = 0
    if first <= last:
        _fill(i64(space["refused"]), first, last, False)
        fresh = _fill(i64(space["present"]), first, last, True)
        if write:
            _fill(i64(space["writable"]), first, last, True)
    _wake_pages(eng, space_index, first, last)
    return fresh


@kernel
def refuse(engs: np.ndarray, space_index: int, addr: int, length: int) -> int:
    """The pages never will be there: who waits for them fails. How many the device had."""
    eng = engs[0]
    space = eng["spaces"][space_index]
    first, last = _first_page(space, addr), _last_page(space, addr, length)
    taken = _take_away(space, first, last)
    if first <= last:
        _fill(i64(space["refused"]), first, last, True)
    _wake_pages(eng, space_index, first, last)
    return taken


@kernel
def take_away(engs: np.ndarray, space_index: int, addr: int, length: int) -> int:
    """The device must not touch the pages any more: how many it had."""
    space = engs[0]["spaces"][space_index]
    first, last = _first_page(space, addr), _last_page(space, addr, length)
    if first <= last:
        _fill(i64(space["refused"]), first, last, False)
    return _take_away(space, first, last)


@inline
def _take_away(space, first, last):
    if first > last:
        return 0
    _fill(i64(space["writable"]), first, last, False)
    return _fill(i64(space["present"]), first, last, False)


@inline
def _wake_pages(eng, space_index, first, last):
    space = eng["spaces"][space_index]
    shift = i64(space["page_shift"])
    wake(eng, space_index, (first << shift) + i64(space["first"]), ((last + 1) << shift) + i64(space["first"]))


@kernel
def wake_all(engs: np.ndarray, space_index: int) -> int:
    """Everyone who waits looks again: how many."""
    return wake(engs[0], space_index, -_MAX, _MAX)


@kernel
def is_present(engs: np.ndarray, space_index: int, addr: int, write: bool) -> bool:
    """Whether the device may read (write) the page at an address."""
    space = engs[0]["spaces"][space_index]
    page = (addr - i64(space["first"])) >> i64(space["page_shift"])
    if page < 0 or page >= i64(space["npages"]):
        return False
    return bit_at(i64(space["writable"]) if write else i64(space["present"]), page) != 0


@kernel
def next_missing(engs: np.ndarray, space_index: int, addr: int, end: int, write: bool) -> int:
    """Address of the first page from `addr` on that is not there, as seen from `addr`, or `end`."""
    space = engs[0]["spaces"][space_index]
    shift, base = i64(space["page_shift"]), i64(space["first"])
    bitmap = i64(space["writable"]) if write else i64(space["present"])
    page, last = (addr - base) >> shift, (end - 1 - base) >> shift
    while page <= last:
        if page < 0 or page >= i64(space["npages"]):
            break
        if page & 63 == 0 and ld64(bitmap + ((page >> 6) << 3)) == _ALL:
            page += 64
        elif bit_at(bitmap, page):
            page += 1
        else:
            break
    return min(end, max(addr, (page << shift) + base))


@kernel
def land(engs: np.ndarray, space_index: int, addr: int, src: int, length: int) -> int:
    """Post-copy: a page arrives. LANDED, or LATE and nothing is written: what is there is newer; or MEM_DENIED."""
    eng = engs[0]
    space = eng["spaces"][space_index]
    page = (addr - i64(space["first"])) >> i64(space["page_shift"])
    if page < 0 or page >= i64(space["npages"]):
        return MEM_DENIED
    if bit_at(i64(space["present"]), page):
        return LATE
    status = store(eng, space_index, addr, src, length)
    if status != MEM_OK:
        return status
    _fill(i64(space["present"]), page, page, True)
    _fill(i64(space["writable"]), page, page, True)
    _wake_pages(eng, space_index, page, page)
    return LANDED


@kernel
def set_paging(engs: np.ndarray, space_index: int, paging: int) -> None:
    """Which regions look at the page table from now on (Paging); without one nobody has anything to wait for."""
    eng = engs[0]
    space = eng["spaces"][space_index]
    space["paged"] = paging
    if paging == Paging.NONE:
        wake(eng, space_index, -_MAX, _MAX)
