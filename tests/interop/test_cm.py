"""Connections by the communication manager, with the programs of librdmacm: rping, rdma_server and rdma_client,
ucmatose, udaddy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest

from softrnic.control import cm, rping
from softrnic.control.host import Host
from softrnic.control.rping import ping_text
from softrnic.spec import WcStatus, WrOpcode
from softrnic.verbs import Access, AhAttr, Mr, Pd, QpCap, QpState, QpType, RecvWr, SendFlags, SendWr
from tests.interop.conftest import Case
from tests.interop.lab import GUEST, MARKS, MTU, OURS
from tools.vmlib import Result

SECTION = "librdmacm"
pytestmark = MARKS

T = TypeVar("T")
ROLES = ["serve", "call"]
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
SECONDS = 30
GRH_BYTES = 40


async def beside(case: Case, ours: Coroutine[Any, Any, T], command: str) -> tuple[T, Result]:
    """Our server, and a client in the guest."""
    async with asyncio.timeout(SECONDS):
        serving = asyncio.create_task(ours)
        await asyncio.sleep(0)  # it listens
        with await asyncio.to_thread(case.guest.spawn, command) as process:
            return await serving, await asyncio.to_thread(process.wait)


def against(case: Case, ours: Coroutine[Any, Any, T], command: str) -> tuple[T, Result]:
    """Our client, and a server in the guest."""

    async def limited() -> T:
        async with asyncio.timeout(SECONDS):
            return await ours

    with case.lab.server(command, port=None) as process:
        return asyncio.run(limited()), process.wait()


# --- rping --------------------------------------------------------------------------------------------------


def ping(case: Case, host: Host, role: str, version: int, size: int, count: int = 4) -> list[str]:
    """The texts that came to us."""
    said: list[str] = []
    options = rping.Options(size=size, count=count, validate=True)
    flags = f"-C {count} -S {size} -v -V"
    if role == "serve":
        ours = rping.serve(host.device, OURS[version], rping.PORT, options, said.append)
        pings, ended = asyncio.run(beside(case, ours, f"rping -c -a {OURS[version]} {flags}"))
        assert ended.stdout.count("ping data: rdma-ping-") == count
    else:
        ours = rping.call(host.device, GUEST[version], rping.PORT, options, said.append)
        pings, ended = against(case, ours, f"rping -s -a {GUEST[version]} {flags}")
        assert ended.stdout.count("server ping data: rdma-ping-") == count
    assert pings == count
    assert ended.rc == 0
    return [text.partition("ping data: ")[2] for text in said]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", [64, 65535])
@VERSIONS
def test_rping(case: Case, version: int, size: int, role: str) -> None:
    case.lab.set_mtu(MTU)
    with case.host() as host:
        texts = ping(case, host, role, version, size)
    assert texts == [ping_text(number, size)[:-1].decode() for number in range(4)]


# --- rdma_server and rdma_client: 16 bytes there, 16 back ---------------------------------------------------


class Letters:
    """Messages of one size that come and go over a connected queue pair. `init` is what its QP is made with."""

    def __init__(self, pd: Pd, size: int, count: int) -> None:
        self.size = size
        self.count = count
        self._room = np.zeros(2 * size, np.uint8)
        self._mr: Mr = pd.reg_mr(self._room, Access.LOCAL_WRITE)
        self.init = cm.QpInit(pd=pd, cap=QpCap(count, count), prepare=self._post)

    def _post(self, qp: Any) -> None:
        qp.post_recv([RecvWr([self._mr.sge(0, self.size)])] * self.count)

    async def receive(self, connection: cm.Connection) -> None:
        """All of them."""
        received = 0
        while received < self.count:
            for wc in await connection.recv_cq.next():
                assert (wc.status, wc.byte_len) == (WcStatus.SUCCESS, self.size)
                received += 1

    async def send(self, connection: cm.Connection) -> None:
        """As many back, and until they have been acknowledged."""
        sge, sent = self._mr.sge(self.size, self.size), 0
        connection.qp.post_send([SendWr(WrOpcode.SEND, [sge])] * self.count)
        while sent < self.count:
            for wc in await connection.send_cq.next():
                assert wc.status == WcStatus.SUCCESS
                sent += 1


async def serve_letters(host: Host, letters: Letters, port: int, *, first: bool, clients: int = 1) -> None:
    """`first`: our messages come before the client's, and we are the first to hang up."""
    async with cm.listen(host.device, OURS[4], port) as listener:
        await exchange([await listener.accept(qp=letters.init) for _ in range(clients)], letters, first=first)


async def call_letters(host: Host, letters: Letters, port: int, *, first: bool, connections: int = 1) -> None:
    """`first`: our messages come before the server's, and we are the first to hang up."""
    made = [await cm.connect(host.device, (GUEST[4], port), qp=letters.init) for _ in range(connections)]
    await exchange(made, letters, first=first)


async def exchange(connections: list[cm.Connection], letters: Letters, *, first: bool) -> None:
    """Each step on all connections before the next."""
    for step in (letters.send, letters.receive) if first else (letters.receive, letters.send):
        for connection in connections:
            await step(connection)
    for connection in connections:
        if not first:
            await connection.wait_disconnected()
        await connection.close()


