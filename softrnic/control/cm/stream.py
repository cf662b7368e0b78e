"""Connecting and listening by address and port (rdma_cm's port space TCP)."""

from __future__ import annotations

import errno
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from softrnic.cm import conversation
from softrnic.cm.conversation import Address
from softrnic.cm.machine import Input, step
from softrnic.cm.messages import Path, Reason, Rep, Req, Transport
from softrnic.cm.service import (
    HEADER_BYTES,
    CmaHeader,
    IpAddress,
    PortSpace,
    gid_from_ip,
    parse_ip,
    service_id,
)
from softrnic.control.cm.agent import Agent
from softrnic.control.cm.endpoint import (
    DEFAULT_PARAM,
    DEFAULT_QP,
    Connection,
    ConnectionLostError,
    ConnParam,
    QpInit,
    Resources,
)
from softrnic.control.cm.gsi import path_to
from softrnic.control.cm.listener import PortListener
from softrnic.errors import VerbsError
from softrnic.spec import PSN_MASK
from softrnic.verbs import Device, Qp, QpType

log = logging.getLogger(__name__)

_EPHEMERAL_PORTS = (49152, 65536)  # RFC 6335
_TRANSPORTS = {QpType.RC: Transport.RC, QpType.UC: Transport.UC}
_QP_TYPES = {transport: kind for kind, transport in _TRANSPORTS.items()}


async def connect(
    device: Device,
    address: tuple[str, int],
    *,
    private_data: bytes = b"",
    qp: QpInit = DEFAULT_QP,
    param: ConnParam = DEFAULT_PARAM,
    source: str | None = None,
) -> Connection:
    """Connect to a port of a host. RejectedError or UnreachableError if that fails; cancel it to give up."""
    agent = Agent.of(device)
    way, header = way_to(device, address[0], source)
    dmac = (await path_to(device, way)).dmac
    resources = Resources(device, qp, qp.kind)
    connection = Connection(agent, resources, dmac)
    try:
        request = _request(agent, resources.qp, service_id(PortSpace.TCP, address[1]), param)
        request = msgspec.structs.replace(request, private_data=header.emit() + private_data)
        connection.begin(agent.manager.connect(request, way, agent.now))
    except BaseException:
        resources.close()
        raise
    agent.flush()
    return await connection.established()


