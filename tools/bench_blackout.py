#!/usr/bin/env python3
"""How long a function is away when it moves: from the last packet its old host handled to the first at the new one.

    tools/bench_blackout.py [--qps 16,4096] [--moves 7] [--policy silence] [--json FILE]

All on this machine: three hosts, in network namespaces on a bridge as root, else on a switch in memory. Every QP of the
function has WRITEs under way, each of many packets, during all moves. Medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop

from softrnic.control import warm
from softrnic.control.daemon import HostPlace
from softrnic.control.fabric import network
from softrnic.control.function import Function
from softrnic.control.host import Host
from softrnic.control.migration import Arrival, Arrivals, Departure, dial_unix, listen_unix
from softrnic.counters import C
from softrnic.migrate.precopy import Limits
from softrnic.verbs import Access, AhAttr, Cq, Device, Mr, Mtu, Pd, Qp, QpCap, QpState, QpType, SendWr, WrOpcode

IP, MAC = "10.9.1.99", bytes([2, 0, 0, 9, 9, 9])
MIB = 1 << 20
RIGHTS = Access.LOCAL_WRITE | Access.REMOTE_WRITE
FIRST_PACKET_SECONDS = 2.0
QPS_PER_CQ = 64
DEPTH, SGES = 16, 4  # WRITEs of a QP, and megabytes of each


class Side:
    """Queue pairs, and memory that all of them use."""

    def __init__(self, device: Device, count: int, nbytes: int) -> None:
        self.device = device
        self.pd: Pd = device.alloc_pd()
        self.mr: Mr = self.pd.reg_mr(np.zeros(nbytes, np.uint8), RIGHTS)
        cap = QpCap(DEPTH, 4, SGES, 1)
        self.qps: list[Qp] = []
        cq: Cq | None = None
        for i in range(count):
            if cq is None or i % QPS_PER_CQ == 0:
                cq = device.create_cq(QPS_PER_CQ * 8)
            self.qps.append(self.pd.create_qp(QpType.RC, cq, cq, cap))


def connect(side: Side, peer: Side, peer_ip: str, peer_mac: bytes) -> None:
    for qp, other in zip(side.qps, peer.qps, strict=True):
        qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=RIGHTS)
        qp.modify(
            QpState.RTR, ah=AhAttr(peer_ip, 0, peer_mac), path_mtu=Mtu.MTU_4096, dqpn=other.qpn, rq_psn=0,
            max_dest_rd_atomic=4, min_rnr_timer=6,
        )  # fmt: skip
        qp.modify(QpState.RTS, sq_psn=0, timeout=20, retry_cnt=7, rnr_retry=7, max_rd_atomic=4)


def keep_busy(device: Device, peer: Mr) -> None:
    """As many WRITEs on every QP as it takes, and no completion left."""
    (mr,) = (m for m in device.mrs.values() if isinstance(m, Mr))
    for cq in device.cqs.values():
        while cq.poll(256):
            pass
    write = SendWr(WrOpcode.RDMA_WRITE, [mr.sge()] * SGES, remote_addr=peer.iova, rkey=peer.rkey)
    for qp in device.qps.values():
        room = DEPTH - int(qp.record["sq_prod"] - qp.record["sq_head"])
        qp.post_send([write] * room)


class Stopwatch(HostPlace):
    """Notes when the first packet of a function that has come is on its way."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.first_packet_ns = 0
        self._before = 0

    def _packets(self) -> int:
        counters = self.host.device.record["counters"]
        return int(counters[C.SENT_PKTS]) + int(counters[C.RCVD_PKTS])

    def on_arrival(self, arrival: Arrival) -> None:
        self._before = self._packets()

    def on_start(self, arrival: Arrival) -> None:
        limit = time.monotonic() + FIRST_PACKET_SECONDS
        while self._packets() == self._before and time.monotonic() < limit:
            time.sleep(0)
        self.first_packet_ns = time.monotonic_ns()


def is_active(function: Function) -> int:
    """QPs that have something under way."""
    return sum(int(qp.record["sq_prod"]) > int(qp.record["sq_head"]) for qp in function.device.qps.values())


async def moves(hosts: list[Host], function: Function, peer: Mr, count: int, policy: str) -> list[float]:
    """Blackouts in milliseconds, there and back and there again."""
    found = []
    homes = [hosts[0], hosts[2]]
    places = [Stopwatch(host) for host in homes]
    with tempfile.TemporaryDirectory() as directory:
        for i in range(count):
            door = Path(directory) / f"{i}"
            place = places[(i + 1) % 2]
            arrivals = Arrivals(place)
            keep_busy(function.device, peer)
            async with listen_unix(arrivals, door):
                departure = Departure(
                    function.device, dial_unix(door), policy=policy, limits=Limits(downtime_ns=10_000_000_000),
                    leave=lambda mac, function=function: function.close(),
                )  # fmt: skip
                report = await departure.run()
                if not report.sketched:
                    print("a move that was not prepared", file=sys.stderr)
            found.append((place.first_packet_ns - departure.paused_at_ns) / 1e6)
            (function,) = place.host.functions
            await asyncio.sleep(0.2)
    return found


def measure(count: int, times: int, policy: str, privileged: bool) -> dict[str, object]:
    with network(3, privileged=privileged) as hosts:
        function = hosts[0].add_function("moving", f"{IP}/24", mac=MAC)
        near = Side(function.device, count, MIB)
        far = Side(hosts[1].device, count, SGES * MIB)
        connect(near, far, str(hosts[1].address), hosts[1].mac)
        connect(far, near, IP, MAC)
        found = uvloop.run(moves(hosts, function, far.mr, times, policy))
        (function,) = hosts[0].functions or hosts[2].functions
        active = is_active(function)
        errors = sum(qp.state != QpState.RTS for qp in function.device.qps.values())
    return {
        "qps": count, "active": active, "errors": errors, "moves": times, "median_ms": statistics.median(found),
        "min_ms": min(found), "max_ms": max(found),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--qps", default="16,4096", help="comma-separated (default: %(default)s)")
    parser.add_argument("--moves", type=int, default=7, help="per number of QPs (default: %(default)s)")
    parser.add_argument("--policy", default="silence")
    parser.add_argument("--wire", choices=("auto", "veth", "memory"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    warm.prepare()
    warm.moving()
    sys.setswitchinterval(0.0005)
    privileged = args.wire == "veth" or (args.wire == "auto" and os.geteuid() == 0)
    rows = [measure(int(n), args.moves, args.policy, privileged) for n in args.qps.split(",")]
    print(f"{'QPs':>6} {'active':>7} {'errors':>7} {'median ms':>10} {'min':>8} {'max':>8}")
    for r in rows:
        print(
            f"{r['qps']:>6} {r['active']:>7} {r['errors']:>7} {r['median_ms']:>10.2f} {r['min_ms']:>8.2f} "
            f"{r['max_ms']:>8.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
