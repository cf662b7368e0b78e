"""The whole demonstration: the job on a good wire, then on a captured bad one, a look at the capture, and a move.

Decides the wires, the faults and what makes it a success. Says what it is doing to a `Progress`; prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from netio.fault import FaultPort, Faults
from netio.pcap import PcapPort
from netio.port import Port
from softrnic.control import warm
from softrnic.control.demo.capture import Verdict, judge, judge_with_tshark
from softrnic.control.demo.job import Job, Step
from softrnic.control.demo.move import Move, run_move
from softrnic.control.fabric import fabric
from softrnic.control.host import Wrap

FAULTS = Faults(loss=0.01, duplicate=0.01, reorder=0.01, reorder_ns=200_000)
MOVE_PART = 4  # of the bytes of a step, those that each program verifies before and after the move
PLAIN: tuple[Wrap | None, Wrap | None] = (None, None)

Progress = Callable[[str], AbstractContextManager[None]]
"""Called with what begins now, or goes on; entered while it lasts."""


@dataclass
class Run:
    """The job done once. `counters` are sums over both hosts, from engines and ports."""

    name: str
    steps: list[Step] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """All steps done, no byte wrong."""
        return bool(self.steps) and all(step.ok for step in self.steps)


@dataclass
class Report:
    """What the demonstration found."""

    wire: str
    why_not_tap: str
    seed: int
    runs: list[Run] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    move: Move = field(default_factory=Move)
    prepare_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Every byte verified, the capture well-formed to everybody who read it, and the NIC has moved."""
        arrived = len(self.runs) == 2 and all(run.ok for run in self.runs)
        return arrived and all(v.ok for v in self.verdicts) and self.move.ok


def run_demo(
    wire: str, *, why_not_tap: str, seed: int, nbytes: int, bad_nbytes: int, capture: Path, progress: Progress
) -> Report:
    """Do everything on this kind of wire; the capture of the bad one is left in `capture`."""
    start = time.monotonic()
    report = Report(wire, why_not_tap, seed)
    with progress("loading the data path"):
        warm.prepare()
    report.prepare_seconds = time.monotonic() - start
    report.runs.append(_run("clean", wire, nbytes, seed, progress))

    def capturing(port: Port) -> Port:
        return FaultPort(PcapPort(port, capture), tx=FAULTS, seed=seed)

    def faulty(port: Port) -> Port:
        return FaultPort(port, tx=FAULTS, seed=seed + 1)

    report.runs.append(_run("faulty", wire, bad_nbytes, seed, progress, wrap=(capturing, faulty)))
    with progress("reading the capture"):
        report.verdicts.append(judge(capture, icrc=wire != "udp"))  # a UDP socket does not tell them
    with progress("reading the capture with tshark"):
        by_tshark = judge_with_tshark(capture)
    if by_tshark is not None:
        report.verdicts.append(by_tshark)
    privileged = wire in ("tap", "veth")
    report.move = run_move(privileged=privileged, nbytes=nbytes // MOVE_PART, seed=seed, progress=progress)
    report.seconds = time.monotonic() - start
    return report


def _run(
    name: str, wire: str, nbytes: int, seed: int, progress: Progress, *, wrap: tuple[Wrap | None, Wrap | None] = PLAIN
) -> Run:
    run = Run(name)
    with fabric(wire, wrap=wrap) as hosts:
        with progress(f"{name} wire: connecting"):
            job = Job(hosts, nbytes=nbytes, seed=seed)
        for step, do in job.steps().items():
            with progress(f"{name} wire: {step}"):
                run.steps.append(do())
        for host in hosts:
            for counter, value in (host.device.counters() | host.port.counters()).items():
                run.counters[counter] = run.counters.get(counter, 0) + value
    return run
