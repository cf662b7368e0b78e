"""Raw rates of port pairs: frames without a protocol, compiled loops, a window instead of an engine.

    tools/bench_ports.py [memory|raw|tap|udp ...] [--seconds 0.5] [--runs 3]

Two figures, each the median over the runs. `wall`: what arrives while one thread sends and one receives; both
poll, so it means something on two idle cores only. `cpu`: payload moved per second of processor time, sending
and receiving in one thread; that holds on a busy machine too. raw and tap need root and use namespaces of their
own. Every run is bounded: the window opens again after frames were lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from netio import memory, netns, raw, tap, udp
from netio.bare import BarePort
from netio.kernels import port_recv, port_send, port_tx_room
from netio.port import PortTables
from softrnic.jit import addr_of, kernel, ld_acq64, pause, st_rel64
from softrnic.layout import FrameRing, make_ring

BURST = 4
RECEIVED, STOP = 0, 8  # int64 cells at 64-byte distance
SHAPES = ((4112, 15), (4112, 1), (1040, 60), (80, 120), (80, 1))  # UDP payload, packets per frame
Pair = tuple[BarePort, BarePort]


@kernel
def flood(pt: PortTables, tx: FrameRing, n: int, window: int, cells: np.ndarray) -> int:
    """Send bursts of n frames, at most `window` frames ahead of the receiver."""
    received, stop = addr_of(cells), addr_of(cells) + 64
    sent = 0
    stuck = 0
    while ld_acq64(stop) == 0:
        if sent + n - ld_acq64(received) > window or port_tx_room(pt) < n:
            pause()
            stuck += 1
            if stuck > 200_000:  # frames were lost
                sent = ld_acq64(received)
                stuck = 0
            continue
        stuck = 0
        port_send(pt, tx, n)
        sent += n
    return sent


@kernel
def shuttle(source: PortTables, sink: PortTables, tx: FrameRing, rx: FrameRing, n: int, rounds: int) -> int:
    """Send a burst of n and receive what came, so many times; returns frames received."""
    total = 0
    for _ in range(rounds):
        port_send(source, tx, n)
        while True:
            got = port_recv(sink, rx)
            total += got
            if got == 0:
                break
    return total


@kernel
def drain(pt: PortTables, rx: FrameRing, cells: np.ndarray) -> int:
    """Receive until told to stop."""
    received, stop = addr_of(cells), addr_of(cells) + 64
    total = 0
    while ld_acq64(stop) == 0:
        n = port_recv(pt, rx)
        if n == 0:
            pause()
            continue
        total += n
        st_rel64(received, total)
    return total


def udp_frame(payload: int, seg: int, *, source: BarePort, sink: BarePort, src: bytes, dst: bytes) -> bytes:
    """An IPv4 frame to port 4791."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + payload, 0, 0x4000, 64, 17, 0, src, dst)
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", (total & 0xFFFF) + (total >> 16) ^ 0xFFFF) + ip[12:]
    udp = struct.pack("!HHHH", source.fixed_sport or 50000, 4791, 8 + payload, 0)
    return sink.mac + source.mac + b"\x08\x00" + ip + udp + bytes(payload)


def fill(tx: FrameRing, frame: bytes, seg: int) -> None:
    for slot in tx.frames[:BURST]:
        off = int(slot["off"])
        tx.slab[off : off + len(frame)] = np.frombuffer(frame, np.uint8)
        slot["len"], slot["seg"] = len(frame), seg


def pinned(cpu: int, kernel: Callable[..., object], *args: object) -> None:
    """Run a kernel on one processor."""
    if cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})
    kernel(*args)


