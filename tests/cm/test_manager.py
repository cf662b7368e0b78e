"""Two managers and what passes between them, message by message."""

from __future__ import annotations

import errno

import msgspec
import pytest

from softrnic.cm import mad
from softrnic.cm.conversation import Address, Config, Connection
from softrnic.cm.events import (
    ConnectError,
    ConnectRequest,
    ConnectResponse,
    Disconnected,
    Established,
    Rejected,
    ResolveRequest,
    ResolveResponse,
    TimewaitExit,
    Unreachable,
)
from softrnic.cm.machine import State
from softrnic.cm.mad import Attr, Drop
from softrnic.cm.messages import (
    Apr,
    AprStatus,
    Drep,
    Dreq,
    Lap,
    Message,
    Mra,
    Path,
    Reason,
    Rej,
    Rep,
    Req,
    Rtu,
    SidrRep,
    SidrReq,
    SidrStatus,
    Subject,
    Transport,
    decode,
    encode,
)
from softrnic.errors import VerbsError
from tests.cm.net import (
    BRISK,
    DATAGRAM_SERVICE,
    MS,
    SERVICE,
    Net,
    Node,
    Sent,
    gid,
    is_over,
    obliging,
    passive_side,
    rep,
    req,
    silent,
)


def established(net: Net) -> tuple[Node, Node, Connection, Connection]:
    client, server = net.pair()
    active = net.connect(client, server)
    net.run(until=lambda: bool(server.of(Established)))
    return client, server, active, passive_side(server)


def lose(net: Net, *names: str, times: int = 10**9) -> None:
    """Lose the first so many datagrams of these names."""
    lost = dict.fromkeys(names, 0)

    def fate(sent: Sent) -> list[int]:
        if lost.get(sent.name, times) < times:
            lost[sent.name] += 1
            return []
        return [MS]

    net.fate = fate


def inject(
    receiver: Node, sender: Node, message: Message, tid: int = 1, now: int = 0
) -> tuple[Drop | None, list[Message]]:
    """Hand over a message as if it came from `sender`; the drop reason and what was sent in answer."""
    datagram = mad.emit(encode(message, tid))
    drop = receiver.manager.receive(datagram, receiver.to(sender), now)
    return drop, [decode(mad.parse(data)) for _, data in receiver.manager.transmit()]


# --- connecting ---------------------------------------------------------------------------------------------


def test_three_messages_establish_a_connection() -> None:
    net = Net()
    _, _, active, passive = established(net)
    assert net.names() == ["REQ", "REP", "RTU"]
    assert (active.state, passive.state) == (State.ESTABLISHED, State.ESTABLISHED)


def test_all_messages_of_a_connection_carry_one_transaction_id_and_a_dreq_its_own() -> None:
    """13.4.6.4: an answer has the transaction id of what it answers."""
    net = Net()
    client, _server, active, _ = established(net)
    client.manager.disconnect(active, net.now)
    net.run(until=lambda: net.names()[-1] == "DREP")
    tids = [sent.mad.tid for sent in net.log]
    assert tids[0] == tids[1] == tids[2] != tids[3] == tids[4]


def test_ids_and_guids_are_exchanged() -> None:
    net = Net()
    client, server, active, passive = established(net)
    assert (active.local_comm_id, active.remote_comm_id) == (passive.remote_comm_id, passive.local_comm_id)
    request, reply = net.log[0].message, net.log[1].message
    assert isinstance(request, Req)
    assert isinstance(reply, Rep)
    assert request.local_ca_guid == client.manager.ca_guid
    assert reply.local_ca_guid == server.manager.ca_guid
    assert (request.primary.local_gid, request.primary.remote_gid) == (client.gid, server.gid)


