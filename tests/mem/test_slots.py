"""Slots of every kind, under traffic: buffers, files, other processes; plugged, unplugged, taken away by force."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.verbs import (
    Access,
    AddressSpace,
    FileMemory,
    ProcessMemory,
    Qp,
    RecvWr,
    SendWr,
    VerbsError,
    WrOpcode,
)
from tests.odp.world import BASE, PAGE, World, statuses
from tests.pairs import ALL_ACCESS

LIBC = ctypes.CDLL(None, use_errno=True)
N = 6000
PROT_NONE = 0

# A process with memory of its own: prints where, then waits.
HOLDER = """
import mmap, ctypes, sys
m = mmap.mmap(-1, 1 << 16)
m[:] = bytes(i * 7 % 251 for i in range(1 << 16))
print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process and its memory."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = int(self.process.stdout.readline())

    @property
    def memory(self) -> ProcessMemory:
        return ProcessMemory(self.process.pid, self.address, 1 << 16)

    def die(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def holder() -> Iterator[Holder]:
    h = Holder()
    yield h
    h.die()
    h.process.stdin.close()  # type: ignore[union-attr]
    h.process.stdout.close()  # type: ignore[union-attr]


def world() -> tuple[World, Qp, Qp]:
    w = World(paged=False)
    w.random(5)
    qp, peer = w.connect()
    return w, qp, peer


def post(w: World, qp: Qp, opcode: WrOpcode, addr: int, rkey: int, n: int = N, wr_id: int = 1) -> list[str]:
    """One request of a's buffer, played to its end."""
    qp.post_send(SendWr(opcode, [w.a.mr.sge(0, n)], wr_id, remote_addr=addr, rkey=rkey))
    w.play()
    return statuses(w.poll())


def memfd(size: int, *, seal: bool) -> int:
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    if seal:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


# --- kinds ----------------------------------------------------------------------------------------------------


KINDS = ("buffer", "bytearray", "sealed", "unsealed", "file", "file mapping", "process", "own")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, tmp_path, holder: Holder) -> None:
    """The same bytes go in and out whatever is behind the addresses; which of it the engine touches itself is known."""
    w, qp, _ = world()
    space, size = w.space, 1 << 16
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    with open(path, "r+b") as file:
        keep = np.zeros(size, np.uint8)
        memory = {
            "buffer": lambda: keep, "bytearray": lambda: bytearray(size), "process": lambda: holder.memory,
            "sealed": lambda: FileMemory(memfd(size, seal=True), size),
            "unsealed": lambda: FileMemory(memfd(size, seal=False), size),
            "file": lambda: FileMemory(file.fileno(), size), "file mapping": lambda: mmap.mmap(file.fileno(), size),
            "own": lambda: ProcessMemory(os.getpid(), int(keep.ctypes.data), size),
        }[kind]()  # fmt: skip
        slot = space.add_slot(1 << 30, memory)
    touched_by_kernel = kind in ("unsealed", "file", "file mapping", "process", "own")
    assert (slot.pid != 0) == touched_by_kernel
    mr = w.b.pd.reg_physical_mr(space, 0, [((1 << 30) + 104, size - 104)], ALL_ACCESS)
    space.start_tracking()
    assert post(w, qp, WrOpcode.RDMA_WRITE, 5, mr.rkey) == ["SUCCESS"]
    assert (space.peek((1 << 30) + 109, N) == w.a.buf[:N]).all()
    assert list(space.written()) == [(1 << 30, 2 * PAGE)]
    sent = w.a.buf[:N].copy()
    w.a.buf[:] = 0
    assert post(w, qp, WrOpcode.RDMA_READ, 5, mr.rkey) == ["SUCCESS"]
    assert (w.a.buf[:N] == sent).all()
    space.poke((1 << 30) + 4096, (1 << 62).to_bytes(8, "little"))
    qp.post_send(SendWr(WrOpcode.ATOMIC_FETCH_AND_ADD, [w.a.mr.sge(0, 8)], 1, remote_addr=4096 - 104, rkey=mr.rkey,
                        compare_add=3))  # fmt: skip
    qp.post_send(SendWr(WrOpcode.ATOMIC_CMP_AND_SWP, [w.a.mr.sge(8, 8)], 2, remote_addr=4096 - 104, rkey=mr.rkey,
                        compare_add=1, swap=9))  # fmt: skip
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"] * 2
    assert w.a.buf[:16].view(np.int64).tolist() == [1 << 62, (1 << 62) + 3]
    assert int(space.peek((1 << 30) + 4096, 8).view(np.int64)[0]) == (1 << 62) + 3


