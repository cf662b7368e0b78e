"""`softrnic perf`: perftest's bandwidth and latency tests, with its flag letters and its tables.

Self-contained over a wire it makes itself (`--wire`), or as server and client on two hosts: the server names a device
(`-d IFNAME` or `udp:ADDRESS`), the client also the server's host.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from softrnic.control.cli.device import add_spin

if TYPE_CHECKING:
    from softrnic.control.host import Host
    from softrnic.control.perf.run import BwResult, Endpoint, LatResult, Options

TESTS = ("write_bw", "read_bw", "send_bw", "write_lat", "read_lat", "send_lat", "atomic_lat")
ALL_SIZES = [1 << i for i in range(1, 24)]
_BW = (
    " #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]",
    " {:<10d} {:<14d} {:<18.2f} {:<20.2f} {:<.6f}",
)
_LAT = (
    (
        " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   "
        "99% percentile[usec]   99.9% percentile[usec]"
    ),
    " {:<7d} {:<14d} {:<14.2f} {:<12.2f} {:<16.2f} {:<14.2f} {:<15.2f} {:<22.2f} {:<.2f}",
)


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("perf", help="measure bandwidth and latency, as perftest does")
    tests = parser.add_subparsers(dest="test", required=True, metavar="TEST")
    for test in TESTS:
        one = tests.add_parser(test, help=f"ib_{test}")
        one.add_argument("host", nargs="?", help="server to connect to; without it, and with -d, be the server")
        one.add_argument("--wire", choices=("memory", "veth", "tap", "udp"), help="both sides here, over this wire")
        one.add_argument("-d", "--ib-dev", dest="device", help="network device, or udp:ADDRESS")
        one.add_argument("-p", "--port", type=int, default=18515, help="TCP port of the exchange")
        one.add_argument("-s", "--size", type=int, help="bytes per message")
        one.add_argument("-a", "--all", action="store_true", help="sizes 2 to 2^23")
        one.add_argument("-n", "--iters", type=int, help="messages per size")
        one.add_argument("-t", "--tx-depth", type=int, default=128)
        one.add_argument("-r", "--rx-depth", type=int, default=512)
        one.add_argument("-Q", "--cq-mod", type=int, default=100, help="a completion per so many messages")
        one.add_argument("-m", "--mtu", type=int, choices=(256, 512, 1024, 2048, 4096), default=4096)
        one.add_argument("-o", "--outs", type=int, default=16, help="outstanding READs and atomics")
        one.add_argument("-u", "--qp-timeout", type=int, default=14)
        one.add_argument("--report_gbits", action="store_true", help="Gb/s instead of MiB/s")
        one.add_argument("--cpu", default="0,1", help="processors of client and server, or 'none'")
        add_spin(one)
        one.add_argument("--ip", type=int, choices=(4, 6), default=4)
        one.add_argument("--json", action="store_true", help="print JSON with perftest's keys")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the test; 0 when it went well and the data arrived whole."""
    if args.wire and (args.host or args.device):
        raise SystemExit("softrnic perf: --wire makes both sides here; -d and a host are for two processes")
    from softrnic.control.perf.run import KINDS, Options

    kind = KINDS[args.test]
    size = kind.default_size if args.size is None else args.size
    sizes = [8] if args.test == "atomic_lat" else ALL_SIZES if args.all else [size]
    iters = (1000 if kind.latency else 5000) if args.iters is None else args.iters
    try:
        rounds = [
            Options(
                args.test, size, iters, args.tx_depth, args.rx_depth, args.cq_mod, args.mtu, args.outs, args.qp_timeout
            )
            for size in sizes
        ]
    except ValueError as error:
        raise SystemExit(f"softrnic perf: {error}") from error
    results: list[BwResult | LatResult] = []
    verified = True
    _banner(args, rounds[0])
    for result, ok in _rounds(args, rounds):
        verified &= ok
        if result is not None:
            results.append(result)
            _row(args, result)
    if args.json:
        print(json.dumps(_report(args, rounds[0], results, verified), indent=2))
    elif not verified:
        print("softrnic perf: the data that arrived is not the data that was sent", file=sys.stderr)
    return 0 if verified else 1


def _rounds(args: argparse.Namespace, rounds: list[Options]) -> Iterator[tuple[BwResult | LatResult | None, bool]]:
    cpus: list[int | None] = [None, None] if args.cpu == "none" else [int(cpu) for cpu in args.cpu.split(",")]
    if args.device is None:
        yield from _both_sides(args, rounds, cpus)
    elif args.host is None:
        yield from _server(args, cpus[-1])
    else:
        yield from _client(args, rounds, cpus[0])


