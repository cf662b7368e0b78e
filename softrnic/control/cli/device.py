"""The device of a command that needs one: that of its option, or the first that this process could open."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from softrnic.control import SPIN_NS
from softrnic.control.cli.demo import COMPILING
from softrnic.control.cli.terminal import progress
from softrnic.errors import IoError

if TYPE_CHECKING:
    from softrnic.control.host import Host

MAX_SPIN_US = 1_000_000

def add_spin(parser: argparse.ArgumentParser) -> None:
    """The option that says how long an idle NIC looks before it sleeps; its value is in nanoseconds."""
    parser.add_argument(
        "--spin", type=_spin_ns, default=SPIN_NS, metavar="US",
        help="an idle NIC polls for at most so many microseconds before it sleeps, and less where that is in vain "
        f"(default: {SPIN_NS // 1000}; 0: sleeps at once; 1000000: never)",
    )  # fmt: skip


def _spin_ns(text: str) -> int:
    try:
        micros = float(text)
    except ValueError:
        micros = -1.0
    if not 0 <= micros <= MAX_SPIN_US:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of microseconds from 0 to {MAX_SPIN_US}")
    return int(micros * 1000)


def open_host(name: str | None, *, address: str | None = None, spin_ns: int = SPIN_NS) -> Host:
    """A host on the device of this name: a network device, or udp:ADDRESS. Everything it runs is compiled.

    Without a name it is the device that has `address`, or without that, the first.
    """
    with progress("loading"):
        from softrnic.control import devices, host
    chosen = name or next((n for n in devices.names() if address is None or devices.has_address(n, address)), None)
    if chosen is None:
        raise IoError(0, f"no device with address {address}" if address else "no device: see softrnic devinfo --list")
    devices.describe(chosen)  # or an error, before anything takes long
    prepare()
    if chosen.startswith(devices.UDP):
        return host.open_udp(chosen.removeprefix(devices.UDP), name=chosen, spin_ns=spin_ns)
    return host.open_raw(chosen, name=chosen, spin_ns=spin_ns)


def prepare() -> None:
    """Have everything compiled that a host runs."""
    with progress("loading the data path", later=COMPILING):
        from softrnic.control import warm

        warm.prepare()
