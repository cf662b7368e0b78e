"""Against Linux: programs of rdma-core on librdmacm and soft-RoCE, in a guest, in both roles and to their ends.

Every program moves its data, checks it, and must exit as it does between two Linux hosts.
"""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from softrnic.cm import mad
from softrnic.cm.conversation import Address, Config
from softrnic.cm.machine import State
from softrnic.cm.mad import Attr
from softrnic.cm.messages import Reason, SidrStatus
from softrnic.cm.service import gid_from_ip, parse_ip
from softrnic.control import cm
from softrnic.control.cm.gsi import path_to
from softrnic.verbs import (
    Access,
    Ah,
    Cq,
    Device,
    Qp,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendWr,
    Wc,
    WrOpcode,
)
from tests.interop.lab import GUEST, MARKS, OURS, open_lab
from tools.vmlib import Guest, Process, Result

pytestmark = MARKS

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
RPING_PORT, CMATOSE_PORT, UDADDY_PORT = 7174, 7471, 7174
ANY_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ


class Lan:
    """A guest, and our device on the same segment."""

    def __init__(self, guest: Guest, device: Device) -> None:
        self.guest = guest
        self.device = device

    async def run(self, command: str) -> Result:
        return await asyncio.to_thread(self.guest.run, command, 60)

    async def serve(self, command: str) -> Process:
        """A server in the guest that is ready for us."""
        process = self.guest.spawn(command)
        await asyncio.to_thread(self.guest.wait_cm_listening, process)
        return process

    async def end_of(self, process: Process) -> Result:
        return await asyncio.to_thread(process.wait, 30)


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with open_lab() as lab, lab.host() as host:
        with host.nic.quiesced():  # compiled, that is
            pass
        yield Lan(lab.guest, host.device)


