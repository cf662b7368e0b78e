"""The communication manager of one device, running: the protocol, QP1, a clock and a timer.

Decides when the protocol is asked and where its events go. Everything happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import weakref
from collections.abc import Callable

import msgspec

from softrnic.cm.conversation import Address, Config, Connection, Conversation, Listener, Resolution
from softrnic.cm.events import (
    ConnectRequest,
    Disconnected,
    Event,
    ResolveRequest,
    ResolveResponse,
    Unreachable,
)
from softrnic.cm.machine import Input, step
from softrnic.cm.manager import ConnectionManager
from softrnic.cm.messages import SidrRep, SidrStatus
from softrnic.control.cm.gsi import Gsi
from softrnic.spec import Mtu
from softrnic.verbs import Device

log = logging.getLogger(__name__)

Handler = Callable[[Event], None]

_agents: weakref.WeakKeyDictionary[Device, Agent] = weakref.WeakKeyDictionary()


class Agent:
    """Owns QP1 of a device for as long as it runs. `of` starts one where there is none; it ends with its event loop.

    Calls on `manager` are followed by `flush`, which sends what it has to send and hands out its events.
    """

    def __init__(self, device: Device, config: Config | None = None) -> None:
        self.device = device
        self.loop = asyncio.get_running_loop()
        mtu = max(mtu for mtu in Mtu if mtu.bytes <= device.port.active_mtu)
        config = msgspec.structs.replace(config or Config(), max_path_mtu=mtu)
        self.manager = ConnectionManager(device.node_guid, secrets.randbits, config)
        self.handlers: dict[Conversation | Listener, Handler] = {}
        """Who is told the events of a conversation, or the requests of a listener."""
        self._gsi = Gsi(device, self._deliver)
        self._timer: asyncio.TimerHandle | None = None
        self._task = self.loop.create_task(self._run())
        _agents[device] = self

    @classmethod
    def of(cls, device: Device) -> Agent:
        """The agent of the device in the running loop."""
        agent = _agents.get(device)
        if agent is None or agent._task.done() or agent.loop is not asyncio.get_running_loop():
            agent = cls(device)
        return agent

    async def _run(self) -> None:
        try:
            await self._gsi.run()
        finally:
            self._stop_timer()
            self._gsi.close()

    async def close(self) -> None:
        """Give QP1 up. Connections stay as they are, and nobody will hear of their end."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if _agents.get(self.device) is self:
            del _agents[self.device]

    @property
    def now(self) -> int:
        """The time, as the protocol counts it."""
        return time.monotonic_ns()

    # --- what the protocol wants ----------------------------------------------------------------------------

    def _deliver(self, datagram: bytes, source: Address) -> None:
        drop = self.manager.receive(datagram, source, self.now)
        if drop is not None:
            log.debug("QP1 of %s: dropped: %s", self.device.name, drop)
        self.flush()

    def flush(self) -> None:
        """Hand out events, send, set the timer."""
        for event in self.manager.events():
            self._hand_out(event)
        for address, datagram in self.manager.transmit():
            self._gsi.send(address, datagram)
        self._stop_timer()
        deadline = self.manager.next_deadline()
        if deadline is not None:
            self._timer = self.loop.call_later(max(0, deadline - self.now) / 1e9, self._on_timer)

    async def sent(self) -> None:
        """Until what was flushed has left: the loop may end then, and the peers need not ask again."""
        await self._gsi.sent()

    def _on_timer(self) -> None:
        self.manager.on_timer(self.now)
        self.flush()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hand_out(self, event: Event) -> None:
        """To its conversation's handler; a request to its listener's."""
        subject = _subject(event)
        key = event.listener if isinstance(event, ConnectRequest | ResolveRequest) else subject
        handler = self.handlers.get(key)
        if handler is not None:
            handler(event)
        elif isinstance(event, ConnectRequest | ResolveRequest | Disconnected):
            self.let_go(subject)

    def let_go(self, subject: Conversation) -> None:
        """Answer for a consumer that is gone, or does not want this conversation."""
        if isinstance(subject, Connection):
            self.manager.disconnect(subject, self.now)
        elif isinstance(subject, Resolution) and step(subject.state, Input.ANSWER):
            self.manager.answer(subject, SidrRep(status=SidrStatus.REJECT), self.now)


def _subject(event: Event) -> Conversation:
    match event:
        case ResolveRequest(resolution) | ResolveResponse(resolution):
            return resolution
        case Unreachable(conversation):
            return conversation
    return event.connection
