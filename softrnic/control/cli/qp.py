"""`softrnic qp survive PAUSE`: whether the peers of live QPs bear a pause, until when, and what would help."""

from __future__ import annotations

import argparse
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_show_options, ask, print_rows, show_words

_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


def add_parser(subparsers: Any) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("qp", help=COMMANDS["qp"].help, description="Ask about queue pairs.")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    one = what.add_parser("survive", help="whether their peers live through a pause; exit status 1 if one does not")
    one.add_argument("pause", type=duration, help="such as 50ms")
    one.add_argument("words", nargs="*", metavar="[link NAME] [lqpn NUMBER]")
    one.add_argument("--policy", default="silence", help="how they are treated meanwhile (default: %(default)s)")
    add_show_options(one)


def duration(text: str) -> int:
    """Nanoseconds of a duration such as 50ms, 1.5s, 300us."""
    digits = text.rstrip("nums")
    unit = text[len(digits) :]
    try:
        value = float(digits) * _UNITS[unit]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 50ms, 2s, 300us") from None
    if not 0 <= value < 1 << 50:
        raise argparse.ArgumentTypeError(f"{text!r} is too long")
    return int(value)


def run(args: argparse.Namespace) -> int:
    """Show what was found."""
    from softrnic.control.rpc import QpSurvive
    from softrnic.errors import SoftRnicError

    _, link, filters = show_words(args.words)
    number = filters.pop("lqpn", None)
    if filters:
        raise SoftRnicError(f"{next(iter(filters))} is neither link nor lqpn")
    try:
        lqpn = None if number is None else int(number, 0)
    except ValueError:
        raise SoftRnicError(f"lqpn {number} is no number") from None
    rows = ask(args, QpSurvive(args.pause, args.policy, link, lqpn))
    print_rows(args, rows, None)
    return 0 if all(row["survives"] for row in rows) else 1
