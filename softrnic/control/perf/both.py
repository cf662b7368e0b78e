"""Both ends of a connection in one thread: what one processor does, and what a byte and a packet cost.

Measured in processor time, so that it holds on a busy machine as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from softrnic.control.host import Host
from softrnic.control.perf.run import Endpoint, Options, PerfError
from softrnic.control.pump import monotonic_ns, pump_once
from softrnic.jit import i64, kernel
from softrnic.qp.queues import poll_count, post_one_sided, post_recv, publish, rq_room, sq_room

_SIGNALED = 2
_SEND = 2


@kernel
def alternate(
    ea, pa, ra, ta, eb, pb, rb, tb, ctl, qp_a, qp_b, opcode, local, lkey, remote, rkey, size, count, depth
):  # fmt: skip
    """Post on a, pump a, pump b, until `count` messages are through; 0 or a WcStatus."""
    a, b = ea[0], eb[0]
    qa, qb = a["qps"][qp_a], b["qps"][qp_b]
    cq, rcq = a["cqs"][i64(qa["scq"])], b["cqs"][i64(qb["rcq"])]
    posted, done = 0, 0
    while done < count:
        fresh = 0
        while posted < count and posted - done < depth and sq_room(qa) > 0:
            post_one_sided(a, qa, opcode, _SIGNALED, posted, local, size, lkey, remote, rkey)
            posted += 1
            fresh += 1
        if fresh:
            publish(a, qp_a)
        while opcode == _SEND and rq_room(qb) > 0:
            post_recv(b, qb, 0, remote, size, rkey)
        pump_once(a, pa, ra, ta, monotonic_ns(ctl))
        pump_once(b, pb, rb, tb, monotonic_ns(ctl))
        n, status = poll_count(a, cq)
        if status:
            return status
        poll_count(b, rcq)
        done += n
    return 0


@dataclass(frozen=True)
class OneCpu:
    """What one processor does for both ends."""

    bytes_per_s: float
    messages_per_s: float
    ns_per_packet: float


def one_cpu(hosts: tuple[Host, Host], options: Options) -> OneCpu:
    """Run a bandwidth test with both ends in the calling thread."""
    ends = [Endpoint(host, options, seed=i) for i, host in enumerate(hosts)]
    ends[0].connect(ends[1].local())
    ends[1].connect(ends[0].local())
    a, b = hosts[0].nic, hosts[1].nic
    with a.quiesced(), b.quiesced():
        start = time.thread_time_ns()
        status = alternate(
            *a.parts(), *b.parts(), a.control, ends[0].qp.index, ends[1].qp.index, int(ends[0].kind.opcode),
            ends[0].mr.addr, ends[0].mr.lkey, ends[1].mr.addr, ends[1].mr.rkey, options.size, options.iters,
            options.tx_depth,
        )  # fmt: skip
        seconds = (time.thread_time_ns() - start) / 1e9
    if status:
        raise PerfError(f"completion status {status}")
    for end in ends:
        end.close()
    packets = options.iters * max(1, -(-options.size // options.mtu))
    return OneCpu(
        options.size * options.iters / seconds, options.iters / seconds, seconds * 1e9 / packets
    )
