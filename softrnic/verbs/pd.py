"""Protection domains, and what lives in one: memory regions, windows, address handles."""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from softrnic import layout
from softrnic.errors import VerbsError
from softrnic.layout import MrKind
from softrnic.spec import Access, QpType
from softrnic.verbs.adapter import IDENTITY_SPACE
from softrnic.verbs.address import Gid, IpAddress
from softrnic.verbs.cq import Cq
from softrnic.verbs.device import Device
from softrnic.verbs.wr import Sge
from softrnic.wire.frame import build_av

if TYPE_CHECKING:
    from softrnic.verbs.qp import Qp, QpCap
    from softrnic.verbs.srq import Srq

_WRITERS = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC


@dataclass(frozen=True)
class AhAttr:
    """ibv_ah_attr for RoCEv2. Without `dmac` the device resolves the address."""

    dgid: str | IpAddress
    sgid_index: int = 0
    dmac: bytes | None = None
    traffic_class: int = 0
    flow_label: int = 0
    hop_limit: int = 64
    sport: int | None = None


def with_mac(device: Device, attr: AhAttr) -> AhAttr:
    """`attr` checked, with a `dmac`; EINVAL for what cannot be on a wire.

    Looking for the MAC may take seconds, and frames: not for where the engine stands still.
    """
    if not isinstance(attr, AhAttr):
        raise VerbsError(errno.EINVAL, f"ah must be an AhAttr, not {attr!r}")
    gid, dgid = _both_ends(device, attr)
    for name, value, top in (
        ("traffic class", attr.traffic_class, 0xFF),
        ("flow label", attr.flow_label, 0xFFFFF),
        ("hop limit", attr.hop_limit, 0xFF),
        ("sport", attr.sport or 0, 0xFFFF),
    ):
        if not 0 <= value <= top:
            raise VerbsError(errno.EINVAL, f"{name} {value} is not in 0 to {top:#x}")
    if attr.dmac is not None:
        if len(attr.dmac) != 6:
            raise VerbsError(errno.EINVAL, f"a MAC has six bytes, not {attr.dmac!r}")
        return attr
    if device.resolve_mac is None:
        raise VerbsError(errno.EHOSTUNREACH, f"no MAC for {dgid}: give one, or attach the device to a port")
    return replace(attr, dmac=device.resolve_mac(gid, dgid))


def _both_ends(device: Device, attr: AhAttr) -> tuple[Gid, IpAddress]:
    """The local address, and the IP address that the destination GID stands for; EINVAL if they cannot meet."""
    gid = device.query_gid(attr.sgid_index)
    try:
        dgid = ipaddress.ip_address(attr.dgid)
    except ValueError as error:
        raise VerbsError(errno.EINVAL, str(error)) from None
    if dgid.version == 6 and dgid.ipv4_mapped is not None:
        dgid = dgid.ipv4_mapped
    if dgid.version != gid.ip.version:
        raise VerbsError(errno.EINVAL, f"{dgid} cannot be reached from {gid.ip}")
    return gid, dgid


def write_av(device: Device, index: int, attr: AhAttr, sport: int, pdn: int) -> None:
    """Fill address vector record `index` from what `with_mac` returned."""
    gid, dgid = _both_ends(device, attr)
    record = device.record["avs"][index]
    build_av(
        record, smac=gid.mac, dmac=attr.dmac or b"", sip=gid.ip.packed, dip=dgid.packed, vlan=gid.vlan,
        tclass=attr.traffic_class, flow_label=attr.flow_label, hop_limit=attr.hop_limit,
        sport=device.fixed_sport or attr.sport or sport,
    )  # fmt: skip
    record["gid_index"] = attr.sgid_index
    record["pdn"] = pdn
    record["valid"] = 1


class Ah:
    """ibv_ah: where a UD send goes."""

    def __init__(self, pd: Pd, attr: AhAttr) -> None:
        pd.check_alive()
        self.pd = pd
        self.attr = attr
        self._slot = pd.device.pools.ahs.alloc()
        self.index = layout.MAX_QP + self._slot
        try:
            write_av(pd.device, self.index, with_mac(pd.device, attr), 0xC000 | (self._slot & 0x3FFF), pd.pdn)
        except BaseException:
            pd.device.pools.ahs.free(self._slot)
            raise
        pd.ahs.add(self)

    def destroy(self) -> None:
        """Destroy the handle."""
        if self in self.pd.ahs:
            self.pd.ahs.remove(self)
            with self.pd.device.quiesced():
                self.pd.device.record["avs"][self.index]["valid"] = 0
            self.pd.device.pools.ahs.free(self._slot)
            self.index = -1

    def __enter__(self) -> Ah:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()


