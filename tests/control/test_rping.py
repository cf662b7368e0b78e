"""rping between two of our own. The stock program: tests/interop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from softrnic.control import cm, rping, warm
from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.control.rping import Options, RpingError, ping_text

# What `rping -v -C 2` of rdma-core 56 prints.
STOCK = [
    b"rdma-ping-0: ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqr\0",
    b"rdma-ping-1: BCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrs\0",
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    warm.prepare()
    with fabric("memory") as pair:
        yield pair


def ping(hosts: tuple[Host, Host], client: Options, server: Options | None = None) -> tuple[int, list[str], list[str]]:
    """The number of pings that the server has counted, and what both have said."""
    a, b = hosts
    said: tuple[list[str], list[str]] = [], []

    async def both() -> int:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            serving = rping.serve(a.device, str(a.address), rping.PORT, server or client, said[0].append)
            served = group.create_task(serving)
            await asyncio.sleep(0)  # it listens
            await rping.call(b.device, str(a.address), rping.PORT, client, said[1].append)
        return served.result()

    return asyncio.run(both()), *said


def test_text_of_the_stock_program() -> None:
    assert [ping_text(number, 64) for number in range(2)] == STOCK
    assert ping_text(57, 64).startswith(b"rdma-ping-57: zABC")
    assert ping_text(58, 26) == b"rdma-ping-58: ABCDEFGHIJK\0"


@pytest.mark.parametrize("size", [26, 64, 5000, 65535])
def test_pings(hosts: tuple[Host, Host], size: int) -> None:
    pings, heard, back = ping(hosts, Options(size=size, count=3, validate=True))
    texts = [ping_text(number, size)[:-1].decode() for number in range(3)]
    assert pings == 3
    assert heard == [f"server ping data: {text}" for text in texts]
    assert back == [f"ping data: {text}" for text in texts]


def test_nothing_is_left_behind(hosts: tuple[Host, Host]) -> None:
    ping(hosts, Options(count=1))
    for host in hosts:
        device = host.device
        assert not any((device.qps, device.cqs, device.mrs, device.pds))


def test_text_longer_than_the_server_takes(hosts: tuple[Host, Host]) -> None:
    with pytest.raises(ExceptionGroup) as group:
        ping(hosts, Options(size=65, count=1), Options(size=64))
    # whichever of the two is noticed first
    assert group.group_contains(RpingError, match="65 bytes, ours 64|disconnected after 0 pings")


def test_damage_is_noticed(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    store = rping.Session.store

    async def store_less(session: rping.Session, there: rping.Buffer, length: int) -> None:
        await store(session, there, length - 1)

    monkeypatch.setattr(rping.Session, "store", store_less)
    assert ping(hosts, Options(count=1))[2] == ["ping data: " + STOCK[0][:-1].decode()]
    monkeypatch.setattr(rping.Session, "fetch", lambda *_: asyncio.sleep(0, STOCK[1]))
    with pytest.raises(ExceptionGroup) as group:
        ping(hosts, Options(count=1, validate=True))
    assert group.group_contains(RpingError, match="data mismatch!")


def test_many_clients(hosts: tuple[Host, Host], caplog: pytest.LogCaptureFixture) -> None:
    """A server for all, of whom one breaks the rules."""
    a, b = hosts

    async def everybody() -> list[int]:
        options = Options(count=2, validate=True)
        serving = asyncio.create_task(rping.serve_all(a.device, str(a.address), 7175, options, str))
        await asyncio.sleep(0)
        calls = [rping.call(b.device, str(a.address), 7175, options, str) for _ in range(3)]
        too_long = rping.call(b.device, str(a.address), 7175, Options(size=100, count=1), str)
        async with asyncio.timeout(20):
            *pings, refused = await asyncio.gather(*calls, too_long, return_exceptions=True)
        assert isinstance(refused, RpingError)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        return pings

    assert asyncio.run(everybody()) == [2, 2, 2]
    assert "100 bytes, ours 64" in caplog.text


@pytest.mark.parametrize("size", [25, 65536])
def test_sizes_that_rping_refuses(size: int) -> None:
    with pytest.raises(RpingError, match=f"Invalid size {size}"):
        Options(size=size)


def test_nobody_listens(hosts: tuple[Host, Host]) -> None:
    a, b = hosts

    async def elsewhere() -> None:
        async with cm.listen(a.device, str(a.address), 7175):
            await rping.call(b.device, str(a.address), rping.PORT, Options(count=1), str)

    with pytest.raises(cm.RejectedError):
        asyncio.run(elsewhere())


def test_farewell_leaves_before_the_loop_ends(hosts: tuple[Host, Host]) -> None:
    """A program that closes its connection and is over: its peer need not wait for what it was owed."""
    a, b = hosts

    async def serve() -> None:
        async with cm.listen(a.device, str(a.address), 7176) as listener:
            connection = await listener.accept()
            await connection.wait_disconnected()
            await connection.close()

    async def call() -> None:
        connection = await cm.connect(b.device, (str(a.address), 7176))
        async with asyncio.timeout(3):
            await connection.disconnect()
        await connection.close()

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(asyncio.run, serve())
        asyncio.run(call())
        served.result()
