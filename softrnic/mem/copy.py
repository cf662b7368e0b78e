"""The only code that touches user bytes: between packets in a frame slab and memory regions or SGE lists.

Every function returns MEM_OK, MEM_FAULT (a page is missing: nothing was lost, do it again later) or MEM_DENIED (a key
or a range is wrong), plus MEM_SHORT when an SGE list is too small. Accesses were checked by mem.mr; this file decides
nothing about protection except through it.
"""

from __future__ import annotations

from softrnic.jit import addr_of, atomic_cas64, i64, inline, ld64, memcpy, st64
from softrnic.layout import OFF_WORD
from softrnic.mem.dirty import mark_dirty
from softrnic.mem.mr import check_local
from softrnic.mem.process import GONE, read_process, write_process
from softrnic.mem.space import HOLE, MEM_DENIED, MEM_FAULT, MEM_OK, OURS, fault_at, locate, resolve
from softrnic.wire.crc32 import crc32_copy, crc32_update

MEM_SHORT = 3


@inline
def _refused(eng, run, done):
    """The kernel copied only `done` bytes of a run (or GONE): a MEM_ status."""
    if done == GONE or run.fails != MEM_FAULT:
        return MEM_DENIED
    fault_at(eng, run.addr + done)
    return MEM_FAULT


@inline
def _note_written(eng, run, n):
    if run.space >= 0 and run.pid != HOLE and eng["spaces"][run.space]["tracking"]:
        mark_dirty(eng["spaces"][run.space], run.addr, n)


@inline
def _put(eng, run, src):
    """Write the bytes at address `src` to a run."""
    if run.pid == OURS:
        memcpy(run.host, src, run.length)
    elif run.pid != HOLE:
        done = write_process(eng, run.pid, run.host, src, run.length)
        if done != run.length:
            _note_written(eng, run, max(done, 0))
            return _refused(eng, run, done)
    _note_written(eng, run, run.length)
    return MEM_OK


@inline
def _get(eng, run, buf, dst, crc):
    """Read a run to buf[dst] and carry the CRC on: (status, crc)."""
    if run.pid <= OURS:
        return MEM_OK, crc32_copy(crc, buf, dst, run.host, run.length)
    done = read_process(eng, run.pid, run.host, addr_of(buf) + dst, run.length)
    if done != run.length:
        return _refused(eng, run, done), crc
    return MEM_OK, crc32_update(crc, buf, dst, run.length)


@inline
def write_region(eng, mr_index, offset, buf, src, n):
    """Copy `n` packet bytes at buf[src] into a region."""
    while n > 0:
        run = resolve(eng, mr_index, offset, n, True)
        status = run.status
        if status == MEM_OK:
            status = _put(eng, run, addr_of(buf) + src)
        if status != MEM_OK:
            return status
        offset += run.length
        src += run.length
        n -= run.length
    return MEM_OK


@inline
def read_region(eng, mr_index, offset, buf, dst, n, crc):
    """Copy `n` bytes of a region to buf[dst] and carry the CRC on: (status, crc)."""
    while n > 0:
        run = resolve(eng, mr_index, offset, n, False)
        status = run.status
        if status == MEM_OK:
            status, crc = _get(eng, run, buf, dst, crc)
        if status != MEM_OK:
            return status, crc
        offset += run.length
        dst += run.length
        n -= run.length
    return MEM_OK, crc


@inline
def write_space(eng, space, addr, src, n):
    """Write `n` bytes at our address `src` to an address of a space: what a front-end puts into its rings."""
    while n > 0:
        run = locate(eng, space, addr, n, True)
        status = run.status
        if status == MEM_OK:
            status = _put(eng, run, src)
        if status != MEM_OK:
            return status
        addr += run.length
        src += run.length
        n -= run.length
    return MEM_OK