def test_private_data_of_every_message_reaches_the_consumer() -> None:
    net = Net()
    client, server = net.node(silent), net.node(silent)
    server.manager.listen(SERVICE)
    active = net.connect(client, server, req(private_data=b"req"))
    net.run(until=lambda: bool(server.events))
    passive = passive_side(server)
    server.manager.accept(passive, rep(private_data=b"rep"), net.now)
    net.run(until=lambda: bool(client.events))
    client.manager.confirm(active, net.now, b"rtu")
    net.run(until=lambda: bool(server.of(Established)))
    client.manager.disconnect(active, net.now, b"dreq")
    net.run(until=lambda: bool(server.of(Disconnected)))
    server.manager.disconnect(passive, net.now, b"drep")
    net.run(until=lambda: bool(client.of(Disconnected)))
    assert passive.req.private_data == b"req".ljust(92, b"\0")
    assert active.rep is not None
    assert active.rep.private_data == b"rep".ljust(196, b"\0")
    assert [e.private_data for e in server.of(Established)] == [b"rtu".ljust(224, b"\0")]
    assert [e.private_data for e in server.of(Disconnected)] == [b"dreq".ljust(220, b"\0")]
    assert [e.private_data for e in client.of(Disconnected)] == [b"drep".ljust(224, b"\0")]


def test_a_device_connects_to_itself() -> None:
    net = Net()
    node = net.node()
    node.manager.listen(SERVICE)
    active = net.connect(node, node)
    net.run(until=lambda: len(node.of(Established)) == 2)
    assert active.state is State.ESTABLISHED
    assert passive_side(node).state is State.ESTABLISHED


def test_many_connections_between_the_same_two() -> None:
    net = Net()
    client, server = net.pair()
    numbers = iter(range(1000, 2000))

    def policy(node: Node, event: object, now: int) -> None:
        if isinstance(event, ConnectRequest):
            node.manager.accept(event.connection, rep(qpn=next(numbers)), now)

    server.policy = policy
    actives = [net.connect(client, server, req(qpn=n)) for n in range(100)]
    net.run(until=lambda: len(server.of(Established)) == 100)
    assert {active.state for active in actives} == {State.ESTABLISHED}
    assert len({active.remote_qpn for active in actives}) == 100


# --- messages lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "names"),
    [
        ("REQ", ["REQ", "REQ", "REP", "RTU"]),
        ("REP", ["REQ", "REP", "REQ", "REP", "REP", "RTU"]),  # both sides repeat, the REQ is answered again
        ("RTU", ["REQ", "REP", "RTU", "REP", "RTU"]),
    ],
)
def test_one_loss_is_repaired(lost: str, names: list[str]) -> None:
    net = Net()
    lose(net, lost, times=1)
    _, _, active, passive = established(net)
    assert (active.state, passive.state) == (State.ESTABLISHED, State.ESTABLISHED)
    assert sorted(net.names())[: len(names)] == sorted(names)


def test_a_repeated_message_is_the_same_to_the_last_byte() -> None:
    net = Net()
    lose(net, "REQ", times=3)
    established(net)
    requests = {sent.mad for sent in net.log if sent.name == "REQ"}
    assert len(requests) == 1


def test_retries_are_counted_and_spaced() -> None:
    """4.096 us * 2^12 for the peer, twice that for the way: 50.3 ms; the first try and fifteen more."""
    net = Net()
    client, server = net.pair()
    lose(net, "REQ", "REJ")
    active = net.connect(client, server)
    net.run(until=lambda: bool(client.events))
    assert net.names() == ["REQ"] * 16 + ["REJ"]
    assert {b.when - a.when for a, b in zip(net.log, net.log[1:], strict=False)} == {3 * (4096 << 12)}
    assert [type(event) for event in client.events] == [Unreachable]
    assert client.manager.counters.tx_retries[Attr.REQ] == 15
    net.run()
    assert active.state is State.CLOSED
    assert len(client.manager.directory) == 0


def test_who_gives_up_says_so() -> None:
    """12.9.8: a REJ for timeout. The passive side knows the REQ by the peer's comm id and CA GUID."""
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    server.manager.config = msgspec.structs.replace(BRISK, consumer_timeout_ns=10_000 * MS)
    lose(net, "MRA")
    active = net.connect(client, server)
    net.run(until=lambda: bool(server.of(Rejected)))
    rejection = net.log[-1].message
    assert isinstance(rejection, Rej)
    assert (rejection.reason, rejection.message_rejected) == (Reason.TIMEOUT, Subject.OTHER)
    assert (rejection.local_comm_id, rejection.remote_comm_id) == (active.local_comm_id, 0)
    assert rejection.information == client.manager.ca_guid.to_bytes(8, "big")
    assert [type(event) for event in client.events] == [Unreachable]


def test_a_req_can_be_taken_back() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    active = net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    client.manager.disconnect(active, net.now)
    net.run()
    assert [type(event) for event in server.events] == [ConnectRequest, Rejected, TimewaitExit]
    assert len(client.manager.directory) == len(server.manager.directory) == 0


