"""A resolver and its reader: who may wait for whom, what they refuse, how memory moves with its slot, the end."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import threading

import numpy as np
import pytest

from netio.uffd import Mode
from softrnic.control.odp.postcopy import Postcopy
from softrnic.control.odp.resolver import Resolver
from softrnic.errors import IoError
from softrnic.verbs import ProcessMemory, VerbsError
from tests.uffd.lab import MREMAP_FIXED, MREMAP_MAYMOVE, ODP, PAGE, Lab, Memory, libc, until

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600), pytest.mark.privileged("userfaultfd")]
N = 16


def own_slot(bench: Lab, memory: Memory, at: int = 1 << 30):
    """Memory of this process as a slot of a space, reached through the kernel."""
    space = bench.device.create_space(paged=True)
    bench.resolver.serve(space)
    slot = space.add_slot(at, ProcessMemory(os.getpid(), memory.addr, memory.length))
    return space, slot


# --- who waits for whom ---------------------------------------------------------------------------------------


def test_a_fault_with_the_interpreter_held(bench: Lab) -> None:
    """A thread that holds Python's lock meets a missing page: the reader needs no lock to answer."""
    memory = Memory(N * PAGE)
    space, _ = own_slot(bench, memory)
    bench.resolver.watch(space, 1 << 30, memory.length, mode=Mode.MISSING)
    before = bench.resolver.reader.answered
    for page in range(N):
        assert memory.bytes[page * PAGE] == 0
    until(lambda: bench.resolver.reader.answered == before + N)
    assert memory.advise(mmap.MADV_DONTNEED) == 0
    child = os.fork()
    if child == 0:
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_the_device_never_waits_for_a_missing_page_of_this_process(bench: Lab) -> None:
    """Its access fails at once and becomes a fault, which the keeper has answered with zeros."""
    memory = Memory(N * PAGE)
    space, _ = own_slot(bench, memory)
    bench.resolver.watch(space, 1 << 30, memory.length, mode=Mode.MISSING)
    region = bench.pd.reg_physical_mr(space, 0, [(1 << 30, memory.length)], ODP)
    peer = bench.peer(region)
    assert peer.read(0, memory.length) == bytes(memory.length)
    for page in range(N):
        assert memory.advise(mmap.MADV_DONTNEED, page * PAGE, PAGE) == 0
        peer.write(page * PAGE + 8, b"written")
        assert memory.at(page * PAGE, 16) == bytes(8) + b"written\0"
    assert region.statistic()["page_faults"] > N


def test_threads_fault_drop_and_fork(bench: Lab) -> None:
    """Beside each access of the device some pages are dropped, all are read, and now and then the process forks.

    Only some: a page dropped again each time before the device comes to it would keep it from getting anywhere.
    """
    memory = Memory(N * PAGE)
    space, _ = own_slot(bench, memory)
    bench.resolver.watch(space, 1 << 30, memory.length, mode=Mode.MISSING)
    region = bench.pd.reg_physical_mr(space, 0, [(1 << 30, memory.length)], ODP)
    peer = bench.peer(region, timeout=20)
    turns, failures = threading.Semaphore(0), []
    over = threading.Event()

    def disturb(seed: int) -> None:
        chance = random.Random(seed)
        while turns.acquire() and not over.is_set():
            if memory.advise(mmap.MADV_DONTNEED, chance.randrange(N) * PAGE, PAGE):
                failures.append("madvise")
            if not set(np.unique(memory.bytes).tolist()) <= {0, 9}:
                failures.append("bytes")

    threads = [threading.Thread(target=disturb, args=(seed,), daemon=True) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(100):
            turns.release(4)
            peer.write(0, b"\t" * memory.length)
            assert set(peer.read(0, memory.length)) <= {0, 9}
            if i % 10 == 0:
                child = os.fork()
                if child == 0:
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        over.set()
        turns.release(2)
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


# --- post-copy within this process ----------------------------------------------------------------------------


def test_a_forked_child_gets_what_is_still_to_come(bench: Lab) -> None:
    """Pages that arrive after a fork arrive in both; each is fetched once."""
    memory = Memory(N * PAGE)
    space, _ = own_slot(bench, memory)
    data = np.random.default_rng(1).integers(0, 256, memory.length, np.uint8).tobytes()
    asked: list[int] = []

    class Source:
        def request(self, addr: int, length: int, urgent: bool) -> None:
            asked.append(addr)

    postcopy = Postcopy(bench.resolver, space, Source())
    postcopy.watch(1 << 30, memory.length)
    postcopy.start()
    region = bench.pd.reg_physical_mr(space, 0, [(1 << 30, memory.length)], ODP)
    peer = bench.peer(region)
    (ready, tell), (go, say) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"!")
        os.read(go, 1)
        os._exit(0 if memory.at(0, memory.length) == data else 1)
    os.read(ready, 1)
    os.write(say, b"!")
    until(lambda: len(asked) == 1)  # the child's first page
    postcopy.arrive(asked[0], data[:PAGE])
    for page in range(1, N):
        postcopy.arrive((1 << 30) + page * PAGE, data[page * PAGE : (page + 1) * PAGE])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert memory.at(0, memory.length) == data == peer.read(0, memory.length)
    assert len(asked) == len(set(asked))
    for fd in (ready, tell, go, say):
        os.close(fd)


