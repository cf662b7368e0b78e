"""The kernel shares, joins, splits, swaps out and moves pages while a peer reads and writes them by RDMA.

Every byte stays right, and the kernel's own counters or page flags show that it really happened. Settings of the whole
machine are put back.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from netio.pagemap import Category, KpageFlag, Pagemap, kpageflags
from tests.uffd.lab import MADV_COLLAPSE, MADV_PAGEOUT, PAGE, Lab, Memory, Traffic, smaps, until, vmstat
from tests.uffd.zram import zram_swap

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600), pytest.mark.privileged("userfaultfd")]

N = 64
EVEN, ODD = list(range(0, N, 2)), list(range(1, N, 2))
HUGE = 1 << 21
MADV_COLD = 20
KSM, THP, COMPACT = Path("/sys/kernel/mm/ksm"), Path("/sys/kernel/mm/transparent_hugepage"), Path("/proc/sys/vm")


@contextlib.contextmanager
def setting(path: Path, value: str, *undo: str) -> Iterator[None]:
    """A setting of the machine, for a while; `undo` is written before what it was."""
    before = path.read_text().split("[")[-1].split("]")[0].strip()
    path.write_text(value)
    try:
        yield
    finally:
        for text in (*undo, before):
            path.write_text(text)


def flags(memory: Memory, page: int) -> KpageFlag:
    """What the kernel says of the frame under a page."""
    with Pagemap() as pagemap:
        return kpageflags(pagemap.frames(memory.addr + page * PAGE, PAGE))[0]


def test_an_ordinary_page_has_no_flags(bench: Lab) -> None:
    """So that the proofs below prove something."""
    memory = Memory(PAGE)
    memory.fill(1)
    assert flags(memory, 0) == KpageFlag.SWAPBACKED


def test_fork_with_cow(bench: Lab) -> None:
    """A child keeps the bytes of the moment; what the device writes afterwards is the parent's alone."""
    memory = Memory(N * PAGE)
    memory.fill(2)
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    with Traffic(other, EVEN, 3).running() as traffic:
        for round_ in range(3):
            mine.write(PAGE, b"as it was")
            was = memory.at(PAGE, PAGE)
            (from_child, to_parent), (from_parent, to_child) = os.pipe(), os.pipe()
            child = os.fork()
            if child == 0:
                os.write(to_parent, b"!")
                os.read(from_parent, 1)
                os._exit(0 if memory.at(PAGE, PAGE) == was else 1)
            os.read(from_child, 1)
            with Pagemap() as ours, Pagemap(child) as theirs:
                here = memory.addr + PAGE
                assert ours.frames(here, PAGE)[0] == theirs.frames(here, PAGE)[0] != 0
                mine.write(PAGE, b"%d changed" % round_)
                assert ours.frames(here, PAGE)[0] != theirs.frames(here, PAGE)[0] != 0
            traffic.progress()
            assert mine.read(PAGE, 9) == b"%d changed" % round_
            os.write(to_child, b"!")
            assert os.waitpid(child, 0)[1] == 0
            for fd in (from_child, to_parent, from_parent, to_child):
                os.close(fd)


def collapse(memory: Memory) -> None:
    """MADV_COLLAPSE, again where it answers EAGAIN: it found a page in other hands, as it may under traffic."""
    for _ in range(200):
        if (error := memory.advise(MADV_COLLAPSE)) != errno.EAGAIN:
            break
    assert error == 0


def test_huge_pages_collapse_and_split(bench: Lab) -> None:
    """512 pages become one, and are 512 again."""
    memory = Memory(2 * HUGE, align=HUGE)
    with setting(THP / "enabled", "madvise"):
        assert memory.advise(mmap.MADV_NOHUGEPAGE) == 0
        memory.fill(4)
        region = bench.watched(memory)
        mine, other = bench.peer(region), bench.peer(region)
        shadow = bytearray(memory.at(HUGE, HUGE))
        with Traffic(other, list(range(0, 512, 16)), 5).running() as traffic:
            assert KpageFlag.THP not in flags(memory, 0)
            assert memory.advise(mmap.MADV_HUGEPAGE) == 0
            before = vmstat("thp_collapse_alloc", "thp_split_page", "thp_split_pmd")
            collapse(memory)
            assert vmstat("thp_collapse_alloc")["thp_collapse_alloc"] >= before["thp_collapse_alloc"] + 2
            assert smaps(memory.addr)["AnonHugePages"] == 2 * HUGE // 1024
            assert KpageFlag.THP in flags(memory, 5)
            traffic.progress()
            for at in range(0, HUGE, 37 * PAGE):
                mine.write(HUGE + at, b"in a huge page")
                shadow[at : at + 14] = b"in a huge page"
            assert memory.advise(MADV_COLD, 0, PAGE) == 0  # a part of it alone: it is split
            assert memory.advise(MADV_COLD, HUGE, PAGE) == 0
            after = vmstat("thp_split_page", "thp_split_pmd")
            assert after["thp_split_page"] >= before["thp_split_page"] + 2
            assert after["thp_split_pmd"] >= before["thp_split_pmd"] + 2
            assert KpageFlag.THP not in flags(memory, 5)
            assert smaps(memory.addr)["AnonHugePages"] == 0
            assert mine.read(HUGE, HUGE) == shadow == memory.at(HUGE, HUGE)


