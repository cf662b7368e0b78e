"""Connection managers on a network that loses, repeats and reorders, under a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from softrnic.cm.conversation import Address, Config, Connection, Resolution
from softrnic.cm.events import (
    ConnectRequest,
    ConnectResponse,
    Disconnected,
    Event,
    ResolveRequest,
)
from softrnic.cm.machine import LINGERING, State
from softrnic.cm.mad import Mad, parse
from softrnic.cm.manager import ConnectionManager
from softrnic.cm.messages import Message, Rep, Req, SidrRep, SidrReq, SidrStatus, decode
from softrnic.cm.service import PortSpace, service_id

MS = 1_000_000
SERVICE = service_id(PortSpace.TCP, 7174)
DATAGRAM_SERVICE = service_id(PortSpace.UDP, 7174)

# A peer that answers within milliseconds, so that a test's log stays readable.
BRISK = Config(response_timeout=12, packet_life_time=12, max_cm_retries=15, consumer_timeout_ns=500 * MS)


def gid(number: int) -> bytes:
    """10.0.0.<number>, as an IPv4-mapped GID."""
    return bytes(10) + b"\xff\xff\x0a\x00\x00" + bytes((number,))


def req(qpn: int = 0x11, **fields: object) -> Req:
    return Req(service_id=SERVICE, local_qpn=qpn, starting_psn=0x123456, **fields)


def rep(qpn: int = 0x22, **fields: object) -> Rep:
    return Rep(local_qpn=qpn, starting_psn=0x654321, **fields)


def sidr_req() -> SidrReq:
    return SidrReq(service_id=DATAGRAM_SERVICE)


@dataclass
class Node:
    """A manager, its address, and a consumer that does as it is told by `policy`."""

    gid: bytes
    manager: ConnectionManager
    policy: Callable[[Node, Event, int], None]
    events: list[Event] = field(default_factory=list)

    def to(self, peer: Node) -> Address:
        return Address(self.gid, peer.gid)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def obliging(node: Node, event: Event, now: int) -> None:
    """Accept, confirm, answer and let go, at once."""
    match event:
        case ConnectRequest(connection):
            node.manager.accept(connection, rep(), now)
        case ConnectResponse(connection):
            node.manager.confirm(connection, now)
        case Disconnected(connection):
            node.manager.disconnect(connection, now)
        case ResolveRequest(resolution):
            node.manager.answer(resolution, SidrRep(status=SidrStatus.SUCCESS, qpn=0x33, qkey=0x1234567), now)


def silent(_node: Node, _event: Event, _now: int) -> None:
    """A consumer that never calls back."""


@dataclass
class Sent:
    """A datagram on its way."""

    when: int
    sender: Node
    mad: Mad
    lost: bool

    @property
    def name(self) -> str:
        return self.mad.attr.name

    @property
    def message(self) -> Message:
        return decode(self.mad)


class Net:
    """Nodes and what lies between them. `fate` gives the delays, in ns, of the copies of a datagram."""

    def __init__(self, seed: int = 1, config: Config = BRISK) -> None:
        self.now = 0
        self.random = random.Random(seed)
        self.config = config
        self.nodes: list[Node] = []
        self.log: list[Sent] = []
        self.fate: Callable[[Sent], list[int]] = lambda _sent: [MS]
        self._flying: list[tuple[int, int, bytes, Address]] = []

    def node(self, policy: Callable[[Node, Event, int], None] = obliging) -> Node:
        number = len(self.nodes) + 1
        manager = ConnectionManager(0x0200_0000_0000_0000 + number, self.random.getrandbits, self.config)
        node = Node(gid(number), manager, policy)
        self.nodes.append(node)
        return node

    def pair(self, policy: Callable[[Node, Event, int], None] = obliging) -> tuple[Node, Node]:
        """A client, and a server that listens."""
        client, server = self.node(), self.node(policy)
        server.manager.listen(SERVICE)
        server.manager.listen(DATAGRAM_SERVICE, datagram=True)
        return client, server

    def connect(self, client: Node, server: Node, request: Req | None = None) -> Connection:
        return client.manager.connect(request or req(), client.to(server), self.now)

    def resolve(self, client: Node, server: Node) -> Resolution:
        return client.manager.resolve(sidr_req(), client.to(server), self.now)

    def flush(self) -> None:
        """Put what the managers want to send onto the network, and hand over their events."""
        for node in self.nodes:
            for event in node.manager.events():
                node.events.append(event)
                node.policy(node, event, self.now)
            for address, datagram in node.manager.transmit():
                sent = Sent(self.now, node, parse(datagram), lost=False)
                delays = self.fate(sent)
                sent.lost = not delays
                self.log.append(sent)
                for delay in delays:
                    order = len(self.log)
                    heapq.heappush(self._flying, (self.now + delay, order, datagram, address))

    def step(self) -> bool:
        """Advance to the next thing that happens; False if nothing will."""
        self.flush()
        deadlines = [d for node in self.nodes if (d := node.manager.next_deadline()) is not None]
        arrival = self._flying[0][0] if self._flying else None
        soonest = min([*deadlines, *([arrival] if arrival is not None else [])], default=None)
        if soonest is None:
            return False
        self.now = max(self.now, soonest)
        if arrival == soonest:
            _, _, datagram, (local, remote) = heapq.heappop(self._flying)
            receiver = next((node for node in self.nodes if node.gid == remote), None)
            if receiver is not None:
                receiver.manager.receive(datagram, Address(remote, local), self.now)
        else:
            for node in self.nodes:
                node.manager.on_timer(self.now)
        self.flush()
        return True

    def run(self, until: Callable[[], bool] = lambda: False, steps: int = 100_000) -> None:
        """Until a condition holds, or nothing more happens."""
        self.flush()
        for _ in range(steps):
            if until() or not self.step():
                return
        raise AssertionError("the network does not come to rest")

    def deliver(self) -> None:
        """Until nothing is on its way."""
        self.flush()
        while self._flying:
            self.step()

    def names(self) -> list[str]:
        return [sent.name for sent in self.log]


def is_over(connection: Connection) -> bool:
    return connection.state in LINGERING or connection.state is State.CLOSED


def passive_side(server: Node) -> Connection:
    """The server's end of the only connection it was asked for."""
    (event,) = server.of(ConnectRequest)
    assert isinstance(event, ConnectRequest)
    return event.connection
