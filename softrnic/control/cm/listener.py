"""A port that peers send requests to, and the requests not yet looked at."""

from __future__ import annotations

import abc
import asyncio
import logging
from typing import Any, Generic, Protocol, TypeVar

from softrnic.cm.conversation import Address
from softrnic.cm.events import ConnectRequest, Event, ResolveRequest
from softrnic.cm.service import CmaHeader, PortSpace, gid_from_ip, ip_from_gid, parse_ip, service_id
from softrnic.control.cm.agent import Agent
from softrnic.errors import WireError

log = logging.getLogger(__name__)


class Request(Protocol):
    """What a peer asks for."""

    @property
    def is_pending(self) -> bool:
        """False once it was answered, the peer has given up, or we were too slow."""

    def reject(self) -> None:
        """Refuse; harmless where it is no longer pending."""


C = TypeVar("C")
R = TypeVar("R", bound=Request)


class PortListener(abc.ABC, Generic[C, R]):
    """Listens from construction to `close`. C is what the protocol knows of a request, R what the program gets."""

    def __init__(self, agent: Agent, space: PortSpace, address: tuple[str, int], backlog: int) -> None:
        self.address = address
        self._agent = agent
        self._requests: asyncio.Queue[R] = asyncio.Queue()  # bounded by the backlog
        ip = parse_ip(address[0])
        self._listener = agent.manager.listen(
            service_id(space, address[1]),
            gid=None if ip.is_unspecified else gid_from_ip(ip),
            backlog=backlog,
            datagram=space is PortSpace.UDP,
        )
        agent.handlers[self._listener] = self._handle

    @abc.abstractmethod
    def _request(self, core: C, header: CmaHeader) -> R:
        """What the program gets."""

    def _handle(self, event: Event) -> None:
        match event:
            case ConnectRequest(core, _, message) | ResolveRequest(core, _, message):
                self._take(core, message.private_data)

    def _take(self, core: Any, private_data: bytes) -> None:
        try:
            header = header_of(private_data, core.peer)
        except WireError as error:
            log.info("request refused: %s", error)
            self._agent.let_go(core)
        else:
            self._requests.put_nowait(self._request(core, header))

    async def request(self) -> R:
        """The next request that has not been given up."""
        while True:
            request = await self._requests.get()
            if request.is_pending:
                return request

    def close(self) -> None:
        """Stop listening; who waits is refused."""
        self._agent.manager.unlisten(self._listener)
        self._agent.handlers.pop(self._listener, None)
        while not self._requests.empty():
            self._requests.get_nowait().reject()


def header_of(private_data: bytes, peer: Address) -> CmaHeader:
    """The header of a request, if it tells the truth about who sent it."""
    header = CmaHeader.parse(private_data)
    if (gid_from_ip(header.destination), gid_from_ip(header.source)) != peer:
        raise WireError(f"a request of {header.source} that came from {ip_from_gid(peer.gid)}")
    return header
