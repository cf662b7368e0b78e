"""A device with on-demand memory, a peer that uses it, and a shadow of what its bytes must be.

The peer's accesses run in a thread of their own while a test does something to the memory; every byte that comes back
is compared.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from softrnic.control.fabric import fabric
from softrnic.control.odp.resolver import Resolver
from softrnic.control.pair import CAP, PEER_ACCESS, Endpoint, connect_pair, endpoint
from softrnic.verbs import Access, Mr, QpType, SendWr, Wc, WrOpcode

PAGE = 4096
SECONDS = 60.0  # more than anything here takes
ODP = PEER_ACCESS | Access.ON_DEMAND
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
RW = mmap.PROT_READ | mmap.PROT_WRITE
_NORESERVE, _FIXED = 0x4000, 0x10
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_REMOVE, MADV_PAGEOUT, MADV_COLLAPSE = 9, 21, 25

libc = ctypes.CDLL(None, use_errno=True)  # lets go of the interpreter during a call
_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_size_t, "i": ctypes.c_int}
for _name, _args in {
    "mmap": "pliiil", "munmap": "pl", "mremap": "pllip", "mprotect": "pli", "madvise": "pli", "memcpy": "ppl",
}.items():  # fmt: skip
    getattr(libc, _name).argtypes = [_TYPES[a] for a in _args]
for _name in ("mmap", "mremap", "memcpy"):
    getattr(libc, _name).restype = ctypes.c_void_p


def until(ask: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Ask until the answer is true; what it was."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := ask()):
        assert time.monotonic() < deadline, "it never happened"
        pause.wait(0.002)
    return answer


def vmstat(*names: str) -> dict[str, int]:
    """Counters of /proc/vmstat."""
    with open("/proc/vmstat", encoding="ascii") as file:
        rows = dict(line.split() for line in file)
    return {name: int(rows[name]) for name in names}


def smaps(address: int) -> dict[str, int]:
    """Fields of /proc/self/smaps, in KiB, of the mapping that holds an address."""
    inside = False
    fields: dict[str, int] = {}
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                inside = low <= address < high
            elif inside and line.rstrip().endswith("kB"):
                fields[first[:-1]] = int(line.split()[1])
    return fields


class Memory:
    """Pages of this process at an address aligned to our choice. Never unmapped: addresses are not used twice."""

    def __init__(self, length: int, *, fd: int = -1, align: int = PAGE) -> None:
        base = libc.mmap(None, length + align, 0, PRIVATE | _NORESERVE, -1, 0)
        self.addr = -(-base // align) * align
        self.length = length
        flags = mmap.MAP_SHARED if fd >= 0 else PRIVATE
        assert libc.mmap(self.addr, length, RW, flags | _FIXED, fd, 0) == self.addr
        self.buffer = (ctypes.c_uint8 * length).from_address(self.addr)
        self.bytes = np.frombuffer(self.buffer, np.uint8)

    def advise(self, advice: int, offset: int = 0, length: int | None = None) -> int:
        """madvise: 0, or errno."""
        length = self.length - offset if length is None else length
        return ctypes.get_errno() if libc.madvise(self.addr + offset, length, advice) else 0

    def fill(self, seed: int) -> None:
        """Random bytes everywhere."""
        self.bytes[:] = np.random.default_rng(seed).integers(0, 256, self.length, np.uint8)

    def at(self, offset: int, length: int) -> bytes:
        """Its bytes as a processor sees them."""
        return self.bytes[offset : offset + length].tobytes()


class Peer:
    """One queue pair to the device, with a bounce buffer as large as the region: WRITEs and READs, one at a time."""

    def __init__(self, near: Endpoint, region: Mr) -> None:
        self.near = near
        self.region = region
        self.bounce = np.zeros(region.length, np.uint8)
        self.bounce_mr = near.pd.reg_mr(self.bounce)

    def post(self, opcode: WrOpcode, offset: int, length: int) -> None:
        """Between the bounce buffer and the same place of the region."""
        sge = self.bounce_mr.sge(offset, length)
        where = self.region.iova + offset
        self.near.qp.post_send(SendWr(opcode, [sge], remote_addr=where, rkey=self.region.rkey))

    def done(self) -> Wc:
        """What became of it."""
        (wc,) = self.near.cq.wait(SECONDS)
        return wc

    def try_write(self, offset: int, data: bytes) -> Wc:
        """RDMA WRITE, however it ends."""
        self.bounce[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self.post(WrOpcode.RDMA_WRITE, offset, len(data))
        return self.done()

    def write(self, offset: int, data: bytes) -> None:
        """RDMA WRITE."""
        wc = self.try_write(offset, data)
        assert wc.ok, wc

    def read(self, offset: int, length: int) -> bytes:
        """RDMA READ."""
        self.post(WrOpcode.RDMA_READ, offset, length)
        wc = self.done()
        assert wc.ok, wc
        return self.bounce[offset : offset + length].tobytes()


class Traffic(threading.Thread):
    """Random WRITEs and READs of a list of pages, each answer compared with a shadow. `write=False`: READs only."""

    def __init__(self, peer: Peer, pages: list[int], seed: int, *, write: bool = True) -> None:
        super().__init__(daemon=True)
        self.peer, self.pages, self.write = peer, pages, write
        self.random = random.Random(seed)
        self.shadow = {page: bytearray(peer.read(page * PAGE, PAGE)) for page in pages}
        self.rounds = 0
        self.failure: BaseException | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self._one()
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001  the test raises it
            self.failure = error

    def _one(self) -> None:
        """One access to a stretch of one page."""
        page = self.random.choice(self.pages)
        length = self.random.choice([1, 7, 64, 512, PAGE])
        at = self.random.randrange(PAGE - length + 1)
        if self.write and self.random.random() < 0.5:
            data = self.random.randbytes(length)
            self.peer.write(page * PAGE + at, data)
            self.shadow[page][at : at + length] = data
        else:
            assert self.peer.read(page * PAGE + at, length) == self.shadow[page][at : at + length], page

    def progress(self, rounds: int = 20) -> None:
        """Wait until it has done so much more."""
        goal = self.rounds + rounds
        until(lambda: self.rounds >= goal or self.failure)
        if self.failure:
            raise self.failure

    @contextlib.contextmanager
    def running(self) -> Iterator[Traffic]:
        """While this lasts. At its end all pages are read once more."""
        self.start()
        try:
            self.progress(1)
            yield self
            self.progress()
        finally:
            self.over.set()
            self.join(SECONDS)
        if self.failure:
            raise self.failure
        for page in self.pages:
            assert self.peer.read(page * PAGE, PAGE) == self.shadow[page], page


class Lab:
    """A device `b` with a resolver, and peers of it on `a`."""

    def __init__(self, hosts: Any, resolver: Resolver) -> None:
        self.a, self.b = hosts
        self.resolver = resolver
        self.device = self.b.device
        self.pd = self.device.alloc_pd()

    def peer(self, region: Mr, **attributes: Any) -> Peer:
        """One more queue pair."""
        near = endpoint(self.a)
        cq = self.device.create_cq(16)
        connect_pair(near.qp, self.pd.create_qp(QpType.RC, cq, cq, CAP), **attributes)
        return Peer(near, region)

    def watched(self, memory: Memory, **how: Any) -> Mr:
        """A region on demand over memory of this process, with everything that happens to it heard."""
        region = self.pd.reg_mr(memory.buffer, ODP)
        space = self.device.process_space
        self.resolver.serve(space)
        self.resolver.watch(space, memory.addr, memory.length, **how)
        return region


    def direct(self, memory: Memory) -> Mr:
        """The same over memory that the device touches without asking the kernel: its owner may not unmap it."""
        space = self.device.create_space(paged=True)
        space.add_slot(0, memory.buffer)
        self.resolver.serve(space)
        self.resolver.watch(space, 0, memory.length)
        return self.pd.reg_physical_mr(space, 0, [(0, memory.length)], ODP)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A fresh one."""
    with fabric("memory") as hosts, Resolver() as resolver:
        yield Lab(hosts, resolver)
