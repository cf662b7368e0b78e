"""`softrnic migrate NAME --to HOST:PORT`: move a function to another daemon while it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_socket, ask
from softrnic.control.cli.qp import duration

_ERASE_LINE = "\r\x1b[K"


def add_parser(subparsers: Any) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "migrate", help=COMMANDS["migrate"].help,
        description="Move a function to the host of another daemon. Ctrl-C gives it up: the function goes on here.",
    )  # fmt: skip
    parser.add_argument("name", help="of the function")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", metavar="HOST:PORT", help="of the other daemon; or the path of a unix socket")
    what.add_argument("--cancel", action="store_true", help="give a move up that somebody else has begun")
    what.add_argument("--decide", choices=("here", "there"), help="settle a doubt about where the function runs")
    parser.add_argument("--token-file", default="", metavar="FILE", help="with what both daemons know")
    parser.add_argument(
        "--downtime", type=duration, default=300_000_000, metavar="TIME", help="longest pause (default: 300ms)"
    )
    parser.add_argument("--policy", default="silence", help="how peers are treated meanwhile (default: %(default)s)")
    parser.add_argument("--postcopy", action="store_true", help="send memory once, and fetch the rest afterwards")
    parser.add_argument("--force", action="store_true", help="also if peers may not live through the pause")
    parser.add_argument("--json", action="store_true", help="what it took, as JSON")
    add_socket(parser)


def run(args: argparse.Namespace) -> int:
    """Move it."""
    from softrnic.control import rpc

    if args.cancel:
        ask(args, rpc.MigrateCancel(args.name))
        return 0
    if args.decide:
        ask(args, rpc.MigrateDecide(args.name, args.decide == "here"))
        return 0
    token_file = str(Path(args.token_file).absolute()) if args.token_file else ""
    to = str(Path(args.to).absolute()) if "/" in args.to else args.to
    request = rpc.Migrate(args.name, to, token_file, args.downtime, args.policy, args.postcopy, args.force)
    try:
        report = ask(args, request, _progress if sys.stderr.isatty() else lambda _: None)
    finally:
        if sys.stderr.isatty():
            sys.stderr.write(_ERASE_LINE)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _show(args.name, report)
    return 0


def _progress(p: dict[str, Any]) -> None:
    """One line, overwritten as it goes."""
    pause = "?" if p["downtime_ns"] is None else f"{p['downtime_ns'] / 1e6:.1f} ms"
    sys.stderr.write(
        f"{_ERASE_LINE}{p['phase']}: round {p['round']}, {_mb(p['sent_bytes'])} of {_mb(p['memory_bytes'])} sent, "
        f"written {_mb(p['dirty_rate'])}/s, sent {_mb(p['bandwidth'])}/s, pause now {pause}"
    )
    sys.stderr.flush()


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def _show(name: str, report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("round", "pages", "ms", "MB/s", "left MB"):
        table.add_column(column, justify="right")
    for i, (row, pages) in enumerate(zip(report["rounds"], report["pages"], strict=False), 1):
        seconds = max(row["elapsed_ns"], 1) / 1e9
        rate, left = row["sent_bytes"] / seconds / 1e6, row["dirty_bytes"] / 1e6
        table.add_row(f"{i}", f"{pages:,}", f"{seconds * 1e3:.1f}", f"{rate:,.0f}", f"{left:,.3f}")
    if len(report["pages"]) > len(report["rounds"]):
        table.add_row("pause", f"{report['pages'][-1]:,}", f"{report['downtime_ns'] / 1e6:.1f}", "", "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{name} has moved: {report['downtime_ns'] / 1e6:.1f} ms of pause, {report['state_bytes']:,} bytes of state, "
        f"{_mb(report['sent_bytes'])} sent, {report['postcopy_pages']:,} pages afterwards "
        f"({report['demanded_pages']:,} asked for), {report['reconnects']} broken connections."
    )
