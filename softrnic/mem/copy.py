"""The only code that touches user bytes: between packets in a frame slab and memory regions or SGE lists.

Every function returns MEM_OK, MEM_FAULT (a page is missing: nothing was lost, do it again later) or MEM_DENIED (a key
or a range is wrong), plus MEM_SHORT when an SGE list is too small. Accesses were checked by mem.mr; this file decides
nothing about protection except through it.
"""

from __future__ import annotations

from softrnic.jit import addr_of, atomic_cas64, i64, inline, ld64, memcpy
from softrnic.mem.mr import check_local
from softrnic.mem.space import MEM_DENIED, MEM_FAULT, MEM_OK, resolve
from softrnic.wire.icrc import crc32_copy

MEM_SHORT = 3

_MASK64 = 0xFFFFFFFFFFFFFFFF


@inline
def write_region(eng, mr_index, offset, buf, src, n):
    """Copy `n` packet bytes at buf[src] into a region."""
    while n > 0:
        run = resolve(eng, mr_index, offset, n, True)
        if run.status != MEM_OK:
            return MEM_FAULT
        memcpy(run.host, addr_of(buf) + src, run.length)
        offset += run.length
        src += run.length
        n -= run.length
    return MEM_OK


@inline
def read_region(eng, mr_index, offset, buf, dst, n, crc):
    """Copy `n` bytes of a region to buf[dst] and carry the CRC on: (status, crc)."""
    while n > 0:
        run = resolve(eng, mr_index, offset, n, False)
        if run.status != MEM_OK:
            return MEM_FAULT, crc
        crc = crc32_copy(crc, buf, dst, run.host, run.length)
        offset += run.length
        dst += run.length
        n -= run.length
    return MEM_OK, crc


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

    Atomic with respect to the host's processors too (IBV_ATOMIC_GLOB).
    """
    run = resolve(eng, mr_index, offset, 8, True)
    if run.status != MEM_OK:
        return MEM_FAULT, 0
    if run.length < 8 or run.host & 7:
        return MEM_DENIED, 0
    while True:
        old = ld64(run.host)
        new = old + compare_add
        if is_cas:
            new = swap if old == compare_add else old
        if atomic_cas64(run.host, old, new) == old:
            return MEM_OK, old
