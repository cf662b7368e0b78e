#!/usr/bin/env python3
"""What memory costs: tracking, on-demand paging, lists of pages, registration, harvesting, faults.

    tools/bench_memory.py [--runs 5] [--json FILE] [rates|pages|log|faults ...]

Everything but the faults is processor time, so that a busy machine changes little. Rates are those of 1 MiB WRITEs
with both ends in one thread; all kinds of region take turns in every run, and each figure is the median over the runs
of its ratio to the plain region of the same run. The last column is what was aimed at.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from softrnic.control.fabric import fabric
from softrnic.control.odp.resolver import Resolver
from softrnic.control.pair import connect_pair, endpoint
from softrnic.control.perf.both import alternate
from softrnic.jit import i64, kernel
from softrnic.mem.dirty import mark_dirty
from softrnic.mem.space import resolve
from softrnic.verbs import Access, FileMemory, Mr, QpCap, SendWr, WrOpcode
from softrnic.verbs.device import Device

ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30
Row = tuple[str, float, str, str]  # what, figure, unit, aim


@kernel
def mark_pages(engs: np.ndarray, space: int, addr: int, numbers: np.ndarray) -> int:
    """Writes to pages by their numbers, as far as the dirty log sees them."""
    eng = engs[0]
    for i in range(len(numbers)):
        mark_dirty(eng["spaces"][space], addr + i64(numbers[i]) * PAGE, 8)
    return 0


@kernel
def translate(engs: np.ndarray, mr: int, offsets: np.ndarray) -> int:
    """Look-ups of 64 bytes at random offsets."""
    total = 0
    for i in range(len(offsets)):
        total += resolve(engs[0], mr, i64(offsets[i]), 64, False).host & 1
    return total


def noreserve(size: int) -> np.ndarray:
    """Memory that costs nothing before it is touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call, the kernel's part of it too."""
    start = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start) / 1e9


# --- rates ----------------------------------------------------------------------------------------------------


