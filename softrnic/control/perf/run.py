"""A perf test from one side: buffers, a QP, the kernel that does it, and what its time stamps say.

Decides what each test posts and how its result is computed - as perftest does, so that figures compare: MiB are 2^20
bytes, Gb/s 10^9 bits, latencies of WRITE and SEND are half a round trip.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from softrnic.control.host import Host
from softrnic.control.perf import kernels
from softrnic.errors import SoftRnicError
from softrnic.spec import WC_STATUS_TEXT, Access, Mtu, QpState, QpType, WcStatus, WrOpcode
from softrnic.verbs import AhAttr, QpCap

ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


@dataclass(frozen=True)
class Kind:
    """A subcommand of perf: what it posts, and whether it measures bandwidth or latency."""

    name: str
    opcode: WrOpcode
    latency: bool
    two_sided: bool = False
    default_size: int = 65536


KINDS = {
    kind.name: kind
    for kind in (
        Kind("write_bw", WrOpcode.RDMA_WRITE, False),
        Kind("read_bw", WrOpcode.RDMA_READ, False),
        Kind("send_bw", WrOpcode.SEND, False, two_sided=True),
        Kind("write_lat", WrOpcode.RDMA_WRITE, True, default_size=2),
        Kind("read_lat", WrOpcode.RDMA_READ, True, default_size=2),
        Kind("send_lat", WrOpcode.SEND, True, two_sided=True, default_size=2),
        Kind("atomic_lat", WrOpcode.ATOMIC_FETCH_AND_ADD, True, default_size=8),
    )
}


@dataclass(frozen=True)
class Options:
    """What both sides must agree on."""

    test: str
    size: int
    iters: int
    tx_depth: int = 128
    rx_depth: int = 512
    cq_mod: int = 100
    mtu: int = 4096
    outs: int = 16
    timeout: int = 14

    def __post_init__(self) -> None:
        if self.test != "done" and self.test not in KINDS:
            raise ValueError(f"there is no test {self.test}")
        if self.size < 1 or self.size > 1 << 30:
            raise ValueError(f"size {self.size} is not in 1 to 2^30")
        if self.iters < 1 or self.tx_depth < 1 or self.cq_mod < 1:
            raise ValueError("iterations, tx-depth and cq-mod are at least 1")


@dataclass(frozen=True)
class Peer:
    """What one side tells the other about its end: all the exchange there is."""

    qpn: int
    psn: int
    gid: str
    addr: int
    rkey: int
    mac: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the exchange."""
        return asdict(self)


@dataclass
class BwResult:
    """A line of a bandwidth table."""

    size: int
    iters: int
    seconds: float
    peak_bytes_per_s: float
    average_bytes_per_s: float = field(init=False)
    messages_per_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.average_bytes_per_s = self.size * self.iters / self.seconds
        self.messages_per_s = self.iters / self.seconds


@dataclass
class LatResult:
    """A line of a latency table, in microseconds."""

    size: int
    iters: int
    t_min: float
    t_max: float
    t_typical: float
    t_avg: float
    t_stdev: float
    p99: float
    p999: float


class PerfError(SoftRnicError):
    """A test did not finish."""


