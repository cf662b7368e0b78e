"""What devices and processors write to the same memory, merged: exactly the pages that a byte-wise diff finds."""

from __future__ import annotations

import ctypes
import errno
import random

import numpy as np
import pytest

from netio.uffd import EVENTS, Feature, Mode, Userfaultfd, supported
from netio.uffd_reader import Policy
from softrnic.control.odp.cpu_dirty import CpuDirty
from softrnic.verbs import VerbsError
from softrnic.verbs.exports import KvmLog, Merged
from tests.uffd.lab import ODP, PAGE, Lab, Memory, libc

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600), pytest.mark.privileged("userfaultfd")]
N = 200


def differing(before: bytes, after: bytes) -> set[int]:
    """Pages that differ."""
    bytes_differ = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    return set(np.flatnonzero(bytes_differ.reshape(-1, PAGE).any(axis=1)).tolist())


def bits(words: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


@pytest.fixture(params=["PAGEMAP_SCAN", "faults"])
def watch(bench: Lab, request: pytest.FixtureRequest):
    """Memory behind a space, with the processors' writes noted by the kernel, or by the reader."""
    memory = Memory(N * PAGE)
    memory.fill(1)
    space = bench.device.create_space(paged=True)
    space.add_slot(0, memory.buffer)
    bench.resolver.serve(space)
    if request.param == "PAGEMAP_SCAN":
        if Feature.WP_ASYNC not in supported():
            pytest.skip("machine lacks: UFFD_FEATURE_WP_ASYNC")
        return memory, bench.resolver.watch(space, 0, memory.length)
    uffd = Userfaultfd.open(EVENTS | Feature.PAGEFAULT_FLAG_WP)
    found = bench.resolver.watch(space, 0, memory.length, uffd=uffd, policy=Policy.UNPROTECT)
    uffd.register(memory.addr, memory.length, Mode.WP)
    return memory, found


@pytest.mark.parametrize("seed", range(3))
def test_both_write(bench: Lab, watch, seed: int) -> None:
    """WRITEs, READs and processors at random: the report is what was written, no page more or less."""
    memory, watched = watch
    space = watched.space
    region = bench.pd.reg_physical_mr(space, 0, [(0, memory.length)], ODP)
    peer = bench.peer(region)
    space.start_tracking()
    log = KvmLog(Merged([space, CpuDirty(bench.resolver, [watched])]), 0, memory.length)
    log.get()
    chance = random.Random(seed)
    for _ in range(6):
        before = memory.at(0, memory.length)
        written: set[int] = set()
        for _ in range(40):
            offset, length = chance.randrange(memory.length - 9000), chance.choice([1, 8, 100, 4096, 9000])
            fresh = bytes(255 - b for b in memory.at(offset, length))
            kind = chance.randrange(3)
            if kind == 0:
                peer.write(offset, fresh)
            elif kind == 1:
                libc.memcpy(memory.addr + offset, ctypes.addressof(ctypes.create_string_buffer(fresh)), length)
            else:
                assert peer.read(offset, length) == memory.at(offset, length)
            if kind < 2:
                written |= set(range(offset // PAGE, (offset + length - 1) // PAGE + 1))
        assert bits(log.get()) == written >= differing(before, memory.at(0, memory.length))


def test_exactly(bench: Lab, watch) -> None:
    """Bytes that only ever grow: the report and the difference are the same set."""
    memory, watched = watch
    memory.bytes[:] = 0
    space = watched.space
    region = bench.pd.reg_physical_mr(space, 0, [(0, memory.length)], ODP)
    peer = bench.peer(region)
    space.start_tracking()
    log = Merged([space, CpuDirty(bench.resolver, [watched])])
    log.read_and_clear(0, memory.length)
    chance = random.Random(7)
    for round_ in range(1, 20):
        before = memory.at(0, memory.length)
        for _ in range(12):
            offset, length = chance.randrange(memory.length - 9000), chance.choice([1, 8, 100, 4096, 9000])
            if chance.random() < 0.5:
                peer.write(offset, bytes([round_]) * length)
            else:
                memory.bytes[offset : offset + length] = round_
            peer.read(chance.randrange(memory.length - 100), 100)
        now = memory.at(0, memory.length)
        assert bits(log.read_and_clear(0, memory.length)) == differing(before, now)
    assert bits(log.read_and_clear(0, memory.length)) == set()


def test_nobody_to_lift_the_protection(bench: Lab) -> None:
    """Without WP_ASYNC and without the reader's help, writers would wait for ever: refused."""
    memory = Memory(PAGE)
    space = bench.device.create_space(paged=True)
    space.add_slot(0, memory.buffer)
    uffd = Userfaultfd.open(Feature.PAGEFAULT_FLAG_WP)
    watched = bench.resolver.watch(space, 0, PAGE, uffd=uffd, policy=Policy(0))
    with pytest.raises(VerbsError) as refused:
        CpuDirty(bench.resolver, [watched])
    assert refused.value.errno == errno.EINVAL
