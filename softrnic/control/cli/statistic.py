"""`softrnic statistic show`: counters, by their names in rxe, as `rdma statistic show` shows them."""

from __future__ import annotations

import argparse
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_show_options, ask, print_rows, show_words


def add_parser(subparsers: Any) -> None:
    """The options of the command, as rdma(8) has them."""
    parser = subparsers.add_parser(
        "statistic", help=COMMANDS["statistic"].help,
        description="Show counters. The functions of one host share them: they are shown once, as its first one's.",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", metavar="show [link NAME]")
    add_show_options(parser)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    from softrnic.control.rpc import StatisticShow

    _, link, _ = show_words(args.words)
    print_rows(args, ask(args, StatisticShow(link)), None)
    return 0