@inline
def read_space(eng, space, addr, dst, n):
    """Read `n` bytes at an address of a space to our address `dst`."""
    while n > 0:
        run = locate(eng, space, addr, n, False)
        status = run.status
        if status == MEM_OK and run.pid <= OURS:
            memcpy(dst, run.host, run.length)
        elif status == MEM_OK:
            done = read_process(eng, run.pid, run.host, dst, run.length)
            status = MEM_OK if done == run.length else _refused(eng, run, done)
        if status != MEM_OK:
            return status
        addr += run.length
        dst += run.length
        n -= run.length
    return MEM_OK


@inline
def scatter(eng, qp, sge_base, nsge, offset, buf, src, n):
    """Place `n` packet bytes at byte `offset` of an SGE list."""
    for i in range(nsge):
        if n == 0:
            break
        sge = eng["sges"][sge_base + i]
        length = i64(sge["length"])
        if offset >= length:
            offset -= length
            continue
        piece = min(n, length - offset)
        addr = i64(sge["addr"]) + offset
        mr_index = check_local(eng, qp, i64(sge["lkey"]), addr, piece, True)
        if mr_index < 0:
            return MEM_DENIED
        status = write_region(eng, mr_index, addr - i64(eng["mrs"][mr_index]["iova"]), buf, src, piece)
        if status != MEM_OK:
            return status
        src += piece
        n -= piece
        offset = 0
    return MEM_OK if n == 0 else MEM_SHORT


@inline
def gather(eng, qp, sge_base, nsge, offset, buf, dst, n, crc):
    """Collect `n` bytes from byte `offset` of an SGE list into buf[dst]: (status, crc)."""
    for i in range(nsge):
        if n == 0:
            break
        sge = eng["sges"][sge_base + i]
        length = i64(sge["length"])
        if offset >= length:
            offset -= length
            continue
        piece = min(n, length - offset)
        addr = i64(sge["addr"]) + offset
        mr_index = check_local(eng, qp, i64(sge["lkey"]), addr, piece, False)
        if mr_index < 0:
            return MEM_DENIED, crc
        status, crc = read_region(eng, mr_index, addr - i64(eng["mrs"][mr_index]["iova"]), buf, dst, piece, crc)
        if status != MEM_OK:
            return status, crc
        dst += piece
        n -= piece
        offset = 0
    return (MEM_OK if n == 0 else MEM_SHORT), crc


@inline
def gather_inline(eng, sge_base, offset, buf, dst, n, crc):
    """The same from inline data, which lies in the SGE slots themselves."""
    return crc32_copy(crc, buf, dst, addr_of(eng["sges"]) + sge_base * 16 + offset, n)


@inline
def atomic_region(eng, mr_index, offset, is_cas, compare_add, swap):
    """Compare-and-swap or fetch-and-add of 8 aligned bytes in host order: (status, value before).

    Atomic with respect to the host's processors too (IBV_ATOMIC_GLOB) where the memory is ours for certain.
    """
    run = resolve(eng, mr_index, offset, 8, True)
    if run.status != MEM_OK:
        return run.status, 0
    if run.length < 8:
        return MEM_DENIED, 0
    if run.pid == HOLE:
        return MEM_OK, 0
    if run.pid != OURS:
        return _atomic_elsewhere(eng, run, is_cas, compare_add, swap)
    if run.host & 7:
        return MEM_DENIED, 0
    while True:
        old = ld64(run.host)
        new = old + compare_add
        if is_cas:
            new = swap if old == compare_add else old
        if atomic_cas64(run.host, old, new) == old:
            if not is_cas or old == compare_add:
                _note_written(eng, run, 8)
            return MEM_OK, old


@inline
def _atomic_elsewhere(eng, run, is_cas, compare_add, swap):
    """The same in memory that the kernel copies: atomic among the QPs of the device (IBV_ATOMIC_HCA)."""
    at = i64(eng["base"]) + OFF_WORD
    done = read_process(eng, run.pid, run.host, at, 8)
    if done != 8:
        return _refused(eng, run, done), 0
    old = ld64(at)
    if is_cas and old != compare_add:
        return MEM_OK, old
    st64(at, swap if is_cas else old + compare_add)
    return _put(eng, run, at), old
