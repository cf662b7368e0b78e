"""Connections of two devices on a wire in memory, by the asyncio interface."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pytest

from softrnic.cm import mad
from softrnic.cm.conversation import Address, Config
from softrnic.cm.machine import State
from softrnic.cm.mad import Attr, Drop
from softrnic.cm.messages import Reason, SidrStatus
from softrnic.cm.service import CmaHeader, PortSpace, gid_from_ip, parse_ip, service_id
from softrnic.control import cm
from softrnic.control.cm.gsi import MAX_PEERS, MAX_QUEUED, address_in_grh
from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.errors import VerbsError
from softrnic.spec import GSI_QKEY, GSI_QPN
from softrnic.verbs import (
    Ah,
    AhAttr,
    Device,
    Mtu,
    Qp,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendWr,
    WcStatus,
    WrOpcode,
)
from tests.cm.net import req

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]  # whoever comes first compiles the pump

PORT = 7174
BRISK = Config(response_timeout=13, packet_life_time=12, max_cm_retries=4)


class Hosts:
    """A client and a server."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self.client, self.server = (host.device for host in hosts)
        self.address = str(hosts[1].address)

    @property
    def port(self) -> tuple[str, int]:
        return self.address, PORT


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4", "IPv6"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with fabric("memory", ip=request.param) as both:
        for host in both:
            with host.nic.quiesced():  # compiled, that is
                pass
        yield Hosts(both)


