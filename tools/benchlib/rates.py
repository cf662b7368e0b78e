"""What a wire carries: packets per second of the clock and of the processor, and how long a lone frame takes."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchlib import moving
from benchlib.frames import fill, packet, super_frame
from benchlib.moving import RECEIVED, STOP, Way
from benchlib.wires import Wire
from softrnic.layout import FrameRing, make_ring

# UDP payload bytes of a packet (WRITE MIDDLE of path MTU 4096, 1024; 64 bytes), packets per frame
SHAPES = ((4112, 15), (4112, 1), (1040, 60), (1040, 1), (80, 120), (80, 1))
SUPER_BURST, SINGLE_BURST = 4, 32  # frames per send; what is small waits in lots
RX_SLOTS = 32
WINDOW_BYTES = 1 << 19
LONE_FRAMES = 100


def single(wire: Wire, size: int, count: int) -> list[bytes]:
    """`count` frames of a packet each, their identifications counting up."""
    return [packet(wire.flow, bytes(size - 16), ip_id=i, checksum=False) for i in range(count)]


def pinned(cpu: int, kernel: Callable[..., object], *args: object) -> None:
    """Run a kernel on one processor."""
    if cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})
    kernel(*args)


NOT_LOOKED_AT = np.zeros(0, np.int64)


def wall_rate(
    wire: Wire, tx: FrameRing, n: int, count: int, seconds: float, found: np.ndarray = NOT_LOOKED_AT
) -> float:
    """Packets per second that arrived, sent in bursts of n frames of `count` packets. `found`: as in moving.drain."""
    window = count * max(2 * n, WINDOW_BYTES // int(tx.frames[0]["len"]))
    window = min(window, wire.room, max(512, 2 * n * count))
    cells = np.zeros(16, np.int64)
    wire.tables[1].port["rx_segments"] = 0
    source, sink = wire.tables
    into = (wire.way_in, sink, make_ring(RX_SLOTS), count, found, cells)
    threads = [
        threading.Thread(target=pinned, args=(1, moving.drain, *into)),
        threading.Thread(target=pinned, args=(0, moving.flood, wire.out, source, tx, n, count, window, cells)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    begin, start = int(cells[RECEIVED]), time.perf_counter()
    time.sleep(seconds)
    end, stop = int(cells[RECEIVED]), time.perf_counter()
    cells[STOP] = 1
    for thread in threads:
        thread.join()
    return (end - begin) / (stop - start)


def _softirq_seconds() -> float:
    """Processor time of ksoftirqd, to which the kernel hands what it receives when there is much of it."""
    total = 0
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().startswith("ksoftirqd/"):
                total += int((comm.parent / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return total / 1e9


def cpu_rate(wire: Wire, tx: FrameRing, n: int, count: int, seconds: float) -> float:
    """Packets per second of processor time of one thread that sends and receives, and of ksoftirqd."""
    rx, sink = make_ring(RX_SLOTS), wire.tables[1].port
    sink["rx_segments"] = 0
    total, spent, before = 0, 0.0, _softirq_seconds()
    while spent < seconds:
        start = time.thread_time()
        total += moving.shuttle(wire.out, wire.way_in, *wire.tables, tx, rx, n, 50)
        spent += time.thread_time() - start
    packets = int(sink["rx_segments"][0]) if wire.way_in is Way.PORT else total * count
    return packets / (spent + _softirq_seconds() - before)


def compile_for(wire: Wire) -> None:
    """Compile all kernels before any clock runs."""
    cells = np.zeros(16, np.int64)
    cells[STOP] = 1
    ring, (source, sink) = make_ring(1), wire.tables
    moving.flood(wire.out, source, ring, 1, 1, 0, cells)
    moving.drain(wire.way_in, sink, ring, 1, NOT_LOOKED_AT, cells)
    moving.shuttle(wire.out, wire.way_in, source, sink, ring, ring, 0, 0)
    moving.alone(wire.out, wire.way_in, source, sink, ring, ring, np.zeros(0, np.int64), np.zeros(2, np.int64))


@dataclass
class Rates:
    """One wire, one shape: packets per second."""

    payload: int
    count: int
    wall: float = 0.0
    cpu: float = 0.0

    def gbps(self, rate: float) -> float:
        """UDP payload in a rate of packets."""
        return rate * self.payload * 8 / 1e9

    @classmethod
    def measure_all(cls, wire: Wire, shapes: tuple[tuple[int, int], ...], seconds: float, runs: int) -> list[Rates]:
        """Every shape this wire can carry, the runs going round them all."""
        compile_for(wire)
        shapes = tuple(dict.fromkeys((size, min(count, wire.most)) for size, count in shapes))
        samples: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in shapes}
        for _ in range(runs):
            for size, count in shapes:
                samples[size, count].append(cls._sample(wire, size, count, seconds))
        return [
            cls(*shape, *(statistics.median(column) for column in zip(*found, strict=True)))
            for shape, found in samples.items()
        ]

    @staticmethod
    def _sample(wire: Wire, size: int, count: int, seconds: float) -> tuple[float, float]:
        burst = SINGLE_BURST if count == 1 else SUPER_BURST
        tx = make_ring(burst)
        frames = single(wire, size, burst) if count == 1 else [super_frame(wire.flow, size, count)] * burst
        fill(tx, frames, size if count > 1 else 0)
        return wall_rate(wire, tx, burst, count, seconds), cpu_rate(wire, tx, burst, count, seconds)

    @staticmethod
    def alone(wire: Wire) -> float:
        """Microseconds until a lone frame is seen."""
        tx = make_ring(1)
        fill(tx, single(wire, 80, 1), 0)
        times = np.zeros(LONE_FRAMES, np.int64)
        moving.alone(
            wire.out, wire.way_in, *wire.tables, tx, make_ring(RX_SLOTS), times, np.zeros(2, np.int64)
        )
        return float(np.median(times)) / 1000
