"""`softrnic demo`: the demonstration, told as a table and as JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.terminal import progress

if TYPE_CHECKING:
    from rich.table import Table

    from softrnic.control.demo.run import Report, Run

WIRES = ("auto", "tap", "veth", "memory", "udp")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
COMPILING = "compiling the data path (once, about a minute)"


def add_parser(subparsers: Any) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "demo",
        help=COMMANDS["demo"].help,
        description="Move data of every kind between two hosts, on a good wire and on one that loses, duplicates and "
        "reorders packets, then one of two NICs to a third host while they talk, and verify every byte. Exit status 0 "
        "means that all of it was right.",
    )
    parser.add_argument(
        "--wire", choices=WIRES, default="auto", help="what joins the hosts (default: tap, or what this machine allows)"
    )
    parser.add_argument("--bytes", type=size, default=64 << 20, metavar="SIZE", help="per step (default: 64M)")
    parser.add_argument(
        "--bad-bytes", type=size, default=4 << 20, metavar="SIZE", help="per step on the bad wire (default: 4M)"
    )
    parser.add_argument("--seed", type=natural, default=1, help="of the data and of the faults (default: %(default)s)")
    parser.add_argument("--pcap", type=output, metavar="FILE", help="keep the capture of the bad wire (pcapng)")
    parser.add_argument("--json", type=output, metavar="FILE", help="write all that was found")


def size(text: str) -> int:
    """A number of bytes such as 65536, 64k, 16M."""
    digits, unit = text.rstrip("kKmMgG"), text[len(text.rstrip("kKmMgG")) :].lower()
    if unit not in _UNITS or not digits.isdecimal() or not 0 < int(digits) * _UNITS[unit] <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1 to 1G")
    return int(digits) * _UNITS[unit]


def natural(text: str) -> int:
    """A seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def output(text: str) -> Path:
    """A file to be written in the end: found out now that there is no place for it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: cannot be written")
    return path


def run(args: argparse.Namespace) -> int:
    """Run the demonstration."""
    with contextlib.ExitStack() as stack:
        with progress("loading"):
            from softrnic.control.demo.run import run_demo
            from softrnic.control.fabric import best_wire

            wire, why = best_wire() if args.wire == "auto" else (args.wire, "")
        capture = args.pcap or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "demo.pcapng"
        report = run_demo(
            wire, why_not_tap=why, seed=args.seed, nbytes=args.bytes, bad_nbytes=args.bad_bytes, capture=capture,
            progress=lambda text: progress(text, later=COMPILING if "data path" in text else ""),
        )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(as_json(report, args.pcap), indent=2) + "\n")
    show(report, args.pcap)
    return 0 if report.ok else 1


# Rows of the second table: what it says, and the counters it is the sum of (softrnic/counters.py, netio/fault.py).
LOSSES = {
    "packets sent": ("sent_pkts",),
    "lost by the wire": ("fault_tx_lost",),
    "duplicated by the wire": ("fault_tx_duplicated",),
    "reordered by the wire": ("fault_tx_reordered",),
    "dropped by ports for want of room": ("tx_drops", "rx_drops"),
    "sequence NAKs": ("rcvd_seq_err",),
    "responses missed": ("implied_nak_seq_err",),
    "timeouts": ("local_ack_timeout_err",),
    "packets sent again": ("retransmitted_pkts",),
    "duplicates recognised": ("duplicate_request",),
}
WIRES_IN_WORDS = {
    "tap": "each on a tap of its own, on a bridge",
    "veth": "each in a network namespace of its own, on a veth pair",
    "memory": "in this process, joined by memory",
    "udp": "on UDP sockets of loopback addresses",
}
PLACES = {
    "tap": "network namespaces on a bridge",
    "veth": "network namespaces on a bridge",
    "memory": "this process, on a switch in memory",
    "udp": "this process, on a switch in memory",
}


def as_json(report: Report, pcap: Path | None) -> dict[str, Any]:
    """Everything that was found."""
    return {
        "ok": report.ok,
        "wire": report.wire,
        "why_not_tap": report.why_not_tap,
        "seed": report.seed,
        "prepare_seconds": round(report.prepare_seconds, 3),
        "seconds": round(report.seconds, 3),
        "steps": [
            {
                "wire": run.name,
                "name": step.name,
                "ok": step.ok,
                "messages": step.messages,
                "bytes": step.nbytes,
                "seconds": round(step.seconds, 6),
                "gbps": round(step.gbps, 3),
                "messages_per_second": round(step.message_rate),
                "wrong_bytes": step.wrong_bytes,
                "error": step.error,
            }
            for run in report.runs
            for step in run.steps
        ],
        "counters": {run.name: dict(sorted(run.counters.items())) for run in report.runs},
        "pcap": {
            "file": str(pcap) if pcap else None,
            "verdicts": [dataclasses.asdict(verdict) | {"ok": verdict.ok} for verdict in report.verdicts],
        },
        "move": dataclasses.asdict(report.move) | {"ok": report.move.ok},
    }


def show(report: Report, pcap: Path | None) -> None:
    """Print what was found."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"Two hosts, {WIRES_IN_WORDS[report.wire]}; seed {report.seed}.")
    if report.why_not_tap:
        console.print(f"Not on taps and a bridge: {report.why_not_tap}.")
    console.print(_steps_table(report.runs))
    console.print(_losses_table(report.runs))
    console.print("The faulty wire is bad packet by packet, in Python: its rates are not the engine's.")
    for verdict in report.verdicts:
        icrc = "" if verdict.bad_icrc is None else f", {verdict.bad_icrc} with a wrong ICRC"
        console.print(
            f"Capture read by {verdict.dissector}: {verdict.packets:,} packets, {verdict.roce:,} RoCEv2, "
            f"{verdict.malformed} malformed{icrc}."
        )
    if not any(verdict.dissector == "tshark" for verdict in report.verdicts):
        console.print("Capture not read by tshark: it is not installed.")
    if pcap:
        console.print(f"Capture: {pcap}")
    console.print(_move_table(report))
    console.print(f"{_conclusion(report)} {report.seconds:.1f} s, {report.prepare_seconds:.1f} s of them to get ready.")


