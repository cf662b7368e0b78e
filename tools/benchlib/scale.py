"""What many queue pairs, many memory regions and doing nothing cost. By processor time, both ends in one thread."""

from __future__ import annotations

import statistics
import time

import numpy as np

from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.control.perf.both import one_cpu
from softrnic.control.perf.run import ALL_ACCESS, Options
from softrnic.control.pump import monotonic_ns, pump_once
from softrnic.jit import i64, kernel
from softrnic.qp.queues import poll_count, post_one_sided, publish, sq_room
from softrnic.spec import Mtu, QpState, QpType, SendFlags, WrOpcode
from softrnic.verbs import AhAttr, QpCap, SendWr

QP_COUNTS = (1, 16, 256, 4096, 16384)
_SIGNALED = int(SendFlags.SIGNALED)


@kernel
def _round_robin(ea, pa, ra, ta, eb, pb, rb, tb, ctl, indices, local, lkey, remote, rkey, size, count):
    """Every QP of a has a WRITE under way; `count` of them in all; 0 or a WcStatus."""
    a, b = ea[0], eb[0]
    cq = a["cqs"][i64(a["qps"][indices[0]]["scq"])]
    posted, done, at = 0, 0, 0
    while done < count:
        for _ in range(len(indices)):
            qp = a["qps"][indices[at]]
            if posted == count or posted - done > i64(cq["mask"]) or sq_room(qp) == 0:
                break
            post_one_sided(a, qp, 0, _SIGNALED, posted, local, size, lkey, remote, rkey)
            publish(a, indices[at])
            posted += 1
            at = (at + 1) % len(indices)
        pump_once(a, pa, ra, ta, monotonic_ns(ctl))
        pump_once(b, pb, rb, tb, monotonic_ns(ctl))
        n, status = poll_count(a, cq)
        if status:
            return status
        done += n
    return 0


class Many:
    """Two hosts and as many connected QP pairs as asked for; more are added, never taken away."""

    def __init__(self, hosts: tuple[Host, Host], size: int) -> None:
        self.hosts = hosts
        self.pds = [host.device.alloc_pd() for host in hosts]
        self.cqs = [host.device.create_cq(1 << 15) for host in hosts]
        self.bufs = [np.zeros(size, np.uint8) for _ in hosts]
        self.mrs = [pd.reg_mr(buf, ALL_ACCESS) for pd, buf in zip(self.pds, self.bufs, strict=True)]
        self.qps: list[list] = [[], []]

    def grow(self, count: int) -> None:
        """Have `count` pairs."""
        while len(self.qps[0]) < count:
            pair = [
                pd.create_qp(QpType.RC, cq, cq, QpCap(2, 1, 1, 1)) for pd, cq in zip(self.pds, self.cqs, strict=True)
            ]
            for i, qp in enumerate(pair):
                peer = self.hosts[1 - i]
                qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ALL_ACCESS)
                qp.modify(
                    QpState.RTR, ah=AhAttr(str(peer.address), dmac=peer.mac), path_mtu=Mtu.MTU_4096,
                    dqpn=pair[1 - i].qpn, rq_psn=0, max_dest_rd_atomic=1, min_rnr_timer=1,
                )  # fmt: skip
                qp.modify(QpState.RTS, sq_psn=0, timeout=18, retry_cnt=7, rnr_retry=7, max_rd_atomic=1)
                self.qps[i].append(qp)

    def gbps(self, count: int, messages: int, size: int) -> float:
        """Payload rate over `count` QPs."""
        indices = np.array([qp.index for qp in self.qps[0][:count]], np.int64)
        a, b = (host.nic for host in self.hosts)
        with a.quiesced(), b.quiesced():
            start = time.thread_time_ns()
            status = _round_robin(
                *a.parts(), *b.parts(), a.control, indices, self.mrs[0].addr, self.mrs[0].lkey, self.mrs[1].addr,
                self.mrs[1].rkey, size, messages,
            )  # fmt: skip
            spent = time.thread_time_ns() - start
        if status:
            raise RuntimeError(f"completion status {status} with {count} QPs")
        return size * messages * 8 / spent


def many_qps(wire: str, *, counts: tuple[int, ...] = QP_COUNTS, size: int = 65536, messages: int = 20000) -> dict:
    """Gb/s by number of active QPs, median of three."""
    found = {}
    with fabric(wire) as hosts:
        many = Many(hosts, size)
        for count in counts:
            many.grow(count)
            many.gbps(count, min(messages, 2 * count), size)
            found[count] = statistics.median(many.gbps(count, max(messages, 2 * count), size) for _ in range(3))
    return found


def many_regions(wire: str, *, count: int = 100_000, messages: int = 200_000) -> dict[str, float]:
    """ns per 64-byte WRITE with few regions and with many."""
    options = Options("write_bw", 64, messages)
    with fabric(wire) as hosts:
        one_cpu(hosts, options)
        few = statistics.median(one_cpu(hosts, options).ns_per_packet for _ in range(3))
        regions = []
        buf = np.zeros(4096, np.uint8)
        for host in hosts:
            pd = host.device.alloc_pd()
            regions += [pd.reg_mr(buf, ALL_ACCESS) for _ in range(count)]
        many = statistics.median(one_cpu(hosts, options).ns_per_packet for _ in range(3))
    return {"few regions, ns": few, f"{count} regions, ns": many}


def idle(wire: str, *, seconds: float = 2.0, wakes: int = 50) -> dict[str, float]:
    """Share of a processor that an idle NIC uses, and how long a READ takes that finds everything asleep, us."""
    with fabric(wire) as hosts:
        many = Many(hosts, 64)
        many.grow(1)
        time.sleep(0.2)
        start, wall = time.process_time(), time.monotonic()
        time.sleep(seconds)
        share = (time.process_time() - start) / (time.monotonic() - wall)
        times = []
        for _ in range(wakes):
            time.sleep(0.005)
            times.append(_read_us(many))
    return {"share of a processor, one NIC": share / 2, "READ from sleep, four wake-ups, us": statistics.median(times)}


def _read_us(many: Many) -> float:
    begun = time.perf_counter_ns()
    request = SendWr(
        WrOpcode.RDMA_READ, sges=[many.mrs[0].sge()], remote_addr=many.mrs[1].addr, rkey=many.mrs[1].rkey
    )  # fmt: skip
    many.qps[0][0].post_send([request])
    many.cqs[0].wait(timeout=10)  # asleep too: who polls keeps one of two processors from the NICs
    return (time.perf_counter_ns() - begun) / 1000