def test_sealed_against_shrinking_only_of_small_pages() -> None:
    """Huge pages can run out under a mapping: they are the kernel's to copy."""
    w = World()
    try:
        fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
        os.ftruncate(fd, 2 << 20)
        slot = None
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        slot = w.space.add_slot(1 << 30, FileMemory(fd, 2 << 20))
    except (OSError, VerbsError) as error:
        pytest.skip(f"no huge pages here: {error}")
    assert slot.pid == os.getpid()


# --- memory that goes away behind our back --------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ])
def test_process_dies(holder: Holder, opcode: WrOpcode) -> None:
    """Its memory is a remote access error to peers; the device and its other regions go on."""
    w, qp, _ = world()
    slot = w.space.add_slot(1 << 30, holder.memory)
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 1 << 16)], ALL_ACCESS)
    assert post(w, qp, opcode, 0, mr.rkey) == ["SUCCESS"]
    assert not slot.lost
    holder.die()
    assert slot.lost
    assert post(w, qp, opcode, 0, mr.rkey) == ["REM_ACCESS_ERR"]
    other = w.connect()[0]
    assert post(w, other, opcode, w.b.mr.iova, w.b.mr.rkey) == ["SUCCESS"]


def test_process_dies_under_our_own_requests(holder: Holder) -> None:
    w, _, peer = world()
    w.space.add_slot(1 << 30, holder.memory)
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 1 << 16)], ALL_ACCESS)
    holder.die()
    peer.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, N)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    w.play()
    assert statuses(w.poll("b")) == ["LOC_PROT_ERR"]


def test_process_dies_under_a_receive(holder: Holder) -> None:
    w, qp, peer = world()
    w.space.add_slot(1 << 30, holder.memory)
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 1 << 16)], ALL_ACCESS)
    peer.post_recv(RecvWr([mr.sge(0, N)], 7))
    holder.die()
    qp.post_send(SendWr(WrOpcode.SEND, [w.a.mr.sge(0, N)], 1))
    w.play()
    assert statuses(w.poll()) == ["REM_OP_ERR"]
    assert statuses(w.poll("b")) == ["LOC_PROT_ERR"]


def test_dead_process_in_a_paged_space(holder: Holder) -> None:
    """Not a fault to be resolved again and again, and its number is never used again."""
    w = World()
    w.random(6)
    slot = w.space.add_slot(1 << 30, holder.memory)
    mr = w.b.pd.reg_all(w.space, ALL_ACCESS, odp=True)
    (qp, _), (again, _) = w.connect(), w.connect()
    holder.die()
    assert post(w, qp, WrOpcode.RDMA_WRITE, 1 << 30, mr.rkey) == ["REM_ACCESS_ERR"]
    assert slot.pid == int(w.b.device.record["slots"][int(w.b.device.record["spaces"][w.space.index]["slot_first"]) + 1]
                           ["pid"]) == 0x7FFFFFFF  # fmt: skip
    assert post(w, again, WrOpcode.RDMA_READ, 1 << 30, mr.rkey) == ["REM_ACCESS_ERR"]


@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_truncated_file(kind: str, tmp_path) -> None:
    """What a mapping would answer with SIGBUS is an access error."""
    w, qp, _ = world()
    if kind == "memfd":
        fd = memfd(1 << 16, seal=False)
    else:
        (tmp_path / "f").write_bytes(bytes(1 << 16))
        fd = os.open(tmp_path / "f", os.O_RDWR)
    w.space.add_slot(1 << 30, FileMemory(fd, 1 << 16))
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 1 << 16)], ALL_ACCESS)
    os.ftruncate(fd, PAGE)
    os.close(fd)
    assert post(w, qp, WrOpcode.RDMA_WRITE, 0, mr.rkey, PAGE) == ["SUCCESS"]
    assert post(w, qp, WrOpcode.RDMA_WRITE, 0, mr.rkey) == ["REM_ACCESS_ERR"]
    with pytest.raises(VerbsError, match="cannot be read"):
        w.space.peek((1 << 30) + PAGE, 1)
    with pytest.raises(VerbsError, match="cannot be written"):
        w.space.poke((1 << 30) + PAGE, b"x")


@pytest.mark.parametrize("opcode", [WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ])
@pytest.mark.parametrize("how", ["munmap", "mprotect"])
def test_own_memory_is_unmapped_under_odp(how: str, opcode: WrOpcode) -> None:
    """An on-demand region of a buffer of our own survives whatever its owner does; the peer has an access error."""
    w, qp, _ = world()
    size = 16 * PAGE
    LIBC.mmap.restype = ctypes.c_void_p
    LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    at = LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    buffer = (ctypes.c_uint8 * size).from_address(at)
    mr = w.b.pd.reg_mr(buffer, ALL_ACCESS | Access.ON_DEMAND)
    assert post(w, qp, opcode, mr.iova, mr.rkey) == ["SUCCESS"]
    assert w.b.device.counter(C.PAGE_FAULTS) > 0
    assert (LIBC.munmap(at, size) if how == "munmap" else LIBC.mprotect(at, size, PROT_NONE)) == 0
    assert post(w, qp, opcode, mr.iova, mr.rkey) == ["REM_ACCESS_ERR"]
    mr.dereg()
    if how == "mprotect":
        LIBC.munmap(at, size)


