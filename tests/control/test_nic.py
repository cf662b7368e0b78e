"""A NIC in real time: who may touch the engine when, what wakes it, and what is left when it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netio.fault import FaultPort, Faults
from netio.middleware import Middleware
from netio.port import Port
from softrnic.control.fabric import fabric
from softrnic.control.nic import active_mtu
from softrnic.control.pair import Endpoint, endpoint
from softrnic.control.pair import connect_pair as join
from softrnic.counters import C
from softrnic.errors import IoError
from softrnic.verbs import Access, Qp, QpState, RecvWr, SendWr, VerbsError, WcStatus, WrOpcode

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]  # the first one compiles

Ends = tuple[Endpoint, Endpoint]
RIGHTS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
SECONDS = 30.0  # more than anything here takes


def ends(wrap: Callable[[Port], Port] | None = None, *, spin_ns: int = 50_000, **attributes: int) -> Iterator[Ends]:
    """A connected pair in memory, both ports in `wrap`."""
    with fabric("memory", wrap=(wrap, wrap), spin_ns=spin_ns) as hosts:
        a, b = (endpoint(host) for host in hosts)
        join(a.qp, b.qp, **attributes)
        yield a, b


@pytest.fixture(params=["bare", "wrapped", "bare, no spinning", "bare, no sleeping"])
def pair(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Over the compiled loop, over the one in Python, always about to sleep, and never."""
    wrap = Middleware if request.param == "wrapped" else None
    spin_ns = {"bare, no spinning": 0, "bare, no sleeping": 1_000_000_000}.get(request.param, 50_000)
    yield from ends(wrap, spin_ns=spin_ns)


def send(a: Endpoint, b: Endpoint, text: bytes) -> bytes:
    """Send a short text; what arrived."""
    inbox = bytearray(64)
    with b.pd.reg_mr(inbox) as region:
        b.qp.post_recv(RecvWr([region.sge()]))
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=text))
        (done,) = b.cq.wait(SECONDS)
        (sent,) = a.cq.wait(SECONDS)
    assert done.ok
    assert sent.ok
    return bytes(inbox[: done.byte_len])


# --- what the device learns from its port ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "path"),
    [(65535, 4096), (4200, 4096), (4188, 4096), (4187, 2048), (1500, 1024), (1115, 512), (576, 256), (100, 256)],
)
def test_active_mtu(link: int, path: int) -> None:
    """The largest whose packets, with all headers over IPv6, fit the link."""
    assert active_mtu(link) == path


def test_device_knows_its_port(pair: Ends) -> None:
    device, port = pair[0].host.device, pair[0].host.port
    assert device.port.active_mtu == active_mtu(port.mtu)
    assert device.record["max_frame"] == port.caps.max_frame
    assert device.fixed_sport == port.fixed_sport


# --- moving data ----------------------------------------------------------------------------------------------


def test_messages_both_ways(pair: Ends) -> None:
    """One at a time, so that each finds the other side asleep or about to be."""
    a, b = pair
    for i in range(20):
        text = b"message %d" % i
        assert send(a, b, text) == text
        assert send(b, a, text) == text


def test_completions_wake_tasks_in_an_event_loop(pair: Ends) -> None:
    a, b = pair
    inbox = b.pd.reg_mr(bytearray(64))

    async def receive() -> list[int]:
        got: list[int] = []
        while len(got) < 10:
            got += [wc.imm for wc in await b.cq.next() if wc.ok]
        return got

    async def work() -> list[int]:
        b.qp.post_recv([RecvWr([inbox.sge()])] * 10)
        task = asyncio.create_task(receive())
        for i in range(10):
            await asyncio.sleep(0)
            a.qp.post_send(SendWr(WrOpcode.SEND_WITH_IMM, inline=b"x", imm=i))
            await a.cq.next()
        return await task

    assert asyncio.run(asyncio.wait_for(work(), SECONDS)) == list(range(10))


def test_queues_posted_from_several_threads(pair: Ends) -> None:
    """One thread per queue, all of one device."""
    a, b = pair
    lanes = [(endpoint(a.host), endpoint(b.host)) for _ in range(4)]
    for near, far in lanes:
        join(near.qp, far.qp)
    failures: list[object] = []

    def use(number: int) -> None:
        for i in range(20):
            text = b"lane %d message %d" % (number, i)
            if send(*lanes[number], text) != text:
                failures.append((number, i))

    threads = [threading.Thread(target=use, args=(n,)) for n in range(len(lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- standing still -------------------------------------------------------------------------------------------


def test_nothing_moves_while_quiesced(pair: Ends) -> None:
    a, b = pair
    region = b.pd.reg_mr(bytearray(64))
    b.qp.post_recv(RecvWr([region.sge()]))
    with a.host.device.quiesced():
        before = a.host.device.counter(C.SENT_PKTS)
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"held back"))
        assert a.cq.wait(0.05) == []  # many times as long as it takes otherwise
        assert a.host.device.counter(C.SENT_PKTS) == before
    assert a.cq.wait(SECONDS)[0].ok
    assert b.cq.wait(SECONDS)[0].wc_flags == 0


def test_quiesced_within_quiesced(pair: Ends) -> None:
    """For the thread that has the engine stand still it goes on doing so; another waits for the outermost to end."""
    a, b = pair
    got: list[str] = []

    def other() -> None:
        with a.host.device.quiesced():
            got.append("other")

    with a.host.device.quiesced():
        with a.host.device.quiesced():
            got.append("inner")
        thread = threading.Thread(target=other)
        thread.start()
        before = a.host.device.counter(C.SENT_PKTS)
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"waits"))
        thread.join(0.05)
        got.append("outer")
        assert a.host.device.counter(C.SENT_PKTS) == before
    thread.join(SECONDS)
    assert got == ["inner", "outer", "other"]
    inbox = bytearray(64)
    with b.pd.reg_mr(inbox) as region:
        b.qp.post_recv(RecvWr([region.sge()]))
        assert b.cq.wait(SECONDS)[0].ok