def _request(agent: Agent, qp: Qp, service: int, param: ConnParam) -> Req:
    attr = agent.device.attr
    return Req(
        service_id=service,
        local_qpn=qp.qpn,
        responder_resources=_or(param.responder_resources, attr.max_qp_rd_atom),
        initiator_depth=_or(param.initiator_depth, attr.max_qp_init_rd_atom),
        transport=_TRANSPORTS[qp.type],
        flow_control=param.flow_control,
        starting_psn=secrets.randbits(24) & PSN_MASK,
        retry_count=param.retry_count,
        rnr_retry_count=param.rnr_retry_count,
        path_mtu=_or(param.path_mtu, agent.manager.config.max_path_mtu),
        srq=int(qp.srq is not None),
        primary=Path(
            flow_label=param.flow_label,
            traffic_class=param.traffic_class,
            hop_limit=param.hop_limit,
            local_ack_timeout=param.ack_timeout,
        ),
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def way_to(device: Device, host: str, source: str | None) -> tuple[Address, CmaHeader]:
    """The GIDs of both ends, and the header that says so. Without `source`, from the first GID that can reach."""
    peer = parse_ip(host)
    wanted = parse_ip(source) if source else None
    for gid in device.gids.values():
        if gid.ip == wanted or (wanted is None and _can_reach(gid.ip, peer)):
            low, high = _EPHEMERAL_PORTS
            header = CmaHeader(low + secrets.randbelow(high - low), gid.ip, peer)
            return Address(gid_from_ip(gid.ip), gid_from_ip(peer)), header
    raise VerbsError(errno.EADDRNOTAVAIL, f"no address of {device.name} to reach {peer} from")


def _can_reach(own: IpAddress, peer: IpAddress) -> bool:
    return own.version == peer.version and own.is_link_local == peer.is_link_local


class ConnectRequest:
    """A peer that wants to connect: accept or reject."""

    def __init__(self, agent: Agent, core: conversation.Connection, header: CmaHeader) -> None:
        self._agent = agent
        self.core = core
        """The protocol's view of it, with the REQ."""
        self.remote_address = str(header.source), header.source_port
        self.local_address = str(header.destination), core.req.service_id & 0xFFFF
        self.private_data = core.req.private_data[HEADER_BYTES:]

    @property
    def is_pending(self) -> bool:
        """False once it was answered, the peer has given up, or we were too slow."""
        return step(self.core.state, Input.ACCEPT) is not None

    async def accept(
        self, *, private_data: bytes = b"", qp: QpInit = DEFAULT_QP, param: ConnParam = DEFAULT_PARAM
    ) -> Connection:
        """Make a QP ready, say so, and wait for the peer. ConnectionLostError if it is gone.

        What goes wrong here is told to the peer as a rejection.
        """
        try:
            connection = await self._agree(private_data, qp, param)
        except BaseException:
            self.reject()
            raise
        return await connection.established()

    async def _agree(self, private_data: bytes, qp: QpInit, param: ConnParam) -> Connection:
        agent = self._agent
        dmac = (await path_to(agent.device, self.core.peer)).dmac
        if not self.is_pending:
            raise ConnectionLostError("the peer has given up")
        resources = Resources(agent.device, qp, _QP_TYPES[Transport(self.core.req.transport)])
        connection = Connection(agent, resources, dmac)
        connection.private_data = self.private_data
        connection.begin(self.core)
        try:
            rep = self._reply(resources.qp, private_data, param)
            connection.make_ready(self.core, rep)
            agent.manager.accept(self.core, rep, agent.now)
        except BaseException:
            resources.close()
            raise
        agent.flush()
        return connection

    def _reply(self, qp: Qp, private_data: bytes, param: ConnParam) -> Rep:
        req, attr = self.core.req, self._agent.device.attr
        return Rep(
            local_qpn=qp.qpn,
            starting_psn=secrets.randbits(24) & PSN_MASK,
            responder_resources=min(_or(param.responder_resources, attr.max_qp_rd_atom), req.initiator_depth),
            initiator_depth=min(_or(param.initiator_depth, attr.max_qp_init_rd_atom), req.responder_resources),
            target_ack_delay=attr.local_ca_ack_delay,
            flow_control=param.flow_control,
            rnr_retry_count=param.rnr_retry_count,
            srq=int(qp.srq is not None),
            private_data=private_data,
        )

    def reject(
        self, reason: int = Reason.CONSUMER_DEFINED, *, information: bytes = b"", private_data: bytes = b""
    ) -> None:
        """Refuse. Harmless where the peer has given up."""
        agent = self._agent
        agent.handlers.pop(self.core, None)
        if step(self.core.state, Input.REJECT):
            agent.manager.reject(self.core, agent.now, reason, information, private_data)
            agent.flush()


class Listener(PortListener[conversation.Connection, ConnectRequest]):
    """A port that is listened to."""

    def _request(self, core: conversation.Connection, header: CmaHeader) -> ConnectRequest:
        return ConnectRequest(self._agent, core, header)

    async def accept(
        self, *, private_data: bytes = b"", qp: QpInit = DEFAULT_QP, param: ConnParam = DEFAULT_PARAM
    ) -> Connection:
        """Accept the next peer; those that get lost on the way are passed over."""
        while True:
            request = await self.request()
            try:
                return await request.accept(private_data=private_data, qp=qp, param=param)
            except (ConnectionError, TimeoutError) as error:
                log.info("connection from %s: %s", request.remote_address, error)


@asynccontextmanager
async def listen(device: Device, host: str, port: int, *, backlog: int = 128) -> AsyncIterator[Listener]:
    """Listen to a port of one of the device's addresses, or of all ("0.0.0.0", "::")."""
    listener = Listener(Agent.of(device), PortSpace.TCP, (host, port), backlog)
    try:
        yield listener
    finally:
        listener.close()