def test_read_only_memory() -> None:
    """Refused where one can see it coming, an access error where not."""
    w, qp, _ = world()
    w.space.add_slot(1 << 30, bytes(1 << 16))
    with pytest.raises(VerbsError, match="read-only"):
        w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 100)], ALL_ACCESS)
    reader = w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 1 << 16)], Access.REMOTE_READ)
    everything = w.b.pd.reg_all(w.space, ALL_ACCESS)
    assert post(w, qp, WrOpcode.RDMA_READ, 0, reader.rkey) == ["SUCCESS"]
    assert post(w, qp, WrOpcode.RDMA_WRITE, 1 << 30, everything.rkey) == ["REM_ACCESS_ERR"]


# --- plugging -------------------------------------------------------------------------------------------------


def test_plug_and_unplug() -> None:
    """A region over everything follows: memory, a hole, other memory; a hole reads as zeros and swallows writes."""
    w, qp, _ = world()
    mr = w.b.pd.reg_all(w.space, ALL_ACCESS)
    where = 1 << 33
    assert post(w, qp, WrOpcode.RDMA_WRITE, where, mr.rkey) == ["SUCCESS"]
    block = np.zeros(1 << 16, np.uint8)
    slot = w.space.add_slot(where, block)
    assert not block.any()
    assert post(w, qp, WrOpcode.RDMA_WRITE, where, mr.rkey) == ["SUCCESS"]
    assert (block[:N] == w.a.buf[:N]).all()
    w.space.remove_slot(slot)
    other = np.full(1 << 16, 7, np.uint8)
    w.space.add_slot(where + PAGE, other)
    block[:] = 99
    w.a.buf[:] = 1
    assert post(w, qp, WrOpcode.RDMA_READ, where, mr.rkey) == ["SUCCESS"]
    assert w.a.buf[:N].tolist() == [0] * PAGE + [7] * (N - PAGE)
    assert w.b.device.counter(C.HOLE_WRITES) > 0
    assert w.b.device.counter(C.HOLE_READS) > 0


def test_under_traffic() -> None:
    """Neighbours come and go while a long WRITE runs into a slot between them: nothing is lost."""
    w, qp, _ = world()
    mr = w.b.pd.reg_all(w.space, ALL_ACCESS)
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 1 << 17)], 1, remote_addr=BASE, rkey=mr.rkey))
    near = []
    for i in range(30):
        w.round()
        near.append(w.space.add_slot((1 << 34) - i * PAGE if i % 2 else i * 64, bytearray(64)))
        if i % 3 == 2:
            w.space.remove_slot(near.pop(i % len(near)))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert (w.ram[: 1 << 17] == w.a.buf[: 1 << 17]).all()


def test_unplug_in_mid_message() -> None:
    """The rest of a WRITE vanishes; the QP does not."""
    w, qp, _ = world()
    mr = w.b.pd.reg_all(w.space, ALL_ACCESS)
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 1 << 17)], 1, remote_addr=BASE, rkey=mr.rkey))
    before = w.ram.copy()
    w.step()
    w.space.remove_slot(w.slot)
    done = int((w.ram != before).sum())
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert 0 < done < 1 << 17
    assert int((w.ram != before).sum()) == done


def test_pinned() -> None:
    """Memory under a region with ranges stays, unless it is torn away: then an access error, as hardware would say."""
    w, qp, _ = world()
    extra = w.space.add_slot(1 << 30, bytearray(1 << 16))
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(BASE, PAGE), ((1 << 30) + 8, PAGE)], ALL_ACCESS)
    with pytest.raises(VerbsError, match="pinned"):
        w.space.remove_slot(extra)
    w.space.remove_slot(extra, force=True)
    assert post(w, qp, WrOpcode.RDMA_WRITE, 0, mr.rkey, PAGE) == ["SUCCESS"]
    assert post(w, qp, WrOpcode.RDMA_WRITE, 0, mr.rkey, PAGE + 1) == ["REM_ACCESS_ERR"]
    assert w.slot.pins == 1
    mr.dereg()
    w.space.remove_slot(w.slot)


def test_on_demand_does_not_pin() -> None:
    w = World()
    w.region([(0, PAGE)])
    w.space.remove_slot(w.slot)
    assert w.space.slots == []


# --- misuse ---------------------------------------------------------------------------------------------------