def _both_sides(
    args: argparse.Namespace, rounds: list[Options], cpus: list[int | None]
) -> Iterator[tuple[BwResult | LatResult, bool]]:
    from softrnic.control.fabric import best_wire, fabric
    from softrnic.control.perf.run import Endpoint, pin

    with fabric(args.wire or best_wire()[0], ip=args.ip, spin_ns=args.spin) as hosts:
        hosts[1].nic.pin(cpus[-1])
        for options in rounds:
            ends = [Endpoint(host, options, seed=i) for i, host in enumerate(hosts)]
            for i, (end, other) in enumerate((ends, ends[::-1])):
                end.connect(other.local())
                end.warm(other.local(), active=i == 0)
                end.post_initial()
            passive = threading.Thread(target=_passive, args=(ends[1], ends[0], cpus[-1]), daemon=True)
            passive.start()
            pin(cpus[0])
            ends[0].run_active(ends[1].local())
            passive.join()
            yield ends[0].result(), ends[0].verify(ends[1].buf)
            for end in ends:
                end.close()


def _passive(end: Endpoint, other: Endpoint, cpu: int | None) -> None:
    from softrnic.control.perf.run import pin

    pin(cpu)
    end.run_passive(other.local())


@contextlib.contextmanager
def _open(args: argparse.Namespace) -> Iterator[Host]:
    from softrnic.control import host

    device, spin_ns = args.device, args.spin
    udp = device.startswith("udp:")
    with host.open_udp(device[4:], spin_ns=spin_ns) if udp else host.open_raw(device, spin_ns=spin_ns) as opened:
        yield opened


def _server(args: argparse.Namespace, cpu: int | None) -> Iterator[tuple[None, bool]]:
    from softrnic.control.perf.exchange import Exchange
    from softrnic.control.perf.run import Endpoint, pin

    with _open(args) as host, Exchange.listen(args.port) as exchange:
        host.nic.pin(cpu)
        pin(cpu)
        while (options := exchange.receive_options()).test != "done":
            end = Endpoint(host, options, seed=1)
            peer = exchange.swap(end.local())
            end.connect(peer)
            end.warm(peer, active=False)
            end.post_initial()
            exchange.barrier("ready")
            end.run_passive(peer)
            exchange.barrier("finished")
            end.close()
    yield None, True


def _client(
    args: argparse.Namespace, rounds: list[Options], cpu: int | None
) -> Iterator[tuple[BwResult | LatResult, bool]]:
    from dataclasses import replace

    from softrnic.control.perf.exchange import Exchange
    from softrnic.control.perf.run import Endpoint, pin

    with _open(args) as host, Exchange.connect(args.host, args.port) as exchange:
        pin(cpu)
        for options in rounds:
            exchange.send_options(options)
            end = Endpoint(host, options, seed=0)
            peer = exchange.swap(end.local())
            end.connect(peer)
            end.warm(peer, active=True)
            end.post_initial()
            exchange.barrier("ready")
            end.run_active(peer)
            exchange.barrier("finished")
            yield end.result(), True
            end.close()
        exchange.send_options(replace(rounds[0], test="done"))


def _unit(args: argparse.Namespace) -> tuple[str, float]:
    return ("Gb/sec", 8 / 1e9) if args.report_gbits else ("MiB/sec", 1 / (1 << 20))


def _banner(args: argparse.Namespace, options: Options) -> None:
    if args.json:
        return
    line = "-" * 87
    what = "Latency" if options.test.endswith("lat") else "BW"
    print(f"{line}\n{f'RDMA_{options.test.upper()} {what} Test':^87}")
    print(f" Transport type   : RoCEv2          Connection type : RC\n Mtu              : {options.mtu}[B]")
    print(f" TX depth         : {options.tx_depth}\n{line}")
    print((_LAT[0] if options.test.endswith("lat") else _BW[0]).format(unit=_unit(args)[0]))


def _row(args: argparse.Namespace, result: BwResult | LatResult) -> None:
    if args.json:
        return
    from softrnic.control.perf.run import BwResult

    if isinstance(result, BwResult):
        scale = _unit(args)[1]
        peak, average = result.peak_bytes_per_s * scale, result.average_bytes_per_s * scale
        print(_BW[1].format(result.size, result.iters, peak, average, result.messages_per_s / 1e6), flush=True)
    else:
        print(_LAT[1].format(*asdict(result).values()), flush=True)


def _report(
    args: argparse.Namespace, options: Options, results: list[BwResult | LatResult], verified: bool
) -> dict[str, Any]:
    """perftest's JSON: test_info, then one object per size."""
    from softrnic.control.perf.run import BwResult

    scale = _unit(args)[1]
    rows = [
        {
            "MsgSize": r.size, "n_iterations": r.iters, "BW_peak": r.peak_bytes_per_s * scale,
            "BW_average": r.average_bytes_per_s * scale, "MsgRate": r.messages_per_s / 1e6,
        }
        if isinstance(r, BwResult)
        else {
            "MsgSize": r.size, "n_iterations": r.iters, "t_min": r.t_min, "t_max": r.t_max, "t_typical": r.t_typical,
            "t_avg": r.t_avg, "t_stdev": r.t_stdev, "t_99": r.p99, "t_99_9": r.p999,
        }
        for r in results
    ]  # fmt: skip
    info = {
        "test": options.test, "Device": args.device or args.wire, "Number_of_qps": 1, "Transport_type": "RoCEv2",
        "Connection_type": "RC", "Mtu": options.mtu, "TX_depth": options.tx_depth, "verified": verified,
    }  # fmt: skip
    return {"test_info": info, "results": rows}

