"""`softrnic qp survive PAUSE`: whether the peers of live QPs bear a pause, until when, and what would help.

With the attributes of a peer (`--timeout` and so on) it is arithmetic alone, and nobody is asked.
"""

from __future__ import annotations

import argparse
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import Row, add_show_options, ask, print_rows, show_words

# Attributes of a peer: name, highest value, what it is if not said, and what it means.
_ATTRIBUTES = (
    ("timeout", 31, 14, "local ACK timeout, 4.096 us x 2^N"),
    ("retry-cnt", 7, 7, "retries after timeouts"),
    ("rnr-retry", 7, 7, "retries after RNR NAKs; 7 is without end"),
    ("rnr-timer", 31, 20, "code of the wait that our RNR NAKs ask for"),
)
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
    peer = one.add_argument_group("a peer", "instead of those of live QPs, one with these attributes")
    for name, top, default, text in _ATTRIBUTES:
        peer.add_argument(f"--{name}", type=int, choices=range(top + 1), metavar="N", help=f"{text} ({default})")


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
    from softrnic.errors import SoftRnicError

    given = {name: getattr(args, name.replace("-", "_")) for name, *_ in _ATTRIBUTES}
    if any(value is not None for value in given.values()):
        if args.words:
            raise SoftRnicError("either a live QP, or the attributes of a peer")
        return _show(args, [_reckon(args, given)])
    from softrnic.control.rpc import QpSurvive

    _, link, filters = show_words(args.words)
    number = filters.pop("lqpn", None)
    if filters:
        raise SoftRnicError(f"{next(iter(filters))} is neither link nor lqpn")
    try:
        lqpn = None if number is None else int(number, 0)
    except ValueError:
        raise SoftRnicError(f"lqpn {number} is no number") from None
    return _show(args, ask(args, QpSurvive(args.pause, args.policy, link, lqpn)))


def _reckon(args: argparse.Namespace, given: dict[str, int | None]) -> Row:
    """The arithmetic alone."""
    from softrnic.errors import SoftRnicError
    from softrnic.verbs.survival import POLICIES, Peer, survival

    if args.policy not in POLICIES:
        raise SoftRnicError(f"policy {args.policy!r} is not one of {', '.join(POLICIES)}")
    known = {name: default for name, _, default, _ in _ATTRIBUTES}
    known |= {name: value for name, value in given.items() if value is not None}
    peer = Peer(known["timeout"], known["retry-cnt"], known["rnr-retry"], args.policy, known["rnr-timer"])
    found = survival(peer, args.pause)
    return {
        "ifname": "peer", **known, "survives": found.survives, "until_ns": found.until_ns, "limit": found.limit,
        "advice": list(found.advice), "if_lost_ns": found.if_lost_ns,
    }  # fmt: skip


def _show(args: argparse.Namespace, rows: list[Row]) -> int:
    print_rows(args, rows, None)
    return 0 if all(row["survives"] for row in rows) else 1
