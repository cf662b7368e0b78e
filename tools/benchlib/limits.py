"""What this machine can do at all: copying, CRC-32, and two processors that talk through memory.

The last pair of figures says what kind of minute it is: on a virtual machine the two processors are at times far from
one another, and everything that crosses between them is then several times slower.
"""

from __future__ import annotations

import mmap
import os
import statistics
import threading
import time

import numpy as np

from softrnic.jit import addr_of, kernel, ld_acq64, memcpy, pause, st_rel64
from softrnic.wire import crc32

SIZES = (4096, 65536, 1 << 20, 64 << 20)
APART = (0, 8, 2048)  # netio's frames lie as the first; see FRAME_LINEAR in softrnic/layout.py


@kernel
def _copy(dst: np.ndarray, src: np.ndarray, n: int, repeats: int) -> None:
    a, b = addr_of(dst), addr_of(src)
    for _ in range(repeats):
        memcpy(a, b, n)


@kernel
def _crc(src: np.ndarray, n: int, repeats: int) -> int:
    state = crc32.CRC_INIT
    for _ in range(repeats):
        state = crc32.crc32_addr(state, addr_of(src), n)
    return state


@kernel
def _ping(cells: np.ndarray, me: int, rounds: int) -> None:
    """Two threads, each waiting for the other's number."""
    cell = addr_of(cells)
    for i in range(rounds):
        while ld_acq64(cell) != 2 * i + me:
            pause()
        st_rel64(cell, 2 * i + me + 1)


def _gbytes(call: object, n: int) -> float:
    """GB/s of processor time, the best of five."""
    repeats = max(1, (64 << 20) // n)
    call(1)  # type: ignore[operator]
    best = 0.0
    for _ in range(5):
        start = time.thread_time_ns()
        call(repeats)  # type: ignore[operator]
        best = max(best, n * repeats / max(1, time.thread_time_ns() - start))
    return best


def shared_memory_ns(cpus: tuple[int, int] = (0, 1), rounds: int = 20000) -> float | None:
    """A round trip of one cache line between two processors; None with only one."""
    if not set(cpus) <= os.sched_getaffinity(0):
        return None
    cells = np.zeros(16, np.int64)
    _ping(cells, 0, 0)
    ready = threading.Barrier(2)

    def side(me: int) -> None:
        os.sched_setaffinity(0, {cpus[me]})
        ready.wait()
        _ping(cells, me, rounds)

    samples = []
    for _ in range(3):
        cells[:] = 0
        threads = [threading.Thread(target=side, args=(me,)) for me in range(2)]
        start = time.perf_counter_ns()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        samples.append((time.perf_counter_ns() - start) / rounds)
    return statistics.median(samples)


def kernel_copy_gbytes(apart: int, n: int = 32768) -> float:
    """GB/s of the kernel's copy from us into page cache, to `apart` bytes later in a page than it has."""
    pages = memoryview(bytearray(n + 2 * mmap.PAGESIZE))
    start = -np.frombuffer(pages, np.uint8).ctypes.data % mmap.PAGESIZE + mmap.PAGESIZE - apart
    fd = os.memfd_create("copied to")
    try:
        return _gbytes(lambda repeats: [os.pwrite(fd, pages[start : start + n], 0) for _ in range(repeats)], n)
    finally:
        os.close(fd)


def limits() -> dict[str, float | None]:
    """Figures by name."""
    found: dict[str, float | None] = {}
    for n in SIZES:
        src, dst = np.ones(n, np.uint8), np.ones(n, np.uint8)
        found[f"memcpy {n} B, GB/s"] = _gbytes(lambda k, s=src, d=dst, n=n: _copy(d, s, n, k), n)
        if n <= 1 << 20:
            found[f"CRC-32 {n} B ({crc32.VARIANT}), GB/s"] = _gbytes(lambda k, s=src, n=n: _crc(s, n, k), n)
    for apart in APART:
        found[f"kernel copy 32768 B to {apart} bytes later in a page, GB/s"] = kernel_copy_gbytes(apart)
    found["cache line, there and back between processors, ns"] = shared_memory_ns()
    return found
