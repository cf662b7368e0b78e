"""`softrnic pingpong`: ibv_rc_pingpong, ibv_uc_pingpong, ibv_ud_pingpong, ibv_srq_pingpong, with their flags."""

from __future__ import annotations

import argparse
import socket
from typing import Any

from softrnic.control.cli import COMMANDS

PORT = 18515
MTUS = (256, 512, 1024, 2048, 4096)
KINDS = ("rc", "uc", "ud", "srq")


def add_parser(subparsers: Any) -> None:
    """The options of the command, those of the stock programs."""
    parser = subparsers.add_parser(
        "pingpong",
        help=COMMANDS["pingpong"].help,
        description="Send messages to and fro with another softrnic, or with the program of rdma-core of that name.",
    )
    programs = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind in KINDS:
        one = programs.add_parser(kind, help=f"ibv_{kind}_pingpong")
        one.add_argument("host", nargs="?", help="the server; without it, be the server")
        one.add_argument("-d", "--ib-dev", dest="device", metavar="DEV", help="network device, or udp:ADDRESS")
        one.add_argument("-p", "--port", type=int, default=PORT, help="TCP port of the exchange (default: %(default)s)")
        size = 1024 if kind == "ud" else 4096
        one.add_argument("-s", "--size", type=int, default=size, help="bytes of a message (default: %(default)s)")
        if kind != "ud":
            mtus = (256, 512, 1024, 2048, 4096)
            one.add_argument(
                "-m", "--mtu", type=int, default=1024, choices=mtus, help="path MTU (default: %(default)s)"
            )
        if kind == "srq":
            one.add_argument("-q", "--num-qp", type=int, default=16, help="queue pairs (default: %(default)s)")
        one.add_argument("-r", "--rx-depth", type=int, default=500, help="receives posted (default: %(default)s)")
        one.add_argument("-n", "--iters", type=int, default=1000, help="exchanges (default: %(default)s)")
        one.add_argument("-g", "--gid-idx", type=int, default=0, help="local GID (default: %(default)s)")
        one.add_argument("-e", "--events", action="store_true", help="sleep until a message comes")
        one.add_argument("-c", "--chk", action="store_true", help="check what is received")


def run(args: argparse.Namespace) -> int:
    """Play; 0 when all messages came, and with -c came whole."""
    from softrnic.control.cli.device import open_host
    from softrnic.control.pingpong import Kind, Options, Pingpong
    from softrnic.spec import Mtu

    mtu = next(mtu for mtu in Mtu if mtu.bytes == getattr(args, "mtu", 1024))
    options = Options(
        kind=Kind(args.kind), size=args.size, iters=args.iters, mtu=mtu, gid_index=args.gid_idx, rx_depth=args.rx_depth,
        num_qp=getattr(args, "num_qp", 1), events=args.events, check=args.chk,
    )  # fmt: skip
    with open_host(args.device) as host, Pingpong(host.device, options, _print) as game:
        if args.host:
            with socket.create_connection((args.host, args.port)) as sock:
                result = game.call(sock)
        else:
            with _listen(args.port) as listener:
                result = game.serve(listener)
    print(result)
    return 1 if result.invalid_pages else 0


def _print(line: str) -> None:
    print(line, flush=True)


def _listen(port: int) -> socket.socket:
    """For IPv4, and where there is IPv6, for that as well."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
