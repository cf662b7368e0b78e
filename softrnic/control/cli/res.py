"""`softrnic res show [qp|mr|cq|pd|srq]`: objects of a daemon's host, as `rdma res show` shows them."""

from __future__ import annotations

import argparse
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_show_options, ask, matching, print_rows, show_words

KINDS = ("qp", "mr", "cq", "pd", "srq")
_KEYS = (
    "lqpn", "rqpn", "type", "state", "rq-psn", "sq-psn", "path-mig-state", "mrn", "rkey", "lkey", "iova", "mrlen",
    "cqn", "cqe", "users", "pdn", "srqn",
)  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """The options of the command, as rdma(8) has them."""
    parser = subparsers.add_parser("res", help=COMMANDS["res"].help, description="Show the objects of a host.")
    parser.add_argument("words", nargs="*", metavar=f"show [{'|'.join(KINDS)}] [link NAME] [KEY VALUE]")
    add_show_options(parser)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    from softrnic.control.rpc import ResShow

    kind, link, filters = show_words(args.words, KINDS)
    rows = matching(ask(args, ResShow(kind, link)), filters)
    print_rows(args, rows, _KEYS if kind else None, link=bool(kind))
    return 0
