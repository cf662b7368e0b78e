"""The device: one function of an adapter, with its addresses, its capacities, its numbers and its events."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from softrnic import layout
from softrnic.counters import COUNTERS, C
from softrnic.errors import VerbsError
from softrnic.hash import hash_insert, hash_remove
from softrnic.mem.mr import key_of
from softrnic.qp import admin
from softrnic.qp.inbound import qpn_key
from softrnic.slab import Numbers
from softrnic.spec import EventType, OdpGeneral, OdpSupport
from softrnic.verbs import suspension
from softrnic.verbs.adapter import Adapter, PortAttr, Shared
from softrnic.verbs.address import Gid, IpAddress, gid_bytes
from softrnic.verbs.cq import Cq
from softrnic.verbs.forward import Onward, start_forwarding, stop_forwarding
from softrnic.verbs.slot import ProcessMemory
from softrnic.verbs.space import PROCESS_TOP, AddressSpace

if TYPE_CHECKING:
    from softrnic.verbs.mr import Mr
    from softrnic.verbs.mw import Mw
    from softrnic.verbs.pd import Pd
    from softrnic.verbs.qp import Qp
    from softrnic.verbs.srq import Srq



class DeviceCap(IntFlag):
    """ibv_device_cap_flags, as far as a device here has them."""

    CURR_QP_STATE_MOD = 1 << 7
    SYS_IMAGE_GUID = 1 << 11
    RC_RNR_NAK_GEN = 1 << 12
    MEM_WINDOW = 1 << 17
    MEM_MGT_EXTENSIONS = 1 << 21
    MEM_WINDOW_TYPE_2B = 1 << 24


ATOMIC_HCA = 1  # ibv_atomic_cap: atomic among the QPs of the device


@dataclass(frozen=True)
class DeviceAttr:
    """ibv_device_attr, as far as it is not zero."""

    fw_ver: str = "1"
    vendor_id: int = 0x0052
    vendor_part_id: int = 1
    hw_ver: int = 1
    max_mr_size: int = (1 << 63) - 1
    page_size_cap: int = 0xFFFFF000
    max_qp: int = layout.MAX_QP - 64
    max_qp_wr: int = 1 << 15
    device_cap_flags: DeviceCap = (
        DeviceCap.CURR_QP_STATE_MOD
        | DeviceCap.SYS_IMAGE_GUID
        | DeviceCap.RC_RNR_NAK_GEN
        | DeviceCap.MEM_WINDOW
        | DeviceCap.MEM_MGT_EXTENSIONS
        | DeviceCap.MEM_WINDOW_TYPE_2B
    )
    max_sge: int = layout.MAX_SGE
    max_sge_rd: int = layout.MAX_SGE
    max_cq: int = layout.MAX_CQ
    max_cqe: int = 1 << 17
    max_mr: int = layout.MAX_MR - 1
    max_mw: int = layout.MAX_MR - 1
    max_pd: int = 1 << 15
    max_qp_rd_atom: int = layout.MAX_RD_ATOMIC
    max_res_rd_atom: int = layout.RD_ENTRIES
    max_qp_init_rd_atom: int = layout.MAX_RD_ATOMIC
    atomic_cap: int = ATOMIC_HCA
    max_srq: int = layout.MAX_SRQ
    max_srq_wr: int = 1 << 15
    max_srq_sge: int = layout.MAX_SGE
    max_ah: int = layout.MAX_AH
    max_inline_data: int = layout.MAX_SGE * 16
    max_pkeys: int = 1
    local_ca_ack_delay: int = 15
    phys_port_cnt: int = 1


_NO_ODP = OdpSupport(0)


@dataclass(frozen=True)
class OdpCaps:
    """ibv_odp_caps: what never fails, and loses nothing, when the page it needs is not present.

    A UC or UD packet that arrives for a missing page is lost, since nobody can be asked to send it again; so of these
    only the sending side is supported, as on mlx5.
    """

    general_odp_caps: OdpGeneral = OdpGeneral.SUPPORT | OdpGeneral.SUPPORT_IMPLICIT
    rc_odp_caps: OdpSupport = (
        OdpSupport.SEND | OdpSupport.RECV | OdpSupport.WRITE | OdpSupport.READ | OdpSupport.ATOMIC | OdpSupport.SRQ_RECV
    )
    uc_odp_caps: OdpSupport = OdpSupport.SEND
    ud_odp_caps: OdpSupport = OdpSupport.SEND
    xrc_odp_caps: OdpSupport = _NO_ODP


class AsyncEvent(NamedTuple):
    """ibv_async_event: what happened, and to which QP, CQ, SRQ or (for a port event) the device."""

    type: EventType
    element: Qp | Cq | Srq | Device | None


class Device:
    """ibv_context and ibv_device in one. All objects on it are made through it or its PDs.

    A device is a function of an adapter: alone on one of its own, or beside others (`create_function`) with which it
    shares the engine and the port, and nothing else: addresses, QPNs, CQNs, SRQNs, keys and events are its own.
    """

    # A context manager in which the engine stands still; whoever drives the engine in another thread replaces it.
    quiesced = Shared[Callable[[], AbstractContextManager[None]]]()
    # Wake whoever drives the engine, after a doorbell.
    kick = Shared[Callable[[], None]]()
    # From a destination address to a MAC, for address handles that name none.
    resolve_mac = Shared[Callable[["Gid", IpAddress], bytes] | None]()
    # Join a multicast group, or leave it: the first QP attaches, the last one has gone.
    hear_group = Shared[Callable[[IpAddress, bool], None] | None]()
    # A port that cannot choose UDP source ports says which it uses.
    fixed_sport = Shared[int | None]()
    port = Shared[PortAttr]()

    def __init__(
        self, name: str = "sr0", *, node_guid: int = 0x0200_00FF_FE00_0001, adapter: Adapter | None = None
    ) -> None:
        self.name = name
        self.node_guid = node_guid
        self.attr = DeviceAttr()
        self.odp_caps = OdpCaps()
        self.adapter = adapter or Adapter()
        self.engine = self.adapter.engine
        self.record = self.engine.record
        self.cqes = self.record["cqes"]
        self.pools = self.adapter.pools
        self.slabs = self.adapter.slabs
        self.cq_numbers = Numbers(0, layout.MAX_CQ, "CQs")
        self.srq_numbers = Numbers(0, layout.MAX_SRQ, "SRQs")
        self.gids: dict[int, Gid] = {}
        self._gid_slots: dict[int, int] = {}  # by GID index: where it lies in the adapter's table
        self.pds: dict[int, Pd] = {}
        self.cqs: dict[int, Cq] = {}
        self.srqs: dict[int, Srq] = {}
        self.qps: dict[int, Qp] = {}
        self.mrs: dict[int, Mr | Mw] = {}
        self.async_events: deque[AsyncEvent] = deque(maxlen=4096)
        self._next_qpn = 0x11
        self._key_variant = 0
        self.func = self.adapter.attach(self)
        self._process_space: AddressSpace | None = None
        self.space = AddressSpace(self, is_process=True)

    def create_function(self, name: str, *, node_guid: int | None = None) -> Device:
        """Another function beside this one, empty: without an address nothing reaches it."""
        guid = self.node_guid + len(self.adapter.functions) if node_guid is None else node_guid
        return Device(name, node_guid=guid, adapter=self.adapter)

    def set_active_mtu(self, mtu: int) -> None:
        """The port carries packets with up to `mtu` bytes of payload."""
        self.port = replace(self.port, active_mtu=mtu)

    def ring_doorbell(self, qp_index: int) -> None:
        """A queue of this QP has grown."""
        admin.doorbell(self.engine.tables, qp_index)
        self.kick()

    # --- addresses ---

    def add_gid(
        self, ip: str | IpAddress, mac: bytes, vlan: int | None = None, *, index: int | None = None,
        hearing: bool = True,
    ) -> int:  # fmt: skip
        """Own an address: packets to it are taken, QPs may send from it. Returns its GID index, which may be pinned.

        `hearing`: from now on; else when `hear` says so.
        """
        try:
            addr = ipaddress.ip_address(ip)
        except ValueError as error:
            raise VerbsError(errno.EINVAL, str(error)) from None
        if len(mac) != 6:
            raise VerbsError(errno.EINVAL, f"a MAC has six bytes, not {len(mac)}")
        if vlan is not None and not 0 < vlan < 4095:
            raise VerbsError(errno.EINVAL, f"VLAN id {vlan} is not in 1 to 4094")
        if index is None:
            index = next((i for i in range(layout.MAX_GID) if i not in self.gids), 0)
        elif not 0 <= index < layout.MAX_GID or index in self.gids:
            raise VerbsError(errno.EINVAL, f"GID index {index} is taken, or not below {layout.MAX_GID}")
        owner = self.adapter.gid_owner(addr)
        if owner not in (None, self):
            raise VerbsError(errno.EADDRINUSE, f"{addr} is an address of {owner.name}")
        slot = self.adapter.take_gid_slot()
        with self.quiesced():
            record = self.record["gids"][slot]
            record["ip"] = np.frombuffer(gid_bytes(addr), np.uint8)
            record["mac"] = np.frombuffer(mac, np.uint8)
            record["vlan"] = -1 if vlan is None else vlan
            record["func"] = self.func
            record["valid"] = hearing
            self.adapter.show_gid_slots()
            if hearing:
                stop_forwarding(self.adapter, addr)
        self._gid_slots[index] = slot
        self.gids[index] = Gid(index, addr, bytes(mac), vlan)
        return index

    def hear(self) -> None:
        """Take packets to all addresses of this function; whatever was sent on elsewhere is so no more."""
        with self.quiesced():
            for index, slot in self._gid_slots.items():
                self.record["gids"][slot]["valid"] = 1
                stop_forwarding(self.adapter, self.gids[index].ip)

    def forward(self, to: Onward) -> None:
        """Take no packets to any address of this function: they go on to where it is now, also after `destroy`."""
        with self.quiesced():
            for gid in self.gids.values():
                start_forwarding(self.adapter, gid, to)
            for slot in self._gid_slots.values():
                self.record["gids"][slot]["valid"] = 0

    def del_gid(self, index: int) -> None:
        """Give an address up; packets to it are dropped from now on."""
        if index not in self.gids:
            raise VerbsError(errno.EINVAL, f"GID index {index} is empty")
        with self.quiesced():
            self.adapter.free_gid_slot(self._gid_slots.pop(index))
        del self.gids[index]

    def query_gid(self, index: int) -> Gid:
        """The local address with this index."""
        try:
            return self.gids[index]
        except KeyError:
            raise VerbsError(errno.EINVAL, f"GID index {index} is empty") from None

    # --- address spaces ---

    def create_space(self, page_size: int = 4096, *, paged: bool = False) -> AddressSpace:
        """An address space with nothing in it; `paged`: with a page table, for on-demand regions."""
        return AddressSpace(self, page_size, paged=paged)

    @property
    def spaces(self) -> list[AddressSpace]:
        """Those made by `create_space`."""
        return [s for s in list(self.adapter.spaces.values()) if s.device is self and s is not self.space]

    @property
    def process_space(self) -> AddressSpace:
        """This process as a space with a page table, for on-demand regions: any of it may come and go at any time."""
        if self._process_space is None:
            space = self.create_space(paged=True)
            space.is_ours = True
            space.add_slot(0, ProcessMemory(os.getpid(), 0, PROCESS_TOP))
            self._process_space = space
        return self._process_space

    # --- objects ---

    def alloc_pd(self) -> Pd:
        """A protection domain."""
        from softrnic.verbs.pd import Pd

        return Pd(self)

    def create_cq(self, cqe: int = 256, *, cqn: int | None = None) -> Cq:
        """A completion queue of at least `cqe` entries; `cqn` pins its number."""
        return Cq(self, cqe, cqn)

    def choose_qpn(self, wanted: int | None) -> int:
        """A free QP number, or the wanted one: EEXIST when it is taken, EINVAL when there is no such number."""
        if wanted is not None:
            if not 1 <= wanted < 0xFFFFFF:
                raise VerbsError(errno.EINVAL, f"QPN {wanted:#x} is not in 1 to 0xfffffe")
            if self._is_taken(wanted):
                raise VerbsError(errno.EEXIST, f"QPN {wanted:#x} is taken")
            return wanted
        while self._is_taken(self._next_qpn):
            self._advance_qpn()
        qpn = self._next_qpn
        self._advance_qpn()
        return qpn

    @property
    def numbering(self) -> tuple[int, int]:
        """Where the choice of QPNs and of memory keys goes on, so that a number just freed is not reused at once."""
        return self._next_qpn, self._key_variant

    @numbering.setter
    def numbering(self, value: tuple[int, int]) -> None:
        self._next_qpn, self._key_variant = value

    def _advance_qpn(self) -> None:
        self._next_qpn = self._next_qpn + 1 if self._next_qpn < 0xFFFFFE else 0x11

    def _is_taken(self, qpn: int) -> bool:
        return bool(admin.find_qp(self.engine.tables, self.func, qpn) >= 0)

    def bind_qpn(self, qpn: int, index: int) -> None:
        """Make packets for `qpn` reach the QP record `index`; EEXIST when the number is taken."""
        if not hash_insert(self.record["qpn_hash"], qpn_key(self.func, qpn), index):
            raise VerbsError(errno.EEXIST, f"QPN {qpn:#x} is taken")

    def unbind_qpn(self, qpn: int) -> None:
        """The QP is gone."""
        hash_remove(self.record["qpn_hash"], qpn_key(self.func, qpn))

    def choose_key(self, index: int, wanted: int | None) -> int:
        """A memory key for record `index`, registered in the key table; EEXIST when the wanted one is taken."""
        if wanted is not None:
            if not 0 < wanted < 1 << 32:
                raise VerbsError(errno.EINVAL, f"key {wanted:#x} is not in 1 to 0xffffffff")
            if not hash_insert(self.record["key_hash"], key_of(self.func, wanted), index):
                raise VerbsError(errno.EEXIST, f"memory key {wanted:#x} is taken")
            return wanted
        while True:
            self._key_variant = (self._key_variant + 1) & 0xFF
            key = index << 8 | self._key_variant
            if hash_insert(self.record["key_hash"], key_of(self.func, key), index):
                return key

    def drop_key(self, key: int) -> None:
        """The region or window is gone."""
        hash_remove(self.record["key_hash"], key_of(self.func, key))

    # --- suspension ---

    def suspend(self, policy: str = "silence", *, to: Onward | None = None, **how: int) -> None:
        """Suspend every QP that is on the wire, in two phases: all requesters first, then all responders.

        `settled` tells when the last answers owed have left. `policy` and `how` as for `Qp.suspend`; "stop" is "rnr"
        for a QP whose peer has not agreed. Or "forward", with `to`: when the function lives elsewhere already, what
        still arrives here goes on to there.
        """
        if (policy == "forward") != (to is not None):
            raise VerbsError(errno.EINVAL, 'the policy "forward", and no other, says where to')
        suspension.suspend(self, "silence" if to else policy, **how)
        if to is None:
            self.hear()
        else:
            self.forward(to)

    def suspend_egress(self) -> None:
        """The first phase alone, for several devices that talk to each other: do this on all of them first."""
        suspension.suspend_egress(self)

    def resume(self) -> None:
        """Put every suspended QP back on the wire."""
        self.hear()
        suspension.resume(self)

    def abort(self) -> None:
        """Give a move up: every QP goes on here as if nothing had happened."""
        self.resume()

    @property
    def settled(self) -> bool:
        """Whether no QP is on the wire and none has anything left to say."""
        return suspension.settled(self)

    # --- events and counters ---

    def dispatch_events(self) -> None:
        """Hand what the engine has noted to CQ waiters and to `async_events`, of all functions.

        Called by whoever drives the engine.
        """
        for event in self.engine.events():
            if event.type == EventType.PAGE_FAULT:
                if (space := self.adapter.spaces.get(event.index)) is not None:
                    space.fault(event)
            elif (owner := self.adapter.owner(event.type, event.index)) is not None:
                owner.take_event(event.type, event.index)

        lost = self.counter(C.EVENTS_LOST)
        if lost != self.adapter.events_lost:
            self.adapter.events_lost = lost  # perhaps of a page that somebody waits for
            for space in list(self.adapter.spaces.values()):
                space.look_again()

    def take_event(self, kind: EventType, index: int) -> None:
        """One event of the engine, about an object of this function."""
        element = self.element(kind, index)
        if element is None:  # destroyed by now
            return
        if kind == EventType.CQ_NOTIFY:
            self.cqs[index].notified()
        else:
            if kind == EventType.PATH_MIG:
                self.qps[index].follow_peer()
            self.async_events.append(AsyncEvent(kind, element))

    def element(self, kind: EventType, index: int) -> Qp | Cq | Srq | None:
        """What an event of the engine is about, or None when it is gone."""
        if kind in (EventType.CQ_ERR, EventType.CQ_NOTIFY):
            return self.cqs.get(index)
        if kind in (EventType.SRQ_ERR, EventType.SRQ_LIMIT_REACHED):
            return self.srqs.get(index)
        return self.qps.get(index)

    def get_async_event(self) -> AsyncEvent | None:
        """The oldest asynchronous event not yet taken, or None."""
        return self.async_events.popleft() if self.async_events else None

    def counters(self) -> dict[str, int]:
        """Every counter by its name; the functions of an adapter share them."""
        values = self.record["counters"]
        return {row.name: int(values[row.counter]) for row in COUNTERS}

    def counter(self, which: C) -> int:
        """One counter."""
        return int(self.record["counters"][which])

    def close(self) -> None:
        """Destroy everything on the device; its addresses stay, and other functions are left alone."""
        for pd in list(self.pds.values()):
            pd.close()
        for cq in list(self.cqs.values()):
            cq.destroy()
        for space in self.spaces:
            space.destroy()
        self._process_space = None

    def destroy(self) -> None:
        """Close the device, give up its addresses and take it off its adapter."""
        self.close()
        for index in list(self.gids):
            self.del_gid(index)
        self.space.destroy()
        if self.adapter.functions.get(self.func) is self:
            del self.adapter.functions[self.func]

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def walk_qps(self) -> Iterator[Qp]:
        """All QPs."""
        yield from self.qps.values()
