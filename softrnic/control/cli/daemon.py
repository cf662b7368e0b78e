"""`softrnic daemon`: a host that is shown and administered over a control socket, and that functions can come to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.ask import add_socket
from softrnic.control.cli.device import add_spin
from softrnic.errors import SoftRnicError

if TYPE_CHECKING:
    from softrnic.control.host import Host


def add_parser(subparsers: Any) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "daemon", help=COMMANDS["daemon"].help,
        description="Keep a host on the wire: `softrnic function`, `res`, `migrate` and others talk to it.",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-d", "--ib-dev", dest="device", metavar="DEV", help="network device, or udp:ADDRESS")
    where.add_argument("--tap", metavar="IP/PREFIX", help="a tap of its own with this address")
    parser.add_argument("--ifname", default="srtap%d", help="name of the tap (default: the next free srtapN)")
    add_spin(parser)
    add_socket(parser)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="take in functions over TCP; or a path: over a unix socket"
    )
    parser.add_argument("--token-file", metavar="FILE", help="what sources on TCP must know; readable by nobody else")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="Prometheus metrics")
    parser.add_argument("--metrics-address", default="127.0.0.1", help="where (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    import logging

    import uvloop

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    if args.listen and "/" not in args.listen and not args.token_file:
        raise SoftRnicError("--listen on TCP needs --token-file: nobody else is to bring functions here")
    with _open(args) as host:
        uvloop.run(_serve(host, args))
    return 0


def _open(args: argparse.Namespace) -> Host:
    from softrnic.control.cli.device import open_host, prepare

    if not args.tap:
        return open_host(args.device, spin_ns=args.spin)
    import ipaddress

    prepare()
    from softrnic.control import host

    try:
        address = ipaddress.ip_interface(args.tap)
    except ValueError as error:
        raise SoftRnicError(str(error)) from None
    return host.open_tap(address, ifname=args.ifname, spin_ns=args.spin)


async def _serve(host: Host, args: argparse.Namespace) -> None:
    import asyncio
    import contextlib
    import signal

    from softrnic.control.daemon import HostPlace, serve
    from softrnic.control.metrics import exported
    from softrnic.control.migration import Arrivals, listen, listen_unix, read_token

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    arrivals = Arrivals(HostPlace(host))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serve(host, args.socket))
        print(f"{host.device.name} at {host.address}, control socket {args.socket}", flush=True)
        if args.listen and "/" in args.listen:
            await stack.enter_async_context(listen_unix(arrivals, Path(args.listen)))
            print(f"functions may come to {args.listen}", flush=True)
        elif args.listen:
            name, _, port = args.listen.rpartition(":")
            if not port.isdecimal():
                raise SoftRnicError(f"{args.listen!r} is not HOST:PORT")
            token = read_token(args.token_file)
            bound = await stack.enter_async_context(listen(arrivals, name.strip("[]"), int(port), token=token))
            print(f"functions may come to {name}:{bound}", flush=True)
        if args.metrics_port is not None:
            port = stack.enter_context(exported(host.device.adapter, args.metrics_address, args.metrics_port))
            print(f"metrics at http://{args.metrics_address}:{port}/metrics", flush=True)
        await ended.wait()
    arrivals.close()
