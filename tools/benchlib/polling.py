"""What it costs to look and what it costs to sleep: READs at a fixed rate, by how long the NICs poll before they sleep.

The program that posts sleeps between two requests and polls for an answer, yielding; only the two NICs' processor time
is counted. Three threads on two processors, so whoever looks in vain is in somebody's way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numba import types

from benchlib.scale import Many
from netio.libc import sched_yield, write
from softrnic.control import SPIN_NS
from softrnic.control.fabric import fabric
from softrnic.control.pump import monotonic_ns
from softrnic.jit import addr_of, full_fence, i64, kernel, st64
from softrnic.qp.queues import poll_count, post_one_sided, publish
from softrnic.spec import SendFlags, WrOpcode

RATES = (100, 1_000, 10_000, 100_000)  # READs per second
LIMITS = {"off": 0, "adaptive": SPIN_NS, "always": 1_000_000_000}
SIZE = 64
_SIGNALED, _READ = int(SendFlags.SIGNALED), int(WrOpcode.RDMA_READ)
_MONOTONIC, _ABSTIME = 1, 1
_TIMEOUT_NS = 1_000_000_000
_clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.int32(types.int64, types.int64, types.int64, types.int64)
)


@kernel
def _paced(engs, ctl, scratch, wake_fd, qp_index, local, lkey, remote, rkey, period, stop_ns, stamps):
    """A READ every `period` ns, one at a time, for `stop_ns`; stamps[i]: how long it took.

    How many were made, negative if one failed.
    """
    eng = engs[0]
    qp = eng["qps"][qp_index]
    cq = eng["cqs"][i64(qp["scq"])]
    at = addr_of(scratch)
    due = monotonic_ns(ctl)
    stop = due + stop_ns
    for i in range(len(stamps)):
        due += period
        if due > stop:
            return i
        if due - monotonic_ns(ctl) > 0:
            st64(at, due // 1_000_000_000)
            st64(at + 8, due % 1_000_000_000)
            _clock_nanosleep(_MONOTONIC, _ABSTIME, at, 0)
        begun = monotonic_ns(ctl)
        post_one_sided(eng, qp, _READ, _SIGNALED, i, local, SIZE, lkey, remote, rkey)
        publish(eng, qp_index)
        full_fence()
        if eng["asleep"]:
            st64(at + 16, 1)
            write(wake_fd, at + 16, 8)
        done = 0
        while done == 0:
            done, status = poll_count(eng, cq)
            if status or monotonic_ns(ctl) - begun > _TIMEOUT_NS:
                return -1 - i
            if done == 0:
                sched_yield()
        stamps[i] = monotonic_ns(ctl) - begun
        due = max(due, monotonic_ns(ctl) - period)  # a rate that is not reached does not pile up
    return len(stamps)


@dataclass(frozen=True)
class Paced:
    """One rate under one way of polling."""

    polling: str
    rate: int
    reached: float  # READs per second
    cpu: float  # share of a processor that each NIC took, the mean of both
    p50_us: float
    p99_us: float


def polling(wire: str, *, seconds: float = 1.0) -> list[Paced]:
    """Every rate under every limit."""
    found = []
    for name, limit in LIMITS.items():
        with fabric(wire, spin_ns=limit) as hosts:
            many = Many(hosts, SIZE)
            many.grow(1)
            run(many, name, 1000, 0.01)
            found += [run(many, name, rate, seconds) for rate in RATES]
    return found


def run(many: Many, name: str, rate: int, seconds: float) -> Paced:
    """READs at a rate for a while."""
    nics = [host.nic for host in many.hosts]
    tables = many.hosts[0].device.engine.tables
    with nics[0].quiesced():
        _, ports, _, _ = nics[0].parts()
    ctl, scratch, stamps = np.zeros(8, np.int64), np.zeros(4, np.int64), np.zeros(max(4, int(rate * seconds)), np.int64)
    args = (many.qps[0][0].index, many.mrs[0].addr, many.mrs[0].lkey, many.mrs[1].addr, many.mrs[1].rkey)
    before, begun = sum(nic.cpu_ns() for nic in nics), time.monotonic_ns()
    made = _paced(
        tables, ctl, scratch, int(ports.port[0]["wake_fd"]), *args, 1_000_000_000 // rate,
        max(int(seconds * 1e9), 4_000_000_000 // rate), stamps,
    )  # fmt: skip
    took = time.monotonic_ns() - begun
    if made <= 0:
        raise RuntimeError(f"READ {-made} was not answered at {rate}/s")
    p50, p99 = np.quantile(stamps[:made], (0.5, 0.99)) / 1000
    cpu = (sum(nic.cpu_ns() for nic in nics) - before) / took / 2
    return Paced(name, rate, made * 1e9 / took, cpu, float(p50), float(p99))