def _conclusion(report: Report) -> str:
    if report.ok:
        moved = sum(step.nbytes for run in report.runs for step in run.steps) + report.move.nbytes
        return f"[green]Everything arrived as it was sent[/]: {moved:,} bytes verified, 0 wrong."
    wrong = sum(step.wrong_bytes for run in report.runs for step in run.steps) + report.move.wrong_bytes
    undone = sum(bool(step.error) for run in report.runs for step in run.steps) + bool(report.move.error)
    return f"[red]FAILED[/]: {wrong:,} wrong bytes, {undone} steps that could not be done."


def _steps_table(runs: list[Run]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("wire", "step"):
        table.add_column(column, no_wrap=True)
    for column in ("messages", "bytes", "msg/s", "Gb/s", "wrong bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        for i, step in enumerate(run.steps):
            row = [f"{step.messages:,}", f"{step.nbytes:,}", f"{step.message_rate:,.0f}", f"{step.gbps:.3f}"]
            wrong = f"[red]{step.error}[/]" if step.error else f"{step.wrong_bytes:,}"
            table.add_row("" if i else run.name, step.name, *row, wrong, end_section=step is run.steps[-1])
    return table


def _losses_table(runs: list[Run]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("packets")
    for run in runs:
        table.add_column(run.name, justify="right")
    for text, names in LOSSES.items():
        table.add_row(text, *(f"{sum(run.counters.get(name, 0) for name in names):,}" for run in runs))
    return table


def _move_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    move = report.move
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("a NIC moves to a third host while it is used")
    table.add_column("", justify="right")
    for text, value in (
        ("where the hosts are", PLACES[report.wire]),
        ("pages copied in each round, and in the pause", " ".join(f"{n:,}" for n in move.pages_per_round)),
        ("state", f"{move.state_bytes:,} bytes"),
        ("pause", f"{move.downtime_ms:.1f} ms"),
        ("packets lost meanwhile", f"{move.lost:,}"),
        ("packets sent on from the old place", f"{move.forwarded:,}"),
        ("times the peer was asked to wait (RNR NAK)", f"{move.held:,}"),
        ("packets sent again", f"{move.retransmitted:,}"),
        ("bytes verified, at both ends", f"{move.nbytes:,}"),
        ("wrong bytes", f"[red]{move.error}[/]" if move.error else f"{move.wrong_bytes:,}"),
    ):
        table.add_row(text, value)
    return table
