"""The owner of memory drops, moves and protects it while a peer reads and writes it by RDMA: every byte stays right.

Each test shows by the kernel's own counters or page flags that the thing really happened.
"""

from __future__ import annotations

import mmap
import os
import random

import numpy as np
import pytest

from netio.pagemap import Category, Pagemap
from softrnic.verbs import WcStatus, WrOpcode
from tests.uffd.lab import (
    MADV_REMOVE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    ODP,
    PAGE,
    Lab,
    Memory,
    Traffic,
    libc,
    until,
)

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600), pytest.mark.privileged("userfaultfd")]

N = 64
EVEN, ODD = list(range(0, N, 2)), list(range(1, N, 2))


def is_mapped(memory: Memory, page: int) -> bool:
    """Whether the kernel has a page there."""
    with Pagemap() as pagemap:
        return bool(pagemap.scan(memory.addr + page * PAGE, PAGE, mask=Category.PRESENT))


def test_dontneed(bench: Lab) -> None:
    """Dropped pages are zeros to the device as to everybody."""
    memory = Memory(N * PAGE)
    memory.fill(1)
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    with Traffic(other, EVEN, 2).running():
        for page in ODD:
            mine.write(page * PAGE, b"\xaa" * PAGE)
            assert is_mapped(memory, page)
            assert memory.advise(mmap.MADV_DONTNEED, page * PAGE, PAGE) == 0
            assert not is_mapped(memory, page)
            assert mine.read(page * PAGE, PAGE) == bytes(PAGE)
            mine.write(page * PAGE + 100, b"again")
            assert memory.at(page * PAGE, 105) == bytes(100) + b"again"
    until(lambda: region.statistic()["page_invalidations"] >= len(ODD))