def test_the_passive_side_gives_up_too() -> None:
    net = Net()
    lose(net, "RTU")
    client, server = net.pair()
    active = net.connect(client, server)
    net.run()
    assert net.names().count("REP") == 16
    assert [type(event) for event in server.events] == [ConnectRequest, Unreachable, TimewaitExit]
    assert [type(event) for event in client.events] == [
        ConnectResponse,
        Established,
        Disconnected,
        TimewaitExit,
    ]
    assert active.state is State.CLOSED


def test_a_packet_on_the_qp_makes_up_for_a_lost_rtu() -> None:
    """12.9.7.2: communication established."""
    net = Net()
    lose(net, "RTU")
    client, server = net.pair()
    net.connect(client, server)
    net.run(until=lambda: "RTU" in net.names())
    server.manager.establish(passive_side(server), net.now)
    net.run()
    assert [type(event) for event in server.events] == [ConnectRequest, Established]
    assert net.names() == ["REQ", "REP", "RTU"]


def test_establish_in_any_other_state_is_harmless() -> None:
    net = Net()
    client, server, active, passive = established(net)
    client.manager.establish(active, net.now)
    server.manager.disconnect(passive, net.now)
    server.manager.establish(passive, net.now)
    assert (active.state, passive.state) == (State.ESTABLISHED, State.DREQ_SENT)


@pytest.mark.parametrize(("wanted", "granted"), [(0, 12), (14, 14), (31, 23)])
def test_the_peers_timeout_and_retries_are_used_within_reason(wanted: int, granted: int) -> None:
    net = Net()
    client, server = net.pair()
    lose(net, "REP", "REJ")
    active = net.connect(client, server)
    list(client.manager.transmit())
    inject(
        server,
        client,
        msgspec.structs.replace(active.req, local_cm_response_timeout=wanted, max_cm_retries=2),
    )
    client.manager.disconnect(active, 0)
    net.flush()
    assert server.manager.next_deadline() == (4096 << granted) + 2 * (4096 << 12)
    net.run(until=lambda: bool(server.of(Unreachable)))
    assert net.names().count("REP") == 3


# --- slow consumers -----------------------------------------------------------------------------------------


def test_a_slow_consumer_asks_for_time_when_the_peer_repeats_itself() -> None:
    """12.9.8.4, as rdma_cm does: MRA for the first duplicate, the same again for those that follow."""
    net = Net(config=msgspec.structs.replace(BRISK, mra_service_timeout=15))
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    active = net.connect(client, server)
    net.run(until=lambda: active.state is State.MRA_REQ_RCVD)
    assert net.names() == ["REQ", "REQ", "MRA"]
    granted = net.log[-1].message
    assert isinstance(granted, Mra)
    assert (granted.message_mraed, granted.service_timeout) == (Subject.REQ, 15)
    assert client.manager.next_deadline() == net.now + (4096 << 15) + 2 * (4096 << 12)
    net.run(until=lambda: len(net.log) == 5)
    assert net.names()[3:] == ["REQ", "MRA"]
    server.manager.accept(passive_side(server), rep(), net.now)
    net.run(until=lambda: bool(server.of(Established)))


def test_a_slow_active_consumer_asks_for_time_too() -> None:
    net = Net(config=msgspec.structs.replace(BRISK, mra_service_timeout=15))
    client, server = net.node(silent), net.node()
    server.manager.listen(SERVICE)
    active = net.connect(client, server)
    net.run(until=lambda: bool(client.events) and passive_side(server).state is State.MRA_REP_RCVD)
    client.manager.confirm(active, net.now)
    net.run(until=lambda: bool(server.of(Established)))
    assert net.names()[:2] == ["REQ", "REP"]
    assert net.names()[-2:] == ["MRA", "RTU"]


def test_a_consumer_may_ask_for_time_at_once() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    active = net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    server.manager.delay(passive_side(server), net.now, b"soon")
    net.run(until=lambda: active.state is State.MRA_REQ_RCVD)
    with pytest.raises(VerbsError):
        server.manager.delay(passive_side(server), net.now)


