"""Memory of another process, which has handed its userfaultfd over: its faults and drops, its death, post-copy."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from netio.uffd import Userfaultfd
from softrnic.control.odp.postcopy import Postcopy
from softrnic.control.odp.resolver import Resolver
from softrnic.verbs import FileMemory, Mr, ProcessMemory, WcStatus, WrOpcode
from tests.uffd.lab import ODP, PAGE, Lab, Traffic, until

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600), pytest.mark.privileged("userfaultfd")]
N = 64
KINDS = ["shared", "private"]


class Guest:
    """The process, its memory as a slot at GUEST, and a region on demand over that."""

    AT = 1 << 32

    def __init__(self, bench: Lab, kind: str) -> None:
        ours, theirs = socket.socketpair()
        self.length = N * PAGE
        command = [sys.executable, "-m", "tests.uffd.guest", str(theirs.fileno()), kind, str(self.length)]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        hello, fds, _, _ = socket.recv_fds(ours, 100, 2)
        self.host = int(hello)
        self.uffd = Userfaultfd.adopt(fds[0])
        self.lines, self.sock = ours.makefile("rb"), ours
        self.space = bench.device.create_space(paged=True)
        memory: Any = ProcessMemory(self.process.pid, self.host, self.length)
        if kind == "shared":
            memory = FileMemory(fds[1], self.length)
        self.slot = self.space.add_slot(self.AT, memory)
        bench.resolver.serve(self.space)
        self.region: Mr = bench.pd.reg_physical_mr(self.space, 0, [(self.AT, self.length)], ODP)

    def watch(self, resolver: Resolver) -> None:
        """Answer for its faults: what is missing is zeros."""
        resolver.watch(self.space, self.AT, self.length, uffd=self.uffd, host=self.host)

    def say(self, *words: object) -> None:
        """Send a command."""
        self.sock.send(" ".join(map(str, words)).encode() + b"\n")

    def ask(self, *words: object) -> str:
        """Send a command; the answer."""
        self.say(*words)
        return str(self.lines.readline().decode().strip())

    def read(self, offset: int, length: int) -> bytes:
        return bytes.fromhex(self.ask("read", offset, length))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.sock.close()


@pytest.fixture(params=KINDS)
def guest(bench: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    made = Guest(bench, request.param)
    yield made
    made.close()


def test_both_use_it(bench: Lab, guest: Guest) -> None:
    """What one writes the other reads; what the owner drops is zeros to both."""
    guest.watch(bench.resolver)
    mine, other = bench.peer(guest.region), bench.peer(guest.region)
    with Traffic(other, list(range(0, N, 2)), 1).running():
        for page in range(1, N, 2):
            mine.write(page * PAGE + 10, b"from the peer")
            assert guest.read(page * PAGE + 9, 15) == b"\0from the peer\0"
            assert guest.ask("write", page * PAGE, b"from the owner".hex()) == "ok"
            assert mine.read(page * PAGE, 14) == b"from the owner"
            assert guest.ask("drop", page * PAGE, PAGE) == "0"
            assert mine.read(page * PAGE, PAGE) == bytes(PAGE) == guest.read(page * PAGE, PAGE)
    until(lambda: guest.region.statistic()["page_invalidations"] >= N // 2)


def test_drops_beside_writes(bench: Lab, guest: Guest) -> None:
    """Drops and WRITEs of the same pages at the same time, many: nobody waits for ever, and each 8 bytes are of one."""
    guest.watch(bench.resolver)
    mine = bench.peer(guest.region)
    word = b"\xa5" * 8
    mine.bounce[: 8 * PAGE] = np.frombuffer(word * (PAGE), np.uint8)
    guest.say("storm", 0, 8 * PAGE, 2000)
    answer = threading.Thread(target=guest.lines.readline)
    answer.start()
    while answer.is_alive():
        mine.post(WrOpcode.RDMA_WRITE, 0, 8 * PAGE)
        assert mine.done().ok
        assert set(np.unique(np.frombuffer(mine.read(0, 8 * PAGE), np.uint64)).tolist()) <= {
            0,
            int.from_bytes(word, "little"),
        }
        mine.bounce[: 8 * PAGE] = np.frombuffer(word * (PAGE), np.uint8)
    mine.write(0, word * PAGE)
    assert guest.read(0, 8 * PAGE) == word * PAGE


def test_its_death(bench: Lab, guest: Guest, request: pytest.FixtureRequest) -> None:
    """Shared memory outlives it; private memory is an access error from then on. The engine goes on."""
    guest.watch(bench.resolver)
    ordinary = bench.pd.reg_mr(bytearray(N * PAGE), ODP)
    mine, other = bench.peer(guest.region), bench.peer(ordinary)
    with Traffic(other, list(range(N)), 2).running() as traffic:
        mine.write(0, b"while it lives")
        guest.process.kill()
        guest.process.wait()
        traffic.progress()
        done = mine.try_write(0, b"and after that")
        assert done.status == (WcStatus.SUCCESS if "shared" in request.node.name else WcStatus.REM_ACCESS_ERR)


# --- post-copy ------------------------------------------------------------------------------------------------


class Elsewhere:
    """Where the pages still are: a page source that answers when it is let, from a thread of its own."""

    def __init__(self, space: Any, at: int, data: bytes) -> None:
        self.space, self.at, self.data = space, at, data
        self.asked: list[tuple[int, bool]] = []
        self.open = threading.Event()
        self.open.set()
        self.postcopy: Postcopy | None = None
        self._queue: list[int] = []
        self._more = threading.Condition()
        threading.Thread(target=self._serve, daemon=True).start()

    def request(self, addr: int, length: int, urgent: bool) -> None:
        self.asked.append((addr, urgent))
        with self._more:
            self._queue.append(addr)
            self._more.notify()

    def _serve(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._queue)
                addr = self._queue.pop(0)
            self.open.wait()
            assert self.postcopy is not None
            self.postcopy.arrive(addr, self.data[addr - self.at : addr - self.at + PAGE])


@pytest.fixture
def arriving(bench: Lab, guest: Guest) -> Elsewhere:
    """All of the guest's memory is still elsewhere."""
    data = np.random.default_rng(3).integers(0, 256, guest.length, np.uint8).tobytes()
    source = Elsewhere(guest.space, guest.AT, data)
    source.postcopy = Postcopy(bench.resolver, guest.space, source)
    source.postcopy.watch(guest.AT, guest.length, uffd=guest.uffd, host=guest.host)
    source.postcopy.start()
    return source


