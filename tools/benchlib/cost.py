"""Where the time of a packet goes: every stage of both ends in one thread, by processor time of that thread.

Each stage is clocked once per burst; what reading the clock costs is measured and taken off.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numba import types

from netio.kernels import port_recv, port_send, port_tx_room
from softrnic.control.fabric import fabric
from softrnic.control.perf.run import Endpoint, Options, PerfError
from softrnic.engine import expire_timers, has_work, receive_burst, transmit_burst
from softrnic.jit import addr_of, i64, inline, kernel, ld64
from softrnic.qp.queues import poll_count, post_one_sided, post_recv, publish, rq_room, sq_room

STAGES = (
    "post and poll", "build: headers, copy, ICRC", "system call, out", "system call, in", "take: ICRC, checks, copy",
)  # fmt: skip
_POST, _BUILD, _OUT, _IN, _TAKE, _READINGS = range(6)
_SIGNALED, _SEND = 2, 2
_THREAD_CPUTIME = 3
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@inline
def _cpu_ns(cells):
    """Processor time of this thread."""
    _clock_gettime(_THREAD_CPUTIME, addr_of(cells))
    return ld64(addr_of(cells)) * 1_000_000_000 + ld64(addr_of(cells) + 8)


@inline
def _clocked(cells, spent, stage, since):
    now = _cpu_ns(cells)
    spent[stage] += now - since
    spent[_READINGS] += 1
    return now


@inline
def _round(eng, pt, rx, tx, cells, spent, now):
    """pump_once with a clock between its parts."""
    at = _cpu_ns(cells)
    expire_timers(eng, now)
    made = 0
    if has_work(eng):
        made = transmit_burst(eng, tx, min(len(tx.frames), port_tx_room(pt)), now)
    at = _clocked(cells, spent, _BUILD, at)
    if made:
        port_send(pt, tx, made)
        at = _clocked(cells, spent, _OUT, at)
    n = port_recv(pt, rx)
    at = _clocked(cells, spent, _IN, at)
    if n:
        receive_burst(eng, rx, n, now)
        _clocked(cells, spent, _TAKE, at)


@kernel
def _staged(ea, pa, ra, ta, eb, pb, rb, tb, qp_a, qp_b, opcode, local, lkey, remote, rkey, size, count, depth, spent):
    """As softrnic.control.perf.both.alternate; time stands still, for nothing is lost."""
    a, b = ea[0], eb[0]
    qa, qb = a["qps"][qp_a], b["qps"][qp_b]
    cq, rcq = a["cqs"][i64(qa["scq"])], b["cqs"][i64(qb["rcq"])]
    cells = spent[8:]
    now = max(i64(a["now"]), i64(b["now"]))
    posted, done = 0, 0
    while done < count:
        at = _cpu_ns(cells)
        fresh = 0
        while posted < count and posted - done < depth and sq_room(qa) > 0:
            post_one_sided(a, qa, opcode, _SIGNALED, posted, local, size, lkey, remote, rkey)
            posted += 1
            fresh += 1
        if fresh:
            publish(a, qp_a)
        while opcode == _SEND and rq_room(qb) > 0:
            post_recv(b, qb, 0, remote, size, rkey)
        _clocked(cells, spent, _POST, at)
        _round(a, pa, ra, ta, cells, spent, now)
        _round(b, pb, rb, tb, cells, spent, now)
        at = _cpu_ns(cells)
        n, status = poll_count(a, cq)
        if status:
            return status
        poll_count(b, rcq)
        done += n
        _clocked(cells, spent, _POST, at)
    return 0


@kernel
def _readings(spent, count):
    """Only read the clock."""
    cells = spent[8:]
    at = _cpu_ns(cells)
    for _ in range(count):
        at = _clocked(cells, spent, 0, at)


@dataclass(frozen=True)
class Cost:
    """One way of using a wire: nanoseconds per packet, by stage."""

    name: str
    packets: int
    payload: int  # bytes per packet
    stages: dict[str, float]

    @property
    def total(self) -> float:
        """All stages."""
        return sum(self.stages.values())


CASES = (
    ("WRITE 1 MiB, PMTU 4096", Options("write_bw", 1 << 20, 500, tx_depth=16)),
    ("WRITE 1 MiB, PMTU 1024", Options("write_bw", 1 << 20, 300, tx_depth=16, mtu=1024)),
    ("READ 1 MiB, PMTU 4096", Options("read_bw", 1 << 20, 500, tx_depth=16)),
    ("SEND 1 MiB, PMTU 4096", Options("send_bw", 1 << 20, 500, tx_depth=16)),
    ("WRITE 64 KiB", Options("write_bw", 1 << 16, 8000)),  # two frames, where a SEND is one
    ("SEND 64 KiB", Options("send_bw", 1 << 16, 8000)),
    ("WRITE 64 B", Options("write_bw", 64, 200000)),
    ("SEND 64 B", Options("send_bw", 64, 200000)),
)


def clock_ns() -> float:
    """What one reading of the clock costs."""
    spent = np.zeros(16, np.int64)
    _readings(spent, 1)
    start = time.thread_time_ns()
    _readings(spent, 20000)
    return (time.thread_time_ns() - start) / 20000


def costs(wire: str, *, scale: float = 1.0) -> list[Cost]:
    """Every case over one wire; `scale` shrinks the number of messages."""
    overhead = clock_ns()
    found = []
    with fabric(wire) as hosts:
        for name, options in CASES:
            count = max(1, int(options.iters * scale))
            for n in (min(count, 64), count):  # first a small one: compile, and touch the memory
                spent = _run(hosts, options, n)
            packets = count * max(1, -(-options.size // options.mtu))
            per_reading = overhead * spent[_READINGS] / 5 / packets
            stages = {s: max(0.0, spent[i] / packets - per_reading) for i, s in enumerate(STAGES)}
            found.append(Cost(name, packets, min(options.size, options.mtu), stages))
    return found


def _run(hosts: tuple, options: Options, count: int) -> np.ndarray:
    ends = [Endpoint(host, options, seed=i) for i, host in enumerate(hosts)]
    ends[0].connect(ends[1].local())
    ends[1].connect(ends[0].local())
    a, b = hosts[0].nic, hosts[1].nic
    spent = np.zeros(16, np.int64)
    with a.quiesced(), b.quiesced():
        status = _staged(
            *a.parts(), *b.parts(), ends[0].qp.index, ends[1].qp.index, int(ends[0].kind.opcode), ends[0].mr.addr,
            ends[0].mr.lkey, ends[1].mr.addr, ends[1].mr.rkey, options.size, count, options.tx_depth, spent,
        )  # fmt: skip
    if status:
        raise PerfError(f"completion status {status}")
    for end in ends:
        end.close()
    return spent