def test_a_consumer_that_never_answers_is_answered_for() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    net.connect(client, server)
    net.run()
    assert [type(event) for event in server.events] == [ConnectRequest, ConnectError, TimewaitExit]
    (rejected,) = client.of(Rejected)
    assert isinstance(rejected, Rejected)
    assert rejected.rej.reason == Reason.TIMEOUT
    assert len(client.manager.directory) == len(server.manager.directory) == 0


def test_a_patience_the_peer_asks_for_is_bounded() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    active = net.connect(client, server)
    list(client.manager.transmit())
    mra = Mra(local_comm_id=9, remote_comm_id=active.local_comm_id, message_mraed=0, service_timeout=31)
    assert inject(client, server, mra) == (None, [])
    assert client.manager.next_deadline() == (4096 << 25) + 2 * (4096 << 12)
    assert inject(client, server, mra)[0] is Drop.DUPLICATE


# --- rejecting ----------------------------------------------------------------------------------------------


def rejection_of(change: dict[str, object], path: dict[str, object] | None = None) -> Rej:
    """What a server that listens for RC says to a REQ that is changed so."""
    net = Net()
    client, server = net.pair()
    active = net.connect(client, server)
    list(client.manager.transmit())
    primary = msgspec.structs.replace(active.req.primary, **(path or {}))
    request = msgspec.structs.replace(active.req, primary=primary, **change)
    drop, answers = inject(server, client, request)
    assert drop is Drop.REFUSED
    (answer,) = answers
    assert isinstance(answer, Rej)
    assert (answer.local_comm_id, answer.remote_comm_id) == (0, active.local_comm_id)
    assert answer.message_rejected == Subject.REQ
    assert list(server.manager.events()) == []
    assert len(server.manager.directory) == 0
    assert inject(client, server, answer) == (None, [])
    assert active.state is State.CLOSED
    return answer


@pytest.mark.parametrize(
    ("change", "path", "reason", "information"),
    [
        ({"service_id": SERVICE + 1}, {}, Reason.INVALID_SERVICE_ID, b""),
        ({"service_id": DATAGRAM_SERVICE}, {}, Reason.INVALID_SERVICE_ID, b""),
        ({"transport": Transport.RD}, {}, Reason.INVALID_TRANSPORT_TYPE, b""),
        ({"transport": Transport.EXTENDED}, {}, Reason.INVALID_TRANSPORT_TYPE, b""),
        ({}, {"local_gid": gid(9)}, Reason.INVALID_GID, gid(2)),
        ({}, {"remote_gid": gid(9)}, Reason.INVALID_GID, gid(2)),
        ({"path_mtu": 0}, {}, Reason.INVALID_MTU, b"\x05"),
        ({"path_mtu": 6}, {}, Reason.INVALID_MTU, b"\x05"),
    ],
)
def test_unacceptable_requests(
    change: dict[str, object], path: dict[str, object], reason: Reason, information: bytes
) -> None:
    rejection = rejection_of(change, path)
    assert rejection.reason == reason
    assert rejection.information == information


def test_an_mtu_beyond_ours_is_rejected_with_ours() -> None:
    net = Net(config=msgspec.structs.replace(BRISK, max_path_mtu=3))
    client, server = net.pair()
    net.connect(client, server, req(path_mtu=4))
    net.run(until=lambda: bool(client.events))
    (event,) = client.events
    assert isinstance(event, Rejected)
    assert event.rej.information == b"\x03"


def test_the_consumer_rejects() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    server.manager.reject(passive_side(server), net.now, 28, b"info", b"sorry")
    net.run(until=lambda: bool(client.events))
    (event,) = client.events
    assert isinstance(event, Rejected)
    assert (event.rej.reason, event.rej.information) == (28, b"info")
    assert event.rej.private_data.rstrip(b"\0") == b"sorry"


def test_a_lost_rejection_is_repeated_without_asking_the_consumer_again() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    net.connect(client, server, req(primary=Path(local_ack_timeout=18)))
    lose(net, "REJ", times=2)
    net.run(until=lambda: bool(server.events))
    server.manager.reject(passive_side(server), net.now)
    net.run(until=lambda: bool(client.events))
    assert net.names() == ["REQ", "REJ", "REQ", "REJ", "REQ", "REJ"]
    assert len(server.of(ConnectRequest)) == 1


