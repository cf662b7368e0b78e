"""One side of a perftest: its queue pair, its memory, and what each of the tests does with them.

Decides what perftest decides: which side moves data, what is posted when, and how often keys are swapped, which is what
keeps the two sides in step.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Self

import numpy as np

from softrnic.control.perftest.exchange import Exchange, Keys, Report
from softrnic.errors import SoftRnicError
from softrnic.spec import PSN_MASK, WC_STATUS_TEXT, Access, Mtu, QpState, QpType, WcStatus, WrOpcode
from softrnic.verbs import AhAttr, Cq, Device, QpCap, RecvWr, SendWr
from softrnic.verbs.address import gid_bytes

MIB = 1 << 20
BUFFER_BYTES = 4096  # each half of the memory has at least as many
ATOMIC_BYTES = 8
_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


class PerftestError(SoftRnicError):
    """The test cannot begin, or was not finished."""


@dataclass(frozen=True)
class Test:
    """One of the programs, and how often keys are swapped in it."""

    name: str
    opcode: WrOpcode
    default_size: int
    unconnected: int
    """Swaps before the queue pairs are connected."""
    connected: int
    """Swaps after that, before data moves."""
    report: bool = False
    """At the end the client reports what it has measured, after another swap."""
    farewell: bool = True
    """The last swap."""

    @property
    def latency(self) -> bool:
        return self.name.endswith("_lat")

    @property
    def two_sided(self) -> bool:
        return self.opcode == WrOpcode.SEND


TESTS = {
    test.name: test
    for test in (
        Test("write_bw", WrOpcode.RDMA_WRITE, 65536, 1, 2, report=True),
        Test("read_bw", WrOpcode.RDMA_READ, 65536, 1, 2, report=True),
        Test("atomic_bw", WrOpcode.ATOMIC_FETCH_AND_ADD, ATOMIC_BYTES, 1, 2, report=True),
        Test("send_bw", WrOpcode.SEND, 65536, 1, 3),
        Test("write_lat", WrOpcode.RDMA_WRITE, 2, 2, 2, farewell=False),
        Test("read_lat", WrOpcode.RDMA_READ, 2, 2, 2),
        Test("atomic_lat", WrOpcode.ATOMIC_FETCH_AND_ADD, ATOMIC_BYTES, 2, 2),
        Test("send_lat", WrOpcode.SEND, 2, 1, 3),
    )
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the programs take as flags. Both sides must be told the same test, size and iterations."""

    test: Test
    size: int = 0
    """0: as the program has it."""
    iters: int = 1000
    mtu: Mtu = Mtu.MTU_1024
    gid_index: int = 0
    tx_depth: int = 128
    rx_depth: int = 512
    out_reads: int = 16
    qp_timeout: int = 14
    stall_seconds: float = 20.0
    """How long nothing may happen while data moves."""

    def __post_init__(self) -> None:
        if self.size == 0 or self.test.opcode == WrOpcode.ATOMIC_FETCH_AND_ADD:
            object.__setattr__(self, "size", self.test.default_size)
        limits = {"size": (1, 1 << 30), "iters": (1, 1 << 31), "tx_depth": (1, 1 << 14), "rx_depth": (1, 1 << 15)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise PerftestError(f"{name} must be {low} to {high}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Result:
    """What was measured here; nothing, by a server that data merely passes."""

    options: Options
    seconds: float
    stamps: list[int] = field(repr=False)
    """When each operation was completed, in ns."""
    reported: Report | None = None
    """What a client has told us."""

    @property
    def report(self) -> Report:
        """As bandwidth."""
        if self.reported:
            return self.reported
        o = self.options
        average = o.size * o.iters / MIB / max(self.seconds, 1e-9)
        return Report(o.size, o.iters, average, average, o.iters / max(self.seconds, 1e-9) / 1e6)

    @property
    def latencies(self) -> np.ndarray:
        """In microseconds: half a round trip, or all of it for READs and atomics."""
        half = 2 if self.options.test.opcode in (WrOpcode.RDMA_WRITE, WrOpcode.SEND) else 1
        return np.diff(np.array(self.stamps, np.int64)) / 1000 / half

    def __str__(self) -> str:
        o, report = self.options, self.report
        if not o.test.latency:
            rates = f"{report.average:.2f} MiB/sec, {report.message_rate:.6f} Mpps"
            return f"{report.size} bytes, {report.iters} iterations: {rates}"
        if len(self.stamps) < 2:
            return f"{o.size} bytes, {o.iters} iterations"
        low, typical, high = np.quantile(self.latencies, (0, 0.5, 1))
        return f"{o.size} bytes, {o.iters} iterations: {low:.2f} min, {typical:.2f} typical, {high:.2f} max [usec]"


class Perftest:
    """One side."""

    def __init__(self, device: Device, options: Options) -> None:
        self.device = device
        self.options = options
        self._gid = IPv6Address(gid_bytes(device.query_gid(options.gid_index).ip))
        self._pd = device.alloc_pd()
        self._send_cq, self._recv_cq = (
            device.create_cq(depth) for depth in (options.tx_depth, options.rx_depth + options.tx_depth)
        )
        half = max(BUFFER_BYTES, options.size)
        memory = np.zeros(2 * half, np.uint8)
        self.room = memory[half:]
        """What the peer may reach. ib_write_bw and ib_atomic_bw go through all of it."""
        self.outbox, self.inbox = memory[: options.size], self.room[: options.size]
        self.outbox[:] = np.random.default_rng(half).integers(0, 256, options.size, np.uint8)
        self._mr = self._pd.reg_mr(memory, _ACCESS)
        self._out, self._in = self._mr.sge(0, options.size), self._mr.sge(half, options.size)
        cap = QpCap(options.tx_depth, options.rx_depth)
        self._qp = self._pd.create_qp(QpType.RC, self._send_cq, self._recv_cq, cap)
        self._psn = secrets.randbits(24) & PSN_MASK
        self._peer: Keys | None = None
        self._client = False

    # --- the course of a test -------------------------------------------------------------------------------

    def call(self, sock: socket.socket) -> Result:
        """The client's part, on a connection to the server."""
        return self._take_part(sock, client=True)

    def serve(self, listener: socket.socket) -> Result:
        """The server's part, for the next client of a listening socket."""
        with listener.accept()[0] as sock:
            return self._take_part(sock, client=False)

    def _take_part(self, sock: socket.socket, *, client: bool) -> Result:
        test, own = self.options.test, self._keys()
        self._client = client
        exchange = Exchange(sock, client=client)
        mtu = exchange.begin(self.options.mtu)
        for _ in range(test.unconnected):
            self._peer = exchange.keys(own)
        self._connect(mtu)
        if test.two_sided:
            self._post_receives(min(self.options.rx_depth, self.options.iters))
        for _ in range(test.connected):
            exchange.keys(own)
        result = self._run()
        if test.report:
            exchange.keys(own)
            told = exchange.report(result.report)
            result = result if client else Result(self.options, 0.0, [], told)
        if test.farewell:
            exchange.keys(own)
        return result

    def _keys(self) -> Keys:
        out_reads = self.options.out_reads
        return Keys(self._qp.qpn, self._psn, self._mr.rkey, self._in.addr, self._gid, out_reads)

    @property
    def _there(self) -> Keys:
        if self._peer is None:
            raise PerftestError("not connected")
        return self._peer

    def _connect(self, mtu: Mtu) -> None:
        options, peer = self.options, self._there
        limit = self.device.attr.max_qp_rd_atom
        self._qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=_ACCESS)
        self._qp.modify(
            QpState.RTR, ah=AhAttr(peer.gid, options.gid_index), path_mtu=mtu, dqpn=peer.qpn, rq_psn=peer.psn,
            max_dest_rd_atomic=min(options.out_reads, limit), min_rnr_timer=12,
        )  # fmt: skip
        self._qp.modify(
            QpState.RTS, sq_psn=self._psn, timeout=options.qp_timeout, retry_cnt=7, rnr_retry=7,
            max_rd_atomic=min(peer.out_reads, limit),
        )  # fmt: skip

    # --- moving data ----------------------------------------------------------------------------------------

    def _run(self) -> Result:
        test, moves = self.options.test, self._client
        start = time.monotonic_ns()
        if test.latency and test.opcode == WrOpcode.RDMA_WRITE:
            stamps = list(self._write_pingpong())
        elif test.latency and test.two_sided:
            stamps = list(self._send_pingpong())
        elif moves:
            stamps = list(self._stream(1 if test.latency else self.options.tx_depth))
        elif test.two_sided:
            stamps = list(self._receive())
        else:
            stamps = []
        return Result(self.options, (time.monotonic_ns() - start) / 1e9, stamps)

    def _stream(self, depth: int) -> Iterator[int]:
        """All operations, `depth` at a time."""
        wr, iters = self._operation(), self.options.iters
        posted = done = 0
        while done < iters:
            more = min(depth - (posted - done), iters - posted)
            self._qp.post_send([wr] * more)
            posted += more
            count = self._completed(self._send_cq)
            done += count
            yield from [time.monotonic_ns()] * count

    def _receive(self) -> Iterator[int]:
        received, posted = 0, min(self.options.rx_depth, self.options.iters)
        while received < self.options.iters:
            count = self._completed(self._recv_cq)
            received += count
            more = min(count, self.options.iters - posted)
            self._post_receives(more)
            posted += more
            yield from [time.monotonic_ns()] * count

    def _send_pingpong(self) -> Iterator[int]:
        """The client sends first."""
        received, posted = 0, min(self.options.rx_depth, self.options.iters)
        sent = 0
        while received < self.options.iters or sent < self.options.iters:
            if received < self.options.iters and (sent > 0 or not self._client):
                received += self._completed(self._recv_cq)
                if posted < self.options.iters:
                    self._post_receives(1)
                    posted += 1
                yield time.monotonic_ns()
            if sent < self.options.iters:
                self._qp.post_send(self._operation())
                self._completed(self._send_cq)
                sent += 1

    def _write_pingpong(self) -> Iterator[int]:
        """The server writes first. The last byte counts the messages, and tells that all before it have come."""
        for number in range(1, self.options.iters + 1):
            if self._client:
                self._wait_written(number)
                yield time.monotonic_ns()
            self.outbox[-1] = number & 0xFF
            self._qp.post_send(self._operation())
            self._completed(self._send_cq)
            if not self._client:
                self._wait_written(number)
                yield time.monotonic_ns()

    def _wait_written(self, number: int) -> None:
        deadline = time.monotonic() + self.options.stall_seconds
        while self.inbox[-1] != number & 0xFF:
            if time.monotonic() > deadline:
                raise PerftestError(f"message {number} was not written for {self.options.stall_seconds:g} s")
            time.sleep(0)  # the pump may need the interpreter

    def _operation(self) -> SendWr:
        opcode, there = self.options.test.opcode, self._there
        return SendWr(opcode, [self._out], remote_addr=there.vaddr, rkey=there.rkey, compare_add=1)

    def _post_receives(self, count: int) -> None:
        self._qp.post_recv([RecvWr([self._in])] * count)

    def _completed(self, cq: Cq) -> int:
        """The number of operations that are completed now, at least one."""
        done = cq.wait(self.options.stall_seconds)
        if not done:
            raise PerftestError(f"nothing has happened for {self.options.stall_seconds:g} s")
        for wc in done:
            if wc.status != WcStatus.SUCCESS:
                raise PerftestError(f"Completion with error: {WC_STATUS_TEXT.get(wc.status, wc.status.name)}")
        return len(done)

    # --- end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back."""
        self._pd.close()
        self._send_cq.destroy()
        self._recv_cq.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
