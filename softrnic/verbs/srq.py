"""Shared receive queues."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from softrnic.errors import VerbsError
from softrnic.spec import MAX_MESSAGE
from softrnic.verbs.wr import RecvWr

if TYPE_CHECKING:
    from softrnic.verbs.device import Device
    from softrnic.verbs.pd import Pd


def put_rwqe(device: Device, rwqe_index: int, sge_index: int, wr: RecvWr) -> None:
    """Write one receive WQE and its SGEs into their slots; EINVAL for numbers that do not fit."""
    sges = device.record["sges"]
    total = 0
    try:
        for i, sge in enumerate(wr.sges):
            sges[sge_index + i] = (sge.addr, sge.length, sge.lkey)
            total += sge.length
        device.record["rwqes"][rwqe_index] = (wr.wr_id, len(wr.sges), min(total, MAX_MESSAGE))
    except OverflowError as error:
        raise VerbsError(errno.EINVAL, str(error)) from None


class Srq:
    """ibv_srq. Made by `Pd.create_srq`."""

    def __init__(self, pd: Pd, max_wr: int, max_sge: int, limit: int, srqn: int | None) -> None:
        device = pd.device
        if not 0 < max_wr <= device.attr.max_srq_wr:
            raise VerbsError(errno.EINVAL, f"max_wr must be 1 to {device.attr.max_srq_wr}, not {max_wr}")
        if not 0 < max_sge <= device.attr.max_srq_sge:
            raise VerbsError(errno.EINVAL, f"max_sge must be 1 to {device.attr.max_srq_sge}, not {max_sge}")
        self.max_wr = 1 << max(0, max_wr - 1).bit_length()
        if not 0 <= limit <= self.max_wr:
            raise VerbsError(errno.EINVAL, f"limit {limit} of a queue of {self.max_wr}")
        pd.check_alive()
        self.pd = pd
        self.device = device
        self.max_sge = max_sge
        self.users = 0
        self.srqn = device.srq_numbers.alloc() if srqn is None else device.srq_numbers.take(srqn)
        with ExitStack() as undo:
            undo.callback(device.srq_numbers.free, self.srqn)
            self.index = device.pools.srqs.alloc()
            undo.callback(device.pools.srqs.free, self.index)
            base = device.slabs.rwqes.alloc(self.max_wr)
            undo.callback(device.slabs.rwqes.free, base, self.max_wr)
            sge_base = device.slabs.sges.alloc(self.max_wr * max_sge)
            undo.pop_all()
        self._record = device.record["srqs"][self.index]
        with device.quiesced():
            self._record["base"], self._record["sge_base"] = base, sge_base
            self._record["sge_max"] = max_sge
            self._record["mask"] = self.max_wr - 1
            self._record["prod"] = self._record["head"] = 0
            self._record["pdn"] = pd.pdn
            self._record["srqn"], self._record["func"] = self.srqn, device.func
            self._record["limit"] = limit
            self._record["state"] = 1
        device.srqs[self.index] = self
        pd.users += 1

    @property
    def alive(self) -> bool:
        """False once it is destroyed."""
        return self.device.srqs.get(self.index) is self

    def _check_alive(self) -> None:
        if not self.alive:
            raise VerbsError(errno.EINVAL, f"SRQ {self.srqn} was destroyed")

    @property
    def limit(self) -> int:
        """Armed limit, 0 once it was reported."""
        return int(self._record["limit"])

    def modify(self, limit: int) -> None:
        """Arm the limit event: reported once, when fewer than `limit` receives are left."""
        self._check_alive()
        if not 0 <= limit <= self.max_wr:
            raise VerbsError(errno.EINVAL, f"limit {limit} of a queue of {self.max_wr}")
        with self.device.quiesced():
            self._record["limit"] = limit

    def post_recv(self, wr: RecvWr | Sequence[RecvWr]) -> None:
        """Post receives; ENOMEM when the queue is full."""
        self._check_alive()
        for one in (wr,) if isinstance(wr, RecvWr) else wr:
            prod = int(self._record["prod"])
            if prod - int(self._record["head"]) >= self.max_wr:
                raise VerbsError(errno.ENOMEM, f"SRQ {self.srqn} is full ({self.max_wr})")
            if len(one.sges) > self.max_sge:
                raise VerbsError(errno.EINVAL, f"{len(one.sges)} SGEs, the queue takes {self.max_sge}")
            slot = prod & (self.max_wr - 1)
            base, sge_base = int(self._record["base"]), int(self._record["sge_base"])
            put_rwqe(self.device, base + slot, sge_base + slot * self.max_sge, one)
            self._record["prod"] = prod + 1

    def destroy(self) -> None:
        """Destroy the queue; EBUSY while a QP uses it."""
        if self.users:
            raise VerbsError(errno.EBUSY, f"SRQ {self.srqn} is used by {self.users} QPs")
        if self.device.srqs.pop(self.index, None) is None:
            return
        with self.device.quiesced():
            self._record["state"] = 0
            self.device.slabs.rwqes.free(int(self._record["base"]), self.max_wr)
            self.device.slabs.sges.free(int(self._record["sge_base"]), self.max_wr * self.max_sge)
        self.device.pools.srqs.free(self.index)
        self.device.srq_numbers.free(self.srqn)
        self.pd.users -= 1

    def __enter__(self) -> Srq:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()