def test_the_active_side_rejects_a_reply() -> None:
    net = Net()
    client, server = net.node(silent), net.node()
    server.manager.listen(SERVICE)
    active = net.connect(client, server)
    net.run(until=lambda: bool(client.events))
    client.manager.reject(active, net.now, Reason.INSUFFICIENT_RESP_RESOURCES)
    net.run()
    rejections = [sent.message for sent in net.log if sent.name == "REJ"]
    assert [r.message_rejected for r in rejections if isinstance(r, Rej)] == [Subject.REP]
    assert [type(event) for event in server.events] == [ConnectRequest, Rejected, TimewaitExit]


def test_a_reply_to_nothing_is_rejected() -> None:
    """The active side has restarted: the passive side shall not wait for it."""
    net = Net()
    client, server = net.pair()
    drop, answers = inject(client, server, Rep(local_comm_id=5, remote_comm_id=6, local_qpn=7, starting_psn=8))
    assert drop is Drop.UNKNOWN_ID
    (answer,) = answers
    assert isinstance(answer, Rej)
    assert (answer.reason, answer.message_rejected) == (Reason.INVALID_COMM_ID, Subject.REP)
    assert (answer.local_comm_id, answer.remote_comm_id) == (6, 5)


def test_a_reply_after_we_gave_up_is_rejected_again() -> None:
    net = Net()
    client, server = net.pair()
    lose(net, "REP", times=20)
    net.fate, slow = (lambda _: [MS]), net.fate
    net.fate = lambda sent: [900 * MS] if sent.name == "REP" else slow(sent)
    active = net.connect(client, server, req(primary=Path(local_ack_timeout=18)))
    net.run()
    assert is_over(active)
    assert [type(event) for event in client.events] == [Unreachable, TimewaitExit]
    assert server.of(Rejected) or server.of(Unreachable)
    assert len(client.manager.directory) == len(server.manager.directory) == 0


# --- stale connections --------------------------------------------------------------------------------------


def test_a_req_with_a_connected_qp_ends_the_old_connection() -> None:
    """12.9.8.3.1: the peer has lost its state. Its REQ is rejected, the old connection gets a DREQ."""
    net = Net()
    client, server, _active, passive = established(net)
    reborn = Node(client.gid, Net(seed=99).node().manager, obliging)
    net.nodes[0] = reborn
    again = net.connect(reborn, server)
    net.run(until=lambda: bool(reborn.events) and is_over(passive))
    (event,) = reborn.of(Rejected)
    assert isinstance(event, Rejected)
    assert event.rej.reason == Reason.STALE_CONN
    assert again.state is State.CLOSED
    assert sorted(net.names()[3:]) == ["DREP", "DREQ", "REJ", "REQ"]
    third = net.connect(reborn, server)
    net.run(until=lambda: third.state is State.ESTABLISHED)


def test_a_stale_request_that_was_not_answered_yet() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    net.connect(client, server)  # the same QP, another comm id
    net.run(until=lambda: len(server.events) > 1)
    first = server.events[0]
    assert isinstance(first, ConnectRequest)
    assert server.of(ConnectError)
    with pytest.raises(VerbsError):
        server.manager.accept(first.connection, rep(), net.now)


def test_a_rep_with_a_connected_qp_is_rejected() -> None:
    net = Net()
    client, server, active, _passive = established(net)
    second = net.connect(client, server, req(qpn=0x12))  # the server answers with QP 0x22 again
    net.run(until=lambda: is_over(second) or is_over(active))
    rejections = [sent.message for sent in net.log if sent.name == "REJ"]
    assert any(isinstance(r, Rej) and r.reason == Reason.STALE_CONN for r in rejections)


def test_another_host_may_use_the_same_qpn_and_the_same_guid() -> None:
    net = Net()
    client, server, active, passive = established(net)
    other = net.node()
    other.manager.ca_guid = client.manager.ca_guid
    second = net.connect(other, server, req(qpn=active.local_qpn))
    net.run(until=lambda: second.state is State.ESTABLISHED)
    assert (active.state, passive.state) == (State.ESTABLISHED, State.ESTABLISHED)


# --- disconnecting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_client", [True, False], ids=["active", "passive"])
def test_disconnect(by_client: bool) -> None:
    net = Net()
    client, server, active, passive = established(net)
    node, connection = (client, active) if by_client else (server, passive)
    node.manager.disconnect(connection, net.now)
    net.run()
    assert net.names()[3:] == ["DREQ", "DREP"]
    for side in (client, server):
        assert [type(event) for event in side.events][-2:] == [Disconnected, TimewaitExit]
        assert len(side.manager.directory) == 0
    assert active.state is passive.state is State.CLOSED