@pytest.fixture
def run(hosts: Hosts) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a test in a loop of its own, and see that nothing stays behind on the devices."""

    def run_and_check(test: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test

        left: dict[str, list[int]] = {}
        try:
            asyncio.run(bounded())
        finally:
            for device in (hosts.client, hosts.server):
                left[device.name] = [len(t) for t in (device.qps, device.cqs, device.mrs, device.pds)]
                device.close()  # what one test leaves is not held against the next
        assert set(map(tuple, left.values())) == {(0, 0, 0, 0)}, left

    return run_and_check


async def both(
    hosts: Hosts, *, client: dict[str, Any] | None = None, server: dict[str, Any] | None = None
) -> tuple[cm.Connection, cm.Connection]:
    """A connection, from both sides."""
    async with cm.listen(hosts.server, hosts.address, PORT) as listener:
        accepting = asyncio.create_task(listener.accept(**(server or {})))
        active = await cm.connect(hosts.client, hosts.port, **(client or {}))
        return active, await accepting


def lose(agent: cm.Agent, *attrs: Attr) -> list[Attr]:
    """Lose what the agent sends of these messages; returns the list of all it sends."""
    sent: list[Attr] = []
    send = agent._gsi.send

    def lossy(address: Address, datagram: bytes) -> None:
        attr = mad.parse(datagram).attr
        sent.append(attr)
        if attr not in attrs:
            send(address, datagram)

    agent._gsi.send = lossy
    return sent


# --- connecting ---------------------------------------------------------------------------------------------


def test_connect_send_and_disconnect(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        room = bytearray(64)

        def prepare(qp: Qp) -> None:
            qp.post_recv(RecvWr((qp.pd.reg_mr(room).sge(),), wr_id=5))

        active, passive = await both(
            hosts,
            client={"private_data": b"hello"},
            server={"private_data": b"welcome", "qp": cm.QpInit(prepare=prepare)},
        )
        assert active.is_connected
        assert passive.is_connected
        assert passive.private_data == b"hello".ljust(56, b"\0")
        assert active.private_data == b"welcome".ljust(196, b"\0")
        assert active.remote_address == hosts.port
        assert passive.remote_address[0] == str(hosts.client.gids[0].ip)
        assert active.core.remote_qpn == passive.qp.qpn

        message = active.pd.reg_mr(bytearray(b"a message"))
        active.qp.post_send(SendWr(WrOpcode.SEND, (message.sge(),)))
        (sent,) = await active.send_cq.next()
        (received,) = await passive.recv_cq.next()
        assert sent.ok
        assert (received.status, received.wr_id, received.byte_len) == (WcStatus.SUCCESS, 5, 9)
        assert room[:9] == b"a message"

        await active.disconnect(b"farewell")
        await passive.wait_disconnected()
        assert passive.farewell.rstrip(b"\0") == b"farewell"
        assert (active.qp.state, passive.qp.state) == (QpState.ERR, QpState.ERR)
        await active.close()
        await passive.close()

    run(test())


def test_both_ends_agree_about_the_qp(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        param = cm.ConnParam(
            responder_resources=3, initiator_depth=5, retry_count=2, rnr_retry_count=4, ack_timeout=18,
            path_mtu=Mtu.MTU_512, traffic_class=0x68,
        )  # fmt: skip
        active, passive = await both(hosts, client={"param": param}, server={"param": cm.ConnParam(rnr_retry_count=6)})
        async with active, passive:
            ours, theirs = active.qp.query(), passive.qp.query()
            assert (ours["max_dest_rd_atomic"], ours["max_rd_atomic"]) == (3, 5)
            assert (theirs["max_dest_rd_atomic"], theirs["max_rd_atomic"]) == (5, 3)
            assert ours["path_mtu"] == theirs["path_mtu"] == Mtu.MTU_512
            assert (ours["rnr_retry"], theirs["rnr_retry"]) == (6, 4)
            assert (ours["retry_cnt"], theirs["retry_cnt"]) == (2, 2)
            assert theirs["timeout"] == 18
            assert ours["ah"].traffic_class == theirs["ah"].traffic_class == 0x68

    run(test())


def test_leaving_the_context_disconnects(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        active, passive = await both(hosts)
        async with passive:
            async with active:
                pass
            await passive.wait_disconnected()
            assert active.core.state in (State.TIMEWAIT, State.CLOSED)

    run(test())


def test_what_is_posted_is_flushed_when_the_peer_leaves(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        active, passive = await both(hosts)
        mr = passive.pd.reg_mr(bytearray(64))
        passive.qp.post_recv(RecvWr((mr.sge(),), wr_id=9))
        await active.close()
        (flushed,) = await passive.recv_cq.next()
        assert (flushed.wr_id, flushed.status) == (9, WcStatus.WR_FLUSH_ERR)
        await passive.close()

    run(test())


def test_many_connections(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        passive: list[cm.Connection] = []
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:

            async def serve() -> None:
                while True:
                    passive.append(await listener.accept())

            serving = asyncio.create_task(serve())
            active = await asyncio.gather(*(cm.connect(hosts.client, hosts.port) for _ in range(20)))
            while len(passive) < 20:
                await asyncio.sleep(0.001)
            serving.cancel()
        assert {a.core.remote_qpn for a in active} == {p.qp.qpn for p in passive}
        await asyncio.gather(*(connection.close() for connection in (*active, *passive)))

    run(test())


def test_own_pd_and_cqs(hosts: Hosts, run: Callable[..., None]) -> None:
    """They outlive the connection."""

    async def test() -> None:
        with hosts.client.alloc_pd() as pd, hosts.client.create_cq(8) as cq:
            init = cm.QpInit(pd=pd, send_cq=cq, recv_cq=cq, cap=QpCap(max_send_wr=8, max_recv_wr=8))
            active, passive = await both(hosts, client={"qp": init})
            assert (active.pd, active.send_cq, active.recv_cq) == (pd, cq, cq)
            await active.close()
            await passive.close()
            assert cq.users == 0

    run(test())


def test_unreliable_connections(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        active, passive = await both(hosts, client={"qp": cm.QpInit(kind=QpType.UC)})
        assert passive.qp.type == QpType.UC
        await active.close()
        await passive.close()

    run(test())


def test_a_listener_on_all_addresses(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        async with cm.listen(hosts.server, "0.0.0.0", PORT) as listener:
            accepting = asyncio.create_task(listener.accept())
            active = await cm.connect(hosts.client, hosts.port)
            passive = await accepting
            await active.close()
            await passive.close()
            with pytest.raises(VerbsError) as error:
                async with cm.listen(hosts.server, "::", PORT):
                    pass
            assert error.value.errno == errno.EADDRINUSE

    run(test())


# --- refusing -----------------------------------------------------------------------------------------------


def test_nobody_listens(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        cm.Agent.of(hosts.server)
        with pytest.raises(cm.RejectedError, match="INVALID_SERVICE_ID") as error:
            await cm.connect(hosts.client, hosts.port)
        assert error.value.errno == errno.ECONNREFUSED

    run(test())


def test_the_server_rejects(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port, private_data=b"please"))
            request = await listener.request()
            assert request.private_data.rstrip(b"\0") == b"please"
            assert request.local_address == hosts.port
            request.reject(Reason.NO_RESOURCES, information=b"info", private_data=b"sorry")
            assert not request.is_pending
            request.reject()
            with pytest.raises(cm.RejectedError) as error:
                await connecting
            assert (error.value.reason, error.value.information) == (Reason.NO_RESOURCES, b"info")
            assert error.value.private_data.rstrip(b"\0") == b"sorry"

    run(test())


def test_a_listener_that_closes_refuses_who_waits(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        async with cm.listen(hosts.server, hosts.address, PORT):
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port))
            while not cm.Agent.of(hosts.server).manager.counters.rx_msgs[Attr.REQ]:
                await asyncio.sleep(0.001)
        with pytest.raises(cm.RejectedError, match="CONSUMER_DEFINED"):
            await connecting

    run(test())


@pytest.mark.parametrize("lie", ["source", "destination", "no header"])
def test_a_header_that_lies_is_refused(hosts: Hosts, run: Callable[..., None], lie: str) -> None:
    async def test() -> None:
        own, peer = hosts.client.gids[0].ip, hosts.server.gids[0].ip
        other = parse_ip("10.7.7.7" if own.version == 4 else "fd00:7::7")
        header = CmaHeader(1, other if lie == "source" else own, other if lie == "destination" else peer).emit()
        request = req(private_data=b"" if lie == "no header" else header)
        request = msgspec.structs.replace(request, service_id=service_id(PortSpace.TCP, PORT))
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            agent = cm.Agent.of(hosts.client)
            way = Address(gid_from_ip(own), gid_from_ip(peer))
            core = agent.manager.connect(request, way, agent.now)
            agent.flush()
            while core.state is not State.CLOSED:
                await asyncio.sleep(0.001)
            assert listener._requests.empty()

    run(test())


def test_too_much_private_data(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        with pytest.raises(VerbsError, match="private_data"):
            await cm.connect(hosts.client, hosts.port, private_data=bytes(57))
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port, private_data=bytes(56)))
            request = await listener.request()
            with pytest.raises(VerbsError, match="private_data"):
                await request.accept(private_data=bytes(197))
            with pytest.raises(cm.RejectedError):
                await connecting

    run(test())


def test_a_preparation_that_fails_leaves_nothing(hosts: Hosts, run: Callable[..., None]) -> None:
    def prepare(_qp: Qp) -> None:
        raise RuntimeError("not prepared")

    async def test() -> None:
        with pytest.raises(RuntimeError, match="not prepared"):
            await cm.connect(hosts.client, hosts.port, qp=cm.QpInit(prepare=prepare))
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port))
            with pytest.raises(RuntimeError, match="not prepared"):
                await listener.accept(qp=cm.QpInit(prepare=prepare))
            with pytest.raises(cm.RejectedError):
                await connecting

    run(test())


@pytest.mark.parametrize(
    ("address", "source", "number"),
    [
        ("10.9.0.77", None, None),  # nobody there: the port says so
        ("fd00:9::77", None, None),
        ("192.0.2.1", "192.0.2.9", errno.EADDRNOTAVAIL),  # an address that is not ours
    ],
)
def test_no_way(hosts: Hosts, run: Callable[..., None], address: str, source: str | None, number: int | None) -> None:
    async def test() -> None:
        with pytest.raises(OSError) as error:  # noqa: PT011
            await cm.connect(hosts.client, (address, PORT), source=source)
        assert number is None or error.value.errno == number

    run(test())


# --- messages lost ------------------------------------------------------------------------------------------


def test_a_peer_that_says_nothing(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        sent = lose(cm.Agent(hosts.client, BRISK), Attr.REQ)
        with pytest.raises(cm.UnreachableError):
            await cm.connect(hosts.client, hosts.port)
        assert sent == [Attr.REQ] * 5 + [Attr.REJ]

    run(test())


def test_repetition_repairs_a_loss(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        client, server = cm.Agent(hosts.client, BRISK), cm.Agent(hosts.server, BRISK)
        lost: set[Attr] = set()
        for agent in (client, server):
            send = agent._gsi.send

            def once(address: Address, datagram: bytes, send: Callable[[Address, bytes], None] = send) -> None:
                attr = mad.parse(datagram).attr
                if attr in lost:
                    send(address, datagram)
                lost.add(attr)

            agent._gsi.send = once
        active, passive = await both(hosts)
        assert lost - {Attr.MRA} == {Attr.REQ, Attr.REP, Attr.RTU}  # a MRA on a busy machine
        await active.close()
        await passive.close()
        assert {Attr.DREQ, Attr.DREP} < lost

    run(test())


def test_a_packet_makes_up_for_a_lost_rtu(hosts: Hosts, run: Callable[..., None]) -> None:
    """Long before the REP would be repeated."""

    async def test() -> None:
        lose(cm.Agent.of(hosts.client), Attr.RTU)
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            accepting = asyncio.create_task(listener.accept())
            active = await cm.connect(hosts.client, hosts.port, qp=cm.QpInit(cap=QpCap(max_inline_data=16)))
            active.qp.post_send(SendWr(WrOpcode.RDMA_WRITE, inline=b""))
            async with asyncio.timeout(3):
                passive = await accepting
            assert cm.Agent.of(hosts.server).manager.counters.tx_retries[Attr.REP] == 0
            await active.close()
            await passive.close()

    run(test())


def test_who_waits_no_longer_takes_the_request_back(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port))
            request = await listener.request()
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            while request.is_pending:
                await asyncio.sleep(0.001)
            with pytest.raises(cm.ConnectionLostError):
                await request.accept()
            # It is not in the way of the next.
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port))
            passive = await listener.accept()
            active = await connecting
            await active.close()
            await passive.close()

    run(test())


def test_an_acceptance_the_peer_does_not_confirm(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        lose(cm.Agent(hosts.client, BRISK), Attr.RTU)
        cm.Agent(hosts.server, BRISK)
        async with cm.listen(hosts.server, hosts.address, PORT) as listener:
            connecting = asyncio.create_task(cm.connect(hosts.client, hosts.port))
            request = await listener.request()
            with pytest.raises(cm.UnreachableError):
                await request.accept()
            active = await connecting
            await active.wait_disconnected()  # the REJ told it
            await active.close()

    run(test())


def test_a_peer_that_has_vanished(hosts: Hosts, run: Callable[..., None]) -> None:
    """Its agent is gone: nothing is answered, and the disconnect ends all the same."""

    async def test() -> None:
        cm.Agent(hosts.client, BRISK)
        active, passive = await both(hosts)
        await cm.Agent.of(hosts.server).close()
        await active.close()
        passive._release()

    run(test())


# --- datagrams ----------------------------------------------------------------------------------------------


def ud_qp(device: Device, qkey: int) -> Qp:
    cq = device.create_cq(16)
    qp = device.alloc_pd().create_qp(QpType.UD, cq, cq, QpCap(max_inline_data=64))
    qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=qkey)
    qp.modify(QpState.RTR)
    qp.modify(QpState.RTS, sq_psn=0)
    return qp


def end(qp: Qp) -> None:
    qp.pd.close()
    qp.send_cq.destroy()


def test_resolve_and_send(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        mine, theirs = ud_qp(hosts.client, cm.UDP_QKEY), ud_qp(hosts.server, cm.UDP_QKEY)
        room = bytearray(104)
        theirs.post_recv(RecvWr((theirs.pd.reg_mr(room).sge(),)))
        async with cm.listen_datagram(hosts.server, hosts.address, PORT) as listener:
            resolving = asyncio.create_task(cm.resolve(hosts.client, hosts.port, private_data=b"who?"))
            request = await listener.request()
            assert request.private_data.rstrip(b"\0") == b"who?"
            assert request.remote_address[0] == str(hosts.client.gids[0].ip)
            assert str((await request.path()).dgid) == request.remote_address[0]
            request.answer(theirs, private_data=b"me")
            assert not request.is_pending
            service = await resolving
        assert (service.qpn, service.qkey) == (theirs.qpn, cm.UDP_QKEY)
        assert service.private_data.rstrip(b"\0") == b"me"
        ah: Ah = mine.pd.create_ah(service.ah)
        mine.post_send(SendWr(WrOpcode.SEND, inline=b"datagram", ah=ah, dqpn=service.qpn, qkey=service.qkey))
        assert (await mine.send_cq.next())[0].ok
        (received,) = await theirs.recv_cq.next()
        assert (received.src_qp, room[40:48]) == (mine.qpn, b"datagram")
        end(mine)
        end(theirs)

    run(test())


def test_no_such_datagram_service(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        cm.Agent.of(hosts.server)
        with pytest.raises(cm.ServiceError) as error:
            await cm.resolve(hosts.client, hosts.port)
        assert error.value.status == SidrStatus.UNSUPPORTED
        async with cm.listen_datagram(hosts.server, hosts.address, PORT) as listener:
            resolving = asyncio.create_task(cm.resolve(hosts.client, hosts.port))
            (await listener.request()).reject()
            with pytest.raises(cm.ServiceError) as error:
                await resolving
            assert error.value.status == SidrStatus.REJECT

    run(test())


def test_a_datagram_service_that_says_nothing(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        lose(cm.Agent(hosts.client, BRISK), Attr.SIDR_REQ)
        with pytest.raises(cm.UnreachableError):
            await cm.resolve(hosts.client, hosts.port)

    run(test())


# --- QP1 ----------------------------------------------------------------------------------------------------


def test_rubbish_on_qp1(hosts: Hosts, run: Callable[..., None]) -> None:
    """Wrong lengths, and datagrams of a QP that is not QP1: counted or ignored, and QP1 goes on."""

    async def test() -> None:
        client, server = cm.Agent.of(hosts.client), cm.Agent.of(hosts.server)
        way = Address(*(gid_from_ip(device.gids[0].ip) for device in (hosts.client, hosts.server)))
        for size in (0, 1, 255):
            client._gsi.send(way, bytes(size))
        for _ in range(2):
            client._gsi.send(way, bytes(256))
        intruder = ud_qp(hosts.client, GSI_QKEY)
        ah = intruder.pd.create_ah(AhAttr(hosts.address, dmac=hosts.client.resolve_mac(None, parse_ip(hosts.address))))
        intruder.post_send(SendWr(WrOpcode.SEND, inline=bytes(64), ah=ah, dqpn=GSI_QPN, qkey=GSI_QKEY))
        assert (await intruder.send_cq.next())[0].ok
        drops = server.manager.counters.drops
        while drops[Drop.BASE_VERSION] < 2:
            await asyncio.sleep(0.001)
        assert drops[Drop.LENGTH] == 3
        end(intruder)
        active, passive = await both(hosts)
        await active.close()
        await passive.close()

    run(test())


def test_what_is_sent_is_bounded(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        agent = cm.Agent.of(hosts.client)
        own = gid_from_ip(hosts.client.gids[0].ip)
        for number in range(MAX_PEERS + 10):
            agent._gsi.send(Address(own, own[:15] + bytes((number,))), bytes(256))
        assert agent._gsi.lost == 10
        for _ in range(MAX_QUEUED + 9):
            agent._gsi.send(Address(own, own[:15] + b"\0"), bytes(256))
        assert agent._gsi.lost == 20
        while agent._gsi._queues:
            await asyncio.sleep(0.001)
        await asyncio.gather(*agent._gsi._tasks)

    run(test())


def test_qp1_is_set_up_again_after_an_error(hosts: Hosts, run: Callable[..., None]) -> None:
    async def test() -> None:
        agent = cm.Agent.of(hosts.server)
        agent._gsi._qp.modify(QpState.ERR)
        active, passive = await both(hosts)
        await active.close()
        await passive.close()

    run(test())


def test_an_agent_ends_with_its_loop_and_another_begins(hosts: Hosts, run: Callable[..., None]) -> None:
    agents: list[cm.Agent] = []

    async def test() -> None:
        agents.append(cm.Agent.of(hosts.client))
        assert cm.Agent.of(hosts.client) is agents[-1]

    run(test())
    run(test())
    assert agents[0] is not agents[1]


@pytest.mark.parametrize(
    ("grh", "source", "destination"),
    [
        ("00" * 20 + "4500011c00004000401100000a0900010a090002", "10.9.0.1", "10.9.0.2"),
        (
            "60000000012c1140" + "fd000009000000000000000000000001" + "fd000009000000000000000000000002",
            "fd00:9::1",
            "fd00:9::2",
        ),
    ],
    ids=["IPv4", "IPv6"],
)
def test_address_in_grh(grh: str, source: str, destination: str) -> None:
    """A17.4.5.1."""
    expected = Address(gid_from_ip(parse_ip(destination)), gid_from_ip(parse_ip(source)))
    assert address_in_grh(bytes.fromhex(grh)) == expected