def test_dontneed_with_the_interpreter_held(bench: Lab) -> None:
    """mmap.madvise holds Python's lock while it waits for its message to be read."""
    memory = mmap.mmap(-1, 4 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region = bench.pd.reg_mr(memory, ODP)
    space = bench.device.process_space
    bench.resolver.serve(space)
    bench.resolver.watch(space, region.addr, 4 * PAGE)
    peer = bench.peer(region)
    for _ in range(50):
        peer.write(0, b"x" * 4 * PAGE)
        memory.madvise(mmap.MADV_DONTNEED)
        assert peer.read(0, 4 * PAGE) == bytes(4 * PAGE)




def test_dontneed_beside_writes(bench: Lab) -> None:
    """A drop and a WRITE at the same time: each 8 bytes are of the one or of the other, to all alike."""
    memory = Memory(4 * PAGE)
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    word = 0x5A5A5A5A5A5A5A5A
    pages = random.Random(3)
    seen = set()
    with Traffic(other, [3], 4).running():
        for _ in range(200):
            mine.bounce[: 3 * PAGE].view(np.uint64)[:] = word
            mine.post(WrOpcode.RDMA_WRITE, 0, 3 * PAGE)
            assert memory.advise(mmap.MADV_DONTNEED, pages.randrange(3) * PAGE, PAGE) == 0
            assert mine.done().ok
            words = memory.bytes[: 3 * PAGE].view(np.uint64)
            seen |= set(np.unique(words).tolist())
            assert mine.read(0, 3 * PAGE) == words.tobytes()
    assert seen <= {0, word}


def test_punch_hole(bench: Lab) -> None:
    """A hole in a shared file: its blocks are given back, and the device reads zeros."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, N * PAGE)
    memory = Memory(N * PAGE, fd=fd)
    memory.fill(5)
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    with Traffic(other, EVEN, 6).running():
        for page in ODD:
            mine.write(page * PAGE, b"\xbb" * PAGE)
            before = os.fstat(fd).st_blocks
            assert memory.advise(MADV_REMOVE, page * PAGE, PAGE) == 0  # fallocate(PUNCH_HOLE), with a message
            assert os.fstat(fd).st_blocks == before - PAGE // 512
            assert mine.read(page * PAGE, PAGE) == bytes(PAGE)
            mine.write(page * PAGE, b"\xcc" * 10)
            assert os.pread(fd, 11, page * PAGE) == b"\xcc" * 10 + b"\0"
    until(lambda: region.statistic()["page_invalidations"] >= len(ODD))
    os.close(fd)


def test_mremap(bench: Lab) -> None:
    """Other pages move under the region's addresses: the device sees what is mapped there now."""
    memory = Memory(N * PAGE)
    memory.fill(7)
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    with Traffic(other, EVEN, 8).running(), Pagemap() as pagemap:
        for page in ODD[:16]:
            here = memory.addr + page * PAGE
            mine.write(page * PAGE, b"old page")
            spare = Memory(PAGE)
            spare.bytes[:] = page
            frame = pagemap.frames(spare.addr, PAGE)[0]
            assert libc.mremap(spare.addr, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, here) == here
            assert frame
            assert pagemap.frames(here, PAGE)[0] == frame  # the very page
            assert mine.read(page * PAGE, PAGE) == bytes([page]) * PAGE
            mine.write(page * PAGE + 9, b"new page")
            assert memory.at(page * PAGE, 18) == bytes([page]) * 9 + b"new page" + bytes([page])
    until(lambda: region.statistic()["page_invalidations"] >= 16)


def test_mremap_away_and_back(bench: Lab) -> None:
    """What has moved away is an access error to the peer that asks for it; nobody else notices. Back, it is there."""
    memory = Memory(N * PAGE)
    memory.fill(9)
    region = bench.watched(memory)
    mine, again, other = (bench.peer(region) for _ in range(3))
    here = memory.addr + PAGE
    with Traffic(other, EVEN, 10).running():
        mine.write(PAGE, b"here")
        away = Memory(PAGE).addr
        assert libc.mremap(here, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, away) == away
        assert mine.try_write(PAGE, b"gone").status == WcStatus.REM_ACCESS_ERR
        assert libc.mremap(away, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, here) == here
        # what was refused is so until the resolver has read that the page is back
        until(lambda: bench.peer(region).try_write(PAGE + 100, b"again").ok)
        assert again.read(PAGE, 4) == b"here"


def test_munmap(bench: Lab) -> None:
    """Unmapped is an access error; mapped anew at the same place, it is the new memory."""
    memory = Memory(N * PAGE)
    memory.fill(11)
    region = bench.watched(memory)
    mine, again, other = (bench.peer(region) for _ in range(3))
    here = memory.addr + PAGE
    with Traffic(other, EVEN, 12).running():
        mine.write(PAGE, b"here")
        assert libc.munmap(here, PAGE) == 0
        assert mine.try_write(PAGE, b"gone").status == WcStatus.REM_ACCESS_ERR
        assert libc.mmap(here, PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10, -1, 0) == here
        bench.device.process_space.invalidate(here, PAGE)  # nothing tells that it is mapped again
        again.write(PAGE + 1, b"new")
        assert memory.at(PAGE, 5) == b"\0new\0"


def test_mprotect(bench: Lab) -> None:
    """No message tells of it. Made read-only, READs go on and a WRITE is an access error; allowed again, so it is."""
    memory = Memory(N * PAGE)
    memory.fill(13)
    region = bench.watched(memory)
    reader, writer, other = (bench.peer(region) for _ in range(3))
    here = memory.addr + PAGE
    with Traffic(other, EVEN, 14).running():
        writer.write(PAGE, b"before")
        assert libc.mprotect(here, PAGE, mmap.PROT_READ) == 0
        assert reader.read(PAGE, 6) == b"before"
        assert writer.try_write(PAGE, b"denied").status == WcStatus.REM_ACCESS_ERR
        assert memory.at(PAGE, 6) == b"before"
        assert libc.mprotect(here, PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        until(lambda: region.statistic()["page_invalidations"] >= 1)  # the refusal is forgotten
        bench.peer(region).write(PAGE, b"after!")
        assert reader.read(PAGE, 6) == b"after!"
        assert libc.mprotect(here, PAGE, 0) == 0
        reader.post(WrOpcode.RDMA_READ, PAGE, 6)
        assert reader.done().status == WcStatus.REM_ACCESS_ERR
