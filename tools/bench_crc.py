"""How fast the CRC-32 kernels are by size, and what one small packet costs around them. Medians, one core.

    tools/bench_crc.py [--runs 41]

Every repetition needs the result of the one before, as the pieces of one packet do; so these are latencies, and
independent packets overlap to better figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from softrnic.jit import inline
from softrnic.layout import AV
from softrnic.wire import crc32, frame, headers, icrc

SIZES = (12, 28, 64, 76, 92, 128, 256, 512, 1024, 4096, 65536)
SAMPLE_NS = 100_000  # short, so that most samples are not interrupted


def median_ns(call: Callable[[int], object], runs: int) -> float:
    """Nanoseconds of one of the repetitions that `call(repetitions)` makes."""

    def sample(repeats: int) -> float:
        start = time.perf_counter_ns()
        call(repeats)
        return (time.perf_counter_ns() - start) / repeats

    sample(1)
    repeats = max(1, int(SAMPLE_NS / sample(20)))
    return statistics.median(sample(repeats) for _ in range(runs))


def crc_loop(variant: str, copying: bool) -> Callable[[int, int, int, int], int]:
    """A loop over one kernel."""
    crc = crc32.VARIANTS[variant][copying]

    @inline
    def loop(dst: int, src: int, n: int, repeats: int) -> int:
        state = crc32.CRC_INIT
        for _ in range(repeats):
            state = crc(state, dst, src, n)
        return state

    return loop


def bench_kernels(runs: int) -> None:
    source, target = np.ones(70000, np.uint8), np.ones(70000, np.uint8)
    # Where payload stands in a frame: behind 42 bytes of link headers and 12 of BTH.
    src, dst = source.ctypes.data + 54, target.ctypes.data + 54
    print(f"{'':14} {'bytes':>6} {'crc ns':>9} {'GB/s':>6} {'copy ns':>9} {'GB/s':>6}")
    for variant in crc32.VARIANTS:
        plain, copying = crc_loop(variant, False), crc_loop(variant, True)
        for n in SIZES:
            a = median_ns(lambda k, f=plain, n=n: f(dst, src, n, k), runs)
            b = median_ns(lambda k, f=copying, n=n: f(dst, src, n, k), runs)
            print(f"{variant:14} {n:6} {a:9.1f} {n / a:6.1f} {b:9.1f} {n / b:6.1f}")


# --- around them: one RC SEND Only of 64 bytes over IPv4, at 0 and again at 1024 of a buffer -------------------

LENGTH = 80  # BTH, payload, ICRC


@inline
def check_loop(buf: np.ndarray, repeats: int) -> int:
    """The receiver's ICRC: seed, BTH and payload, comparison."""
    right = 0
    for _ in range(repeats):
        right ^= icrc.icrc_check(buf, 42, LENGTH, right, 0, 0, 0) + 1
    return right


@inline
def receive_loop(buf: np.ndarray, repeats: int) -> int:
    """All the receiver does here with a frame of one packet."""
    right = 0
    for _ in range(repeats):
        link = frame.parse_link(buf, right & 1024, 42 + LENGTH, 0)
        base = icrc.icrc_base(buf, link.l3_off, link.is_v6)
        right ^= icrc.icrc_check(buf, link.bth_off, link.seg_len, base, link.is_v6, link.ip_id, 0)
    return right


@inline
def send_loop(buf: np.ndarray, src: int, repeats: int) -> int:
    """A packet of the sender: BTH, payload copied, ICRC."""
    crc = 0
    for i in range(repeats):
        headers.put_bth(buf, 42, 4, 0, 0, 0xFFFF, 0x11, 1, i & 0xFFFFFF)
        crc = icrc.icrc_bth(icrc.icrc_seed(crc, 0, 0, LENGTH), buf, 42, headers.BTH_LEN)
        crc = icrc.icrc_finish(icrc.crc32_copy(crc, buf, 54, src, 64))
        icrc.put_icrc(buf, 118, crc)
    return crc


@inline
def link_loop(buf: np.ndarray, avs: np.ndarray, repeats: int) -> int:
    """The sender's link headers, once per frame."""
    bth = 0
    for _ in range(repeats):
        bth = frame.put_link(buf, bth & 1024, avs, 1, LENGTH)
    return bth


def bench_packet(runs: int) -> None:
    avs = np.zeros(2, AV)
    addresses = {"smac": bytes(6), "dmac": bytes(6), "sip": bytes((10, 0, 0, 1)), "dip": bytes((10, 0, 0, 2))}
    numbers = {"vlan": None, "tclass": 0, "flow_label": 0, "hop_limit": 64, "sport": 0xC001}
    frame.build_av(avs[1], **addresses, **numbers)
    buf, payload = np.zeros(2048, np.uint8), np.ones(64, np.uint8)
    for at in (0, 1024):
        frame.put_link(buf, at, avs, 1, LENGTH)
    src = payload.ctypes.data
    print(f"\nRC SEND Only of 64 bytes over IPv4, {crc32.VARIANT}: ns")
    for name, loop in (
        ("receive: seed and check the ICRC", lambda k: check_loop(buf, k)),
        ("receive: link headers too", lambda k: receive_loop(buf, k)),
        ("send: BTH, copy, ICRC", lambda k: send_loop(buf, src, k)),
        ("send: link headers, per frame", lambda k: link_loop(buf, avs, k)),
    ):
        print(f"{name:34} {median_ns(loop, runs):6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=41, help="samples of which the median is shown")
    runs = parser.parse_args().runs
    bench_kernels(runs)
    bench_packet(runs)


if __name__ == "__main__":
    main()
