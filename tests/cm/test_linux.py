"""What Linux says: the QP1 datagrams of rping (IPv4 and IPv6), ucmatose, udaddy, rdma_client and two refusals.

Recorded between two soft-RoCE devices: Linux 6.12, rdma-core 56.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from softrnic.cm import mad
from softrnic.cm.attributes import qp_attributes
from softrnic.cm.conversation import Address
from softrnic.cm.events import ConnectRequest, Established, ResolveRequest
from softrnic.cm.machine import State
from softrnic.cm.mad import Attr
from softrnic.cm.manager import ConnectionManager
from softrnic.cm.messages import Message, Rej, Req, SidrRep, SidrReq, SidrStatus, decode, encode
from softrnic.cm.service import CmaHeader, PortSpace, gid_from_ip, ip_from_gid, parse_ip, port_of
from tests.cm.net import rep

CAPTURE = Path(__file__).parent / "vectors/rdma_cm.pcap"
CLIENT, SERVER = (gid_from_ip(parse_ip(text)) for text in ("10.9.0.2", "10.9.0.1"))


def datagrams() -> Iterator[bytes]:
    """The MADs of the capture: all that is before the ICRC of each frame."""
    data = CAPTURE.read_bytes()
    offset = 24
    while offset < len(data):
        size = struct.unpack_from("<I", data, offset + 8)[0]
        frame = data[offset + 16 : offset + 16 + size]
        yield frame[-4 - mad.MAD_BYTES : -4]
        offset += 16 + size


DATAGRAMS = list(datagrams())
MESSAGES: list[Message] = [decode(mad.parse(datagram)) for datagram in DATAGRAMS]


def requests() -> list[Req]:
    return [message for message in MESSAGES if isinstance(message, Req)]


def test_the_session_is_whole() -> None:
    counts = Counter(type(message).__name__ for message in MESSAGES)
    assert counts == {
        "Req": 5, "Rep": 4, "Rtu": 4, "Dreq": 5, "Drep": 5, "Rej": 1, "SidrReq": 2, "SidrRep": 2,
    }  # fmt: skip


@pytest.mark.parametrize("datagram", DATAGRAMS, ids=range(len(DATAGRAMS)))
def test_read_and_written_again_to_the_last_bit(datagram: bytes) -> None:
    packet = mad.parse(datagram)
    assert mad.emit(encode(decode(packet), packet.tid)) == datagram


def test_requests_are_of_the_rdma_cm() -> None:
    for request in requests():
        header = CmaHeader.parse(request.private_data)
        assert header.source == ip_from_gid(request.primary.local_gid)
        assert header.destination == ip_from_gid(request.primary.remote_gid)
        port = port_of(request.service_id)
        assert port is not None
        assert port[0] is PortSpace.TCP
    assert [port_of(request.service_id)[1] for request in requests()] == [7174, 7174, 7471, 7471, 7174]


def manager_of_the_server() -> ConnectionManager:
    """In the place of the Linux server, with everything listened to."""
    manager = ConnectionManager(1, lambda bits: (1 << bits) - 1)
    for request in requests()[:-1]:
        if request.service_id not in {key for key, _ in manager.directory._listeners}:
            manager.listen(request.service_id)
    return manager


@pytest.mark.parametrize("request_", requests()[:-1], ids=["rping", "rping6", "ucmatose", "rdma_client"])
def test_its_requests_are_accepted(request_: Req) -> None:
    manager = manager_of_the_server()
    source = Address(request_.primary.remote_gid, request_.primary.local_gid)
    assert manager.receive(mad.emit(encode(request_, 1)), source, 0) is None
    (event,) = manager.events()
    assert isinstance(event, ConnectRequest)
    manager.accept(event.connection, rep(), 0)
    attributes = qp_attributes(event.connection, event.connection.rep)
    assert attributes.dqpn == request_.local_qpn
    assert attributes.sq_psn == request_.starting_psn
    assert attributes.timeout == 17
    assert attributes.max_dest_rd_atomic == 0  # as our REP says
    assert [mad.parse(data).attr for _, data in manager.transmit()] == [Attr.REP]


def test_it_is_connected_to_in_its_own_words() -> None:
    """The Linux client's datagrams, answered by us with the comm id the Linux server had."""
    reply = next(message for message in MESSAGES if type(message).__name__ == "Rep")
    manager = ConnectionManager(1, lambda bits: reply.local_comm_id if bits == 32 else 0)
    manager.listen(requests()[0].service_id)
    source = Address(SERVER, CLIENT)
    assert manager.receive(DATAGRAMS[0], source, 0) is None
    (event,) = manager.events()
    manager.accept(event.connection, rep(qpn=17), 0)
    assert manager.receive(DATAGRAMS[2], source, 1) is None  # RTU
    assert isinstance(next(manager.events()), Established)
    assert manager.receive(DATAGRAMS[3], source, 2) is None  # DREQ
    manager.disconnect(event.connection, 3)
    assert event.connection.state is State.TIMEWAIT


def test_its_questions_are_answered() -> None:
    question = next(message for message in MESSAGES if isinstance(message, SidrReq))
    manager = ConnectionManager(1, lambda bits: (1 << bits) - 1)
    manager.listen(question.service_id, datagram=True)
    assert manager.receive(mad.emit(encode(question, 1)), Address(SERVER, CLIENT), 0) is None
    (event,) = manager.events()
    assert isinstance(event, ResolveRequest)
    assert CmaHeader.parse(question.private_data).destination == ip_from_gid(SERVER)


def test_what_it_refuses_we_refuse_alike() -> None:
    """No one listens on that service id any more: REJ 8, SIDR status 1, field by field as Linux has it."""
    manager = ConnectionManager(1, lambda bits: (1 << bits) - 1)
    for request_, answer in ((MESSAGES[-4], MESSAGES[-3]), (MESSAGES[-2], MESSAGES[-1])):
        assert isinstance(answer, (Rej, SidrRep))
        manager.receive(mad.emit(encode(request_, 1)), Address(SERVER, CLIENT), 0)
        ((_, data),) = manager.transmit()
        assert decode(mad.parse(data)) == answer
    assert MESSAGES[-1].status == SidrStatus.UNSUPPORTED
