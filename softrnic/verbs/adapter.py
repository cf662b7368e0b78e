"""What the functions of one NIC share: the engine with its tables, who drives it, the port below, and what is free.

Knows its functions only to find the one that an event is for.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from softrnic import layout
from softrnic.engine import Engine
from softrnic.errors import VerbsError
from softrnic.slab import Pool, Slab
from softrnic.spec import EventType
from softrnic.verbs.multicast import Groups

if TYPE_CHECKING:
    from softrnic.verbs.address import Gid, IpAddress
    from softrnic.verbs.device import Device
    from softrnic.verbs.space import AddressSpace

MAX_FUNCTIONS = 64

_OF_CQ = (EventType.CQ_ERR, EventType.CQ_NOTIFY)
_OF_SRQ = (EventType.SRQ_ERR, EventType.SRQ_LIMIT_REACHED)

T = TypeVar("T")


@dataclass(frozen=True)
class PortAttr:
    """ibv_port_attr, as far as RoCE has it."""

    state: str = "PORT_ACTIVE"
    max_mtu: int = 4096
    active_mtu: int = 4096
    gid_tbl_len: int = layout.MAX_GID
    max_msg_sz: int = 1 << 31
    link_layer: str = "Ethernet"


class Shared(Generic[T]):
    """An attribute of a function that is the adapter's, under the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, device: Device, owner: type) -> T:
        value: T = getattr(device.adapter, self._name)
        return value

    def __set__(self, device: Device, value: T) -> None:
        setattr(device.adapter, self._name, value)


class Pools:
    """Free places in the tables, one by one."""

    def __init__(self) -> None:
        self.qps = Pool(0, layout.MAX_QP, "QPs")
        self.cqs = Pool(0, layout.MAX_CQ, "CQs")
        self.srqs = Pool(0, layout.MAX_SRQ, "SRQs")
        self.mrs = Pool(1, layout.MAX_MR, "memory regions and windows")
        self.ahs = Pool(0, layout.MAX_AH, "address handles")
        self.pds = Pool(1, 1 << 15, "protection domains")
        self.spaces = Pool(0, layout.MAX_SPACE, "address spaces")


class Slabs:
    """Free places in the tables of which an object takes many."""

    def __init__(self) -> None:
        self.wqes = Slab(layout.SQ_ENTRIES, "send WQEs")
        self.rwqes = Slab(layout.RQ_ENTRIES, "receive WQEs")
        self.sges = Slab(layout.SGE_ENTRIES, "scatter/gather entries")
        self.cqes = Slab(layout.CQ_ENTRIES, "completions")
        self.rd_res = Slab(layout.RD_ENTRIES, "READ and atomic resources")
        self.slots = Slab(layout.MAX_SLOT, "slots of address spaces")


class Adapter:
    """One engine and its functions. Made with the first of them, see `Device`."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.record = self.engine.record
        self.pools = Pools()
        self.slabs = Slabs()
        self.functions: dict[int, Device] = {}
        self.port = PortAttr()
        self.quiesced: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self.kick: Callable[[], None] = _nothing
        self.resolve_mac: Callable[[Gid, IpAddress], bytes] | None = None
        self.fixed_sport: int | None = None
        self.groups = Groups(self.record)
        self.hear_group: Callable[[IpAddress, bool], None] | None = None  # of the port: join, or leave
        self._gid_slots: set[int] = set()
        self.spaces: dict[int, AddressSpace] = {}
        self.events_lost = 0

    def attach(self, device: Device) -> int:
        """Give a new function its number; ENOSPC when there are too many."""
        func = next((i for i in range(MAX_FUNCTIONS) if i not in self.functions), None)
        if func is None:
            raise VerbsError(errno.ENOSPC, f"an adapter has {MAX_FUNCTIONS} functions")
        self.functions[func] = device
        return func

    def owner(self, kind: EventType, index: int) -> Device | None:
        """The function whose CQ, SRQ or QP the engine reports by its index in the table; None when it is gone."""
        table = "cqs" if kind in _OF_CQ else "srqs" if kind in _OF_SRQ else "qps"
        return self.functions.get(int(self.record[table][index]["func"]))

    # --- the table of local addresses: every frame is looked up in it, so it is kept short ---

    def take_gid_slot(self) -> int:
        """A free place in the table; ENOSPC when there is none."""
        slot = next((i for i in range(layout.MAX_GID) if i not in self._gid_slots), None)
        if slot is None:
            raise VerbsError(errno.ENOSPC, f"the GID table has {layout.MAX_GID} entries")
        self._gid_slots.add(slot)
        return slot

    def free_gid_slot(self, slot: int) -> None:
        """Give a place back. The engine stands still."""
        self._gid_slots.discard(slot)
        self.record["gids"][slot]["valid"] = 0
        self.show_gid_slots()

    def show_gid_slots(self) -> None:
        """Tell the engine how much of the table is in use."""
        self.record["ngid"] = max(self._gid_slots, default=-1) + 1

    def gid_owner(self, ip: IpAddress) -> Any:
        """The function that has this address, or None."""
        return next((f for f in self.functions.values() if any(g.ip == ip for g in f.gids.values())), None)


def _nothing() -> None:
    """Nobody to wake: the engine is driven by hand."""