def test_a_page_that_both_need_comes_once(bench: Lab, guest: Guest, arriving: Elsewhere) -> None:
    """A processor and the device wait for the same page; other QPs go on meanwhile."""
    ordinary = bench.pd.reg_mr(bytearray(N * PAGE), ODP)
    mine, other = bench.peer(guest.region), bench.peer(ordinary)
    with Traffic(other, list(range(N)), 4).running() as traffic:
        for page in range(8):
            arriving.open.clear()
            mine.post(WrOpcode.RDMA_READ, page * PAGE, PAGE)
            until(lambda page=page: len(arriving.asked) > page)
            guest.say("read", page * PAGE, PAGE)
            until(lambda: guest.uffd.waiting[1] == 1)
            traffic.progress(5)
            assert mine.near.cq.poll() == []
            arriving.open.set()
            assert mine.done().ok
            expected = arriving.data[page * PAGE : (page + 1) * PAGE]
            assert mine.bounce[page * PAGE : (page + 1) * PAGE].tobytes() == expected
            assert bytes.fromhex(guest.lines.readline().decode()) == expected
    assert sorted(addr for addr, _ in arriving.asked) == [guest.AT + page * PAGE for page in range(8)]
    assert all(urgent for _, urgent in arriving.asked)


def test_everything_arrives(bench: Lab, guest: Guest, arriving: Elsewhere) -> None:
    """Device and processor use it at random while the rest is pushed: every byte, and what was written stays."""
    postcopy = arriving.postcopy
    assert postcopy is not None
    mine = bench.peer(guest.region)
    for page in range(0, N, 3):
        mine.write(page * PAGE + 100, b"new from the device")
        assert guest.ask("write", page * PAGE + 200, b"new from the owner".hex()) == "ok"
    fresh = sum(
        postcopy.arrive(guest.AT + page * PAGE, arriving.data[page * PAGE : (page + 1) * PAGE]) for page in range(N)
    )
    assert fresh == N - len(range(0, N, 3)) == N - len(arriving.asked)
    expected = bytearray(arriving.data)
    for page in range(0, N, 3):
        expected[page * PAGE + 100 : page * PAGE + 119] = b"new from the device"
        expected[page * PAGE + 200 : page * PAGE + 218] = b"new from the owner"
    assert guest.read(0, guest.length) == expected
    assert mine.read(0, guest.length) == expected
    postcopy.finish()
    mine.write(0, b"ordinary again")
    assert guest.read(0, 14) == b"ordinary again"


def test_dropped_before_it_came(bench: Lab, guest: Guest, arriving: Elsewhere) -> None:
    """What the owner gave up is zeros, whatever arrives later."""
    postcopy = arriving.postcopy
    assert postcopy is not None
    mine = bench.peer(guest.region)
    assert guest.ask("drop", 0, 4 * PAGE) == "0"
    postcopy.arrive(guest.AT, arriving.data[:PAGE])
    assert guest.read(0, PAGE) == bytes(PAGE)
    assert mine.read(0, 4 * PAGE) == bytes(4 * PAGE) == guest.read(0, 4 * PAGE)
    assert arriving.asked == []
    assert mine.read(4 * PAGE, PAGE) == arriving.data[4 * PAGE : 5 * PAGE]


