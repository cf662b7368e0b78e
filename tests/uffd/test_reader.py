"""The reader alone, without any device: what it answers itself, what it hands on, and how a page is put in place."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from netio.uffd import EVENTS, Fault, Feature, Fork, Mode, Remove, Userfaultfd, supported
from netio.uffd_reader import MAX_FDS, Policy
from softrnic.control.odp.reader import Reader, Span
from softrnic.verbs import VerbsError
from tests.uffd.lab import PAGE, Memory, libc, until

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(120), pytest.mark.privileged("userfaultfd")]
N = 64


@pytest.fixture
def reader() -> Iterator[Reader]:
    """One that is closed at the end."""
    made = Reader()
    yield made
    for span in made.spans:
        span.uffd.close()  # or the next fork waits for ever for somebody to read of it
    made.close()


def covered(reader: Reader, memory: Memory, mode: Mode, policy: Policy) -> Span:
    """Memory registered with a descriptor of its own."""
    features = EVENTS | Feature.PAGEFAULT_FLAG_WP | Feature.MINOR_SHMEM | Feature.MISSING_SHMEM
    uffd = Userfaultfd.open(features & supported())
    span = Span(uffd, memory.addr, memory.length, policy)
    reader.add(span)
    uffd.register(memory.addr, memory.length, mode)
    return span


def test_zeros_with_the_interpreter_held(reader: Reader) -> None:
    """Python code that touches missing pages holds the lock that no answer needs."""
    memory = Memory(N * PAGE)
    covered(reader, memory, Mode.MISSING, Policy.ZERO)
    assert not memory.bytes.any()
    until(lambda: reader.answered == N)
    assert reader.take() == []


def test_more_faults_at_once_than_one_read_returns(reader: Reader) -> None:
    memory = Memory(1024 * PAGE)
    covered(reader, memory, Mode.MISSING, Policy.ZERO)
    into = (ctypes.c_char * 200)()
    threads = [
        threading.Thread(target=libc.memcpy, args=(ctypes.addressof(into) + i, memory.addr + 5 * i * PAGE, 1))
        for i in range(200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    until(lambda: reader.answered == 200)


def test_the_page_cache_has_it(reader: Reader) -> None:
    if Feature.MINOR_SHMEM not in supported():
        pytest.skip("machine lacks: UFFD_FEATURE_MINOR_SHMEM")
    fd = os.memfd_create("minor")
    os.ftruncate(fd, N * PAGE)
    os.pwrite(fd, bytes(range(256)) * (N * PAGE // 256), 0)
    memory = Memory(N * PAGE, fd=fd)
    covered(reader, memory, Mode.MINOR, Policy.CONTINUE)
    assert memory.at(0, N * PAGE) == bytes(range(256)) * (N * PAGE // 256)


def test_writes_are_noted(reader: Reader) -> None:
    """Each page once, until it is protected again."""
    memory = Memory(130 * PAGE)
    memory.fill(1)
    span = covered(reader, memory, Mode.WP, Policy.UNPROTECT)
    log = np.zeros(3, np.uint64)
    reader.record(span, int(log.ctypes.data))
    span.uffd.writeprotect(memory.addr, memory.length, True)
    for page in (0, 63, 64, 129, 63):
        memory.bytes[page * PAGE + 7] = 1
    assert log.tolist() == [1 | 1 << 63, 1, 2]
    assert reader.answered == 4
    reader.record(span, 0)


def test_what_it_does_not_answer(reader: Reader) -> None:
    """Faults without a policy, drops and forks, in order; whoever caused one of the latter has gone on."""
    memory = Memory(2 * PAGE)
    span = covered(reader, memory, Mode.MISSING, Policy(0))
    assert memory.advise(mmap.MADV_DONTNEED) == 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    into = ctypes.create_string_buffer(1)
    toucher = threading.Thread(target=libc.memcpy, args=(ctypes.addressof(into), memory.addr + PAGE, 1))
    toucher.start()
    got: list[object] = []
    until(lambda: got.extend(message for _, message in reader.take()) or len(got) == 3)
    assert got[0] == Remove(memory.addr, memory.addr + 2 * PAGE)
    assert isinstance(got[1], Fork)
    assert isinstance(got[2], Fault)
    assert got[2].address == memory.addr + PAGE
    os.close(got[1].fd)
    span.uffd.zeropage(memory.addr + PAGE, PAGE)
    toucher.join(60)


def test_a_page_is_placed_when_all_messages_are_dealt_with(reader: Reader) -> None:
    """A drop that was read and not dealt with holds the page back; known to be dropped, it is not placed at all."""
    memory = Memory(2 * PAGE)
    span = covered(reader, memory, Mode.MISSING, Policy(0))
    data = np.full(PAGE, 7, np.uint8)
    assert reader.place(span.uffd, memory.addr, data, unless=lambda: False) == 0
    assert memory.at(0, PAGE) == b"\7" * PAGE
    assert reader.place(span.uffd, memory.addr, data, unless=lambda: False) == errno.EEXIST
    assert memory.advise(mmap.MADV_DONTNEED) == 0
    dropped = threading.Event()
    answers: list[int] = []
    placer = threading.Thread(
        target=lambda: answers.append(reader.place(span.uffd, memory.addr, data, unless=dropped.is_set))
    )
    placer.start()
    assert until(reader.take)
    placer.join(0.2)
    assert answers == []
    dropped.set()
    reader.dealt_with()
    placer.join(60)
    assert answers == [errno.ENODATA]


def test_ranges_change_while_it_reads(reader: Reader) -> None:
    """Replaced, taken out, and a descriptor forgotten; there is room for so many."""
    memory = Memory(N * PAGE)
    span = covered(reader, memory, Mode.MISSING, Policy.ZERO)
    halves = [Span(span.uffd, memory.addr + i * N // 2 * PAGE, N // 2 * PAGE, Policy.ZERO) for i in range(2)]
    reader.replace(span, *halves)
    assert memory.bytes[0] == memory.bytes[N // 2 * PAGE] == 0
    reader.remove(halves[1])
    assert reader.spans == [halves[0]]
    others = [Userfaultfd.open() for _ in range(MAX_FDS)]
    with pytest.raises(VerbsError) as full:
        reader.add(*(Span(uffd, 0, PAGE) for uffd in others))
    assert full.value.errno == errno.ENOSPC
    assert memory.bytes[PAGE] == 0
    for uffd in others:
        uffd.close()
    reader.forget(span.uffd)
    assert reader.spans == []
    span.uffd.close()
    assert memory.bytes[(N - 1) * PAGE] == 0
