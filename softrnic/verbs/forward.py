"""Where a function has gone: entries of an adapter that send on what still arrives for its addresses."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from softrnic import layout
from softrnic.errors import VerbsError
from softrnic.verbs.address import gid_bytes

if TYPE_CHECKING:
    from softrnic.verbs.adapter import Adapter
    from softrnic.verbs.address import Gid, IpAddress

LIFETIME_NS = 30_000_000_000  # longer than ARP caches keep what was announced to be wrong
BUDGET = 1 << 20


@dataclass(frozen=True)
class Onward:
    """The new place: a station that takes frames for the function's IP addresses.

    `mac` is its Ethernet address, another than the function had here, for a switch that still sends us its frames would
    send them back to us. `via` is our own, under which they leave. `vlan` is the tag they get; None: the one they have.
    It all ends after `lifetime_ns`, or `frames` frames per address.
    """

    mac: bytes
    via: bytes
    vlan: int | None = None
    lifetime_ns: int = LIFETIME_NS
    frames: int = BUDGET

    def __post_init__(self) -> None:
        for mac in (self.mac, self.via):
            if len(mac) != 6 or mac[0] & 1 or mac == bytes(6):
                raise VerbsError(errno.EINVAL, f"{mac.hex(':')} is not the MAC of a station")
        if self.mac == self.via:
            raise VerbsError(errno.EINVAL, "the new place is the old one")
        if self.vlan is not None and not 0 < self.vlan < 4095:
            raise VerbsError(errno.EINVAL, f"VLAN id {self.vlan} is not in 1 to 4094")
        if self.lifetime_ns <= 0 or not 0 < self.frames < 1 << 62:
            raise VerbsError(errno.EINVAL, "a lifetime and a number of frames must be positive")


def start_forwarding(adapter: Adapter, gid: Gid, to: Onward) -> None:
    """Send on what arrives for an address, once no function here hears it. ENOSPC when the table is full.

    The engine stands still.
    """
    if gid.mac == to.mac:
        raise VerbsError(errno.EINVAL, f"{to.mac.hex(':')} is what {gid.ip} is addressed by already")
    record = adapter.record
    table = record["forwards"]
    slot = _find(adapter, gid.ip)
    if slot is None:
        now = int(record["now"])
        slot = next((i for i, e in enumerate(table) if not e["valid"] or int(e["until"]) <= now), None)
    if slot is None:
        raise VerbsError(errno.ENOSPC, f"{layout.MAX_FORWARD} addresses are being forwarded")
    entry = table[slot]
    entry["ip"] = np.frombuffer(gid_bytes(gid.ip), np.uint8)
    for name, mac in (("here", gid.mac), ("mac", to.mac), ("via", to.via)):
        entry[name] = np.frombuffer(mac, np.uint8)
    entry["vlan"] = -1 if to.vlan is None else to.vlan
    entry["until"], entry["left"] = int(record["now"]) + to.lifetime_ns, to.frames
    entry["packets"], entry["valid"] = 0, 1
    record["nforward"] = max(int(record["nforward"]), slot + 1)


def stop_forwarding(adapter: Adapter, ip: IpAddress) -> None:
    """No more; harmless if there was none. The engine stands still."""
    slot = _find(adapter, ip)
    if slot is not None:
        table = adapter.record["forwards"]
        table[slot]["valid"] = 0
        adapter.record["nforward"] = max((i + 1 for i, e in enumerate(table) if e["valid"]), default=0)


def forwarded(adapter: Adapter, ip: IpAddress) -> int:
    """Packets sent on so far for an address."""
    slot = _find(adapter, ip)
    return 0 if slot is None else int(adapter.record["forwards"][slot]["packets"])


def _find(adapter: Adapter, ip: IpAddress) -> int | None:
    wanted = gid_bytes(ip)
    table = adapter.record["forwards"][: int(adapter.record["nforward"])]
    return next((i for i, e in enumerate(table) if e["valid"] and e["ip"].tobytes() == wanted), None)
