"""A connected QP, as a program uses it, from INIT to its end.

Decides what the QP goes through on behalf of the connection: INIT before the REQ, RTR and RTS before the REP or the
RTU leaves, ERR when it ends. Which messages that takes is decided by softrnic.cm.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self

from softrnic.cm import conversation, events
from softrnic.cm.attributes import qp_attributes
from softrnic.cm.conversation import Role
from softrnic.cm.events import Event
from softrnic.cm.machine import Input, State, step
from softrnic.cm.messages import Reason, Rej, Rep, SidrStatus
from softrnic.cm.service import CmaHeader, gid_from_ip, ip_from_gid
from softrnic.control.cm.agent import Agent
from softrnic.errors import SoftRnicError, VerbsError
from softrnic.spec import Mtu
from softrnic.verbs import Access, AhAttr, Cq, Device, Pd, Qp, QpCap, QpState, QpType

_MIN_RNR_TIMER = 12  # 0.64 ms
_LOOK_SECONDS = 0.05


def _name(kind: type[IntEnum], value: int) -> str:
    """The name of a number a peer sent, if it has one."""
    return next((member.name for member in kind if member == value), str(value))


class RejectedError(SoftRnicError, ConnectionRefusedError):
    """The peer refused. `reason` is a messages.Reason where it is one, `private_data` the peer's."""

    def __init__(self, rej: Rej) -> None:
        super().__init__(errno.ECONNREFUSED, f"rejected: {_name(Reason, rej.reason)}")
        self.reason = rej.reason
        self.information = rej.information
        self.private_data = rej.private_data


class UnreachableError(SoftRnicError, TimeoutError):
    """The peer did not answer."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the peer does not answer")


class ConnectionLostError(SoftRnicError, ConnectionAbortedError):
    """The other side, or time, ended it before it began."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ECONNABORTED, text)


class ServiceError(SoftRnicError, ConnectionRefusedError):
    """No UD QP serves the port. `status` is a messages.SidrStatus where it is one."""

    def __init__(self, status: int) -> None:
        super().__init__(errno.ECONNREFUSED, f"no such service: {_name(SidrStatus, status)}")
        self.status = status


@dataclass(frozen=True)
class ConnParam:
    """rdma_conn_param, and the path. What is None is decided by the device."""

    responder_resources: int | None = None
    """READs and atomics served at once."""
    initiator_depth: int | None = None
    """READs and atomics under way at once."""
    flow_control: int = 1
    retry_count: int = 7
    rnr_retry_count: int = 7
    ack_timeout: int = 16
    """4.096 us * 2^n: 268 ms. What the peer waits for an ACK of ours."""
    path_mtu: Mtu | None = None
    traffic_class: int = 0
    flow_label: int = 0
    hop_limit: int = 64


def _ready(_qp: Qp) -> None:
    """Nothing to prepare."""


@dataclass(frozen=True)
class QpInit:
    """How the QP of a connection is made. A PD or CQ that is not given is made for it, and ends with it."""

    pd: Pd | None = None
    send_cq: Cq | None = None
    recv_cq: Cq | None = None
    cap: QpCap = field(default_factory=QpCap)
    kind: QpType = QpType.RC
    access: Access = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
    prepare: Callable[[Qp], None] = _ready
    """Called in INIT: the place to post receives for what the peer sends first."""


DEFAULT_QP, DEFAULT_PARAM = QpInit(), ConnParam()


class Resources:
    """A QP, and what had to be made for it."""

    def __init__(self, device: Device, init: QpInit, kind: QpType) -> None:
        with contextlib.ExitStack() as undo:
            self.pd = init.pd or undo.enter_context(device.alloc_pd())
            depth = max(init.cap.max_send_wr, init.cap.max_recv_wr)
            self.send_cq = init.send_cq or undo.enter_context(device.create_cq(depth))
            self.recv_cq = init.recv_cq or undo.enter_context(device.create_cq(depth))
            # The PD goes last, with the regions its user has registered; the CQs when no QP is left in it.
            self.qp = undo.enter_context(self.pd.create_qp(kind, self.send_cq, self.recv_cq, init.cap))
            self.qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=init.access)
            init.prepare(self.qp)
            self._stack = undo.pop_all()

    def close(self) -> None:
        self._stack.close()


