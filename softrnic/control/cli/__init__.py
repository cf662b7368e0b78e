"""The command line: `softrnic COMMAND ...`.

Decides which commands there are. Each is a module with `add_parser(subparsers)` and `run(args) -> exit status`, and is
imported only when it is named, so that `softrnic --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NamedTuple, NoReturn

from softrnic.errors import SoftRnicError


class Command(NamedTuple):
    """Where a command lives, and what it does in one line."""

    module: str
    help: str


COMMANDS = {
    "daemon": Command("softrnic.control.cli.daemon", "keep a host on the wire, to be administered and moved to"),
    "demo": Command("softrnic.control.cli.demo", "move data between two hosts, verify every byte, lose packets"),
    "devinfo": Command("softrnic.control.cli.devinfo", "show devices and their ports, as ibv_devinfo does"),
    "function": Command("softrnic.control.cli.function", "add, delete and show functions of a daemon's host"),
    "link": Command("softrnic.control.cli.link", "show the functions of a daemon's host, as rdma link does"),
    "migrate": Command("softrnic.control.cli.migrate", "move a function to another daemon while it runs"),
    "pcap": Command("softrnic.control.cli.pcap", "dissect the RoCEv2 packets of a capture"),
    "perf": Command("softrnic.control.cli.perf", "measure bandwidth and latency, as perftest does"),
    "perftest": Command("softrnic.control.cli.perftest", "a peer of perftest's ib_{write,read,send,atomic}_{bw,lat}"),
    "pingpong": Command("softrnic.control.cli.pingpong", "messages to and fro, as ibv_{rc,uc,ud,srq}_pingpong do"),
    "qp": Command("softrnic.control.cli.qp", "whether the peers of queue pairs live through a pause"),
    "res": Command("softrnic.control.cli.res", "show queue pairs, regions and so on, as rdma res does"),
    "rping": Command("softrnic.control.cli.rping", "text there and back over a connection, as rping does"),
    "statistic": Command("softrnic.control.cli.statistic", "show counters, as rdma statistic does"),
}


class _Version(argparse.Action):
    """Print the version, which is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"softrnic {version('softrnic')}")
        parser.exit()


class _OneLineEach(argparse.HelpFormatter):
    """argparse forgets that the names of commands are indented, and breaks the line of the longest."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 4 + max(map(len, COMMANDS))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 success, 1 failure, 2 wrong usage, 128 + n ended by signal n."""
    words = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    args = _parser(chosen).parse_args(words)
    try:
        with _signals_as_exceptions():
            return int(importlib.import_module(COMMANDS[args.command].module).run(args))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads has seen enough: what Python still wants to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, SoftRnicError) as error:
        print(f"softrnic {args.command}: {_sentence(error)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Signals that end a process do so the way Ctrl-C does, so that nothing stays behind."""
    before = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _sentence(error: Exception) -> str:
    """What went wrong, without numbers that only programs want."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the options of the chosen command only."""
    parser = argparse.ArgumentParser(
        prog="softrnic", description="A RoCEv2 RDMA NIC in user space.", formatter_class=_OneLineEach
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        if name == chosen:
            importlib.import_module(command.module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=command.help)
    return parser
