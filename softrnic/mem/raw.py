"""The bytes of an address space as its owner sees them: whatever the page table says, and nothing is logged.

For who moves memory: reading pages to send them, storing pages that arrive.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import inline, kernel, memcpy, memset
from softrnic.mem.process import read_process, write_process
from softrnic.mem.space import HOLE, MEM_DENIED, MEM_OK, OURS, run_at


@inline
def store(eng, space_index, addr, src, n):
    """Write `n` bytes at our address `src`: MEM_OK, or MEM_DENIED where they cannot be. Holes swallow them."""
    while n > 0:
        run = run_at(eng, space_index, addr, n, True)
        if run.status != MEM_OK:
            return run.status
        if run.pid == OURS:
            memcpy(run.host, src, run.length)
        elif run.pid != HOLE and write_process(eng, run.pid, run.host, src, run.length) != run.length:
            return MEM_DENIED
        addr += run.length
        src += run.length
        n -= run.length
    return MEM_OK


@kernel
def poke(engs: np.ndarray, space_index: int, addr: int, src: int, n: int) -> int:
    """Write `n` bytes at our address `src` to the space: a MEM_ status."""
    return store(engs[0], space_index, addr, src, n)


@kernel
def peek(engs: np.ndarray, space_index: int, addr: int, dst: int, n: int) -> int:
    """Read `n` bytes of the space to our address `dst`: a MEM_ status. Holes are zeros."""
    eng = engs[0]
    while n > 0:
        run = run_at(eng, space_index, addr, n, False)
        if run.pid == OURS:
            memcpy(dst, run.host, run.length)
        elif run.pid == HOLE:
            memset(dst, 0, run.length)
        elif read_process(eng, run.pid, run.host, dst, run.length) != run.length:
            return MEM_DENIED
        addr += run.length
        dst += run.length
        n -= run.length
    return MEM_OK