def test_overlapping_slots() -> None:
    w = World()
    for addr in (BASE, BASE - 1, BASE + 63 * PAGE, BASE + PAGE):
        with pytest.raises(VerbsError, match="a slot is at"):
            w.space.add_slot(addr, bytearray(2))
    w.space.add_slot(BASE - 2, bytearray(2))
    w.space.add_slot(BASE + 64 * PAGE, bytearray(2))
    with pytest.raises(VerbsError, match="a slot is at"):
        w.space.add_slot(0, bytearray(1 << 20))


@pytest.mark.parametrize(
    ("addr", "memory", "what"),
    [
        (-1, bytearray(1), "wrap"), ((1 << 63) - 1, bytearray(1), "wrap"), (0, bytearray(), "empty"),
        (0, np.zeros((4, 4), np.uint8).T, "contiguous"), (0, FileMemory(0, 0), "none"),
        (0, FileMemory(0, 9, -1), "none"),
        (0, FileMemory(99999, 4096), "mapped"), (0, ProcessMemory(1 << 22, 0, 5), "process"),
        (0, ProcessMemory(1, 1 << 62, 1 << 62), "wrap"),
    ],
)  # fmt: skip
def test_impossible_slots(addr: int, memory: object, what: str) -> None:
    space = World().b.device.create_space()
    with pytest.raises(VerbsError, match=what):
        space.add_slot(addr, memory)
    assert space.slots == []


def test_file_shorter_than_said(tmp_path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    with open(tmp_path / "f", "r+b") as file, pytest.raises(VerbsError, match="cannot be mapped"):
        World().space.add_slot(1 << 30, FileMemory(file.fileno(), 4096))


def test_slots_that_are_not_there() -> None:
    w = World()
    w.space.remove_slot(w.slot)
    with pytest.raises(VerbsError, match="no longer"):
        w.space.remove_slot(w.slot)
    with pytest.raises(VerbsError, match="its place"):
        w.b.device.space.add_slot(0, bytearray(1))
    w.space.destroy()
    with pytest.raises(VerbsError, match="destroyed"):
        w.space.add_slot(0, bytearray(1))
    with pytest.raises(VerbsError, match="destroyed"):
        w.b.pd.reg_all(w.space, Access.LOCAL_WRITE)


def test_destroy_waits_for_regions() -> None:
    w = World()
    mr = w.region([(0, PAGE)])
    with pytest.raises(VerbsError, match="1 regions"):
        w.space.destroy()
    mr.dereg()
    w.space.destroy()
    assert isinstance(w.b.device.create_space(), AddressSpace)


def test_many_slots() -> None:
    """As many as the device has, in any order; all are found."""
    w, qp, _ = world()
    mr = w.b.pd.reg_all(w.space, ALL_ACCESS)
    rng = np.random.default_rng(8)
    blocks = {int(i): np.full(64, i % 251, np.uint8) for i in rng.permutation(500)}
    for i, block in blocks.items():
        w.space.add_slot((1 << 30) + i * 128, block)
    for i in (0, 1, 250, 498, 499):
        assert post(w, qp, WrOpcode.RDMA_READ, (1 << 30) + i * 128 + 1, mr.rkey, 127) == ["SUCCESS"]
        assert w.a.buf[:127].tolist() == [i % 251] * 63 + [0] * 64


def test_no_signal_reaches_us() -> None:
    """The disposition of SIGBUS and SIGSEGV is nobody's business but the program's."""
    before = [signal.getsignal(s) for s in (signal.SIGBUS, signal.SIGSEGV)]
    World()
    assert [signal.getsignal(s) for s in (signal.SIGBUS, signal.SIGSEGV)] == before


def test_memory_that_is_kept() -> None:
    """An on-demand buffer on the heap is touched directly, but for a resolver that moves its pages; a mapping never."""
    w, qp, _ = world()
    heap, mapping = np.zeros(1 << 16, np.uint8), mmap.mmap(-1, 1 << 16)
    regions = [w.b.pd.reg_mr(m, ALL_ACCESS | Access.ON_DEMAND) for m in (heap[100:], bytearray(9000), mapping)]
    held = w.b.device.record["mrs"]["held"]
    assert [int(held[mr.index]) for mr in regions] == [1, 1, 0]
    w.b.device.process_space.resolver = lambda fault: fault.space.resolve(fault.addr, fault.length, fault.write)
    assert [int(held[mr.index]) for mr in regions] == [0, 0, 0]
    assert post(w, qp, WrOpcode.RDMA_WRITE, regions[0].iova, regions[0].rkey) == ["SUCCESS"]
    w.b.device.process_space.resolver = None
    assert [int(held[mr.index]) for mr in regions] == [1, 1, 0]
    assert post(w, qp, WrOpcode.RDMA_WRITE, regions[0].iova + 10, regions[0].rkey) == ["SUCCESS"]
    assert (heap[110 : 110 + N] == w.a.buf[:N]).all()