class Rates:
    """1 MiB WRITEs from a plain region into all kinds of them."""

    SIZE = MIB

    def __init__(self, hosts: Any) -> None:
        cap = QpCap(128, 128, 1, 1)
        self.hosts = hosts
        self.ends = [endpoint(host, cap=cap) for host in hosts]
        connect_pair(self.ends[0].qp, self.ends[1].qp)
        device, pd = hosts[1].device, self.ends[1].pd
        self.source = self.ends[0].pd.reg_mr(np.ones(self.SIZE, np.uint8), ACCESS)
        self.memory = noreserve(2 * self.SIZE + PAGE)
        self.memory[:] = 0
        base = -self.memory.ctypes.data % PAGE
        self.regions: dict[str, Mr] = {"plain": pd.reg_mr(self.memory[base : base + self.SIZE], ACCESS)}
        self.space = device.create_space(paged=True)
        self.space.add_slot(0, self.memory[base:])
        self.tracked = device.create_space()
        self.tracked.add_slot(0, self.memory[base:])
        whole = [(0, self.SIZE)]
        singles = [(2 * PAGE * i, PAGE) for i in range(self.SIZE // PAGE)]
        self.regions["one range of a space"] = pd.reg_physical_mr(self.tracked, 0, whole, ACCESS)
        self.regions["single 4 KiB pages"] = pd.reg_physical_mr(self.tracked, 0, singles, ACCESS)
        self.regions["ODP, all present"] = pd.reg_physical_mr(self.space, 0, whole, ACCESS, odp=True)
        self.buffer = np.zeros(self.SIZE + PAGE, np.uint8)
        skew = -self.buffer.ctypes.data % PAGE
        for name, memory in (
            ("ODP of a buffer", self.buffer[skew : skew + self.SIZE]),
            ("ODP of a mapping", self.memory[base : base + self.SIZE]),
        ):
            on_demand = pd.reg_mr(memory, ACCESS | Access.ON_DEMAND)
            on_demand.prefetch(write=True)  # type: ignore[attr-defined]
            self.regions[name] = on_demand
        fd = os.memfd_create("unsealed")
        os.ftruncate(fd, self.SIZE)
        self.tracked.add_slot(GIB, FileMemory(fd, self.SIZE))
        os.close(fd)
        self.regions["file that may be truncated"] = pd.reg_physical_mr(self.tracked, 0, [(GIB, self.SIZE)], ACCESS)
        self.space.resolve(0, 2 * self.SIZE)

    def rate(self, name: str, count: int) -> float:
        """Bytes per second of processor time."""
        mr = self.regions[name]
        a, b = self.hosts[0].nic, self.hosts[1].nic
        with a.quiesced(), b.quiesced():
            start = time.thread_time_ns()
            status = alternate(
                *a.parts(), *b.parts(), a.control, self.ends[0].qp.index, self.ends[1].qp.index,
                int(WrOpcode.RDMA_WRITE), self.source.addr, self.source.lkey, mr.iova, mr.rkey, self.SIZE, count, 32,
            )  # fmt: skip
            spent = time.thread_time_ns() - start
        if status:
            raise SystemExit(f"{name}: completion status {status}")
        return self.SIZE * count / (spent / 1e9)

    def compare(self, runs: int, count: int) -> list[Row]:
        """All kinds in turn, the plain one before and after each."""
        ratios: dict[str, list[float]] = {}
        plain: list[float] = []
        for name in self.regions:
            self.rate(name, 8)
        for _ in range(runs):
            for name in [*self.regions, "tracking, all dirty"]:
                if name == "plain":
                    continue
                before = self.rate("plain", count)
                if name == "tracking, all dirty":
                    self.tracked.start_tracking()
                    self.rate("one range of a space", 2)
                    there = self.rate("one range of a space", count)
                    self.tracked.stop_tracking()
                else:
                    there = self.rate(name, count)
                after = self.rate("plain", count)
                plain += [before, after]
                ratios.setdefault(name, []).append(2 * there / (before + after))
        aims = {"tracking, all dirty": ">= 97", "ODP, all present": ">= 95", "single 4 KiB pages": ">= 80",
                "ODP of a buffer": ">= 95"}  # fmt: skip
        rows: list[Row] = [("plain region", statistics.median(plain) * 8 / 1e9, "Gb/s", "")]
        rows += [(name, 100 * statistics.median(r), "% of plain", aims.get(name, "")) for name, r in ratios.items()]
        return rows


def rates(runs: int) -> list[Row]:
    """Kinds of regions beside a plain one."""
    with fabric("memory") as hosts:
        return Rates(hosts).compare(runs, 150)


# --- lists of pages -------------------------------------------------------------------------------------------


def pages(runs: int) -> list[Row]:
    """64 GiB as 4 KiB pieces in no order."""
    device = Device("bench")
    pd, space = device.alloc_pd(), device.create_space()
    space.add_slot(0, noreserve(64 * GIB))
    rng = np.random.default_rng(1)
    ranges = np.empty((64 * GIB // PAGE, 2), np.int64)
    ranges[:, 0], ranges[:, 1] = rng.permutation(len(ranges)) * PAGE, PAGE
    rows: list[Row] = []
    took, again, looked = [], [], []
    offsets = rng.integers(0, 64 * GIB - 64, 1 << 20)
    for _ in range(runs):
        made: list[Any] = []
        took.append(seconds(lambda: made.append(pd.reg_physical_mr(space, 0x1000, ranges, ACCESS))))  # noqa: B023
        mr = made[0]
        translate(device.engine.tables, mr.index, offsets[:10])
        looked.append(seconds(lambda: translate(device.engine.tables, mr.index, offsets)) / len(offsets))  # noqa: B023
        again.append(seconds(lambda: mr.rereg_physical(ranges)))  # noqa: B023
        mr.dereg()
    rows.append(("register 64 GiB as 4 KiB pieces", statistics.median(took), "s", "< 2"))
    rows.append(("replace them by others", statistics.median(again), "s", ""))
    rows.append(("look up an address, at random", statistics.median(looked) * 1e9, "ns", ""))
    device.close()
    return rows


# --- the dirty log --------------------------------------------------------------------------------------------


def log(runs: int) -> list[Row]:
    """1 TiB of 4 KiB pages, 1 % of them dirty."""
    device = Device("bench")
    space = device.create_space()
    space.add_slot(0, noreserve(1 << 40))
    space.start_tracking()
    npages = (1 << 40) // PAGE
    rng = np.random.default_rng(2)
    numbers = rng.choice(npages, npages // 100, replace=False).astype(np.int64)
    few = np.sort(numbers)[: 1 << 16].copy()
    engs = device.engine.tables
    mark_pages(engs, space.index, 0, numbers[:10])
    space.read_and_clear()
    out = np.zeros(npages // 64, np.uint64)
    fresh, first, later, reused = [], [], [], []
    for _ in range(runs):
        first.append(seconds(lambda: mark_pages(engs, space.index, 0, few)) / len(few))
        later.append(seconds(lambda: mark_pages(engs, space.index, 0, few)) / len(few))
        mark_pages(engs, space.index, 0, numbers)
        fresh.append(seconds(space.read_and_clear))
        mark_pages(engs, space.index, 0, numbers)
        out[:] = 0
        reused.append(seconds(lambda: space.read_and_clear(out=out)))
        if int(np.unpackbits(out.view(np.uint8)).sum()) != len(numbers):
            raise SystemExit("the dirty log is not what was written")
    clean = [seconds(space.read_and_clear) for _ in range(runs)]
    device.close()
    return [
        ("first write to a page", statistics.median(first) * 1e9, "ns", "< 300"),
        ("later writes to it", statistics.median(later) * 1e9, "ns", ""),
        ("harvest 1 TiB, 1 % dirty", statistics.median(fresh) * 1e3, "ms", "< 20"),
        ("  into an array that is there", statistics.median(reused) * 1e3, "ms", ""),
        ("  nothing dirty", statistics.median(clean) * 1e3, "ms", ""),
    ]


# --- faults ---------------------------------------------------------------------------------------------------


FAULTS = (
    ("requester has nothing to send", WrOpcode.RDMA_WRITE, 0),
    ("responder has nowhere to put it", WrOpcode.RDMA_WRITE, 1),
    ("responder has nothing to answer", WrOpcode.RDMA_READ, 1),
    ("requester has nowhere to put it", WrOpcode.RDMA_READ, 0),
)


def faults(runs: int) -> list[Row]:
    """How much longer a request of 64 bytes takes that meets a page missing, NIC threads and all."""
    rows: list[Row] = []
    with fabric("memory") as hosts:
        ends = [endpoint(host) for host in hosts]
        connect_pair(ends[0].qp, ends[1].qp)
        memory = [noreserve(16 * PAGE) for _ in hosts]
        regions, spaces = [], []
        for end, block, host in zip(ends, memory, hosts, strict=True):
            space = host.device.create_space(paged=True)
            space.add_slot(0, block)
            space.resolve(0, 16 * PAGE)
            spaces.append(space)
            regions.append(end.pd.reg_all(space, ACCESS, odp=True))

        def once(opcode: WrOpcode) -> float:
            wr = SendWr(opcode, [regions[0].sge(0, 64)], remote_addr=0, rkey=regions[1].rkey)
            start = time.perf_counter()
            ends[0].qp.post_send(wr)
            ends[0].cq.wait(timeout=10)[0].raise_for_status()
            return time.perf_counter() - start

        with Resolver() as resolver:
            for way in ("", ", by a resolver"):
                if way:
                    for space in spaces:
                        resolver.serve(space)
                for name, opcode, which in FAULTS:
                    extra = []
                    for _ in range(20 * runs):
                        there = min(once(opcode) for _ in range(3))
                        spaces[which].invalidate(0, PAGE)
                        extra.append(once(opcode) - there)
                    rows.append((name + way, statistics.median(extra) * 1e6, "us", "< 150"))
    return rows


PARTS = {"rates": rates, "pages": pages, "log": log, "faults": faults}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON as well")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    found: list[Row] = []
    for part in args.parts or PARTS:
        for row in PARTS[part](args.runs):
            found.append(row)
            print(f"{row[0]:36} {row[1]:9.1f} {row[2]:11} {row[3]}", flush=True)
    if args.json:
        keys = ("what", "figure", "unit", "aim")
        Path(args.json).write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in found], indent=2))


if __name__ == "__main__":
    main()