def test_both_disconnect_at_once() -> None:
    net = Net()
    client, server, active, passive = established(net)
    client.manager.disconnect(active, net.now)
    server.manager.disconnect(passive, net.now)
    net.run()
    assert sorted(net.names()[3:]) == ["DREP", "DREP", "DREQ", "DREQ"]
    assert len(client.of(Disconnected)) == len(server.of(Disconnected)) == 1


@pytest.mark.parametrize("lost", ["DREQ", "DREP"])
def test_a_lost_farewell_is_repeated(lost: str) -> None:
    net = Net()
    client, server, active, _ = established(net)
    lose(net, lost, times=2)
    client.manager.disconnect(active, net.now)
    net.run()
    assert net.names()[3:].count("DREQ") == 3
    assert len(client.of(Disconnected)) == len(server.of(Disconnected)) == 1


def test_a_disconnect_no_one_answers_ends_all_the_same() -> None:
    net = Net()
    client, _server, active, passive = established(net)
    net.fate = lambda _: []
    client.manager.disconnect(active, net.now)
    net.run(until=lambda: active.state is State.CLOSED)
    assert len(client.of(Disconnected)) == 1
    assert passive.state is State.ESTABLISHED  # finds out by its own retries


def test_a_consumer_that_does_not_answer_a_disconnect_is_answered_for() -> None:
    net = Net()
    client, server, active, _ = established(net)
    server.policy = silent
    client.manager.disconnect(active, net.now)
    net.run()
    assert net.names()[-1] == "DREP"
    assert len(server.of(Disconnected)) == 1


def test_a_dreq_arrives_where_the_rtu_did_not() -> None:
    net = Net()
    client, server = net.pair()
    lose(net, "RTU")
    active = net.connect(client, server)
    net.run(until=lambda: active.state is State.ESTABLISHED)
    client.manager.disconnect(active, net.now)
    net.run()
    assert [type(event) for event in server.events] == [ConnectRequest, Disconnected, TimewaitExit]
    assert [type(event) for event in client.events][-2:] == [Disconnected, TimewaitExit]


def test_a_dreq_for_a_forgotten_connection_is_answered() -> None:
    net = Net()
    client, server = net.pair()
    drop, answers = inject(server, client, Dreq(local_comm_id=3, remote_comm_id=4, remote_qpn=5), tid=77)
    assert drop is Drop.UNKNOWN_ID
    assert answers == [Drep(local_comm_id=4, remote_comm_id=3, private_data=bytes(224))]


def test_a_dreq_must_name_the_qp() -> None:
    net = Net()
    client, server, active, passive = established(net)
    dreq = Dreq(local_comm_id=active.local_comm_id, remote_comm_id=passive.local_comm_id, remote_qpn=0x99)
    assert inject(server, client, dreq) == (Drop.WRONG_QPN, [])
    assert passive.state is State.ESTABLISHED


def test_timewait_lasts_as_long_as_the_ack_timeout() -> None:
    net = Net()
    client, server = net.pair()
    active = net.connect(client, server, req(primary=Path(local_ack_timeout=15)))
    net.run(until=lambda: bool(server.of(Established)))
    client.manager.disconnect(active, net.now)
    net.run(until=lambda: active.state is State.TIMEWAIT)
    entered = net.now
    net.run(until=lambda: active.state is State.CLOSED)
    assert net.now - entered == 4096 << 15


# --- alternate paths ----------------------------------------------------------------------------------------


def test_an_alternate_path_is_refused() -> None:
    net = Net()
    client, server, active, passive = established(net)
    lap = Lap(local_comm_id=active.local_comm_id, remote_comm_id=passive.local_comm_id, remote_qpn=0x22)
    drop, answers = inject(server, client, lap, tid=55)
    assert drop is None
    (answer,) = answers
    assert isinstance(answer, Apr)
    assert answer.status == AprStatus.UNSUPPORTED
    assert (answer.local_comm_id, answer.remote_comm_id) == (passive.local_comm_id, active.local_comm_id)
    assert inject(client, server, answer) == (Drop.WRONG_STATE, [])
    assert active.state is passive.state is State.ESTABLISHED