# --- memory moves with its slot -------------------------------------------------------------------------------


def test_a_slot_follows_its_memory(bench: Lab) -> None:
    """All of it has moved: the region goes on, at the same addresses on the wire."""
    memory, target = Memory(N * PAGE), Memory(N * PAGE)
    memory.fill(2)
    was = memory.at(0, memory.length)
    space, slot = own_slot(bench, memory)
    bench.resolver.watch(space, 1 << 30, memory.length)
    region = bench.pd.reg_physical_mr(space, 0, [(1 << 30, memory.length)], ODP)
    peer = bench.peer(region)
    assert peer.read(0, memory.length) == was
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    assert libc.mremap(memory.addr, memory.length, memory.length, flags, target.addr) == target.addr
    until(lambda: slot.host == target.addr)
    assert peer.read(0, memory.length) == was
    peer.write(100, b"at its new place")
    assert target.at(100, 16) == b"at its new place"
    assert target.advise(mmap.MADV_DONTNEED) == 0  # it is still watched
    until(lambda: region.statistic()["page_invalidations"] >= 2)
    assert peer.read(0, memory.length) == bytes(memory.length)


# --- refusals -------------------------------------------------------------------------------------------------


def test_memory_that_the_device_touches_directly_must_not_fault(bench: Lab) -> None:
    memory = Memory(PAGE)
    space = bench.device.create_space(paged=True)
    space.add_slot(0, memory.buffer)
    with pytest.raises(VerbsError) as refused:
        bench.resolver.watch(space, 0, PAGE, mode=Mode.MISSING)
    assert refused.value.errno == errno.EINVAL


def test_watching_what_is_not_there(bench: Lab) -> None:
    """Outside of the slot; with nothing mapped; what another descriptor has already."""
    memory = Memory(2 * PAGE)
    space, _ = own_slot(bench, memory)
    with pytest.raises(VerbsError):
        bench.resolver.watch(space, 0, PAGE)
    with pytest.raises(VerbsError):
        bench.resolver.watch(space, 1 << 30, 3 * PAGE)
    bench.resolver.watch(space, 1 << 30, 2 * PAGE)
    with Resolver() as other, pytest.raises(IoError) as taken:
        other.watch(space, 1 << 30, 2 * PAGE)
    assert taken.value.errno == errno.EBUSY
    space.add_slot(1 << 40, ProcessMemory(os.getpid(), PAGE, PAGE))  # below vm.mmap_min_addr
    with pytest.raises(IoError):
        bench.resolver.watch(space, 1 << 40, PAGE)


# --- the end --------------------------------------------------------------------------------------------------


def leftovers() -> tuple[int, list[str]]:
    """Descriptors open, threads of resolvers alive."""
    threads = [t.name for t in threading.enumerate() if t.name.startswith(("odp-", "uffd-"))]
    return len(os.listdir("/proc/self/fd")), threads


def test_closing_gives_everything_back(bench: Lab) -> None:
    """Memory is ordinary again, and spaces have their pages as without a resolver."""
    memory = Memory(N * PAGE)
    space = bench.device.process_space
    region = bench.pd.reg_mr(memory.buffer, ODP)
    peer = bench.peer(region)
    before = leftovers()
    resolver = Resolver()
    resolver.serve(space)
    resolver.watch(space, memory.addr, memory.length)
    peer.write(0, b"x" * memory.length)
    resolver.close()
    resolver.close()
    assert leftovers() == before
    assert memory.advise(mmap.MADV_DONTNEED) == 0
    space.invalidate(memory.addr, memory.length)
    assert peer.read(0, memory.length) == bytes(memory.length)


def test_a_thread_in_a_watched_page_outlives_the_resolver(bench: Lab) -> None:
    """Nobody brings the page any more: the waiting thread goes on with zeros."""
    memory = Memory(PAGE)
    space, _ = own_slot(bench, memory)

    class Nowhere:
        def request(self, addr: int, length: int, urgent: bool) -> None:
            asked.set()

    asked = threading.Event()
    with Resolver() as resolver:
        postcopy = Postcopy(resolver, space, Nowhere())
        postcopy.watch(1 << 30, PAGE)
        into = ctypes.create_string_buffer(b"?", 1)
        thread = threading.Thread(target=lambda: libc.memcpy(ctypes.addressof(into), memory.addr, 1), daemon=True)
        thread.start()
        assert asked.wait(60)
    thread.join(60)
    assert into.raw == b"\0"
