"""`softrnic link show`: the functions of a daemon's host, as `rdma link show` shows links."""

from __future__ import annotations

import argparse
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_show_options, ask, matching, print_rows, show_words

_KEYS = ("state", "physical_state")


def add_parser(subparsers: Any) -> None:
    """The options of the command, as rdma(8) has them."""
    parser = subparsers.add_parser("link", help=COMMANDS["link"].help, description="Show the functions of a host.")
    parser.add_argument("words", nargs="*", metavar="show [link NAME]")
    add_show_options(parser)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    from softrnic.control.rpc import LinkShow

    _, link, filters = show_words(args.words)
    rows = ask(args, LinkShow())
    if link:
        filters["ifname"] = link
    print_rows(args, matching(rows, filters), _KEYS)
    return 0
