"""userfaultfd and pagemap as the kernel has them: messages, pages placed, errors."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netio.pagemap import Category, Pagemap
from netio.uffd import (
    EVENTS,
    Fault,
    FaultFlag,
    Feature,
    Fork,
    Mode,
    Remap,
    Remove,
    Unmap,
    Userfaultfd,
    parse_messages,
    supported,
)
from softrnic.errors import IoError, WireError
from tests.uffd.lab import MREMAP_FIXED, MREMAP_MAYMOVE, PAGE, Memory, libc, until

live = pytest.mark.privileged("userfaultfd")


def message(event: int, a: int = 0, b: int = 0, c: int = 0) -> bytes:
    return struct.pack("=B7xQQQ", event, a, b, c)


# --- messages -------------------------------------------------------------------------------------------------


def test_messages() -> None:
    data = (
        message(0x12, 3, 0x7000, 42)
        + message(0x13, 9)
        + message(0x14, 1, 2, 3)
        + message(0x15, 0x1000, 0x2000)
        + message(0x16, 0x1000, 0x3000)
    )
    assert parse_messages(data) == [
        Fault(FaultFlag.WRITE | FaultFlag.WP, 0x7000, 42),
        Fork(9),
        Remap(1, 2, 3),
        Remove(0x1000, 0x2000),
        Unmap(0x1000, 0x3000),
    ]


@pytest.mark.parametrize(
    "data",
    [message(0x12)[:-1], message(0x11), message(0x17), message(0), message(0x12, 8), message(0x15, 2, 2)],
    ids=["cut", "below", "above", "nothing", "flag", "empty range"],
)
def test_no_messages(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_messages(data)


@given(st.binary(max_size=96))
def test_any_bytes(data: bytes) -> None:
    """Messages or WireError, never anything else."""
    with contextlib.suppress(WireError):
        assert len(parse_messages(data)) * 32 == len(data)


# --- the descriptor -------------------------------------------------------------------------------------------


@pytest.fixture
def uffd() -> Userfaultfd:
    """With all events."""
    return Userfaultfd.open(EVENTS & supported())


class InThread(threading.Thread):
    """Something that waits in the kernel, and what came of it."""

    def __init__(self, work) -> None:
        super().__init__(daemon=True)
        self.work, self.result = work, None
        self.start()

    def run(self) -> None:
        self.result = self.work()

    def outcome(self):
        self.join(30)
        assert not self.is_alive()
        return self.result


def peek(memory: Memory, offset: int) -> InThread:
    """A processor that reads a byte without the interpreter."""
    into = ctypes.create_string_buffer(1)

    def work() -> bytes:
        libc.memcpy(ctypes.addressof(into), memory.addr + offset, 1)
        return into.raw

    return InThread(work)


@live
def test_a_feature_that_no_kernel_has() -> None:
    with pytest.raises(IoError) as refused:
        Userfaultfd.open(Feature(1 << 40))
    assert refused.value.errno == errno.EINVAL


@live
def test_missing_pages(uffd: Userfaultfd) -> None:
    """Copied, zeroed, and what the kernel says when they are there already."""
    memory = Memory(4 * PAGE)
    uffd.register(memory.addr, memory.length, Mode.MISSING)
    reader = peek(memory, 5)
    (fault,) = until(uffd.read)
    assert fault == Fault(FaultFlag(0), memory.addr, 0)
    assert uffd.waiting[1] == 1
    source = bytes(range(256)) * 16
    held = (ctypes.c_char * PAGE).from_buffer_copy(source)
    assert uffd.copy(memory.addr, ctypes.addressof(held), PAGE) == PAGE
    assert reader.outcome() == b"\x05"
    assert uffd.zeropage(memory.addr + PAGE, 3 * PAGE) == 3 * PAGE
    assert memory.at(0, PAGE) == source
    assert memory.at(PAGE, PAGE) == bytes(PAGE)
    for again in (lambda: uffd.zeropage(memory.addr, PAGE), lambda: uffd.copy(memory.addr, memory.addr, PAGE)):
        with pytest.raises(IoError) as there:
            again()
        assert there.value.errno == errno.EEXIST
    uffd.close()


@live
def test_minor_faults() -> None:
    """The page cache has the page; it is mapped by CONTINUE."""
    if Feature.MINOR_SHMEM not in supported():
        pytest.skip("machine lacks: UFFD_FEATURE_MINOR_SHMEM")
    fd = os.memfd_create("minor")
    os.ftruncate(fd, PAGE)
    os.pwrite(fd, b"cached", 0)
    memory = Memory(PAGE, fd=fd)
    with Userfaultfd.open(Feature.MINOR_SHMEM) as uffd:
        uffd.register(memory.addr, PAGE, Mode.MINOR)
        reader = peek(memory, 0)
        (fault,) = until(uffd.read)
        assert fault.flags == FaultFlag.MINOR
        assert uffd.continue_(memory.addr, PAGE) == PAGE
        assert reader.outcome() == b"c"


@live
def test_write_protection() -> None:
    memory = Memory(PAGE)
    memory.fill(1)
    with Userfaultfd.open(Feature.PAGEFAULT_FLAG_WP) as uffd:
        uffd.register(memory.addr, PAGE, Mode.WP)
        uffd.writeprotect(memory.addr, PAGE, True)
        writer = InThread(lambda: libc.memcpy(memory.addr + 1, memory.addr, 1))
        (fault,) = until(uffd.read)
        assert fault.flags == FaultFlag.WP | FaultFlag.WRITE
        uffd.writeprotect(memory.addr, PAGE, False)
        writer.outcome()
        assert memory.bytes[1] == memory.bytes[0]


@live
def test_events(uffd: Userfaultfd) -> None:
    """Whoever causes one waits until it is read."""
    memory, far = Memory(8 * PAGE), Memory(PAGE)
    memory.fill(2)
    uffd.register(memory.addr, memory.length, Mode.MISSING)
    at = memory.addr
    for work, expected in (
        (lambda: libc.madvise(at, PAGE, 4), [Remove(at, at + PAGE)]),
        (
            lambda: libc.mremap(at + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, far.addr),
            [Remap(at + PAGE, far.addr, PAGE), Unmap(at + PAGE, at + 2 * PAGE)],
        ),
        (lambda: libc.munmap(at + 2 * PAGE, 2 * PAGE), [Unmap(at + 2 * PAGE, at + 4 * PAGE)]),
    ):
        caller = InThread(work)
        got: list[object] = []
        until(lambda: got.extend(uffd.read()) or len(got) == len(expected))  # noqa: B023
        assert got == expected
        caller.outcome()
    assert uffd.read() == []
    uffd.close()


@live
def test_moved_pages() -> None:
    if Feature.MOVE not in supported():
        pytest.skip("machine lacks: UFFDIO_MOVE")
    source, target = Memory(PAGE), Memory(PAGE)
    source.fill(3)
    was = source.at(0, PAGE)
    with Userfaultfd.open() as uffd:
        uffd.register(target.addr, PAGE, Mode.MISSING)
        assert uffd.move(target.addr, source.addr, PAGE) == PAGE
        assert target.at(0, PAGE) == was
        assert source.at(0, PAGE) == bytes(PAGE)


@live
def test_adopted(uffd: Userfaultfd) -> None:
    """Its features are known; what is no userfaultfd is refused."""
    with Userfaultfd.adopt(os.dup(uffd.fileno())) as adopted:
        assert adopted.features == uffd.features
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in (null, 1 << 20):
        with pytest.raises(IoError):
            Userfaultfd.adopt(fd)
    os.close(null)
    uffd.close()


@live
@pytest.mark.parametrize("call", ["register", "unregister", "wake", "zeropage", "continue_"])
def test_refused(call: str) -> None:
    """Addresses that are none, and odd ones, are errors of the kernel."""
    with Userfaultfd.open() as uffd:
        for start, length in ((1, PAGE), (PAGE, 0), (1 << 62, PAGE)):
            with pytest.raises(IoError):
                getattr(uffd, call)(start, length, *([Mode.MISSING] if call == "register" else []))


# --- pagemap --------------------------------------------------------------------------------------------------


@live
def test_written_pages_exactly() -> None:
    """PAGEMAP_SCAN reports each written page once, however many ranges that makes."""
    wanted = Feature.WP_ASYNC | Feature.WP_UNPOPULATED | Feature.PAGEFAULT_FLAG_WP
    if wanted & ~supported():
        pytest.skip("machine lacks: UFFD_FEATURE_WP_ASYNC")
    memory = Memory(2048 * PAGE)
    with Userfaultfd.open(wanted) as uffd, Pagemap() as pagemap:
        uffd.register(memory.addr, memory.length, Mode.WP)
        uffd.writeprotect(memory.addr, memory.length, True)
        assert pagemap.written(memory.addr, memory.length) == []
        memory.bytes[:: 2 * PAGE] = 1  # 1024 ranges: more than one call returns
        found = pagemap.written(memory.addr, memory.length)
        assert [(f.start - memory.addr) // PAGE for f in found] == list(range(0, 2048, 2))
        assert all(f.end - f.start == PAGE and f.categories == Category.WRITTEN for f in found)
        assert pagemap.written(memory.addr, memory.length) == []
        memory.bytes[5 * PAGE : 8 * PAGE] = 1
        (found_run,) = pagemap.written(memory.addr, memory.length)
        assert (found_run.start, found_run.end) == (memory.addr + 5 * PAGE, memory.addr + 8 * PAGE)


@live
def test_pages_that_were_not_prepared() -> None:
    memory = Memory(PAGE)
    memory.fill(4)
    with Pagemap() as pagemap, pytest.raises(IoError) as refused:
        pagemap.written(memory.addr, PAGE)
    assert refused.value.errno == errno.EPERM
