"""QP1: management datagrams in and out of a device (IBTA 13.5, annex A17 for RoCEv2).

Decides how a datagram becomes a work request and whose address a received one has. Knows nothing of what is in it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address

from softrnic.cm.conversation import Address
from softrnic.cm.mad import MAD_BYTES
from softrnic.cm.service import gid_from_ip, ip_from_gid
from softrnic.errors import SoftRnicError, VerbsError
from softrnic.spec import GSI_QKEY, GSI_QPN
from softrnic.verbs import (
    Ah,
    AhAttr,
    Device,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendFlags,
    SendWr,
    Wc,
    WcStatus,
    WrOpcode,
)

log = logging.getLogger(__name__)

GRH_BYTES = 40
# A larger datagram than a MAD is the sender's mistake; it must not be QP1's error.
_SLOT_BYTES = GRH_BYTES + 4096
_SLOTS = 64
_SENDS = 64
MAX_PEERS = 64  # to whom something is being sent
MAX_QUEUED = 32  # datagrams for one of them, while its MAC is looked for


class Gsi:
    """QP1 of a device, from construction to `close`. `deliver(datagram, address)` is called for what comes in."""

    def __init__(self, device: Device, deliver: Callable[[bytes, Address], None]) -> None:
        self.device = device
        self.lost = 0
        """Datagrams not sent: no way to the peer, or too many for it."""
        self._deliver = deliver
        self._room = bytearray(_SLOTS * _SLOT_BYTES)
        self._pd = device.alloc_pd()
        self._mr = self._pd.reg_mr(self._room)
        self._recv_cq, self._send_cq = device.create_cq(_SLOTS), device.create_cq(_SENDS)
        cap = QpCap(max_send_wr=_SENDS, max_recv_wr=_SLOTS, max_inline_data=MAD_BYTES)
        self._qp = self._pd.create_qp(QpType.GSI, self._send_cq, self._recv_cq, cap)
        self._queues: dict[Address, deque[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: dict[int, asyncio.Future[Wc]] = {}
        self._next_wr_id = 0
        self._start()

    def _start(self) -> None:
        self._qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=GSI_QKEY)
        for slot in range(_SLOTS):
            self._post_recv(slot)
        self._qp.modify(QpState.RTR)
        self._qp.modify(QpState.RTS, sq_psn=0)

    def _post_recv(self, slot: int) -> None:
        start = slot * _SLOT_BYTES
        self._room[start : start + GRH_BYTES] = bytes(GRH_BYTES)  # an IPv4 header does not fill it
        self._qp.post_recv(RecvWr((self._mr.sge(slot * _SLOT_BYTES, _SLOT_BYTES),), wr_id=slot))

    # --- receiving ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Receive and complete until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive())
            group.create_task(self._complete())

    async def _receive(self) -> None:
        while True:
            for wc in await self._recv_cq.next():
                if wc.status == WcStatus.SUCCESS:
                    self._take(wc)
                if wc.status != WcStatus.WR_FLUSH_ERR:
                    self._post_recv(wc.wr_id)
            if self._qp.state == QpState.ERR:
                self._revive()

    def _take(self, wc: Wc) -> None:
        start = wc.wr_id * _SLOT_BYTES
        data = bytes(self._room[start : start + wc.byte_len])
        if wc.src_qp == GSI_QPN:
            self._deliver(data[GRH_BYTES:], address_in_grh(data[:GRH_BYTES]))

    def _revive(self) -> None:
        """A completion error has stopped QP1; nothing of it matters but that it goes on."""
        log.warning("QP1 of %s was in error and is set up again", self.device.name)
        self._qp.modify(QpState.RESET)
        self._recv_cq.poll(_SLOTS)
        self._start()

    # --- sending --------------------------------------------------------------------------------------------

    def send(self, address: Address, datagram: bytes) -> None:
        """Send when the peer's MAC is known. In order for each peer; lost when there is too much to do."""
        queue = self._queues.get(address)
        if queue is None:
            if len(self._queues) >= MAX_PEERS:
                self.lost += 1
                return
            queue = self._queues[address] = deque()
            task = asyncio.get_running_loop().create_task(self._drain(address, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if len(queue) >= MAX_QUEUED:
            self.lost += 1
            return
        queue.append(datagram)

    async def sent(self) -> None:
        """Until everything handed to `send` so far has left, or was given up."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _drain(self, address: Address, queue: deque[bytes]) -> None:
        try:
            with await self._handle(address) as ah:
                while queue:
                    wc = await self._post(queue.popleft(), ah)
                    if wc.status != WcStatus.SUCCESS:
                        self.lost += 1
        except (SoftRnicError, OSError) as error:
            self.lost += len(queue)
            log.info("no datagram to %s: %s", ip_from_gid(address.gid), error)
        finally:
            del self._queues[address]

    async def _handle(self, address: Address) -> Ah:
        attr = await path_to(self.device, address)
        return self._pd.create_ah(attr)

    async def _post(self, datagram: bytes, ah: Ah) -> Wc:
        wr_id = self._next_wr_id
        self._next_wr_id += 1
        future = self._under_way[wr_id] = asyncio.get_running_loop().create_future()
        try:
            self._qp.post_send(
                SendWr(
                    WrOpcode.SEND, wr_id=wr_id, flags=SendFlags.SIGNALED, inline=datagram, ah=ah,
                    dqpn=GSI_QPN, qkey=GSI_QKEY,
                )
            )  # fmt: skip
            return await future
        finally:
            del self._under_way[wr_id]

    async def _complete(self) -> None:
        while True:
            for wc in await self._send_cq.next():
                future = self._under_way.get(wc.wr_id)
                if future is not None and not future.done():
                    future.set_result(wc)
            if self._qp.state == QpState.SQE:
                self._qp.modify(QpState.RTS)

    def close(self) -> None:
        """Give QP1 up."""
        for task in self._tasks:
            task.cancel()
        self._qp.destroy()
        self._mr.dereg()
        for ah in list(self._pd.ahs):
            ah.destroy()
        self._send_cq.destroy()
        self._recv_cq.destroy()
        self._pd.dealloc()


def address_in_grh(grh: bytes) -> Address:
    """Both ends of the way a datagram came. Its IP header is where the GRH would be, IPv4 in the last 20 bytes."""
    if grh[0] >> 4 == 6:
        return Address(local_gid=grh[24:40], gid=grh[8:24])
    source, destination = IPv4Address(grh[32:36]), IPv4Address(grh[36:40])
    return Address(local_gid=gid_from_ip(destination), gid=gid_from_ip(source))


async def path_to(device: Device, address: Address, *, traffic_class: int = 0, flow_label: int = 0) -> AhAttr:
    """The address vector for a peer. Its MAC is looked up without stopping the loop, or the engine."""
    own = next((gid for gid in device.gids.values() if gid_from_ip(gid.ip) == address.local_gid), None)
    peer = ip_from_gid(address.gid)
    if own is None:
        text = f"{ip_from_gid(address.local_gid)} is not an address of {device.name}"
        raise VerbsError(errno.EADDRNOTAVAIL, text)
    dmac = await asyncio.to_thread(device.resolve_mac, own, peer) if device.resolve_mac else None
    return AhAttr(peer, own.index, dmac, traffic_class=traffic_class, flow_label=flow_label)