@pytest.mark.parametrize("role", ROLES)
def test_rdma_server_and_client(case: Case, role: str) -> None:
    with case.host() as host, host.device.alloc_pd() as pd:
        letters = Letters(pd, 16, 1)
        if role == "serve":
            ours = serve_letters(host, letters, 7471, first=False)
            _, ended = asyncio.run(beside(case, ours, f"rdma_client -s {OURS[4]}"))
        else:
            _, ended = against(case, call_letters(host, letters, 7471, first=True), "rdma_server")
    assert ended.rc == 0
    assert "end 0" in ended.stdout


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("connections", [1, 5], ids=["1 connection", "5 connections"])
def test_ucmatose(case: Case, connections: int, role: str) -> None:
    with case.host() as host, host.device.alloc_pd() as pd:
        letters = Letters(pd, 3000, 10)
        flags = f"-c {connections} -C 10 -S 3000"
        if role == "serve":
            ours = serve_letters(host, letters, 7471, first=True, clients=connections)
            _, ended = asyncio.run(beside(case, ours, f"ucmatose -s {OURS[4]} {flags}"))
        else:
            ours = call_letters(host, letters, 7471, first=False, connections=connections)
            _, ended = against(case, ours, f"ucmatose {flags}")
    assert ended.rc == 0
    assert "data transfers complete" in ended.stdout
    assert "return status 0" in ended.stdout


# --- nobody there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_nobody_listens(case: Case, role: str) -> None:
    """Whoever calls is told so."""
    with case.host() as host:
        if role == "serve":

            async def elsewhere() -> Result:
                async with cm.listen(host.device, OURS[4], 9), asyncio.timeout(SECONDS):
                    return await asyncio.to_thread(case.guest.run, f"rping -c -a {OURS[4]} -C 1")

            ended = asyncio.run(elsewhere())
            assert ended.rc != 0
            # ECONNREFUSED for rdma_cm: the reason of the REJ, "invalid service ID"
            assert "RDMA_CM_EVENT_REJECTED, error 8" in ended.stderr
        else:
            with pytest.raises(cm.RejectedError, match="INVALID_SERVICE_ID"):
                asyncio.run(rping.call(host.device, GUEST[4], 9, rping.Options(count=1), str))


# --- udaddy: datagrams to a QP found by service id ----------------------------------------------------------


class Datagrams:
    """A UD QP for messages with room for the GRH before each."""

    def __init__(self, host: Host, pd: Pd, size: int, count: int) -> None:
        self.size = size
        self.count = count
        self.cq = host.device.create_cq(4 * count)
        self.qp = pd.create_qp(QpType.UD, self.cq, self.cq, QpCap(count, count))
        self.room = np.zeros(GRH_BYTES + size, np.uint8)
        self.mr = pd.reg_mr(self.room, Access.LOCAL_WRITE)
        self.qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=cm.UDP_QKEY)
        self.qp.post_recv([RecvWr([self.mr.sge()], wr_id=1)] * count)
        self.qp.modify(QpState.RTR)
        self.qp.modify(QpState.RTS, sq_psn=1)
        self._pd = pd

    async def receive(self) -> int:
        """All of them; the immediate data of the last: udaddy puts the sender's QPN there."""
        imm = received = 0
        while received < self.count:
            for wc in await self.cq.next():
                assert wc.status == WcStatus.SUCCESS
                if wc.wr_id == 1:
                    assert wc.byte_len == GRH_BYTES + self.size
                    received, imm = received + 1, wc.imm
                    assert wc.src_qp == imm
        return imm

    def send(self, path: Any, dqpn: int, qkey: int) -> None:
        """As many, telling our QPN."""
        ah = self._pd.create_ah(path)
        sge = self.mr.sge(GRH_BYTES, self.size)
        wr = SendWr(
            WrOpcode.SEND_WITH_IMM, [sge], flags=SendFlags(0), imm=self.qp.qpn, ah=ah, dqpn=dqpn, qkey=qkey
        )  # fmt: skip
        self.qp.post_send([wr] * self.count)


@pytest.mark.parametrize("role", ROLES)
@VERSIONS
def test_udaddy(case: Case, version: int, role: str) -> None:
    async def serve(host: Host, datagrams: Datagrams) -> None:
        async with cm.listen_datagram(host.device, OURS[version], 7174) as listener:
            request = await listener.request()
            request.answer(datagrams.qp)
            dqpn = await datagrams.receive()
            own = next(gid.index for gid in host.device.gids.values() if gid.ip.version == version)
            datagrams.send(AhAttr(GUEST[version], own), dqpn, cm.UDP_QKEY)

    async def call(host: Host, datagrams: Datagrams) -> None:
        service = await cm.resolve(host.device, (GUEST[version], 7174))
        datagrams.send(service.ah, service.qpn, service.qkey)
        await datagrams.receive()

    with case.host() as host, host.device.alloc_pd() as pd:
        datagrams = Datagrams(host, pd, 100, 10)
        if role == "serve":
            _, ended = asyncio.run(beside(case, serve(host, datagrams), f"udaddy -s {OURS[version]}"))
        else:
            _, ended = against(case, call(host, datagrams), f"udaddy -b {GUEST[version]}")
    assert ended.rc == 0
    assert "return status 0" in ended.stdout
