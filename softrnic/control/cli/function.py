"""`softrnic function add|del|show`: functions beside a host's own device, each with its address."""

from __future__ import annotations

import argparse
from typing import Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_show_options, add_socket, ask, pairs, print_rows


def add_parser(subparsers: Any) -> None:
    """The options of the command, in iproute2's manner."""
    parser = subparsers.add_parser("function", help=COMMANDS["function"].help, description="Functions of a host.")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    add = what.add_parser("add", help="make one")
    add.add_argument("name")
    add.add_argument("words", nargs="+", metavar="address IP/PREFIX [mac MAC] [vlan ID]")
    add_socket(add)
    remove = what.add_parser("del", help="destroy one, and all that is on it")
    remove.add_argument("name")
    add_socket(remove)
    show = what.add_parser("show", help="show them, and which are on the move")
    add_show_options(show)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    from softrnic.control import rpc
    from softrnic.errors import SoftRnicError

    if args.what == "show":
        print_rows(args, ask(args, rpc.FunctionShow()), None)
        return 0
    if args.what == "del":
        ask(args, rpc.FunctionDel(args.name))
        return 0
    given = pairs(args.words)
    unknown = given.keys() - {"address", "mac", "vlan"}
    if unknown or "address" not in given:
        raise SoftRnicError(f"address IP/PREFIX [mac MAC] [vlan ID]: {' '.join(args.words)}")
    vlan = given.get("vlan")
    if vlan is not None and not vlan.isdecimal():
        raise SoftRnicError(f"vlan {vlan} is no number")
    mac = given.get("mac")
    request = rpc.FunctionAdd(args.name, given["address"], mac.lower() if mac else None, int(vlan) if vlan else None)
    ask(args, request)
    return 0
