"""Memory regions: of a buffer, of ranges of an address space, or of all of one."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np

from softrnic.errors import VerbsError
from softrnic.layout import MR_STAT, MrKind
from softrnic.mem import ranges as mem_ranges
from softrnic.mem.ranges import Ranges
from softrnic.spec import Access
from softrnic.verbs.slot import TOP, Slot, is_heap, view_of
from softrnic.verbs.wr import Sge

if TYPE_CHECKING:
    from softrnic.verbs.pd import Pd
    from softrnic.verbs.space import AddressSpace

_WRITERS = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
_NO_RANGES = np.zeros(0, np.int64)


class Mr:
    """ibv_mr over anything with the buffer protocol, which it keeps alive."""

    odp = False

    def __init__(
        self, pd: Pd, buffer: Any, access: Access, *, iova: int | None, key: int | None, valid: bool = True
    ) -> None:
        pd.check_alive()
        self._view: np.ndarray | None = buffer_view(buffer, access)
        self.addr = int(self._view.ctypes.data)
        if iova is None:
            iova = 0 if access & Access.ZERO_BASED else self.addr
        self._claim(pd, pd.device.space, access, iova, int(self._view.nbytes), key)
        self._point(self.addr, _NO_RANGES, 1)
        self._publish(valid)

    def _claim(
        self, pd: Pd, space: AddressSpace, access: Access, iova: int, length: int, key: int | None
    ) -> None:  # fmt: skip
        """A record and a key, not yet in use."""
        _check_access(access)
        if not 0 <= iova <= TOP - length:
            raise VerbsError(errno.EINVAL, f"iova {iova:#x} with {length} bytes wraps around")
        self.pd, self.device, self.space = pd, pd.device, space
        self.access, self.iova, self.length = access, iova, length
        self.index = pd.device.pools.mrs.alloc()
        try:
            self.key = pd.device.choose_key(self.index, key)
        except BaseException:
            pd.device.pools.mrs.free(self.index)
            raise
        record = self.device.record["mrs"][self.index]
        record["key"], record["pdn"], record["access"] = self.key, pd.pdn, int(access)
        record["iova"], record["length"], record["space"] = iova, length, space.index
        record["windows"], record["parent"], record["qp"], record["func"] = 0, -1, -1, self.device.func
        record["odp"], record["pinned"], record["held"] = self.odp, 0, 0
        self.device.record["mr_stats"][self.index : self.index + 1] = np.zeros(1, MR_STAT)

    def _point(self, addr: int, table: np.ndarray, count: int, shift: int = 0, skew: int = 0) -> None:
        """Where its bytes are. The engine must stand still, or not know the region."""
        record = self.device.record["mrs"][self.index]
        record["addr"], record["ranges"], record["nranges"] = addr, table.ctypes.data, count
        record["shift"], record["skew"], record["hint"] = shift, skew, 0
        self._table = table

    def _publish(self, valid: bool) -> None:
        record = self.device.record["mrs"][self.index]
        record["valid"] = int(valid)
        record["kind"] = MrKind.MR
        self.device.mrs[self.index] = self
        self.space.regions.add(self)
        self.pd.users += 1

    @property
    def lkey(self) -> int:
        """Key for local use."""
        return self.key

    @property
    def rkey(self) -> int:
        """Key for the peer."""
        return self.key

    @property
    def alive(self) -> bool:
        """False once it is deregistered."""
        return self.device.mrs.get(self.index) is self

    @property
    def valid(self) -> bool:
        """False while the region is invalidated (SEND with invalidate, LOCAL_INV)."""
        return self.alive and bool(self.device.record["mrs"][self.index]["valid"])

    def sge(self, offset: int = 0, length: int | None = None) -> Sge:
        """A scatter/gather entry for part of the region; EINVAL outside of it."""
        if length is None:
            length = self.length - offset
        if offset < 0 or length < 0 or offset + length > self.length:
            raise VerbsError(errno.EINVAL, f"bytes {offset} to {offset + length} of a region of {self.length}")
        return Sge(self.iova + offset, length, self.lkey)

    def trust(self, trusting: bool) -> None:
        """Whether its memory may be touched at any time; of a plain buffer always."""

    def statistic(self) -> dict[str, int]:
        """Counters of the region as `rdma statistic show mr` has them."""
        row = self.device.record["mr_stats"][self.index]
        return {name: int(row[name]) for name in MR_STAT.names or ()}

    def overlaps(self, low: int, high: int) -> bool:
        """Whether any byte of the region lies in [low, high) of its address space."""
        return self.addr < high and low < self.addr + self.length

    def dereg(self) -> None:
        """Deregister; EBUSY while windows are bound to it."""
        record = self.device.record["mrs"][self.index]
        if not self.alive:
            return
        if int(record["windows"]):
            raise VerbsError(errno.EBUSY, f"{int(record['windows'])} memory windows are bound to the region")
        with self.device.quiesced():
            record["valid"] = 0
            record["kind"] = MrKind.FREE
            self.device.drop_key(self.key)
        del self.device.mrs[self.index]
        self.device.pools.mrs.free(self.index)
        self.space.regions.discard(self)
        self.pd.users -= 1
        self._view = None
        self._table = _NO_RANGES

    def __enter__(self) -> Mr:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dereg()


class PhysicalMr(Mr):
    """A region over a list of (address, length) of an address space; `ranges` None: over all of it, as it changes.

    Pinned unless `odp` or over all: its slots cannot be removed, and a hole torn into it by force is an access error.
    """

    def __init__(
        self, pd: Pd, space: AddressSpace, iova: int, ranges: Any, access: Access, *, key: int | None, odp: bool,
        buffer: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        pd.check_alive()
        if space.device is not pd.device or not space.alive:
            raise VerbsError(errno.EINVAL, "the address space is of another device or destroyed")
        if odp and not space.paged:
            raise VerbsError(errno.EOPNOTSUPP, f"address space {space.index} has no page table: paged=True")
        self.odp = odp
        self._view = buffer
        self._keeps = buffer is not None and is_heap(buffer)
        self._slots: list[Slot] = []
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None
        self.access = access
        self._ranges, slots = self._plan(space, ranges)
        self.addr = 0 if self._ranges is None else self._ranges.addr
        self._claim(pd, space, access, iova, TOP if self._ranges is None else self._ranges.length, key)
        self._hold(slots)
        self._map()
        self.trust(space.resolver is None)
        self._publish(True)

    @property
    def pinned(self) -> bool:
        """Whether its memory must stay."""
        return not self.odp and self._ranges is not None

    @property
    def follows(self) -> bool:
        """Whether it is all of its address space."""
        return self._ranges is None

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(address, length), most neighbours joined."""
        if self._ranges is None:
            return [(0, TOP)]
        addrs, lengths = self._ranges.pieces()
        return list(zip(addrs.tolist(), lengths.tolist(), strict=True))

    def trust(self, trusting: bool) -> None:
        """Inside `quiesced`: whether the engine may touch memory that the region keeps alive without asking the kernel.

        Not while a resolver moves its pages about: a touch could then block.
        """
        self.device.record["mrs"][self.index]["held"] = self._keeps and trusting

    def _plan(self, space: AddressSpace, ranges: Any) -> tuple[Ranges | None, list[Slot]]:
        """The table of some ranges, and the slots that they need."""
        if ranges is None:
            return None, []
        array = mem_ranges.as_array(ranges)
        planned = mem_ranges.plan(array)
        if self.odp:
            return planned, []
        return planned, space.pin(array, write=bool(self.access & (_WRITERS | Access.LOCAL_WRITE)))

    def _hold(self, slots: list[Slot]) -> None:
        for slot in slots:
            slot.pins += 1
        for slot in self._slots:
            slot.pins -= 1
        self._slots = slots

    def _map(self) -> None:
        self.device.record["mrs"][self.index]["pinned"] = self.pinned
        if self._ranges is None or self._ranges.npieces == 1:
            self._point(self.addr, _NO_RANGES, 1)
        else:
            r = self._ranges
            self._point(self.addr, r.table, len(r.table), r.shift, r.skew)

    def rereg_physical(self, ranges: Any) -> None:
        """ibv_rereg_mr with IBV_REREG_MR_CHANGE_TRANSLATION: every packet sees the old ranges or the new.

        Keys, iova and rights stay. EBUSY when windows are bound and the length would change.
        """
        if not self.alive:
            raise VerbsError(errno.EINVAL, "the region was deregistered")
        if self._ranges is None:
            raise VerbsError(errno.EINVAL, "a region over all of an address space follows it by itself")
        planned, slots = self._plan(self.space, ranges)
        if planned is None or self.iova > TOP - planned.length:
            raise VerbsError(errno.EINVAL, f"there are no ranges, or from iova {self.iova:#x} on they wrap around")
        with self.device.quiesced():
            record = self.device.record["mrs"][self.index]
            if int(record["windows"]) and planned.length != self.length:
                raise VerbsError(errno.EBUSY, f"{int(record['windows'])} memory windows are bound to the region")
            self._ranges, self._sorted = planned, None
            self.addr, self.length = planned.addr, planned.length
            record["length"] = planned.length
            self._map()
        self._hold(slots)

    def overlaps(self, low: int, high: int) -> bool:
        """Whether any byte of the region lies in [low, high) of its address space."""
        if self._ranges is None:
            return True
        if self._sorted is None:
            addrs, lengths = self._ranges.pieces()
            order = np.argsort(addrs, kind="stable")
            self._sorted = addrs[order], np.maximum.accumulate((addrs + lengths)[order])
        starts, ends = self._sorted
        before = int(np.searchsorted(starts, high, "left"))
        return before > 0 and int(ends[before - 1]) > low

    def prefetch(self, offset: int = 0, length: int | None = None, *, write: bool = False) -> None:
        """ibv_advise_mr of part of the region: bring what is missing of it."""
        sge = self.sge(offset, length)
        for addr, size in self._pieces(sge.addr - self.iova, sge.length):
            self.space.prefetch(addr, size, write)

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        if self._ranges is None:
            return [(offset, length)]
        addrs, lengths = self._ranges.pieces()
        ends = np.cumsum(lengths)
        starts = ends - lengths
        low, high = np.maximum(starts, offset), np.minimum(ends, offset + length)
        used = np.flatnonzero(low < high)
        at = addrs[used] + low[used] - starts[used]
        return list(zip(at.tolist(), (high - low)[used].tolist(), strict=True))

    def dereg(self) -> None:
        """Deregister; EBUSY while windows are bound to it."""
        super().dereg()
        self._hold([])
        self._ranges = None if self._ranges is None else self._ranges._replace(table=_NO_RANGES)


def buffer_view(buffer: Any, access: Access) -> np.ndarray:
    """The bytes of a buffer; EACCES when it is read-only and may be written through the region."""
    view = view_of(buffer)
    if access & (_WRITERS | Access.LOCAL_WRITE) and not view.flags.writeable:
        raise VerbsError(errno.EACCES, "a read-only buffer cannot be registered with write access")
    return view


def _check_access(access: Access) -> None:
    """Remote write and atomic rights need local write (11.2.8.2)."""
    if access & ~sum(Access):
        raise VerbsError(errno.EINVAL, f"access {access!r} is no ibv_access_flags")
    if access & _WRITERS and not access & Access.LOCAL_WRITE:
        raise VerbsError(errno.EINVAL, "remote write or atomic access needs LOCAL_WRITE")
