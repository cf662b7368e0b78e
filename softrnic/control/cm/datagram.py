"""UD QPs by address and port (rdma_cm's port space UDP): service id resolution, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from softrnic.cm.conversation import Resolution
from softrnic.cm.events import Event, ResolveResponse, Unreachable
from softrnic.cm.machine import Input, step
from softrnic.cm.messages import SidrRep, SidrReq, SidrStatus
from softrnic.cm.service import HEADER_BYTES, CmaHeader, PortSpace, service_id
from softrnic.control.cm.agent import Agent
from softrnic.control.cm.endpoint import ServiceError, UnreachableError
from softrnic.control.cm.gsi import path_to
from softrnic.control.cm.listener import PortListener
from softrnic.control.cm.stream import way_to
from softrnic.verbs import AhAttr, Device, Qp

UDP_QKEY = 0x01234567  # rdma_cm: the Q_Key of port space UDP


class DatagramService(NamedTuple):
    """Where to send datagrams to."""

    qpn: int
    qkey: int
    ah: AhAttr
    private_data: bytes


async def resolve(
    device: Device, address: tuple[str, int], *, private_data: bytes = b"", source: str | None = None
) -> DatagramService:
    """Which UD QP serves a port of a host. ServiceError if it says none, UnreachableError if it says nothing."""
    agent = Agent.of(device)
    way, header = way_to(device, address[0], source)
    path = await path_to(device, way)
    answer: asyncio.Future[SidrRep] = agent.loop.create_future()

    def handle(event: Event) -> None:
        if answer.done():
            return
        match event:
            case ResolveResponse(_, sidr_rep):
                answer.set_result(sidr_rep)
            case Unreachable():
                answer.set_exception(UnreachableError())

    question = SidrReq(service_id=service_id(PortSpace.UDP, address[1]), private_data=header.emit() + private_data)
    resolution = agent.manager.resolve(question, way, agent.now)
    agent.handlers[resolution] = handle
    agent.flush()
    try:
        sidr_rep = await answer
    finally:
        del agent.handlers[resolution]
        agent.manager.cancel(resolution, agent.now)
        agent.flush()
    if sidr_rep.status != SidrStatus.SUCCESS:
        raise ServiceError(sidr_rep.status)
    return DatagramService(sidr_rep.qpn, sidr_rep.qkey, path, sidr_rep.private_data)


class DatagramRequest:
    """A peer that asks which QP serves a port: answer or reject."""

    def __init__(self, agent: Agent, core: Resolution, header: CmaHeader) -> None:
        self._agent = agent
        self._core = core
        self.remote_address = str(header.source), header.source_port
        self.private_data = core.sidr_req.private_data[HEADER_BYTES:]

    @property
    def is_pending(self) -> bool:
        """False once it was answered, or we were too slow."""
        return step(self._core.state, Input.ANSWER) is not None

    async def path(self) -> AhAttr:
        """Where to send datagrams to the peer."""
        return await path_to(self._agent.device, self._core.peer)

    def answer(self, qp: Qp, *, qkey: int = UDP_QKEY, private_data: bytes = b"") -> None:
        """It is this QP, which expects this Q_Key."""
        self._say(SidrRep(status=SidrStatus.SUCCESS, qpn=qp.qpn, qkey=qkey, private_data=private_data))

    def reject(self, *, private_data: bytes = b"") -> None:
        """None, for this peer."""
        self._say(SidrRep(status=SidrStatus.REJECT, private_data=private_data))

    def _say(self, sidr_rep: SidrRep) -> None:
        if self.is_pending:
            self._agent.manager.answer(self._core, sidr_rep, self._agent.now)
            self._agent.flush()


class DatagramListener(PortListener[Resolution, DatagramRequest]):
    """A port that peers ask for."""

    def _request(self, core: Resolution, header: CmaHeader) -> DatagramRequest:
        return DatagramRequest(self._agent, core, header)


@asynccontextmanager
async def listen_datagram(
    device: Device, host: str, port: int, *, backlog: int = 128
) -> AsyncIterator[DatagramListener]:
    """Answer for a port of one of the device's addresses, or of all ("0.0.0.0", "::")."""
    listener = DatagramListener(Agent.of(device), PortSpace.UDP, (host, port), backlog)
    try:
        yield listener
    finally:
        listener.close()