def measure(pair: Pair, frame: bytes, seg: int, seconds: float, window: int) -> float:
    """Frames per second that arrived."""
    source, sink = pair
    cells = np.zeros(16, np.int64)
    tx, rx = make_ring(BURST), make_ring(16)
    fill(tx, frame, seg)
    threads = [
        threading.Thread(target=pinned, args=(1, drain, sink.tables, rx, cells)),
        threading.Thread(target=pinned, args=(0, flood, source.tables, tx, BURST, window, cells)),
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


def measure_cpu(pair: Pair, frame: bytes, seg: int, seconds: float) -> float:
    """Frames per second of processor time of one thread that sends and receives."""
    tx, rx = make_ring(BURST), make_ring(16)
    fill(tx, frame, seg)
    total, spent = 0, 0.0
    while spent < seconds:
        start = time.thread_time()
        total += shuttle(pair[0].tables, pair[1].tables, tx, rx, BURST, 50)
        spent += time.thread_time() - start
    return total / spent


def compile_for(pair: Pair) -> None:
    """Compile all kernels before any clock runs."""
    cells = np.zeros(16, np.int64)
    cells[STOP] = 1
    flood(pair[0].tables, make_ring(BURST), BURST, 0, cells)
    drain(pair[1].tables, make_ring(BURST), cells)
    shuttle(pair[0].tables, pair[1].tables, make_ring(1), make_ring(1), 0, 1)


@contextlib.contextmanager
def memory_pair() -> Iterator[Pair]:
    a, b = memory.pair()
    with a, b:
        yield a, b


@contextlib.contextmanager
def raw_pair() -> Iterator[Pair]:
    """AF_PACKET over veth, each end in its own namespace."""
    with netns.namespace() as here, netns.namespace() as there:
        netns.veth(here, "eth0", there, "eth0")
        with here.entered():
            a = raw.open_raw("eth0")
        with there.entered():
            b = raw.open_raw("eth0")
        with a, b:
            yield a, b


@contextlib.contextmanager
def tap_pair() -> Iterator[Pair]:
    """Two taps on one bridge."""
    with netns.namespace() as ns:
        with ns.entered():
            a, b = tap.open_tap("tap0"), tap.open_tap("tap1")
        with a, b:
            netns.bridge(ns, "br0", ["tap0", "tap1"])
            yield a, b


@contextlib.contextmanager
def udp_pair() -> Iterator[Pair]:
    """Two UDP sockets on the loopback device."""
    with udp.open_udp("127.0.0.1") as a, udp.open_udp("127.0.0.2") as b:
        yield a, b


PAIRS: dict[str, Callable[[], contextlib.AbstractContextManager[Pair]]] = {
    "memory": memory_pair,
    "raw": raw_pair,
    "tap": tap_pair,
    "udp": udp_pair,
}
ADDRESSES = {"udp": (b"\x7f\0\0\1", b"\x7f\0\0\2")}


def figures(rate: float, payload: int, count: int) -> str:
    return f"{rate:9.0f} frames/s {rate * payload * count * 8 / 1e9:6.1f} Gb/s"


def report(kind: str, seconds: float, runs: int, found: dict[str, float] | None) -> None:
    """Measure one kind of port: print a line per shape, or add figures to `found`."""
    src, dst = ADDRESSES.get(kind, (b"\x0a\0\0\1", b"\x0a\0\0\2"))
    with PAIRS[kind]() as pair:
        compile_for(pair)
        for payload, most in SHAPES:
            count = min(most, max(1, pair[0].caps.max_segments))
            seg = payload if count > 1 else 0
            frame = udp_frame(payload * count, seg, source=pair[0], sink=pair[1], src=src, dst=dst)
            window = max(BURST, (1 << 19) // len(frame))
            wall = statistics.median(measure(pair, frame, seg, seconds, min(window, 512)) for _ in range(runs))
            cpu = statistics.median(measure_cpu(pair, frame, seg, seconds) for _ in range(runs))
            if found is None:
                head = f"{kind:8} {payload:5} x {count:3}"
                print(f"{head}  wall {figures(wall, payload, count)}  cpu {figures(cpu, payload, count)}", flush=True)
            else:
                bits = payload * count * 8 / 1e9
                found[f"{kind} {payload} x {count}, wall, Gb/s"] = wall * bits
                found[f"{kind} {payload} x {count}, cpu, Gb/s"] = cpu * bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(PAIRS), metavar="kind", help=" ".join(PAIRS))
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()
    found: dict[str, float] | None = {} if args.json else None
    for kind in args.kinds:
        report(kind, args.seconds, args.runs, found)
    if found is not None:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
