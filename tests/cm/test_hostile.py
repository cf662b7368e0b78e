"""Whatever comes in on QP1: a legal transition or a reason, at most one answer, and bounded memory."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.cm import mad
from softrnic.cm.conversation import Address, Connection, Role
from softrnic.cm.events import ConnectRequest, Event, ResolveRequest, TimewaitExit
from softrnic.cm.machine import EDGES, TIMERS, Input, State, Timer
from softrnic.cm.mad import Attr, Drop, Mad
from softrnic.cm.manager import ConnectionManager
from softrnic.cm.messages import Path, SidrRep, SidrReq, SidrStatus, decode, encode
from tests.cm.net import (
    BRISK,
    DATAGRAM_SERVICE,
    MS,
    SERVICE,
    Net,
    Node,
    gid,
    obliging,
    passive_side,
    rep,
    req,
    silent,
)

# How to bring the connection of one side (a: active, p: passive) to a state. A full stop delivers.
ESTABLISHING = "a.connect . p.accept . a.confirm ."
PATHS = {
    (State.REQ_SENT, Role.ACTIVE): "a.connect",
    (State.MRA_REQ_RCVD, Role.ACTIVE): "a.connect . p.delay .",
    (State.REP_RCVD, Role.ACTIVE): "a.connect . p.accept .",
    (State.MRA_REP_SENT, Role.ACTIVE): "a.connect . p.accept . a.delay",
    (State.REJ_SENT, Role.ACTIVE): "a.connect . p.accept . a.reject",
    (State.ESTABLISHED, Role.ACTIVE): ESTABLISHING,
    (State.DREQ_SENT, Role.ACTIVE): ESTABLISHING + " a.disconnect",
    (State.DREQ_RCVD, Role.ACTIVE): ESTABLISHING + " p.disconnect .",
    (State.TIMEWAIT, Role.ACTIVE): ESTABLISHING + " a.disconnect . p.disconnect .",
    (State.REQ_RCVD, Role.PASSIVE): "a.connect .",
    (State.MRA_REQ_SENT, Role.PASSIVE): "a.connect . p.delay",
    (State.REP_SENT, Role.PASSIVE): "a.connect . p.accept",
    (State.MRA_REP_RCVD, Role.PASSIVE): "a.connect . p.accept . a.delay .",
    (State.REJ_SENT, Role.PASSIVE): "a.connect . p.reject",
    (State.ESTABLISHED, Role.PASSIVE): ESTABLISHING,
    (State.DREQ_SENT, Role.PASSIVE): ESTABLISHING + " p.disconnect",
    (State.DREQ_RCVD, Role.PASSIVE): ESTABLISHING + " a.disconnect .",
    (State.TIMEWAIT, Role.PASSIVE): ESTABLISHING + " a.disconnect . p.disconnect",
}


def reach(state: State, role: Role) -> tuple[Net, Node, Node, Connection]:
    """A network, the node whose connection is in that state, its peer, and the connection."""
    net = Net()
    client, server = net.node(silent), net.node(silent)
    server.manager.listen(SERVICE)
    active: Connection | None = None
    for word in PATHS[state, role].split():
        if word == ".":
            net.deliver()
        elif word == "a.connect":
            active = net.connect(client, server, req(primary=Path(local_ack_timeout=20)))
        elif word == "p.accept":
            server.manager.accept(passive_side(server), rep(), net.now)
        else:
            side, call = word.split(".")
            node, connection = (client, active) if side == "a" else (server, passive_side(server))
            getattr(node.manager, call)(connection, net.now)
    assert active is not None
    if role is Role.ACTIVE:
        return net, client, server, active
    return net, server, client, passive_side(server)


def test_every_state_of_a_connection_is_reached() -> None:
    connected = {s for s in State if not s.name.startswith("SIDR")} - {State.IDLE, State.LISTEN, State.CLOSED}
    assert {state for state, _ in PATHS} == connected
    for state, role in PATHS:
        assert reach(state, role)[3].state is state


@pytest.mark.parametrize(("state", "role"), PATHS, ids=lambda value: value.name)
def test_every_message_in_every_state(state: State, role: Role) -> None:
    """Addressed rightly, and otherwise arbitrary: the table is followed, or there is a reason not to."""
    for attr in Attr:
        for variant in range(3):
            net, side, peer, connection = reach(state, role)
            datagram = addressed(attr, variant, connection)
            list(side.manager.transmit())
            list(side.manager.events())
            drop = side.manager.receive(datagram, side.to(peer), net.now)
            answers = list(side.manager.transmit())
            events = list(side.manager.events())
            assert len(answers) <= 1
            assert len(events) <= 1
            allowed = {edge.state for event, edge in EDGES[state].items() if event.name.startswith("RECV_")}
            assert connection.state in allowed | {state}
            if connection.state is not state:
                assert drop is None
            elif attr not in (Attr.LAP, Attr.SIDR_REQ):
                assert isinstance(drop, Drop)
                assert events == []


def addressed(attr: Attr, variant: int, connection: Connection) -> bytes:
    """A message of this kind that names the connection; what else it says is all zeros, ones, or mixed."""
    fill = (b"\x00", b"\xff", b"\x5a")[variant]
    message = decode(Mad(attr, 0, fill * 232))
    changes: dict[str, object] = {}
    for name in message.__struct_fields__:
        if name == "local_comm_id":
            changes[name] = connection.remote_comm_id or 0xABCD
        elif name == "remote_comm_id":
            changes[name] = connection.local_comm_id
        elif name == "remote_qpn" and variant != 1:
            changes[name] = connection.local_qpn
        elif name == "message_mraed":
            changes[name] = variant
    if attr is Attr.REQ and connection.role is Role.PASSIVE:
        message, changes = connection.req, {}
    return mad.emit(encode(msgspec.structs.replace(message, **changes), 3))


# --- bytes --------------------------------------------------------------------------------------------------


def session() -> list[tuple[bytes, Address]]:
    """The datagrams of an eventful session, and who they come from, as the receiver sees it."""
    net = Net(seed=5)
    seen: list[tuple[bytes, Address]] = []

    def fate(sent) -> list[int]:
        other = net.nodes[1 - net.nodes.index(sent.sender)]
        seen.append((mad.emit(sent.mad), Address(other.gid, sent.sender.gid)))
        return [] if len(seen) % 5 == 0 else [MS]

    net.fate = fate
    client, server = net.pair()
    active = net.connect(client, server)
    net.resolve(client, server)
    net.run(until=lambda: active.state is State.ESTABLISHED)
    client.manager.disconnect(active, net.now)
    net.run()
    return seen


SESSION = session()
MUTATIONS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=4)


class World:
    """A server with open ears, and what comes in on it."""

    def __init__(self) -> None:
        self.net = Net(seed=5)
        self.client, self.server = self.net.pair()
        self.now = 0

    def hear(self, datagram: bytes, source: Address) -> Drop | None:
        node = next(node for node in self.net.nodes if node.gid == source.local_gid)
        before = len(node.manager.directory)
        drop = node.manager.receive(datagram, source, self.now)
        assert len(node.manager.directory) <= before + 1
        for event in node.manager.events():
            obliging(node, event, self.now)
        list(node.manager.transmit())
        return drop


@given(st.lists(st.tuples(st.integers(0, len(SESSION) - 1), MUTATIONS), max_size=40), st.integers(0, 3))
def test_mutated_datagrams(steps: list[tuple[int, list[tuple[int, int]]]], hops: int) -> None:
    world = World()
    for index, mutations in steps:
        datagram, source = SESSION[index]
        changed = bytearray(datagram)
        for offset, value in mutations:
            changed[offset] = value
        drop = world.hear(bytes(changed), source)
        assert drop is None or isinstance(drop, Drop)
        world.now += hops * 30 * MS
        for node in world.net.nodes:
            node.manager.on_timer(world.now)
    settle(world.net.nodes, world.now)


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_random_bytes(datagrams: list[bytes]) -> None:
    world = World()
    source = Address(world.server.gid, world.client.gid)
    for datagram in datagrams:
        assert isinstance(world.hear(datagram, source), Drop)


@given(st.lists(st.tuples(st.sampled_from(Attr), st.binary(min_size=232, max_size=232)), max_size=20))
def test_random_messages(messages: list[tuple[Attr, bytes]]) -> None:
    world = World()
    source = Address(world.server.gid, world.client.gid)
    for attr, data in messages:
        assert isinstance(world.hear(mad.emit(Mad(attr, 1, data)), source), Drop)
    assert len(world.server.manager.directory) == 0


def settle(nodes: list[Node], now: int) -> None:
    """Let all timers run out: nothing is left but what is established."""
    for node in nodes:
        while (deadline := node.manager.next_deadline()) is not None:
            now = max(now, deadline)
            node.manager.on_timer(now)
            list(node.manager.transmit())
            list(node.manager.events())
        states = {connection.state for connection in node.manager.directory.connections.values()}
        assert states <= {State.ESTABLISHED}


# --- floods -------------------------------------------------------------------------------------------------


def flooder(net: Net, server: Node, number: int) -> tuple[bytes, Address]:
    """A REQ of its own comm id and QP each time."""
    stranger = gid(200)
    path = Path(local_gid=stranger, remote_gid=server.gid, local_ack_timeout=31)
    request = req(
        qpn=number & 0xFFFFFF,
        local_comm_id=number + 1,
        primary=path,
        local_cm_response_timeout=31,
        max_cm_retries=15,
    )
    return mad.emit(encode(request, number)), Address(server.gid, stranger)


@pytest.mark.parametrize("policy", [silent, obliging])
def test_a_flood_of_requests_fills_the_backlog_and_no_more(policy: object) -> None:
    net = Net()
    server = net.node(policy)
    server.manager.listen(SERVICE, backlog=10)
    drops = [server.manager.receive(*flooder(net, server, number), 0) for number in range(2000)]
    assert drops[:10] == [None] * 10
    assert set(drops[10:]) == {Drop.BUSY}
    assert len(server.manager.directory) == 10
    net.flush()
    settle([server], 0)
    assert len(server.manager.directory) == 0
    assert server.manager.receive(*flooder(net, server, 5000), 10**15) is None


def rejecting(node: Node, event: Event, now: int) -> None:
    if isinstance(event, ConnectRequest):
        node.manager.reject(event.connection, now)
    elif isinstance(event, ResolveRequest):
        node.manager.answer(event.resolution, SidrRep(status=SidrStatus.REJECT), now)


def test_a_flood_of_rejected_requests_is_forgotten() -> None:
    net = Net(config=msgspec.structs.replace(BRISK, max_lingering=50))
    server = net.node(rejecting)
    server.manager.listen(SERVICE, backlog=10)
    server.manager.listen(DATAGRAM_SERVICE, backlog=10, datagram=True)
    for number in range(1000):
        assert server.manager.receive(*flooder(net, server, number), 0) is None
        question = SidrReq(request_id=number, service_id=DATAGRAM_SERVICE)
        datagram = mad.emit(encode(question, number))
        assert server.manager.receive(datagram, Address(server.gid, gid(201)), 0) is None
        net.flush()
        assert len(server.manager.directory) <= 50
    assert server.of(TimewaitExit)


def test_all_conversations_together_are_bounded() -> None:
    net = Net(config=msgspec.structs.replace(BRISK, max_conversations=20))
    server = net.node(silent)
    server.manager.listen(SERVICE, backlog=1000)
    drops = [server.manager.receive(*flooder(net, server, number), 0) for number in range(100)]
    assert drops.count(Drop.BUSY) == 80
    with pytest.raises(OSError, match="20 conversations"):
        net.connect(server, server)
    with pytest.raises(OSError, match="20 conversations"):
        net.resolve(server, server)


def test_what_is_not_fetched_is_bounded() -> None:
    net = Net(config=msgspec.structs.replace(BRISK, max_queued=16))
    server = net.node(silent)
    for number in range(100):
        assert server.manager.receive(*flooder(net, server, number), 0) is Drop.REFUSED
    assert len(list(server.manager.transmit())) == 16


def test_one_request_is_not_multiplied_without_bound() -> None:
    """What a forged source address gets of us: a REP and its repetitions, at the pace of the floor."""
    net = Net()
    server = net.node()
    server.manager.listen(SERVICE)
    server.manager.receive(*flooder(net, server, 1), 0)
    net.run()
    assert net.names() == ["REP"] * 16 + ["REJ"]


def test_comm_ids_are_not_reused_while_they_are_known() -> None:
    """The random source is poor: every id is drawn twice, and zero is none."""
    draws = iter([0, 0, 7, 7, 7, 9, 9])
    manager = ConnectionManager(1, lambda bits: 0 if bits == 64 else next(draws))
    peer = Address(gid(1), gid(2))
    ids = [manager.connect(req(qpn=qpn), peer, 0).local_comm_id for qpn in (1, 2)]
    assert ids == [7, 9]


def test_a_wait_for_the_consumer_is_never_a_wait_for_the_peer() -> None:
    """States the peer cannot prolong: their timer is ours."""
    for state in (State.REQ_RCVD, State.MRA_REQ_SENT, State.REP_RCVD, State.MRA_REP_SENT, State.DREQ_RCVD):
        assert TIMERS[state] is Timer.CONSUMER
        for event, edge in EDGES[state].items():
            if edge.state is state:
                assert event.name.startswith("RECV_")
                assert event is not Input.RETRY
