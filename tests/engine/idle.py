"""Run by test_idle in a process of its own: idle QPs are made, measured, and put out of the engine's reach.

Prints two numbers: resident bytes per idle QP, and how many packets the busy QP exchanged afterwards. Every page
that holds nothing but idle QPs is made inaccessible first, so that an engine that looks at one of them dies.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from pathlib import Path

import numpy as np

from softrnic.counters import C
from softrnic.verbs import Access, AhAttr, Device, Mtu, Qp, QpCap, QpState, QpType, RecvWr, SendWr, WrOpcode
from tests.pairs import Pair

PAGE = mmap.PAGESIZE
PROT_NONE, PROT_ALL = 0, mmap.PROT_READ | mmap.PROT_WRITE


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def protect(table: np.ndarray, first: int, count: int, prot: int) -> int:
    """Set the protection of the pages that hold only table[first : first + count]; how many pages."""
    start = table.ctypes.data + first * table.itemsize
    low, high = -(-start // PAGE) * PAGE, (start + count * table.itemsize) // PAGE * PAGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(low), ctypes.c_size_t(high - low), prot):
        raise OSError(ctypes.get_errno(), "mprotect")
    return (high - low) // PAGE


def make_idle(device: Device, count: int) -> list[Qp]:
    """QPs in RTS that nobody uses."""
    pd, cq = device.alloc_pd(), device.create_cq(16)
    ah, made = AhAttr("10.0.0.2", 0, b"\x02\x00\x00\x00\x00\x0b"), []
    for i in range(count):
        qp = pd.create_qp(QpType.RC, cq, cq, QpCap(16, 16))
        qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access.REMOTE_WRITE)
        qp.modify(
            QpState.RTR, ah=ah, path_mtu=Mtu.MTU_1024, dqpn=i + 100, rq_psn=i, max_dest_rd_atomic=1, min_rnr_timer=1
        )
        qp.modify(QpState.RTS, sq_psn=i, timeout=14, retry_cnt=7, rnr_retry=7, max_rd_atomic=1)
        made.append(qp)
    return made


def exchange(p: Pair, qa: Qp, qb: Qp) -> int:
    """Requests of every kind in both directions, with losses and timeouts; packets exchanged."""
    dropped = iter(range(10**6))
    p.filter = lambda data, side: None if next(dropped) % 7 == 3 else data
    for qp, own, other in ((qa, p.a, p.b), (qb, p.b, p.a)):
        qp.post_recv([RecvWr([own.mr.sge(0, 100)], i) for i in range(4)])
        for opcode in (WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ, WrOpcode.SEND, WrOpcode.ATOMIC_FETCH_AND_ADD):
            length = 8 if opcode == WrOpcode.ATOMIC_FETCH_AND_ADD else 5000 if opcode != WrOpcode.SEND else 99
            sges = [own.mr.sge(8192, length)]
            qp.post_send([SendWr(opcode, sges, 1, remote_addr=other.mr.addr, rkey=other.mr.rkey)] * 3)
    p.run()
    for side in (p.a, p.b):
        assert all(wc.ok for wc in side.cq.poll(100))
        assert side.device.engine.next_deadline() is None
    return p.a.device.counter(C.RCVD_PKTS)


def main(count: int) -> None:
    p = Pair(size=1 << 15)
    busy = p.connect(mtu=Mtu.MTU_1024, timeout=10)
    warm = make_idle(p.a.device, 32)
    before = resident()
    idle = make_idle(p.a.device, count)
    per_qp = (resident() - before) / count
    # all that is still to come from the timer wheel and the doorbells of their making
    p.a.device.engine.transmit(p.a.tx, p.now)
    p.a.device.engine.on_timer(p.now)
    record = p.a.device.record
    first = warm[0].index
    assert [qp.index for qp in (*warm, *idle)] == list(range(first, first + 32 + count))
    pages = protect(record["qps"], first, 32 + count, PROT_NONE)
    pages += protect(record["avs"], first, 32 + count, PROT_NONE)
    packets = exchange(p, *busy)
    for table in (record["qps"], record["avs"]):
        protect(table, first, 32 + count, PROT_ALL)
    assert all(qp.state == QpState.RTS for qp in idle)
    print(f"{per_qp:.0f} {packets} {pages}")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
