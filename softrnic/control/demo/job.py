"""The job: what is moved between two hosts, and how it is proved to have arrived.

Decides the operations, their sizes and their verification; all data comes from one seeded generator. Must never know
what kind of wire the hosts are on, or whether it is a good one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from softrnic.control.demo.flow import WINDOW, Flow, run
from softrnic.control.host import Host
from softrnic.control.pair import CAP, PEER_ACCESS, connect_pair
from softrnic.errors import SoftRnicError
from softrnic.spec import PSN_MASK
from softrnic.verbs import Cq, Mr, Pd, Qp, QpType, RecvWr, SendWr, Sge, Wc, WcFlags, WrOpcode

EDGES = (0, 3, 1023, 1024, 1025, 4095, 4096, 4099, 65535)  # bytes of the first messages
LARGEST = 1 << 20  # bytes of the others: spread evenly over the orders of magnitude up to it
# What tshark 4.0 would take for another protocol, and then for a malformed packet of it, is not sent: a SEND of less
# than 16 bytes (RPC over RDMA), and two bytes with zeros behind them (an EtherType), be the zeros data or padding.
SHORTEST_SEND, SHORTEST_PACKET, LOWEST_BYTE = 16, 3, 1
PACKET = 4096
WORDS = 64  # that atomics work on, on each host
ATOMICS = 2000
TIMEOUT = 14  # of an ACK: 67 ms, which even a busy machine keeps
MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Step:
    """One operation, done and verified. `error` says why it could not be done."""

    name: str
    messages: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    wrong_bytes: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        """Everything arrived as it was sent."""
        return not self.error and self.wrong_bytes == 0

    @property
    def gbps(self) -> float:
        """Gigabits of payload per second."""
        return self.nbytes * 8e-9 / self.seconds if self.seconds else 0.0

    @property
    def message_rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Buffer:
    """Registered memory."""

    data: np.ndarray
    mr: Mr

    def sge(self, offset: int, length: int) -> tuple[Sge, ...]:
        """Part of it, in bytes; nothing for a message without payload."""
        return (self.mr.sge(offset, length),) if length else ()


class Side:
    """A host with what the job needs on it: memory to send from and to receive into, and words to count in."""

    def __init__(self, host: Host, rng: np.random.Generator, nbytes: int) -> None:
        self.pd: Pd = host.device.alloc_pd()
        self.send_cq: Cq = host.device.create_cq(2 * WINDOW)
        self.recv_cq: Cq = host.device.create_cq(2 * WINDOW)
        self.qp: Qp = self.pd.create_qp(QpType.RC, self.send_cq, self.recv_cq, CAP)
        self.source = self._register(rng.integers(LOWEST_BYTE, 256, nbytes, np.uint8))
        self.sink = self._register(np.full(nbytes, 0, np.uint8))  # full: no page is touched for the first time later
        self.words = self._register(rng.integers(0, 1 << 64, WORDS, np.uint64))
        self.originals = self._register(np.zeros(ATOMICS, np.uint64))

    def _register(self, data: np.ndarray) -> Buffer:
        return Buffer(data, self.pd.reg_mr(data, PEER_ACCESS))

    def sends(self, wrs: Iterator[SendWr]) -> Flow:
        """Send work requests of this side."""
        return Flow(self.qp.post_send, self.send_cq, wrs)

    def receives(self, wrs: Iterator[RecvWr]) -> Flow:
        """Receive work requests of this side."""
        return Flow(self.qp.post_recv, self.recv_cq, wrs)


@dataclass(frozen=True)
class Atomic:
    """An atomic operation to be done on a word of the peer: an addition, or a comparison and swap."""

    word: int
    add: int
    compare: int
    swap: int | None  # None: an addition

    def apply(self, value: int) -> int:
        """What it makes of the word."""
        if self.swap is None:
            return value + self.add & MASK64
        return self.swap if value == self.compare else value


class Job:
    """Everything that is done between two hosts, as a list of steps to call. The same seed does the same."""

    def __init__(self, hosts: tuple[Host, Host], *, nbytes: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._a, self._b = (Side(host, self._rng, nbytes) for host in hosts)
        self._spans = list(_spans(self._rng, nbytes, EDGES, SHORTEST_PACKET))
        edges = [edge for edge in EDGES if edge >= SHORTEST_SEND]
        self._send_spans = list(_spans(self._rng, nbytes, edges, SHORTEST_SEND))
        self._nbytes = nbytes
        first_psns = (int(self._rng.integers(0, PSN_MASK)), int(self._rng.integers(0, PSN_MASK)))
        connect_pair(self._a.qp, self._b.qp, timeout=TIMEOUT, psn=first_psns)

    def steps(self) -> dict[str, Callable[[], Step]]:
        """What there is to do, by name, in this order."""
        work = {"RDMA WRITE": self._write, "RDMA READ": self._read, "SEND": self._send, "atomics": self._atomics}
        return {name: lambda name=name, do=do: _attempt(name, do) for name, do in work.items()}  # type: ignore[misc]

    # Each returns messages, bytes, seconds, wrong bytes.

    def _write(self) -> tuple[int, int, float, int]:
        """The first host writes into the memory of the second."""
        a, b = self._a, self._b
        seconds = run(a.sends(self._one_sided(WrOpcode.RDMA_WRITE, a.source, b.sink)))
        return len(self._spans), self._nbytes, seconds, _differing(a.source.data, b.sink.data)

    def _read(self) -> tuple[int, int, float, int]:
        """The first host reads from the memory of the second."""
        a, b = self._a, self._b
        seconds = run(a.sends(self._one_sided(WrOpcode.RDMA_READ, a.sink, b.source)))
        return len(self._spans), self._nbytes, seconds, _differing(b.source.data, a.sink.data)

    def _one_sided(self, opcode: WrOpcode, local: Buffer, remote: Buffer) -> Iterator[SendWr]:
        for i, (offset, length) in enumerate(self._spans):
            yield SendWr(opcode, local.sge(offset, length), i, remote_addr=remote.mr.iova + offset, rkey=remote.mr.rkey)

    def _send(self) -> tuple[int, int, float, int]:
        """Both hosts send to each other at the same time; every other message has immediate data."""
        ways = ((self._a, self._b), (self._b, self._a))
        for _, receiver in ways:
            receiver.sink.data[:] = 0
        receives = [receiver.receives(self._recv_wrs(receiver.sink)) for _, receiver in ways]
        sends = [sender.sends(self._send_wrs(sender.source)) for sender, _ in ways]
        seconds = run(*receives, *sends)
        wrong = sum(_differing(sender.source.data, receiver.sink.data) for sender, receiver in ways)
        wrong += sum(self._misreported(flow.completions) for flow in receives)
        return 2 * len(self._send_spans), 2 * self._nbytes, seconds, wrong

    def _recv_wrs(self, into: Buffer) -> Iterator[RecvWr]:
        for i, (offset, length) in enumerate(self._send_spans):
            yield RecvWr(into.sge(offset, length), i)

    def _send_wrs(self, source: Buffer) -> Iterator[SendWr]:
        for i, (offset, length) in enumerate(self._send_spans):
            opcode = WrOpcode.SEND_WITH_IMM if i % 2 else WrOpcode.SEND
            yield SendWr(opcode, source.sge(offset, length), i, imm=i if i % 2 else 0)

    def _misreported(self, completions: list[Wc]) -> int:
        """Receive completions with a wrong length or wrong immediate data, four bytes each."""
        wrong = 0
        for i, ((_, length), wc) in enumerate(zip(self._send_spans, completions, strict=True)):
            imm = wc.imm if wc.wc_flags & WcFlags.WITH_IMM else None
            wrong += 4 * ((wc.byte_len, imm) != (length, i if i % 2 else None))
        return wrong

    def _atomics(self) -> tuple[int, int, float, int]:
        """Both hosts at the same time add to and swap words of the other; every original value is predicted."""
        ways = ((self._a, self._b), (self._b, self._a))
        plans = [self._plan(target.words.data) for _, target in ways]
        flows = [
            origin.sends(_atomic_wrs(plan, origin.originals, target.words))
            for (origin, target), (plan, _, _) in zip(ways, plans, strict=True)
        ]
        seconds = run(*flows)
        wrong = 0
        for (origin, target), (_, originals, final) in zip(ways, plans, strict=True):
            wrong += _differing(origin.originals.data, originals) + _differing(target.words.data, final)
        return 2 * ATOMICS, 2 * ATOMICS * 8, seconds, wrong

    def _plan(self, words: np.ndarray) -> tuple[list[Atomic], np.ndarray, np.ndarray]:
        """Operations on words that hold these values, the value each will find, and what the words will hold."""
        now = [int(word) for word in words]
        plan, originals = [], []
        for _ in range(ATOMICS):
            word, kind = (int(n) for n in self._rng.integers(0, (WORDS, 4)))
            add, swap, other = (int(n) for n in self._rng.integers(0, 1 << 64, 3, np.uint64))
            compare = now[word] if kind == 0 else other  # kind 0 swaps, 1 does not, 2 and 3 add
            atomic = Atomic(word, add, compare, swap if kind < 2 else None)
            plan.append(atomic)
            originals.append(now[word])
            now[word] = atomic.apply(now[word])
        return plan, np.array(originals, np.uint64), np.array(now, np.uint64)


def _atomic_wrs(plan: list[Atomic], originals: Buffer, words: Buffer) -> Iterator[SendWr]:
    for i, op in enumerate(plan):
        opcode = WrOpcode.ATOMIC_FETCH_AND_ADD if op.swap is None else WrOpcode.ATOMIC_CMP_AND_SWP
        yield SendWr(
            opcode,
            originals.sge(8 * i, 8),
            i,
            remote_addr=words.mr.iova + 8 * op.word,
            rkey=words.mr.rkey,
            compare_add=op.add if op.swap is None else op.compare,
            swap=op.swap or 0,
        )


def _attempt(name: str, do: Callable[[], tuple[int, int, float, int]]) -> Step:
    try:
        return Step(name, *do())
    except SoftRnicError as error:
        return Step(name, error=str(error))


def _differing(expected: np.ndarray, found: np.ndarray) -> int:
    """In how many bytes two arrays of the same size differ."""
    return int(np.count_nonzero(expected.view(np.uint8) != found.view(np.uint8)))


def _spans(rng: np.random.Generator, nbytes: int, edges: Sequence[int], shortest: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of messages that together make up `nbytes`: `edges` as far as they fit, then others.

    Those are not shorter than `shortest`, unless all is.
    """
    offset = 0
    for length in edges:
        if offset + length + shortest <= nbytes:
            yield offset, length
            offset += length
    while offset < nbytes:
        length = int(2 ** rng.uniform(math.log2(shortest), math.log2(LARGEST)))
        if 0 < length % PACKET < SHORTEST_PACKET:
            length += SHORTEST_PACKET
        if offset + length + shortest > nbytes:
            length = nbytes - offset
        yield offset, length
        offset += length
