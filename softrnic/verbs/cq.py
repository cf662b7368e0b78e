"""Completion queues as the poller sees them: poll, arm, wait, resize."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from softrnic.errors import VerbsError
from softrnic.layout import CQ
from softrnic.qp.cq import ARM_NEXT, ARM_SOLICITED, CQ_OVERRUN, CQ_READY
from softrnic.spec import WC_STATUS_TEXT, WcFlags, WcOpcode, WcStatus

if TYPE_CHECKING:
    from softrnic.verbs.device import Device


class Wc(NamedTuple):
    """ibv_wc."""

    wr_id: int
    status: WcStatus
    opcode: WcOpcode
    vendor_err: int
    byte_len: int
    imm: int  # immediate data in host order, or the rkey invalidated
    qpn: int
    src_qp: int
    wc_flags: WcFlags

    @property
    def ok(self) -> bool:
        """Whether the work request succeeded."""
        return self.status == WcStatus.SUCCESS

    def raise_for_status(self) -> Wc:
        """This completion, or a VerbsError (EIO) that says what went wrong."""
        if self.status != WcStatus.SUCCESS:
            text = WC_STATUS_TEXT.get(self.status, self.status.name)
            raise VerbsError(errno.EIO, f"wr_id {self.wr_id} on QP {self.qpn:#x}: {text}")
        return self


class Cq:
    """ibv_cq. Made by `Device.create_cq`."""

    def __init__(self, device: Device, cqe: int, cqn: int | None) -> None:
        if not 0 < cqe <= device.attr.max_cqe:
            raise VerbsError(errno.EINVAL, f"cqe must be 1 to {device.attr.max_cqe}, not {cqe}")
        self.device = device
        self.cqn = device.cq_numbers.alloc() if cqn is None else device.cq_numbers.take(cqn)
        self.size = 1 << max(0, cqe - 1).bit_length()
        self.users = 0
        self._condition = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        with ExitStack() as undo:
            undo.callback(device.cq_numbers.free, self.cqn)
            self.index = device.pools.cqs.alloc()
            undo.callback(device.pools.cqs.free, self.index)
            base = device.slabs.cqes.alloc(self.size)
            undo.pop_all()
        self._record = device.record["cqs"][self.index]
        with device.quiesced():
            self._record["base"] = base
            self._record["mask"] = self.size - 1
            self._record["prod"] = self._record["cons"] = 0
            self._record["armed"] = 0
            self._record["cqn"], self._record["func"] = self.cqn, device.func
            self._record["state"] = CQ_READY
        device.cqs[self.index] = self

    @property
    def alive(self) -> bool:
        """False once it is destroyed."""
        return self.device.cqs.get(self.index) is self

    @property
    def overrun(self) -> bool:
        """Whether a completion was lost; the CQ then takes no more."""
        return int(self._record["state"]) == CQ_OVERRUN

    def poll(self, count: int = 16) -> list[Wc]:
        """Take up to `count` completions; an empty list when there are none."""
        record = self._record
        cons, prod = int(record["cons"]), int(record["prod"])
        if cons == prod:
            return []
        cqes, base, mask = self.device.cqes, int(record["base"]), int(record["mask"])
        taken: list[Wc] = []
        while cons < prod and len(taken) < count:
            c = cqes[base + (cons & mask)].item()
            taken.append(
                Wc(c[0], WcStatus(c[1]), WcOpcode(c[2]), c[3], c[4], c[5], c[6], c[7], WcFlags(c[8]))
            )
            cons += 1
        record["cons"] = cons
        return taken

    def req_notify(self, solicited_only: bool = False) -> None:
        """Ask for one notification: for the next completion, or the next solicited or failed one."""
        wanted = ARM_SOLICITED if solicited_only else ARM_NEXT
        if int(self._record["armed"]) != ARM_NEXT:
            self._record["armed"] = wanted

    def wait(self, timeout: float | None = None) -> list[Wc]:
        """Block until there is a completion, for callers without an event loop; [] after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while not (done := self.poll()):
                self.req_notify()
                if done := self.poll():
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._condition.wait(left)
        return done

    async def next(self, count: int = 16) -> list[Wc]:
        """Completions, at least one, as soon as there are any."""
        while True:
            done = self.poll(count)
            if done:
                return done
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            entry = (loop, future)
            with self._condition:
                self._waiters.append(entry)
            try:
                self.req_notify()
                done = self.poll(count)
                if done:
                    return done
                await future
            finally:
                with self._condition:
                    self._waiters = [w for w in self._waiters if w is not entry]

    def notified(self) -> None:
        """The engine reported a completion this CQ was armed for. Called by the device, from any thread."""
        with self._condition:
            waiters, self._waiters = self._waiters, []
            self._condition.notify_all()
        for loop, future in waiters:
            loop.call_soon_threadsafe(_resolve, future)

    def resize(self, cqe: int) -> None:
        """Change the capacity; EINVAL when what lies in it would not fit."""
        if not 0 < cqe <= self.device.attr.max_cqe:
            raise VerbsError(errno.EINVAL, f"cqe must be 1 to {self.device.attr.max_cqe}, not {cqe}")
        if not self.alive:
            raise VerbsError(errno.EINVAL, f"CQ {self.cqn} was destroyed")
        size = 1 << max(0, cqe - 1).bit_length()
        with self.device.quiesced():
            record = self._record
            cons, prod = int(record["cons"]), int(record["prod"])
            if prod - cons > size:
                raise VerbsError(errno.EINVAL, f"{prod - cons} completions do not fit into {size}")
            old_base, old_mask = int(record["base"]), int(record["mask"])
            base = self.device.slabs.cqes.alloc(size)
            for i in range(cons, prod):
                self.device.cqes[base + (i & (size - 1))] = self.device.cqes[old_base + (i & old_mask)]
            record["base"], record["mask"] = base, size - 1
            self.device.slabs.cqes.free(old_base, self.size)
            self.size = size

    def destroy(self) -> None:
        """Destroy the CQ; EBUSY while a QP uses it."""
        if self.users:
            raise VerbsError(errno.EBUSY, f"CQ {self.cqn} is used by {self.users} queues")
        if self.device.cqs.pop(self.index, None) is None:
            return
        with self.device.quiesced():
            self._record["state"] = 0
            self.device.slabs.cqes.free(int(self._record["base"]), self.size)
        self.device.pools.cqs.free(self.index)
        self.device.cq_numbers.free(self.cqn)
        self._record = np.zeros(1, CQ)[0]  # for ever empty: the place may soon be another CQ's

    def __enter__(self) -> Cq:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