class Connection:
    """A connected QP. Leaving its context disconnects and destroys it."""

    def __init__(self, agent: Agent, resources: Resources, dmac: bytes | None) -> None:
        self._agent = agent
        self._resources = resources
        self._dmac = dmac
        self._core: conversation.Connection | None = None
        self._outcome: asyncio.Future[None] = agent.loop.create_future()
        self._ended = asyncio.Event()
        self.private_data = b""
        """The peer's: of its REQ (without the address header) or REP, at full length."""
        self.farewell = b""
        """The peer's, of its DREQ or DREP."""

    # --- what the program sees ------------------------------------------------------------------------------

    @property
    def qp(self) -> Qp:
        return self._resources.qp

    @property
    def pd(self) -> Pd:
        return self._resources.pd

    @property
    def send_cq(self) -> Cq:
        return self._resources.send_cq

    @property
    def recv_cq(self) -> Cq:
        return self._resources.recv_cq

    @property
    def core(self) -> conversation.Connection:
        """The protocol's view of it: state, ids, both messages."""
        if self._core is None:
            raise ConnectionLostError("never connected")
        return self._core

    @property
    def remote_address(self) -> tuple[str, int]:
        """The peer, by its address and port."""
        header = CmaHeader.parse(self.core.req.private_data)
        if self.core.role is Role.PASSIVE:
            return str(header.source), header.source_port
        return str(header.destination), self.core.req.service_id & 0xFFFF

    @property
    def is_connected(self) -> bool:
        return self._core is not None and self._core.state is State.ESTABLISHED

    async def disconnect(self, private_data: bytes = b"") -> None:
        """Stop the QP (what is posted is flushed), tell the peer, and wait until it has heard."""
        if not self._ended.is_set():
            self._stop_qp()
            self._tell(private_data)
        await self._ended.wait()

    async def wait_disconnected(self) -> None:
        """Until the connection has ended, from whatever side."""
        await self._ended.wait()

    async def close(self) -> None:
        """Disconnect, and destroy the QP and what was made for it. The peer has been told when this returns."""
        try:
            await self.disconnect()
            await self._agent.sent()
        finally:
            self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- its life -------------------------------------------------------------------------------------------

    def begin(self, core: conversation.Connection) -> None:
        """The protocol knows it from now on."""
        self._core = core
        self._agent.handlers[core] = self._handle

    async def established(self) -> Self:
        """Until it is, or an exception says why it will not be. Whoever stops waiting gives it up."""
        try:
            while not self._outcome.done():
                await asyncio.wait((self._outcome,), timeout=_LOOK_SECONDS)
                self._look_for_packets()
            self._outcome.result()
        except BaseException:
            self._tell(b"")
            self._release()
            raise
        return self

    def _look_for_packets(self) -> None:
        """A packet on the QP makes up for a lost RTU. COMM_EST does not tell: it is for QPs still in RTR."""
        core = self.core
        if core.role is Role.PASSIVE and self.qp.record["comm_est"] and step(core.state, Input.ESTABLISH):
            self._agent.manager.establish(core, self._agent.now)
            self._agent.flush()

    def _handle(self, event: Event) -> None:
        match event:
            case events.ConnectResponse(core, rep):
                self._answer(core, rep)
            case events.Established():
                self._settle(None)
            case events.Rejected(_, rej):
                self._settle(RejectedError(rej))
            case events.Unreachable():
                self._settle(UnreachableError())
            case events.ConnectError():
                self._settle(ConnectionLostError("too slow to answer"))
            case events.Disconnected(_, farewell):
                self._hear_farewell(farewell)
            case events.TimewaitExit(core):
                self._agent.handlers.pop(core, None)

    def _answer(self, core: conversation.Connection, rep: Rep) -> None:
        """The peer has accepted: make the QP ready, say so."""
        self.private_data = rep.private_data
        try:
            self.make_ready(core, rep)
        except VerbsError as error:
            self._agent.manager.reject(core, self._agent.now)
            self._settle(error)
        else:
            self._agent.manager.confirm(core, self._agent.now)

    def make_ready(self, core: conversation.Connection, rep: Rep) -> None:
        """RTR and RTS, as the two messages say."""
        attr, device = qp_attributes(core, rep), self._agent.device
        own = next(gid for gid in device.gids.values() if gid_from_ip(gid.ip) == attr.sgid)
        path = AhAttr(
            ip_from_gid(attr.dgid), own.index, self._dmac, traffic_class=attr.traffic_class,
            flow_label=attr.flow_label if own.ip.version == 6 else 0, hop_limit=max(attr.hop_limit, 1),
        )  # fmt: skip
        to_rtr: dict[str, Any] = {"ah": path, "path_mtu": Mtu(attr.path_mtu), "dqpn": attr.dqpn, "rq_psn": attr.rq_psn}
        to_rts: dict[str, Any] = {"sq_psn": attr.sq_psn}
        if self.qp.type == QpType.RC:
            limits = device.attr
            to_rtr |= {
                "max_dest_rd_atomic": min(attr.max_dest_rd_atomic, limits.max_qp_rd_atom),
                "min_rnr_timer": _MIN_RNR_TIMER,
            }
            to_rts |= {
                "timeout": attr.timeout,
                "retry_cnt": attr.retry_cnt,
                "rnr_retry": attr.rnr_retry,
                "max_rd_atomic": min(attr.max_rd_atomic, limits.max_qp_init_rd_atom),
            }
        self.qp.modify(QpState.RTR, **to_rtr)
        self.qp.modify(QpState.RTS, **to_rts)

    def _settle(self, error: Exception | None) -> None:
        """The attempt has succeeded or failed."""
        if error is not None:
            self._ended.set()
        if self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    def _hear_farewell(self, farewell: bytes) -> None:
        self.farewell = farewell
        self._stop_qp()
        self._tell(b"")
        self._settle(ConnectionLostError("disconnected by the peer"))
        self._ended.set()

    def _stop_qp(self) -> None:
        if self.qp.state not in (QpState.RESET, QpState.ERR):
            self.qp.modify(QpState.ERR)

    def _tell(self, private_data: bytes) -> None:
        """End it in the protocol, in whatever state it is there."""
        if self._core is not None and step(self._core.state, Input.DISCONNECT):
            self._agent.manager.disconnect(self._core, self._agent.now, private_data)
            self._agent.flush()

    def _release(self) -> None:
        self._ended.set()
        self._resources.close()
        if self._core is not None:
            self._agent.handlers.pop(self._core, None)
