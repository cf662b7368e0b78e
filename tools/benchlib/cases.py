"""The cases: one perf test on one wire, with the figure it is held against."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from json import loads
from pathlib import Path

from softrnic.control.fabric import fabric
from softrnic.control.perf.both import one_cpu
from softrnic.control.perf.run import Options

SOFTRNIC = Path(sys.executable).parent / "softrnic"


@dataclass(frozen=True)
class Case:
    """A row: how perf is called, what Linux rxe does (docs/performance.md: conditions), and our target."""

    name: str
    test: str
    size: int
    iters: int
    unit: str  # Gb/s, M/s or us
    rxe: str
    target: float
    mtu: int = 4096
    depth: int = 128
    cq_mod: int = 100  # a completion per so many messages; 100 as perftest
    wire: str | None = None  # the one the case is about; None: whatever the run is about
    beside: str = ""  # `target` is a share of what this case does in the same run

    @property
    def lower_is_better(self) -> bool:
        """Latencies."""
        return self.unit == "us"

    @property
    def rxe_figure(self) -> float | None:
        """The middle of what rxe does, for plots."""
        if self.rxe == "-":
            return None
        ends = [float(end) for end in self.rxe.split("-")]
        return sum(ends) / len(ends)


# READ comes last of those in bulk: its data goes the other way, and for some seconds the kernel's lists of free pages
# are then where they are of no use (docs/performance.md).
CASES = (
    Case("WRITE 1 MiB", "write_bw", 1 << 20, 3000, "Gb/s", "15.3-15.8", 35, depth=16),
    Case("WRITE 1 MiB, PMTU 1024", "write_bw", 1 << 20, 2000, "Gb/s", "3.8", 22, mtu=1024, depth=16),
    Case("SEND 1 MiB", "send_bw", 1 << 20, 3000, "Gb/s", "15.4-15.9", 32, depth=16),
    Case("WRITE 64 KiB", "write_bw", 1 << 16, 40000, "Gb/s", "14", 33),
    Case("SEND 64 KiB", "send_bw", 1 << 16, 40000, "Gb/s", "8.2", 33),
    Case("WRITE 4 KiB", "write_bw", 1 << 12, 300000, "Gb/s", "-", 15),
    Case("READ 1 MiB", "read_bw", 1 << 20, 3000, "Gb/s", "14.3-14.9", 32, depth=16),
    Case("WRITE 64 B", "write_bw", 64, 3000000, "M/s", "0.29", 1.5),
    Case("SEND 64 B", "send_bw", 64, 3000000, "M/s", "0.17", 1.2),
    Case("WRITE 64 B latency", "write_lat", 64, 50000, "us", "8-10", 4),
    Case("READ 64 B latency", "read_lat", 64, 50000, "us", "14", 9),
    Case(
        "WRITE 1 MiB, taps on a bridge", "write_bw", 1 << 20, 3000, "Gb/s", "-", 0.9, depth=16, wire="tap",
        beside="WRITE 1 MiB",
    ),
    Case("WRITE 1 MiB, wire in memory", "write_bw", 1 << 20, 3000, "Gb/s", "-", 40, depth=16, wire="memory"),
    Case("WRITE 64 B, wire in memory", "write_bw", 64, 3000000, "M/s", "-", 3, cq_mod=32, wire="memory"),
)  # fmt: skip


def cases_of(wire: str, word: str) -> list[Case]:
    """The cases for a run on a wire whose name has a word in it. Taps are for comparing with veth, and need root."""
    return [case for case in CASES if word.lower() in case.name.lower() and (case.wire != "tap" or wire == "veth")]


def measure(case: Case, wire: str, *, scale: float = 1.0, fifo: bool = False) -> float:
    """One run of a case in a process of its own: its figure in the case's unit. Raises when data arrived damaged."""
    command = [str(SOFTRNIC), "perf", case.test, "--wire", case.wire or wire, "--json", "--report_gbits"]
    command += ["-s", str(case.size), "-n", str(max(8, int(case.iters * scale))), "-m", str(case.mtu)]
    command += ["-t", str(case.depth), "-Q", str(case.cq_mod)]
    command = ["chrt", "-f", "1", *command] if fifo else command
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    row = loads(done.stdout)["results"][0]
    if case.unit == "us":
        return float(row["t_typical"])
    return float(row["MsgRate"] if case.unit == "M/s" else row["BW_average"])


def one_processor(wire: str, scale: float) -> dict[str, float]:
    """Both ends in one thread, by processor time: holds on a busy machine too."""
    with fabric(wire) as hosts:
        one_cpu(hosts, Options("write_bw", 64, 100))
        big = one_cpu(hosts, Options("write_bw", 1 << 20, max(1, int(1000 * scale)), tx_depth=16))
        small = one_cpu(hosts, Options("write_bw", 64, max(1, int(200_000 * scale))))
    return {
        "WRITE 1 MiB, Gb/s": big.bytes_per_s * 8 / 1e9, "WRITE 1 MiB, ns per packet": big.ns_per_packet,
        "WRITE 64 B, M/s": small.messages_per_s / 1e6, "WRITE 64 B, ns per message": small.ns_per_packet,
    }  # fmt: skip
