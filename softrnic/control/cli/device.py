"""The device of a command that needs one: that of its option, or the first that this process could open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softrnic.control.cli.demo import COMPILING
from softrnic.control.cli.terminal import progress
from softrnic.errors import IoError

if TYPE_CHECKING:
    from softrnic.control.host import Host


def open_host(name: str | None, *, address: str | None = None) -> Host:
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
        return host.open_udp(chosen.removeprefix(devices.UDP), name=chosen)
    return host.open_raw(chosen, name=chosen)


def prepare() -> None:
    """Have everything compiled that a host runs."""
    with progress("loading the data path", later=COMPILING):
        from softrnic.control import warm

        warm.prepare()
