"""The QP attributes that follow from a REQ and a REP."""

from __future__ import annotations

import pytest

from softrnic.cm.attributes import QpAttributes, ack_timeout, qp_attributes
from softrnic.cm.conversation import Connection
from softrnic.cm.messages import EXTENDED_XRC, Path, Transport
from tests.cm.net import Net, passive_side, rep, req


@pytest.mark.parametrize(
    ("path", "delay", "expected"),
    [
        (19, 0, 19),
        (19, 17, 19),
        (19, 18, 20),
        (19, 19, 20),
        (19, 20, 21),
        (10, 20, 20),
        (31, 31, 31),
        (0, 0, 1),
    ],
)
def test_ack_timeout_adds_times(path: int, delay: int, expected: int) -> None:
    assert ack_timeout(path, delay) == expected


def established() -> tuple[Connection, Connection]:
    """An active and a passive connection with nothing symmetrical about them."""
    net = Net()
    client, server = net.pair()

    def policy(node, event, now):
        node.manager.accept(
            event.connection,
            rep(qpn=0x22, responder_resources=5, initiator_depth=6, rnr_retry_count=2, target_ack_delay=18),
            now,
        )

    server.policy = policy
    path = Path(local_ack_timeout=18, traffic_class=0x20, hop_limit=64, flow_label=7)
    request = req(qpn=0x11, responder_resources=7, initiator_depth=8, retry_count=4, rnr_retry_count=3, primary=path)
    active = net.connect(client, server, request)
    net.run(until=lambda: bool(client.events))
    return active, passive_side(server)


def agreed(*connections: Connection) -> list[QpAttributes]:
    return [qp_attributes(connection, connection.rep) for connection in connections if connection.rep]


def test_each_side_serves_what_the_other_initiates() -> None:
    active, passive = agreed(*established())
    assert (active.max_rd_atomic, active.max_dest_rd_atomic) == (5, 6)
    assert (passive.max_rd_atomic, passive.max_dest_rd_atomic) == (6, 5)


def test_the_ends_meet() -> None:
    connections = established()
    active, passive = agreed(*connections)
    assert (active.dqpn, passive.dqpn) == (0x22, 0x11)
    # A side says from which PSN the other is to send (12.7, Starting PSN).
    assert (active.rq_psn, active.sq_psn) == (passive.sq_psn, passive.rq_psn) == (0x123456, 0x654321)
    assert (active.sgid, active.dgid) == (passive.dgid, passive.sgid)
    assert active.path_mtu == passive.path_mtu
    assert connections[0].local_qpn == connections[1].remote_qpn == 0x11
    assert connections[1].local_qpn == connections[0].remote_qpn == 0x22


def test_timeouts_and_retries() -> None:
    """RNR retries are what the peer asks for; the passive side's timeout is the one in the REQ's path."""
    active, passive = agreed(*established())
    assert (active.retry_cnt, passive.retry_cnt) == (4, 4)
    assert (active.rnr_retry, passive.rnr_retry) == (2, 3)
    assert (active.timeout, passive.timeout) == (19, 18)
    assert (active.traffic_class, active.hop_limit, active.flow_label) == (0x20, 64, 7)


def test_an_xrc_target_is_named_where_the_ee_context_was() -> None:
    """A14."""
    net = Net()
    connection = net.connect(*net.pair(), req(transport=Transport.EXTENDED, extended_transport=EXTENDED_XRC))
    assert connection.qpn_in(rep(qpn=0, local_eecn=0x77)) == 0x77