def test_an_alternate_path_of_nothing_is_dropped() -> None:
    net = Net()
    client, server = net.pair()
    assert inject(server, client, Lap(local_comm_id=1, remote_comm_id=2)) == (Drop.UNKNOWN_ID, [])


# --- service id resolution ----------------------------------------------------------------------------------


def test_resolve() -> None:
    net = Net()
    client, server = net.pair()
    net.resolve(client, server)
    net.run(until=lambda: bool(client.events))
    (event,) = client.events
    assert isinstance(event, ResolveResponse)
    answer = event.sidr_rep
    assert (answer.status, answer.qpn, answer.qkey) == (SidrStatus.SUCCESS, 0x33, 0x1234567)
    assert answer.service_id == DATAGRAM_SERVICE
    assert net.names() == ["SIDR_REQ", "SIDR_REP"]
    net.run()
    assert len(client.manager.directory) == len(server.manager.directory) == 0


@pytest.mark.parametrize("lost", ["SIDR_REQ", "SIDR_REP"])
def test_a_lost_question_or_answer_is_repeated_and_asked_once(lost: str) -> None:
    net = Net()
    client, server = net.pair()
    lose(net, lost, times=2)
    net.resolve(client, server)
    net.run(until=lambda: bool(client.events))
    assert [type(event) for event in client.events] == [ResolveResponse]
    assert len(server.of(ResolveRequest)) == 1


@pytest.mark.parametrize("service", [DATAGRAM_SERVICE + 1, SERVICE])
def test_a_service_no_one_serves(service: int) -> None:
    net = Net()
    client, server = net.pair()
    question = SidrReq(request_id=7, service_id=service)
    drop, answers = inject(server, client, question)
    assert drop is Drop.REFUSED
    (answer,) = answers
    assert isinstance(answer, SidrRep)
    assert (answer.status, answer.request_id, answer.service_id) == (SidrStatus.UNSUPPORTED, 7, service)


def test_a_question_no_one_answers() -> None:
    net = Net()
    client, server = net.node(), net.node()
    server.manager.listen(DATAGRAM_SERVICE, datagram=True)
    server.policy = silent
    net.resolve(client, server)
    net.run()
    assert [type(event) for event in client.events] == [Unreachable]
    assert net.names() == ["SIDR_REQ"] * 16
    assert len(server.manager.directory) == 0


def test_a_question_can_be_dropped() -> None:
    net = Net()
    client, server = net.pair()
    resolution = net.resolve(client, server)
    client.manager.cancel(resolution, net.now)
    assert len(client.manager.directory) == 0
    net.run()
    assert client.events == []


# --- listeners ----------------------------------------------------------------------------------------------


def test_a_listener_of_one_gid_goes_before_that_of_all() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    everywhere = server.manager.listen(SERVICE)
    here = server.manager.listen(SERVICE, gid=server.gid)
    elsewhere = server.manager.listen(SERVICE, gid=gid(77))
    net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    (event,) = server.of(ConnectRequest)
    assert isinstance(event, ConnectRequest)
    assert event.listener is here
    assert (everywhere.pending, here.pending, elsewhere.pending) == (0, 1, 0)


def test_a_service_id_is_taken_once() -> None:
    manager = Net().node().manager
    listener = manager.listen(SERVICE)
    with pytest.raises(VerbsError) as error:
        manager.listen(SERVICE)
    assert error.value.errno == errno.EADDRINUSE
    manager.unlisten(listener)
    assert listener.state is State.CLOSED
    again = manager.listen(SERVICE)
    manager.unlisten(listener)  # twice is harmless, also to the successor
    assert again.state is State.LISTEN
    with pytest.raises(VerbsError):
        manager.listen(SERVICE)


def test_a_closed_listener_leaves_its_connections_alone() -> None:
    net = Net()
    client, server = net.node(), net.node()
    listener = server.manager.listen(SERVICE)
    active = net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    server.manager.unlisten(listener)
    net.run(until=lambda: active.state is State.ESTABLISHED)
    other = net.connect(client, server, req(qpn=0x13))
    net.run(until=lambda: is_over(other))
    assert isinstance(client.events[-1], Rejected)