class Mr:
    """ibv_mr over anything with the buffer protocol, which it keeps alive."""

    def __init__(
        self, pd: Pd, buffer: Any, access: Access, *, iova: int | None, key: int | None, valid: bool = True
    ) -> None:
        pd.check_alive()
        try:
            view = np.frombuffer(buffer, np.uint8)
        except (BufferError, ValueError):
            raise VerbsError(errno.EINVAL, "only contiguous memory can be registered") from None
        if not view.nbytes:
            raise VerbsError(errno.EINVAL, "an empty buffer cannot be registered")
        if access & (_WRITERS | Access.LOCAL_WRITE) and not view.flags.writeable:
            raise VerbsError(errno.EACCES, "a read-only buffer cannot be registered with write access")
        _check_access(access)
        self.pd = pd
        self.device = pd.device
        self.access = access
        self._view: np.ndarray | None = view
        self.addr = int(view.ctypes.data)
        self.length = int(view.nbytes)
        self.iova = (0 if access & Access.ZERO_BASED else self.addr) if iova is None else iova
        if not 0 <= self.iova <= (1 << 63) - 1 - self.length:
            raise VerbsError(errno.EINVAL, f"iova {self.iova:#x} with {self.length} bytes wraps around")
        self.index = pd.device.pools.mrs.alloc()
        try:
            self.key = pd.device.choose_key(self.index, key)
        except BaseException:
            pd.device.pools.mrs.free(self.index)
            raise
        record = self.device.record["mrs"][self.index]
        record["key"], record["pdn"], record["access"] = self.key, pd.pdn, int(access)
        record["iova"], record["length"], record["addr"] = self.iova, self.length, self.addr
        record["nranges"], record["space"], record["windows"] = 1, IDENTITY_SPACE, 0
        record["odp"], record["parent"], record["qp"], record["func"] = 0, -1, -1, self.device.func
        record["valid"] = int(valid)
        record["kind"] = MrKind.MR
        self.device.mrs[self.index] = self
        pd.users += 1

    @property
    def lkey(self) -> int:
        """Key for local use."""
        return self.key

    @property
    def rkey(self) -> int:
        """Key for the peer."""
        return self.key

    @property
    def valid(self) -> bool:
        """False while the region is invalidated (SEND with invalidate, LOCAL_INV)."""
        return self._view is not None and bool(self.device.record["mrs"][self.index]["valid"])

    def sge(self, offset: int = 0, length: int | None = None) -> Sge:
        """A scatter/gather entry for part of the region; EINVAL outside of it."""
        if length is None:
            length = self.length - offset
        if offset < 0 or length < 0 or offset + length > self.length:
            raise VerbsError(errno.EINVAL, f"bytes {offset} to {offset + length} of a region of {self.length}")
        return Sge(self.iova + offset, length, self.lkey)

    def dereg(self) -> None:
        """Deregister; EBUSY while windows are bound to it."""
        record = self.device.record["mrs"][self.index]
        if self._view is None:
            return
        if int(record["windows"]):
            raise VerbsError(errno.EBUSY, f"{int(record['windows'])} memory windows are bound to the region")
        with self.device.quiesced():
            record["valid"] = 0
            record["kind"] = MrKind.FREE
            self.device.drop_key(self.key)
        del self.device.mrs[self.index]
        self.device.pools.mrs.free(self.index)
        self.pd.users -= 1
        self._view = None

    def __enter__(self) -> Mr:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dereg()