def test_standing_still_among_traffic(pair: Ends) -> None:
    """Objects come and go on both devices while data flows: nobody waits for ever, nothing is lost."""
    a, b = pair
    target = b.pd.reg_mr(bytearray(1 << 16), RIGHTS)
    source = a.pd.reg_mr(bytearray(os.urandom(1 << 16)))
    over = threading.Event()

    def come_and_go(end: Endpoint) -> None:
        while not over.is_set():
            with end.pd.reg_mr(bytearray(100)), end.host.device.create_cq(16):
                pass

    threads = [threading.Thread(target=come_and_go, args=(end,)) for end in pair]
    for thread in threads:
        thread.start()
    try:
        for i in range(100):
            a.qp.post_send(
                SendWr(WrOpcode.RDMA_WRITE, [source.sge()], i, remote_addr=target.iova, rkey=target.rkey)
            )
            (done,) = a.cq.wait(SECONDS)
            assert (done.wr_id, done.status) == (i, WcStatus.SUCCESS)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_middleware_has_no_compiled_pump() -> None:
    for a, _ in ends(Middleware):
        with pytest.raises(IoError) as refused:
            a.host.nic.parts()
        assert refused.value.errno == errno.EOPNOTSUPP


# --- time -----------------------------------------------------------------------------------------------------


def silent(port: Port) -> Port:
    """A port whose every packet is lost."""
    return FaultPort(port, tx=Faults(loss=1.0))


@pytest.mark.parametrize("wrap", [None, silent], ids=["peer gone", "wire cut"])
def test_timers_run_while_nothing_else_happens(wrap: Callable[[Port], Port] | None) -> None:
    """Eight local ACK timeouts of 8 ms, most of them asleep, end in RETRY_EXC_ERR."""
    for a, b in ends(wrap, timeout=11):
        if wrap is None:
            b.host.nic.close()
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"anybody?"))
        (done,) = a.cq.wait(SECONDS)
        assert done.status == WcStatus.RETRY_EXC_ERR
        assert a.qp.state == QpState.ERR
        assert a.host.device.counter(C.LOCAL_ACK_TIMEOUT_ERR) >= 8


# --- the end --------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def nics() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nic-")]


@pytest.mark.parametrize("wrap", [None, Middleware], ids=["bare", "wrapped"])
def test_closing_gives_everything_back(wrap: Callable[[Port], Port] | None) -> None:
    """Threads and descriptors, with work outstanding; and twice is not too often."""
    for _ in ends(wrap):
        pass  # whatever is opened once and kept for good
    before = descriptors()
    for a, b in ends(wrap):
        assert nics() == ["nic-sr0", "nic-sr1"]
        b.host.nic.close()
        a.qp.post_send([SendWr(WrOpcode.SEND, inline=b"lost")] * 10)
        a.host.close()
        a.host.close()
        a.host.nic.close()
    assert nics() == []
    assert descriptors() == before


def test_a_device_outlives_its_port(pair: Ends) -> None:
    """Off the wire, work waits and objects can still be destroyed."""
    a, _ = pair
    a.host.nic.close()
    a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"later"))
    assert a.cq.poll() == []
    with a.host.device.quiesced():
        pass
    a.qp.destroy()
    with pytest.raises(VerbsError):
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"never"))


def test_asynchronous_events_are_collected(pair: Ends) -> None:
    """A remote access error is an event at the responder, whose NIC nobody asks anything."""
    a, b = pair
    region = b.pd.reg_mr(bytearray(64), Access.LOCAL_WRITE)
    a.qp.post_send(SendWr(WrOpcode.RDMA_WRITE, inline=b"x", remote_addr=region.iova, rkey=region.rkey))
    assert a.cq.wait(SECONDS)[0].status == WcStatus.REM_ACCESS_ERR
    event = until(b.host.device.get_async_event)
    while not (isinstance(event.element, Qp) and event.type.name == "QP_ACCESS_ERR"):
        event = until(b.host.device.get_async_event)
    assert event.element is b.qp


def until(ask: Callable[[], Any]) -> Any:
    """The first answer that is not None; the test's own timeout ends a vain wait."""
    while (answer := ask()) is None:
        os.sched_yield()
    return answer