class Endpoint:
    """One side of one test: its buffer, QP and kernel calls."""

    def __init__(self, host: Host, options: Options, *, seed: int) -> None:
        self.host = host
        self.options = options
        self.kind = KINDS[options.test]
        device = host.device
        self.pd = device.alloc_pd()
        self.cqs = [device.create_cq(max(1024, options.tx_depth, options.rx_depth)) for _ in range(2)]
        self.buf = np.random.default_rng(seed).integers(0, 256, max(64, 2 * options.size), dtype=np.uint8)
        self.mr = self.pd.reg_mr(self.buf, ALL_ACCESS)
        cap = QpCap(options.tx_depth, options.rx_depth)
        self.qp = self.pd.create_qp(QpType.RC, self.cqs[0], self.cqs[1], cap)
        self.psn = int(np.random.default_rng(seed + 1).integers(0, 1 << 24))
        self._stamps = np.zeros(options.iters, np.int64)
        self._begun = 0

    def local(self) -> Peer:
        """What the peer must know."""
        return Peer(self.qp.qpn, self.psn, str(self.host.address), self.mr.addr, self.mr.rkey, self.host.mac.hex())

    def connect(self, peer: Peer) -> None:
        """Bring the QP to RTS towards the peer."""
        mtu = Mtu(min(self.options.mtu, self.host.device.port.active_mtu).bit_length() - 8)
        outs = min(self.options.outs, 128)
        self.qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ALL_ACCESS)
        self.qp.modify(
            QpState.RTR, ah=AhAttr(peer.gid), path_mtu=mtu, dqpn=peer.qpn, rq_psn=peer.psn, max_dest_rd_atomic=outs,
            min_rnr_timer=12,
        )  # fmt: skip
        self.qp.modify(
            QpState.RTS, sq_psn=self.psn, timeout=self.options.timeout, retry_cnt=7, rnr_retry=7, max_rd_atomic=outs
        )

    @property
    def inbox(self) -> int:
        """Where the peer writes: the second half of the buffer."""
        return self.mr.addr + self.options.size

    def post_initial(self) -> None:
        """Receives must wait for the first SEND."""
        from softrnic.verbs import RecvWr

        if self.kind.two_sided:
            count = min(self.options.rx_depth, self.qp.rq_size)
            self.qp.post_recv([RecvWr([self.mr.sge(self.options.size, self.options.size)])] * count)

    def _program(self, peer: Peer, count: int, *, active: bool) -> tuple[Any, ...] | None:
        """The kernel of this side and its arguments; None where the NIC alone is enough."""
        o, kind = self.options, self.kind
        remote, local, lkey = peer.addr + o.size, self.mr.addr, self.mr.lkey
        if kind.two_sided and kind.latency:
            return kernels.send_pingpong, local, self.inbox, lkey, o.size, count, active, self._stamps
        if kind.latency and kind.opcode == WrOpcode.RDMA_WRITE:
            return (
                kernels.write_pingpong, local, self.inbox, lkey, remote, peer.rkey, o.size, count, active, self._stamps,
            )  # fmt: skip
        if not active:
            return (kernels.sink, self.inbox, lkey, o.size, count) if kind.two_sided else None
        if kind.latency:
            return kernels.ping, int(kind.opcode), local, lkey, remote & ~7, peer.rkey, o.size, count, self._stamps
        return (
            kernels.stream, int(kind.opcode), local, lkey, remote & ~7, peer.rkey, o.size, count, o.tx_depth,
            min(o.cq_mod, o.tx_depth), self._stamps,
        )  # fmt: skip

    def warm(self, peer: Peer, *, active: bool) -> None:
        """Compile this side's kernel, or take it from the cache, by a test of no messages."""
        self._run(self._program(peer, 0, active=active))

    def run_active(self, peer: Peer) -> None:
        """The client's part."""
        self._begun = time.monotonic_ns()
        self._run(self._program(peer, self.options.iters, active=True))

    def run_passive(self, peer: Peer) -> None:
        """The server's part; for one-sided tests the NIC alone is enough and this returns at once."""
        self._run(self._program(peer, self.options.iters, active=False))

    def _run(self, program: tuple[Any, ...] | None) -> None:
        """Run a kernel instead of the pump."""
        if program is None:
            return
        kernel, *args = program
        status = self.host.nic.drive(kernel, self.qp.index, *args)
        if status == kernels.STALLED:
            raise PerfError(f"no progress for {kernels.STALL_NS / 1e9:.0f} s; is the peer still there?")
        if status:
            raise PerfError(WC_STATUS_TEXT[WcStatus(status)])

    def verify(self, peer_buf: np.ndarray | None) -> bool:
        """After a bandwidth test with both buffers in this process: did the last message arrive byte for byte?"""
        if peer_buf is None or self.kind.latency:
            return True
        size = self.options.size
        target = (size if self.kind.two_sided else (size + int(peer_buf.ctypes.data) & ~7) - int(peer_buf.ctypes.data))
        there, here = peer_buf[target : target + size], self.buf[:size]
        return bool((there == here).all())

    def result(self) -> BwResult | LatResult:
        """What the stamps say."""
        o = self.options
        if not self.kind.latency:
            return _bandwidth(self._stamps, self._begun, o)
        half = 1 if self.kind.opcode in (WrOpcode.RDMA_READ, WrOpcode.ATOMIC_FETCH_AND_ADD) else 2
        return _latency(self._stamps / (1000.0 * half), o)

    def close(self) -> None:
        """Give everything back."""
        self.pd.close()
        for cq in self.cqs:
            cq.destroy()


def _bandwidth(stamps: np.ndarray, begun: int, o: Options) -> BwResult:
    """Average from the first post to the last completion; peak over the best hundredth of the test."""
    window = max(o.cq_mod, o.iters // 100)
    marks = stamps[::window]
    fastest = int(np.diff(marks).min()) if len(marks) > 2 else int(stamps[-1]) - begun
    seconds = (int(stamps[-1]) - begun) / 1e9
    peak = max(o.size * window / (max(fastest, 1) / 1e9) if len(marks) > 2 else 0.0, o.size * o.iters / seconds)
    return BwResult(o.size, o.iters, seconds, peak)


def _latency(times: np.ndarray, o: Options) -> LatResult:
    """perftest's columns."""
    low, typical, p99, p999, high = (float(v) for v in np.quantile(times, (0, 0.5, 0.99, 0.999, 1)))
    return LatResult(o.size, o.iters, low, high, typical, float(times.mean()), float(times.std()), p99, p999)


def pin(cpu: int | None) -> None:
    """Keep the calling thread on one processor, if there is such a one."""
    if cpu is not None and cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})