class Mw:
    """ibv_mw: a window that BIND_MW work requests open on part of a region."""

    def __init__(self, pd: Pd, kind: int, key: int | None) -> None:
        pd.check_alive()
        if kind not in (1, 2):
            raise VerbsError(errno.EINVAL, f"memory windows are of type 1 or 2, not {kind}")
        self.pd = pd
        self.device = pd.device
        self.kind = kind
        self.index = pd.device.pools.mrs.alloc()
        try:
            self.rkey = pd.device.choose_key(self.index, key)
        except BaseException:
            pd.device.pools.mrs.free(self.index)
            raise
        record = self.device.record["mrs"][self.index]
        record["key"], record["pdn"], record["access"] = self.rkey, pd.pdn, 0
        record["iova"] = record["length"] = record["windows"] = 0
        record["odp"], record["parent"], record["qp"], record["func"] = 0, -1, -1, self.device.func
        record["valid"] = 0
        record["kind"] = MrKind.MW1 if kind == 1 else MrKind.MW2
        self.device.mrs[self.index] = self
        pd.users += 1

    @property
    def valid(self) -> bool:
        """Whether it is bound."""
        return self.device.mrs.get(self.index) is self and bool(self.device.record["mrs"][self.index]["valid"])

    def dealloc(self) -> None:
        """Unbind and free."""
        if self.device.mrs.get(self.index) is not self:
            return
        del self.device.mrs[self.index]
        with self.device.quiesced():
            record = self.device.record["mrs"][self.index]
            if record["valid"]:
                self.device.record["mrs"][int(record["parent"])]["windows"] -= 1
            record["valid"] = 0
            record["kind"] = MrKind.FREE
            self.device.drop_key(self.rkey)
        self.device.pools.mrs.free(self.index)
        self.pd.users -= 1

    def __enter__(self) -> Mw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dealloc()


class Pd:
    """ibv_pd."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.pdn = device.pools.pds.alloc()
        self.users = 0
        self.ahs: set[Ah] = set()
        device.pds[self.pdn] = self

    def check_alive(self) -> None:
        """EINVAL once it is deallocated."""
        if self.device.pds.get(self.pdn) is not self:
            raise VerbsError(errno.EINVAL, f"protection domain {self.pdn} was deallocated")

    def reg_mr(
        self,
        buffer: Any,
        access: Access = Access.LOCAL_WRITE,
        *,
        iova: int | None = None,
        key: int | None = None,
    ) -> Mr:
        """Register a buffer. `iova` is its address on the wire, `key` pins its lkey and rkey."""
        return Mr(self, buffer, access, iova=iova, key=key)

    def alloc_mr(self, buffer: Any, *, key: int | None = None) -> Mr:
        """A region for fast registration: invalid until a REG_MR work request gives it access rights."""
        return Mr(self, buffer, Access.LOCAL_WRITE, iova=None, key=key, valid=False)

    def alloc_mw(self, kind: int, *, key: int | None = None) -> Mw:
        """A memory window of type 1 or 2."""
        return Mw(self, kind, key)

    def create_ah(self, attr: AhAttr) -> Ah:
        """An address handle."""
        return Ah(self, attr)

    def create_srq(self, max_wr: int = 64, max_sge: int = 1, *, limit: int = 0, srqn: int | None = None) -> Srq:
        """A shared receive queue."""
        from softrnic.verbs.srq import Srq

        return Srq(self, max_wr, max_sge, limit, srqn)

    def create_qp(
        self,
        kind: QpType,
        send_cq: Cq,
        recv_cq: Cq,
        cap: QpCap | None = None,
        *,
        srq: Srq | None = None,
        sq_sig_all: bool = False,
        qpn: int | None = None,
    ) -> Qp:
        """A queue pair in RESET; `qpn` pins its number."""
        from softrnic.verbs.qp import Qp, QpCap

        return Qp(self, kind, send_cq, recv_cq, cap or QpCap(), srq=srq, sq_sig_all=sq_sig_all, qpn=qpn)

    def dealloc(self) -> None:
        """Free the domain; EBUSY while anything lives in it."""
        if self.users or self.ahs:
            raise VerbsError(errno.EBUSY, f"PD {self.pdn} still has {self.users + len(self.ahs)} objects")
        if self.device.pds.get(self.pdn) is self:
            del self.device.pds[self.pdn]
            self.device.pools.pds.free(self.pdn)

    def close(self) -> None:
        """Destroy everything in the domain, then the domain."""
        for qp in [q for q in self.device.qps.values() if q.pd is self]:
            qp.destroy()
        for srq in [s for s in self.device.srqs.values() if s.pd is self]:
            srq.destroy()
        regions = [m for m in self.device.mrs.values() if m.pd is self]
        for mw in [m for m in regions if isinstance(m, Mw)]:
            mw.dealloc()
        for mr in [m for m in regions if isinstance(m, Mr)]:
            mr.dereg()
        for ah in list(self.ahs):
            ah.destroy()
        self.dealloc()

    def __enter__(self) -> Pd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_access(access: Access) -> None:
    """Remote write and atomic rights need local write (11.2.8.2)."""
    if access & ~sum(Access):
        raise VerbsError(errno.EINVAL, f"access {access!r} is no ibv_access_flags")
    if access & _WRITERS and not access & Access.LOCAL_WRITE:
        raise VerbsError(errno.EINVAL, "remote write or atomic access needs LOCAL_WRITE")
