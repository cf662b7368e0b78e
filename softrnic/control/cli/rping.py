"""`softrnic rping`: rping of librdmacm, with its flags."""

from __future__ import annotations

import argparse
import socket
from typing import Any

from softrnic.control.cli import COMMANDS

PORT = 7174
ANY = "0.0.0.0"  # noqa: S104
UNSPECIFIED = (None, ANY, "::")


def add_parser(subparsers: Any) -> None:
    """The options of the command. rping's -q has no counterpart; --ib-dev is ours, where addresses do not tell."""
    parser = subparsers.add_parser(
        "rping",
        help=COMMANDS["rping"].help,
        description="Send text by RDMA READ and get it back by RDMA WRITE, with another softrnic or with rping.",
    )
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("-s", "--server", action="store_true", help="be the server")
    role.add_argument("-c", "--client", action="store_true", help="be the client")
    parser.add_argument("-a", dest="address", metavar="ADDR", help="the server's address")
    parser.add_argument("-I", dest="source", metavar="ADDR", help="the client's own address")
    parser.add_argument("-p", dest="port", type=int, default=PORT, help="the server's port (default: %(default)s)")
    parser.add_argument("-C", dest="count", type=int, default=0, help="pings (default: no end)")
    parser.add_argument("-S", dest="size", type=int, default=64, help="bytes of text (default: %(default)s)")
    parser.add_argument("-v", dest="verbose", action="store_true", help="print the text")
    parser.add_argument("-V", dest="validate", action="store_true", help="check the text")
    parser.add_argument("-d", dest="debug", action="store_true", help="log what goes on")
    parser.add_argument("-P", dest="persistent", action="store_true", help="serve any number of clients")
    parser.add_argument("--ib-dev", dest="device", metavar="DEV", help="network device, or udp:ADDRESS")


def run(args: argparse.Namespace) -> int:
    """Ping, or be pinged; 0 when all went well."""
    import logging

    import uvloop

    from softrnic.control import rping
    from softrnic.control.cli.device import open_host
    from softrnic.errors import SoftRnicError

    if args.client and not args.address:
        raise SoftRnicError("a client needs -a, the server's address")
    if args.debug:
        logging.basicConfig(level=logging.DEBUG)
    options = rping.Options(size=args.size, count=args.count, validate=args.validate)
    address, source = _ip(args.address or ANY), _ip(args.source) if args.source else None
    own = source if args.client else address
    say = _print if args.verbose else _ignore
    with open_host(args.device, address=None if own in UNSPECIFIED else own) as host:
        if args.client:
            uvloop.run(rping.call(host.device, address, args.port, options, say, source=source))
        elif args.persistent:
            uvloop.run(rping.serve_all(host.device, address, args.port, options, say))
        else:
            uvloop.run(rping.serve(host.device, address, args.port, options, say))
    return 0


def _ip(name: str) -> str:
    """The address of a host, by name or as it is."""
    return str(socket.getaddrinfo(name, None)[0][4][0])


def _print(line: str) -> None:
    print(line, flush=True)


def _ignore(_: str) -> None:
    """Not verbose."""
