"""`softrnic perftest`: be a peer of ib_write_bw, ib_read_lat and their like, with their flags."""

from __future__ import annotations

import argparse
import socket
from typing import Any

from softrnic.control.cli import COMMANDS

PORT = 18515
NAMES = ("write_bw", "read_bw", "send_bw", "atomic_bw", "write_lat", "read_lat", "send_lat", "atomic_lat")
MTUS = (256, 512, 1024, 2048, 4096)


def add_parser(subparsers: Any) -> None:
    """The options of the command, those of the stock programs."""
    parser = subparsers.add_parser(
        "perftest",
        help=COMMANDS["perftest"].help,
        description="Run a test with the program of perftest of that name on the other side. Both must be told the "
        "same size and iterations. The interpreter bounds what it measures: between softrnics, use `softrnic perf`.",
    )
    tests = parser.add_subparsers(dest="test", required=True, metavar="TEST")
    for name in NAMES:
        one = tests.add_parser(name, help=f"ib_{name}")
        one.add_argument("host", nargs="?", help="the server; without it, be the server")
        one.add_argument("-d", "--ib-dev", dest="device", metavar="DEV", help="network device, or udp:ADDRESS")
        one.add_argument("-p", "--port", type=int, default=PORT, help="TCP port of the exchange (default: %(default)s)")
        one.add_argument("-s", "--size", type=int, default=0, help="bytes of a message (default: as the program)")
        one.add_argument("-n", "--iters", type=int, default=1000, help="messages (default: %(default)s)")
        one.add_argument("-m", "--mtu", type=int, default=1024, choices=MTUS, help="path MTU (default: %(default)s)")
        one.add_argument("-x", "--gid-index", type=int, default=0, help="local GID (default: %(default)s)")
        one.add_argument("-t", "--tx-depth", type=int, default=128, help="sends at a time (default: %(default)s)")
        one.add_argument("-r", "--rx-depth", type=int, default=512, help="receives at a time (default: %(default)s)")
        one.add_argument("-o", "--outs", type=int, default=16, help="READs at a time (default: %(default)s)")
        one.add_argument("-u", "--qp-timeout", type=int, default=14, help="4.096 us * 2^n (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the test, and say what was measured."""
    from softrnic.control.cli.device import open_host
    from softrnic.control.perftest import TESTS, Options, Perftest
    from softrnic.spec import Mtu

    options = Options(
        test=TESTS[args.test], size=args.size, iters=args.iters, mtu=next(mtu for mtu in Mtu if mtu.bytes == args.mtu),
        gid_index=args.gid_index, tx_depth=args.tx_depth, rx_depth=args.rx_depth, out_reads=args.outs,
        qp_timeout=args.qp_timeout,
    )  # fmt: skip
    with open_host(args.device) as host, Perftest(host.device, options) as peer:
        if args.host:
            with socket.create_connection((args.host, args.port)) as sock:
                result = peer.call(sock)
        else:
            with socket.create_server(("", args.port)) as listener:
                print("Waiting for a client", flush=True)
                result = peer.serve(listener)
    print(result)
    return 0