@pytest.fixture
def run(lan: Lan) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a test in a loop of its own, and see that nothing stays behind, here or there."""

    def run_and_check(test: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120):
                await test

        left: list[int] = []
        try:
            asyncio.run(bounded())
        finally:
            left += [len(t) for t in (lan.device.qps, lan.device.cqs, lan.device.mrs, lan.device.pds)]
            lan.device.close()  # what one test leaves is not held against the next
        assert left == [0, 0, 0, 0]
        assert "WARNING" not in lan.guest.console

    return run_and_check


class Talker:
    """A QP with receives posted from the start, and a buffer the peer may read and write."""

    SLOTS, SLOT_BYTES, BUFFER_BYTES = 16, 256, 4000

    def __init__(self) -> None:
        self.init = cm.QpInit(
            cap=QpCap(max_send_wr=16, max_recv_wr=self.SLOTS, max_inline_data=self.SLOT_BYTES), prepare=self.prepare
        )

    def prepare(self, qp: Qp) -> None:
        self.qp = qp
        self.slots = bytearray(self.SLOTS * self.SLOT_BYTES)
        self.buffer = bytearray(self.BUFFER_BYTES)
        self.slots_mr = qp.pd.reg_mr(self.slots)
        self.mr = qp.pd.reg_mr(self.buffer, ANY_ACCESS)
        for slot in range(self.SLOTS):
            self._post(slot)

    def _post(self, slot: int) -> None:
        self.qp.post_recv(RecvWr((self.slots_mr.sge(slot * self.SLOT_BYTES, self.SLOT_BYTES),), wr_id=slot))

    async def recv(self) -> tuple[bytes, Wc]:
        wc = await one(self.qp.recv_cq)
        start = wc.wr_id * self.SLOT_BYTES
        data = bytes(self.slots[start : start + wc.byte_len])
        self._post(wc.wr_id)
        return data, wc

    async def send(self, data: bytes, opcode: WrOpcode = WrOpcode.SEND, **fields: Any) -> None:
        self.qp.post_send(SendWr(opcode, inline=data, **fields))
        await one(self.qp.send_cq)

    async def move(self, opcode: WrOpcode, advert: bytes) -> None:
        """RDMA with the buffer a peer has advertised as rping does: address, rkey, length."""
        address, rkey, length = struct.unpack(">QII", advert)
        self.qp.post_send(SendWr(opcode, (self.mr.sge(0, length),), remote_addr=address, rkey=rkey))
        await one(self.qp.send_cq)

    @property
    def advert(self) -> bytes:
        return struct.pack(">QII", self.mr.iova, self.mr.rkey, self.BUFFER_BYTES)


async def one(cq: Cq) -> Wc:
    (wc,) = await cq.next(1)
    return wc.raise_for_status()


def lose_first(agent: cm.Agent, attr: Attr) -> None:
    """Lose the first datagram of this kind."""
    send = agent._gsi.send
    lost = []

    def lossy(address: Address, datagram: bytes) -> None:
        if not lost and mad.parse(datagram).attr is attr:
            lost.append(attr)
        else:
            send(address, datagram)

    agent._gsi.send = lossy


# --- rping: SEND, RDMA READ and RDMA WRITE ------------------------------------------------------------------


async def serve_rping(talker: Talker, count: int) -> None:
    """The server of rping: reads what the client shows, and writes it to where the client wants it."""
    for _ in range(count):
        source, _ = await talker.recv()
        await talker.move(WrOpcode.RDMA_READ, source)
        await talker.send(talker.advert)
        sink, _ = await talker.recv()
        await talker.move(WrOpcode.RDMA_WRITE, sink)
        await talker.send(talker.advert)


async def ping(talker: Talker, number: int) -> None:
    """The client of rping: the text it shows must come back."""
    data = bytes(1 + (number + i) % 251 for i in range(talker.BUFFER_BYTES - 1)) + b"\0"
    talker.buffer[:] = data
    await talker.send(talker.advert)
    await talker.recv()
    talker.buffer[:] = bytes(len(data))
    await talker.send(talker.advert)
    await talker.recv()
    assert talker.buffer == data


@FAMILIES
def test_rping_connects_to_us(lan: Lan, run: Callable[..., None], family: int) -> None:
    async def test() -> None:
        talker = Talker()
        async with cm.listen(lan.device, OURS[family], RPING_PORT) as listener:
            client = asyncio.create_task(lan.run(f"rping -c -a {OURS[family]} -C 5 -S 4000 -v -V"))
            connection = await listener.accept(qp=talker.init)
            assert connection.remote_address[0] == GUEST[family]
            await serve_rping(talker, 5)
            await connection.wait_disconnected()
            await connection.close()
            result = await client
        assert result.rc == 0, result
        assert result.stdout.count("ping data: rdma-ping-") == 5

    run(test())


@FAMILIES
def test_we_connect_to_rping(lan: Lan, run: Callable[..., None], family: int) -> None:
    async def test() -> None:
        server = await lan.serve(f"rping -s -a {GUEST[family]} -C 5 -S 4000")
        talker = Talker()
        connection = await cm.connect(lan.device, (GUEST[family], RPING_PORT), qp=talker.init, source=OURS[family])
        for number in range(5):
            await ping(talker, number)
        await connection.close()
        assert (await lan.end_of(server)).rc == 0

    run(test())


# --- ucmatose: ten messages each way, the server first ------------------------------------------------------


def test_ucmatose_connects_to_us(lan: Lan, run: Callable[..., None]) -> None:
    async def test() -> None:
        talker = Talker()
        async with cm.listen(lan.device, OURS[4], CMATOSE_PORT) as listener:
            client = asyncio.create_task(lan.run(f"ucmatose -s {OURS[4]} -c 1 -C 10 -S 100"))
            connection = await listener.accept(qp=talker.init)
            for _ in range(10):
                await talker.send(bytes(100))
            for _ in range(10):
                assert (await talker.recv())[1].byte_len == 100
            await connection.close()
            result = await client
        assert result.rc == 0, result
        assert "data transfers complete" in result.stdout

    run(test())


def test_we_connect_to_ucmatose(lan: Lan, run: Callable[..., None]) -> None:
    """It disconnects; we answer."""

    async def test() -> None:
        server = await lan.serve("ucmatose -c 1 -C 10 -S 100")
        talker = Talker()
        connection = await cm.connect(lan.device, (GUEST[4], CMATOSE_PORT), qp=talker.init)
        for _ in range(10):
            assert (await talker.recv())[1].byte_len == 100
        for _ in range(10):
            await talker.send(bytes(100))
        await connection.wait_disconnected()
        await connection.close()
        result = await lan.end_of(server)
        assert result.rc == 0, result

    run(test())


# --- rdma_client and rdma_server: a message and its answer --------------------------------------------------


def test_rdma_client_connects_to_us(lan: Lan, run: Callable[..., None]) -> None:
    async def test() -> None:
        talker = Talker()
        async with cm.listen(lan.device, "0.0.0.0", CMATOSE_PORT) as listener:
            client = asyncio.create_task(lan.run(f"rdma_client -s {OURS[4]}"))
            connection = await listener.accept(qp=talker.init)
            assert len((await talker.recv())[0]) == 16
            await talker.send(bytes(16))
            await connection.wait_disconnected()
            await connection.close()
            result = await client
        assert result.rc == 0, result
        assert "rdma_client: end 0" in result.stdout

    run(test())


def test_we_connect_to_rdma_server(lan: Lan, run: Callable[..., None]) -> None:
    async def test() -> None:
        server = await lan.serve("rdma_server")
        talker = Talker()
        connection = await cm.connect(lan.device, (GUEST[4], CMATOSE_PORT), qp=talker.init)
        await talker.send(bytes(16))
        assert len((await talker.recv())[0]) == 16
        await connection.close()
        result = await lan.end_of(server)
        assert result.rc == 0, result
        assert "rdma_server: end 0" in result.stdout

    run(test())


# --- udaddy: datagrams --------------------------------------------------------------------------------------


class Datagrams(Talker):
    """A UD QP of ours."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        cq = device.create_cq(64)
        qp = device.alloc_pd().create_qp(QpType.UD, cq, device.create_cq(64), self.init.cap)
        qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=cm.UDP_QKEY)
        self.prepare(qp)
        qp.modify(QpState.RTR)
        qp.modify(QpState.RTS, sq_psn=0)

    def close(self) -> None:
        cqs = self.qp.send_cq, self.qp.recv_cq
        self.qp.pd.close()
        for cq in cqs:
            cq.destroy()

    async def send_to(self, ah: Ah, qpn: int, data: bytes) -> None:
        """udaddy wants the sender's QPN as immediate data."""
        await self.send(data, WrOpcode.SEND_WITH_IMM, imm=self.qp.qpn, ah=ah, dqpn=qpn, qkey=cm.UDP_QKEY)