# --- the consumer's mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["accept", "confirm", "reject", "delay"])
def test_calls_that_are_not_legal_now(name: str) -> None:
    net = Net()
    client, _, active, _ = established(net)
    before = len(net.log)
    arguments = {"accept": (active, rep(), 0)}.get(name, (active, 0))
    with pytest.raises(VerbsError) as error:
        getattr(client.manager, name)(*arguments)
    assert error.value.errno == errno.EINVAL
    net.flush()
    assert len(net.log) == before
    assert active.state is State.ESTABLISHED


def test_what_does_not_fit_changes_nothing() -> None:
    net = Net()
    client, server = net.node(), net.node(silent)
    server.manager.listen(SERVICE)
    with pytest.raises(VerbsError):
        net.connect(client, server, req(private_data=bytes(93)))
    assert len(client.manager.directory) == 0
    assert client.manager.next_deadline() is None
    active = net.connect(client, server)
    net.run(until=lambda: bool(server.events))
    passive = passive_side(server)
    with pytest.raises(VerbsError):
        server.manager.accept(passive, rep(private_data=bytes(197)), net.now)
    with pytest.raises(VerbsError):
        server.manager.reject(passive, net.now, private_data=bytes(149))
    assert passive.state is State.REQ_RCVD
    server.manager.accept(passive, rep(), net.now)
    net.run(until=lambda: active.state is State.ESTABLISHED)
    with pytest.raises(VerbsError):
        client.manager.disconnect(active, net.now, bytes(221))
    assert active.state is State.ESTABLISHED


def test_counters() -> None:
    net = Net()
    client, server = net.pair()
    lose(net, "RTU", times=1)
    net.connect(client, server)
    net.run(until=lambda: bool(server.of(Established)))
    sent, received = client.manager.counters, server.manager.counters
    assert (sent.tx_msgs[Attr.REQ], sent.tx_msgs[Attr.RTU], sent.tx_retries[Attr.RTU]) == (1, 2, 1)
    assert (received.rx_msgs[Attr.REQ], received.rx_msgs[Attr.RTU], received.tx_retries[Attr.REP]) == (
        1,
        1,
        1,
    )
    assert (sent.rx_msgs[Attr.REP], sent.rx_duplicates[Attr.REP], sent.drops[Drop.DUPLICATE]) == (2, 1, 1)


# --- the wrong peer -----------------------------------------------------------------------------------------


def test_what_a_third_party_says_of_a_connection_is_dropped() -> None:
    """It knows everything but the way: GIDs are what a message is believed by."""
    net = Net()
    client, server, active, passive = established(net)
    stranger = net.node()
    ids = {"local_comm_id": active.local_comm_id, "remote_comm_id": passive.local_comm_id}
    for message in (
        Dreq(**ids, remote_qpn=passive.local_qpn),
        Drep(**ids),
        Rtu(**ids),
        Rej(**ids, message_rejected=2, reason=28),
        Lap(**ids),
        Mra(**ids, message_mraed=1, service_timeout=31),
    ):
        assert inject(server, stranger, message) == (Drop.WRONG_PEER, [])
    reply = rep(local_comm_id=passive.local_comm_id, remote_comm_id=active.local_comm_id)
    assert inject(client, stranger, reply) == (Drop.WRONG_PEER, [])
    wrong_end = Address(gid(9), client.gid)
    datagram = mad.emit(encode(Dreq(**ids, remote_qpn=passive.local_qpn), 1))
    assert server.manager.receive(datagram, wrong_end, 0) is Drop.WRONG_PEER
    assert active.state is passive.state is State.ESTABLISHED


def test_what_only_the_other_side_may_say_is_dropped() -> None:
    net = Net()
    client, server, active, passive = established(net)
    to_server = {"local_comm_id": active.local_comm_id, "remote_comm_id": passive.local_comm_id}
    to_client = {"local_comm_id": passive.local_comm_id, "remote_comm_id": active.local_comm_id}
    assert inject(server, client, rep(**to_server)) == (Drop.WRONG_ROLE, [])
    assert inject(client, server, Rtu(**to_client)) == (Drop.WRONG_ROLE, [])
    mra = Mra(**to_server, message_mraed=0, service_timeout=1)
    assert inject(server, client, mra) == (Drop.WRONG_ROLE, [])


def test_default_timeouts_are_those_of_rdma_cm() -> None:
    assert (Config().response_timeout, Config().max_cm_retries) == (20, 15)