@pytest.mark.parametrize("direct", [False, True], ids=["through the kernel", "direct"])
def test_ksm(bench: Lab, direct: bool) -> None:
    """Equal pages become one; a WRITE to one of them is not seen in the others.

    A READ through the kernel separates a page, too (it pins what it copies, and pins no shared page), and it is merged
    again; one of memory that the device touches directly leaves it merged.
    """
    if not KSM.exists():
        pytest.skip("machine lacks: KSM (a kernel without CONFIG_KSM)")
    memory = Memory(N * PAGE)
    memory.fill(6)
    for page in ODD:
        memory.bytes[page * PAGE : (page + 1) * PAGE] = 0x77
    region = bench.direct(memory) if direct else bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    with contextlib.ExitStack() as stack:
        stack.enter_context(setting(KSM / "sleep_millisecs", "0"))
        stack.enter_context(setting(KSM / "pages_to_scan", "1000"))
        stack.enter_context(setting(KSM / "run", "1", "2"))  # 2 separates what was merged
        traffic = stack.enter_context(Traffic(other, EVEN, 7).running())
        assert memory.advise(mmap.MADV_MERGEABLE) == 0
        until(lambda: all(KpageFlag.KSM in flags(memory, page) for page in ODD))
        with Pagemap() as pagemap:
            assert len(set(pagemap.frames(memory.addr, memory.length)[ODD].tolist())) == 1
        assert int((KSM / "pages_sharing").read_text()) >= len(ODD) - 1
        traffic.progress()
        assert mine.read(PAGE, PAGE) == b"\x77" * PAGE
        if direct:
            assert KpageFlag.KSM in flags(memory, 1)
        until(lambda: KpageFlag.KSM in flags(memory, 1))
        before = vmstat("cow_ksm")["cow_ksm"]
        mine.write(3 * PAGE + 5, b"separate")
        assert vmstat("cow_ksm")["cow_ksm"] > before
        assert KpageFlag.KSM not in flags(memory, 3)
        assert memory.at(3 * PAGE, PAGE) == b"\x77" * 5 + b"separate" + b"\x77" * (PAGE - 13)
        for page in ODD:
            if page != 3:
                assert mine.read(page * PAGE, PAGE) == b"\x77" * PAGE


def test_swap_to_zram(bench: Lab) -> None:
    """Pages go out and come back when the device needs them, with what it wrote."""
    memory = Memory(N * PAGE)
    memory.fill(8)
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    with zram_swap() as zram, Traffic(other, EVEN, 9).running() as traffic:
        for round_ in range(4):
            mark = b"round %d" % round_
            for page in ODD:
                mine.write(page * PAGE, mark)
            before = vmstat("pswpin", "pswpout")
            for page in ODD:
                until(lambda page=page: swapped_out(memory, page))
            after = vmstat("pswpin", "pswpout")
            assert after["pswpout"] >= before["pswpout"] + len(ODD)
            assert zram.stored_bytes() > 0
            assert smaps(memory.addr)["Swap"] > 0
            traffic.progress()
            for page in ODD:
                assert mine.read(page * PAGE, 7) == mark
                mine.write(page * PAGE + 7, mark)
                assert memory.at(page * PAGE, 14) == mark + mark
            assert vmstat("pswpin")["pswpin"] >= after["pswpin"] + len(ODD)
        assert memory.advise(MADV_PAGEOUT) == 0  # those in use as well
        traffic.progress(100)


def swapped_out(memory: Memory, page: int) -> bool:
    """Ask for it, and whether it is."""
    memory.advise(MADV_PAGEOUT, page * PAGE, PAGE)
    with Pagemap() as pagemap:
        return bool(pagemap.scan(memory.addr + page * PAGE, PAGE, mask=Category.SWAPPED))


def test_compaction(bench: Lab) -> None:
    """Pages move to other frames."""
    pages = 1 << 14
    memory = Memory(pages * PAGE)
    assert memory.advise(mmap.MADV_NOHUGEPAGE) == 0
    memory.bytes[:] = 1
    kept = list(range(0, pages, 8))
    for page in range(0, pages, 8):  # holes between them, for there to be something to compact
        assert memory.advise(mmap.MADV_DONTNEED, (page + 1) * PAGE, 7 * PAGE) == 0
    region = bench.watched(memory)
    mine, other = bench.peer(region), bench.peer(region)
    shadow = {}
    for page in kept[1::2]:
        mine.write(page * PAGE, b"page %6d" % page)
        shadow[page] = b"page %6d" % page + b"\1"
    with Traffic(other, kept[0::32], 10).running() as traffic, Pagemap() as pagemap:
        before, old = vmstat("pgmigrate_success"), pagemap.frames(memory.addr, memory.length)[kept]

        def compact() -> int:
            (COMPACT / "compact_memory").write_text("1")
            return int(np.count_nonzero(pagemap.frames(memory.addr, memory.length)[kept] != old))

        until(compact)
        assert vmstat("pgmigrate_success")["pgmigrate_success"] > before["pgmigrate_success"]
        traffic.progress()
        for page, expected in shadow.items():
            assert mine.read(page * PAGE, 12) == expected