@FAMILIES
def test_udaddy_asks_us(lan: Lan, run: Callable[..., None], family: int) -> None:
    async def test() -> None:
        ours = Datagrams(lan.device)
        bind = "-b :: " if family == 6 else ""
        async with cm.listen_datagram(lan.device, OURS[family], UDADDY_PORT) as listener:
            client = asyncio.create_task(lan.run(f"udaddy {bind}-s {OURS[family]} -c 1 -C 5 -S 100"))
            request = await listener.request()
            assert request.remote_address[0] == GUEST[family]
            request.answer(ours.qp)
            received = [await ours.recv() for _ in range(5)]
            assert {wc.byte_len for _, wc in received} == {40 + 100}
            assert {wc.imm for _, wc in received} == {wc.src_qp for _, wc in received}
            ah = ours.qp.pd.create_ah(await request.path())
            for _, wc in received:
                await ours.send_to(ah, wc.src_qp, bytes(100))
            result = await client
        assert result.rc == 0, result
        assert "return status 0" in result.stdout
        ours.close()

    run(test())


def test_we_ask_udaddy(lan: Lan, run: Callable[..., None]) -> None:
    async def test() -> None:
        ours = Datagrams(lan.device)
        server = lan.guest.spawn("udaddy -c 1 -C 5 -S 100")
        service = None
        while service is None:  # until it listens, which the guest does not show
            try:
                service = await cm.resolve(lan.device, (GUEST[4], UDADDY_PORT))
            except cm.ServiceError as error:
                assert error.status == SidrStatus.UNSUPPORTED  # noqa: PT017
                await asyncio.sleep(0.05)
        ah = ours.qp.pd.create_ah(service.ah)
        for _ in range(5):
            await ours.send_to(ah, service.qpn, bytes(100))
        for _ in range(5):
            assert (await ours.recv())[1].src_qp == service.qpn
        result = await lan.end_of(server)
        assert result.rc == 0, result
        ours.close()

    run(test())


