"""Raw rates of port pairs: frames without a protocol, compiled loops, a window instead of an engine.

    tools/bench_ports.py [memory|raw|raw-mmsg|raw-ring|xsk|tap|udp ...] [--seconds 0.5] [--runs 3]
    tools/bench_ports.py coalescing

For each wire (benchlib/wires.py) and shape of frames, medians over the runs, which go round all shapes:
`wall`, what arrives while one thread sends and one receives; both poll, so it means something on two idle processors
only. `cpu`, payload moved per second of processor time, sending and receiving in one thread; that holds on a busy
machine too, but for wires whose frames pass ksoftirqd, whose time is counted as well (XDP, coalescing). `alone`: how
long a single frame of 80 bytes takes from the call that sends it to the look that finds it, in one thread.
`coalescing` is benchlib/coalescing.py. All but memory and udp need root and use namespaces of their own. Every run is
bounded: the window opens again after frames were lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchlib import coalescing
from benchlib.rates import SHAPES, Rates
from benchlib.wires import WIRES

from softrnic.errors import IoError


def line(kind: str, rates: Rates) -> str:
    """One shape for people."""
    one, both = rates.gbps(rates.wall), rates.gbps(rates.cpu)
    return (
        f"{kind:12} {rates.payload:5} x {rates.count:3}  wall {one:6.1f} Gb/s {rates.wall / 1e6:6.2f} M/s"
        f"  cpu {both:6.1f} Gb/s {rates.cpu / 1e6:6.2f} M/s"
    )


def report(kinds: list[str], seconds: float, runs: int) -> dict[str, float]:
    """Measure wires: a line per shape as it is found, all figures by name."""
    found: dict[str, float] = {}
    for kind in kinds:
        try:
            with WIRES[kind]() as wire:
                measured = Rates.measure_all(wire, SHAPES, seconds, runs)
                lone = statistics.median(Rates.alone(wire) for _ in range(runs))
        except IoError as error:
            print(f"{kind:12} not here: {error}", flush=True)
            continue
        for rates in measured:
            print(line(kind, rates), flush=True)
            name = f"{kind} {rates.payload} x {rates.count}"
            found[f"{name}, wall, Gb/s"] = rates.gbps(rates.wall)
            found[f"{name}, cpu, Gb/s"] = rates.gbps(rates.cpu)
            found[f"{name}, wall, M packets/s"] = rates.wall / 1e6
        print(f"{kind:12} alone {lone:.1f} us", flush=True)
        found[f"{kind} alone, us"] = lone
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*WIRES, "coalescing"]
    parser.add_argument("kinds", nargs="*", default=names, metavar="kind", help=" ".join(names))
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and lines on standard error")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(names):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        found = report([kind for kind in args.kinds if kind in WIRES], args.seconds, args.runs)
        if "coalescing" in args.kinds:
            found |= coalescing.report(args.seconds, args.runs)
    if args.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
