"""Waiting for completions: awaitable and blocking, one waiter and many, from other threads. No test waits for time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from softrnic.verbs import Cq, Device, Qp, QpState, QpType, RecvWr, Wc, WcStatus

PATIENCE = 60.0  # seconds until a test that hangs is called off


class Bench:
    """A CQ, and a QP in the error state: whatever is posted to it completes at once."""

    def __init__(self) -> None:
        self.device = Device()
        self.cq: Cq = self.device.create_cq(64)
        self.qp: Qp = self.device.alloc_pd().create_qp(QpType.UD, self.cq, self.cq)
        self.qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=0)
        self.armed = threading.Semaphore(0)  # released each time somebody is about to wait
        arm = self.cq.req_notify

        def req_notify(solicited_only: bool = False) -> None:
            arm(solicited_only)
            self.armed.release()

        self.cq.req_notify = req_notify  # type: ignore[method-assign]

    def complete(self, *wr_ids: int) -> None:
        """These receives complete, and the engine's driver hands the news on."""
        self.qp.modify(QpState.RESET)
        self.qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=0)
        self.qp.post_recv([RecvWr([], wr_id) for wr_id in wr_ids])
        self.qp.modify(QpState.ERR)
        self.device.dispatch_events()

    def when_armed(self, act: Callable[[], None]) -> threading.Thread:
        """Do this in another thread as soon as somebody waits."""

        def run() -> None:
            assert self.armed.acquire(timeout=PATIENCE)
            act()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.device.close()


def ids(completions: list[Wc]) -> list[int]:
    return [wc.wr_id for wc in completions]


def awaited(main: Callable[[], object]) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(main(), PATIENCE)  # type: ignore[arg-type]

    asyncio.run(guarded())


# --- poll -------------------------------------------------------------------------------------------------------


def test_poll_takes_what_there_is_in_order(bench: Bench) -> None:
    bench.complete(*range(20))
    assert ids(bench.cq.poll(3)) == [0, 1, 2]
    assert ids(bench.cq.poll()) == list(range(3, 19))
    assert ids(bench.cq.poll()) == [19]
    assert bench.cq.poll() == []


@pytest.mark.parametrize("count", [0, -1])
def test_poll_of_nothing(bench: Bench, count: int) -> None:
    bench.complete(1)
    assert bench.cq.poll(count) == []
    assert ids(bench.cq.poll()) == [1]


def test_raise_for_status(bench: Bench) -> None:
    """A completion says in words what went wrong."""
    bench.complete(5)
    (wc,) = bench.cq.poll()
    assert not wc.ok
    with pytest.raises(OSError, match=r"wr_id 5.*Flushed"):
        wc.raise_for_status()
    good = wc._replace(status=WcStatus.SUCCESS)
    assert good.raise_for_status() is good


# --- wait ---------------------------------------------------------------------------------------------------------


def test_wait_finds_what_is_there(bench: Bench) -> None:
    bench.complete(1, 2)
    assert ids(bench.cq.wait()) == [1, 2]
    assert not bench.armed.acquire(blocking=False)


def test_wait_in_vain(bench: Bench) -> None:
    assert bench.cq.wait(timeout=0) == []


def test_wait_is_woken(bench: Bench) -> None:
    thread = bench.when_armed(lambda: bench.complete(7))
    assert ids(bench.cq.wait(PATIENCE)) == [7]
    thread.join()


def test_completion_between_the_look_and_the_arming(bench: Bench) -> None:
    """What arrives just before the CQ is armed calls nobody; wait looks again."""
    arm = bench.cq.req_notify

    def late(solicited_only: bool = False) -> None:
        bench.complete(3)
        arm(solicited_only)

    bench.cq.req_notify = late  # type: ignore[method-assign]
    assert ids(bench.cq.wait(PATIENCE)) == [3]


def test_false_alarm(bench: Bench) -> None:
    """Being woken with nothing to fetch, because another thread was faster, is no reason to give up."""
    first = bench.when_armed(bench.cq.notified)

    def second_time() -> None:
        first.join()
        assert bench.armed.acquire(timeout=PATIENCE)
        bench.complete(9)

    second = threading.Thread(target=second_time)
    second.start()
    assert ids(bench.cq.wait(PATIENCE)) == [9]
    second.join()


# --- next -----------------------------------------------------------------------------------------------------------


def test_next_finds_what_is_there(bench: Bench) -> None:
    bench.complete(1, 2, 3)

    async def main() -> None:
        assert ids(await bench.cq.next(2)) == [1, 2]
        assert ids(await bench.cq.next()) == [3]

    awaited(main)


def test_next_is_woken(bench: Bench) -> None:
    async def main() -> None:
        task = asyncio.create_task(bench.cq.next())
        await asyncio.sleep(0)
        assert not task.done()
        bench.complete(4, 5)
        assert ids(await task) == [4, 5]

    awaited(main)


def test_next_is_woken_from_another_thread(bench: Bench) -> None:
    async def main() -> None:
        for i in range(20):
            thread = bench.when_armed(lambda i=i: bench.complete(i))
            assert ids(await bench.cq.next()) == [i]
            await asyncio.to_thread(thread.join)

    awaited(main)


def test_next_after_a_false_alarm(bench: Bench) -> None:
    async def main() -> None:
        task = asyncio.create_task(bench.cq.next())
        await asyncio.sleep(0)
        bench.cq.notified()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        bench.complete(6)
        assert ids(await task) == [6]

    awaited(main)


def test_every_completion_reaches_one_of_many_waiters(bench: Bench) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(bench.cq.next(1)) for _ in range(5)]
        await asyncio.sleep(0)
        for wr_id in range(5):
            bench.complete(wr_id)
            await asyncio.sleep(0)
        assert sorted(ids([wc for task in tasks for wc in await task])) == list(range(5))

    awaited(main)


def test_cancelled_waiter_leaves_nothing_behind(bench: Bench) -> None:
    async def main() -> None:
        gone = asyncio.create_task(bench.cq.next())
        stays = asyncio.create_task(bench.cq.next())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert len(bench.cq._waiters) == 1
        bench.complete(8)
        assert ids(await stays) == [8]
        assert bench.cq._waiters == []

    awaited(main)