# --- refusals, losses, ends ---------------------------------------------------------------------------------


def test_each_side_refuses(lan: Lan, run: Callable[..., None]) -> None:
    async def test() -> None:
        with pytest.raises(cm.RejectedError) as error:
            await cm.connect(lan.device, (GUEST[4], 7999))
        assert error.value.reason == Reason.INVALID_SERVICE_ID
        refused = await lan.run(f"rping -c -a {OURS[4]} -C 1")
        assert "RDMA_CM_EVENT_REJECTED, error 8" in refused.stderr
        async with cm.listen(lan.device, OURS[4], RPING_PORT) as listener:
            client = asyncio.create_task(lan.run(f"rping -c -a {OURS[4]} -C 1"))
            (await listener.request()).reject()
            assert "RDMA_CM_EVENT_REJECTED, error 28" in (await client).stderr

    run(test())


def test_a_lost_rtu(lan: Lan, run: Callable[..., None]) -> None:
    """Linux repeats its REP after 4.3 s, and gets the RTU again."""

    async def test() -> None:
        lose_first(cm.Agent.of(lan.device), Attr.RTU)
        server = await lan.serve(f"rping -s -a {GUEST[4]} -C 1 -S 4000")
        talker = Talker()
        connection = await cm.connect(lan.device, (GUEST[4], RPING_PORT), qp=talker.init)
        await ping(talker, 0)
        await connection.close()
        assert (await lan.end_of(server)).rc == 0

    run(test())


def test_a_lost_rep(lan: Lan, run: Callable[..., None]) -> None:
    """Linux repeats its REQ after 4.3 s, and gets the REP again."""

    async def test() -> None:
        lose_first(cm.Agent.of(lan.device), Attr.REP)
        talker = Talker()
        async with cm.listen(lan.device, OURS[4], RPING_PORT) as listener:
            client = asyncio.create_task(lan.run(f"rping -c -a {OURS[4]} -C 1 -S 4000 -v -V"))
            connection = await listener.accept(qp=talker.init)
            await serve_rping(talker, 1)
            await connection.wait_disconnected()
            await connection.close()
            assert (await client).rc == 0

    run(test())


def test_a_request_taken_back(lan: Lan, run: Callable[..., None]) -> None:
    """Linux is deaf, and we give up. What it then hears is a REQ and the REJ for timeout; it forgets both."""

    async def test() -> None:
        server = await lan.serve(f"rping -s -a {GUEST[4]}")
        await path_to(lan.device, Address(gid_from_ip(parse_ip(OURS[4])), gid_from_ip(parse_ip(GUEST[4]))))
        cm.Agent(lan.device, Config(response_timeout=14, packet_life_time=12, max_cm_retries=2))
        lan.guest.pause()
        with pytest.raises(cm.UnreachableError):
            await cm.connect(lan.device, (GUEST[4], RPING_PORT))
        lan.guest.resume()
        ended = await lan.end_of(server)
        assert "rdma_accept: Invalid argument" in ended.stderr or "REJECTED, error 4" in ended.stderr
        assert (await lan.run("rdma resource show cm_id")).stdout == ""

    run(test())


def test_a_program_that_is_killed(lan: Lan, run: Callable[..., None]) -> None:
    """Its kernel disconnects for it."""

    async def test() -> None:
        server = await lan.serve(f"rping -s -a {GUEST[4]} -S 4000")
        connection = await cm.connect(lan.device, (GUEST[4], RPING_PORT), qp=Talker().init)
        server.kill(signal.SIGKILL)
        await connection.wait_disconnected()
        assert connection.core.state in (State.TIMEWAIT, State.CLOSED)
        await connection.close()

    run(test())
