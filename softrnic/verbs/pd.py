"""Protection domains, and address handles, which live in one."""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from softrnic import layout
from softrnic.errors import VerbsError
from softrnic.spec import Access, QpType
from softrnic.verbs.address import Gid, IpAddress
from softrnic.verbs.cq import Cq
from softrnic.verbs.device import Device
from softrnic.verbs.mr import Mr, PhysicalMr, buffer_view
from softrnic.verbs.mw import Mw
from softrnic.wire.frame import build_av

if TYPE_CHECKING:
    from softrnic.verbs.qp import Qp, QpCap
    from softrnic.verbs.space import AddressSpace
    from softrnic.verbs.srq import Srq


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
        """Register a buffer. `iova` is its address on the wire, `key` pins its lkey and rkey.

        ON_DEMAND: in `Device.process_space`, by its page table; whoever owns the memory may do with it what he likes.
        """
        if not access & Access.ON_DEMAND:
            return Mr(self, buffer, access, iova=iova, key=key)
        view = buffer_view(buffer, access)
        addr = int(view.ctypes.data)
        if iova is None:
            iova = 0 if access & Access.ZERO_BASED else addr
        space = self.device.process_space
        return PhysicalMr(self, space, iova, [(addr, view.nbytes)], access, key=key, odp=True, buffer=view)

    def reg_physical_mr(
        self, space: AddressSpace, iova: int, ranges: Any, access: Access, *, key: int | None = None,
        odp: bool = False,
    ) -> PhysicalMr:  # fmt: skip
        """Register a list of (address, length) of an address space, of any alignment, as one region from `iova` on.

        `odp` (or ON_DEMAND): by the page table of the space. Else all of it must be in slots, and keeps them there.
        """
        odp = odp or bool(access & Access.ON_DEMAND)
        if ranges is None:
            raise VerbsError(errno.EINVAL, "no ranges; reg_all registers all of an address space")
        return PhysicalMr(self, space, iova, ranges, access, key=key, odp=odp)

    def reg_all(
        self, space: AddressSpace, access: Access, *, odp: bool = False, key: int | None = None
    ) -> PhysicalMr:  # fmt: skip
        """Register all of an address space, whether anything is there or not; every address is its own on the wire.

        Slots may come and go. `odp` (or ON_DEMAND): implicit on-demand paging.
        """
        odp = odp or bool(access & Access.ON_DEMAND)
        return PhysicalMr(self, space, 0, None, access, key=key, odp=odp)

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
