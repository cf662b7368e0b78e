"""A function moves between two hosts while its peer writes and reads: whatever happens, one of them runs it."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softrnic.control.migration import (
    Arrivals,
    CancelledMoveError,
    InDoubtError,
    Link,
    NotMovedError,
    listen_unix,
)
from softrnic.errors import StateError
from softrnic.migrate.commit import Source
from softrnic.migrate.precopy import Decision, Limits, Round, Step
from softrnic.migrate.stream import Piece
from softrnic.verbs import QpType
from tests.control.moving import (
    ACCESS,
    TAIL,
    Proxy,
    Recorder,
    Room,
    Scribbler,
    Traffic,
    departure,
    destination,
    is_empty,
    scene,
    scribbler,
)

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]


def run(story: Any) -> Any:
    return asyncio.run(story)


@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_moves(policy: str, tmp_path: Path) -> None:
    async def story() -> None:
        with scene() as made:
            owner = Recorder()
            async with destination(made, tmp_path / "there"):
                await made.traffic.some()
                report = await departure(made, tmp_path / "there", owner=owner, policy=policy).run()
                await made.traffic.some()
            made.check_moved()
            assert owner.said == ["pause", "gone"]
            assert made.room.arrivals[0].opaque == b"from the owner"
            assert report.downtime_ns > 0
            assert report.pages[0] == 16

    run(story())


def test_nobody_there(tmp_path: Path) -> None:
    async def story() -> None:
        with scene() as made:
            with pytest.raises(NotMovedError, match="cannot be reached"):
                await departure(made, tmp_path / "nowhere", reconnect_seconds=0.1).run()
            await made.traffic.some()
            made.check_stayed()

    run(story())


# --- broken connections, second thoughts ----------------------------------------------------------------------


async def undisturbed(tmp_path: Path) -> int:
    """Messages of a move that goes well."""
    with scene() as made:
        proxy = Proxy(tmp_path / "there", -1, "cut")
        async with destination(made, tmp_path / "there"), proxy.listening(tmp_path / "proxy"):
            await departure(made, tmp_path / "proxy").run()
            await made.traffic.some(1)
        made.check_moved()
        return proxy.count


def test_cut_after_every_message(tmp_path: Path) -> None:
    """The connection is made again, and the function moves, whatever was lost with the old one."""

    async def story(after: int) -> bool:
        with scene() as made:
            there, between = tmp_path / f"there{after}", tmp_path / f"proxy{after}"
            proxy = Proxy(there, after, "cut")
            async with destination(made, there), proxy.listening(between):
                await made.traffic.some(1)
                owner = Recorder()
                report = await departure(made, between, owner=owner).run()
                await made.traffic.some(2)
            made.check_moved()
            assert owner.said[-2:] == ["pause", "gone"]
            assert report.reconnects == 1 or proxy.count < after or proxy.names[after - 1] in ("Runs", "Complete")
            return proxy.count >= after

    after = 1
    while run(story(after)):
        after += 1
    assert after > 10


@pytest.mark.parametrize("how", ["cancel", "task"])
def test_cancelled_after_every_message(how: str, tmp_path: Path) -> None:
    """Either it stays, and nothing is left of it at the destination, or it was too late."""

    async def story(after: int) -> bool:
        with scene() as made:
            there, between = tmp_path / f"there{after}", tmp_path / f"proxy{after}"
            too_late: list[StateError] = []

            def cancel() -> None:
                if how == "task" and leaving.state is not Source.COMMITTED:
                    task.cancel()
                    return
                try:
                    leaving.cancel()
                except StateError as error:
                    too_late.append(error)

            proxy = Proxy(there, after, cancel)
            async with destination(made, there, orphan_seconds=0.05) as arrivals, proxy.listening(between):
                await made.traffic.some(1)
                leaving = departure(made, between)
                task = asyncio.create_task(leaving.run())
                try:
                    await task
                    moved = True
                except (CancelledMoveError, asyncio.CancelledError):
                    moved = False
                await made.traffic.some(2)
                async with asyncio.timeout(10):
                    while not moved and arrivals.incoming:
                        await asyncio.sleep(0.01)
            (made.check_moved if moved else made.check_stayed)()
            assert moved or not too_late
            return moved

    count = run(undisturbed(tmp_path))
    outcomes = [run(story(after)) for after in range(1, count)]
    assert outcomes == sorted(outcomes)  # first it stays, from some message on it is too late
    assert {*outcomes} == {False, True}


@pytest.mark.parametrize("after", ["Challenge", "Hello", "Welcome", "Pages", "Ack", "State", "Ready", "Commit"])
def test_the_destination_is_restarted(after: str, tmp_path: Path) -> None:
    """Before COMMIT the move begins anew. After it, nobody but a person can know."""

    async def story() -> str:
        with scene() as made:
            there, between = tmp_path / "there", tmp_path / "proxy"
            arrivals = [Arrivals(made.room)]

            async def door(link: Link) -> None:
                await arrivals[-1](link)

            def restart() -> None:
                """Another process on another host, and the old one is no more."""
                proxy.cut()
                made.nics[2].close()
                made.room = Room(made.nics[3])
                arrivals.append(Arrivals(made.room))

            proxy = Proxy(there, after, restart)
            async with listen_unix(door, there), proxy.listening(between):
                leaving = departure(made, between)
                try:
                    await leaving.run()
                    await made.traffic.some(2)
                    made.check_moved()
                    return "moved"
                except InDoubtError:
                    assert leaving.state is Source.COMMITTED
                    with pytest.raises(StateError):
                        leaving.cancel()
                    leaving.decide(here=True)
                    await made.traffic.some(2)
                    made.check_stayed()
                    return "in doubt"

    assert run(story()) == ("in doubt" if after in ("Ready", "Commit") else "moved")


def test_limits_of_patience(tmp_path: Path) -> None:
    """A destination that vanishes after COMMIT, and stays away."""

    async def story() -> None:
        with scene() as made:
            there, between = tmp_path / "there", tmp_path / "proxy"
            async with contextlib.AsyncExitStack() as stack:
                vanishing = contextlib.AsyncExitStack()
                await vanishing.enter_async_context(destination(made, there))

                def vanish() -> None:
                    proxy.cut()
                    there.unlink()

                proxy = Proxy(there, "Commit", vanish)
                await stack.enter_async_context(proxy.listening(between))
                leaving = departure(made, between, reconnect_seconds=0.2)
                with pytest.raises(InDoubtError, match="told the destination"):
                    await leaving.run()
                await vanishing.aclose()
            assert leaving.state is Source.COMMITTED
            assert made.source.qps

    run(story())


# --- memory that comes afterwards -----------------------------------------------------------------------------

LATER = Limits(postcopy=True)
BIG = 4 << 20


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast memory is sent and slowly written: what is left after the first round comes afterwards."""

    def decide(rounds: list[Round], limits: Limits, fixed_ns: int) -> Decision:
        return Decision(Step.POSTCOPY if limits.postcopy else Step.SWITCH, fixed_ns, "asked for")

    monkeypatch.setattr("softrnic.control.migration.source.decide", decide)


@pytest.mark.usefixtures("later")
def test_postcopy(tmp_path: Path) -> None:
    """The function runs before its memory is there; what its peer needs is asked for, and comes first."""

    async def story() -> None:
        with scene(BIG) as made:
            async with destination(made, tmp_path / "there"):
                await made.traffic.some()
                report = await departure(made, tmp_path / "there", limits=LATER, owner=scribbler(made)).run()
                await made.traffic.some()
                (arrival,) = made.room.completed
                assert arrival is made.room.started[0]
            made.check_moved()
            assert 0 < report.postcopy_pages <= BIG // 4096
            assert made.room.device.counters()["page_faults"] >= report.demanded_pages

    run(story())


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("after", ["Missing", "State", "Ready", "Commit", "Runs", "Pages", 40, 60, 80])
def test_postcopy_cut(after: str | int, tmp_path: Path) -> None:
    """The connection breaks before, while and after the rest of the memory comes; late pages spoil nothing."""

    async def story() -> None:
        with scene(BIG) as made:
            proxy = Proxy(tmp_path / "there", after, "cut")
            async with destination(made, tmp_path / "there"), proxy.listening(tmp_path / "proxy"):
                await made.traffic.some(1)
                await departure(made, tmp_path / "proxy", limits=LATER, owner=scribbler(made)).run()
                await made.traffic.some(3)
                async with asyncio.timeout(10):
                    while not made.room.completed:
                        await asyncio.sleep(0.005)
            made.check_moved()

    run(story())


@pytest.mark.usefixtures("later")
def test_postcopy_faults_while_nothing_comes(tmp_path: Path) -> None:
    """The source stops sending after the switch; the peer needs a page; the connection is made again, and it comes."""

    async def story() -> None:
        with scene(BIG) as made:
            there, between = tmp_path / "there", tmp_path / "proxy"
            proxy = Proxy(there, "Runs", "cut")
            async with destination(made, there) as arrivals, proxy.listening(between):
                await made.traffic.some(1)
                task = asyncio.create_task(departure(made, between, limits=LATER, owner=scribbler(made)).run())
                report = await task
                await made.traffic.some(3)
                (incoming,) = arrivals.incoming
                assert report.demanded_pages <= report.postcopy_pages
                assert not any(bits.any() for bits in incoming.missing)
            made.check_moved()
            assert report.reconnects >= 1

    run(story())


@pytest.mark.usefixtures("later")
def test_no_postcopy_where_memory_is_not_aligned(tmp_path: Path) -> None:
    class Crooked(Room):
        def allocate(self, piece: Piece) -> memoryview:
            return memoryview(mmap.mmap(-1, piece.length + 8))[8:]

    async def story() -> None:
        with scene(BIG) as made:
            made.room = Crooked(made.nics[2])
            async with destination(made, tmp_path / "there"):
                with pytest.raises(NotMovedError, match="not page-aligned"):
                    await departure(made, tmp_path / "there", limits=LATER, owner=scribbler(made)).run()
                await made.traffic.some()
            made.check_stayed()

    run(story())


# --- guest memory ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("limits", [None, LATER], ids=["precopy", "postcopy"])
def test_regions_of_an_address_space(limits: Limits | None, tmp_path: Path) -> None:
    """A region over two slots and a gap of their addresses, as a guest's memory has them."""

    async def story() -> None:
        with scene() as made:
            made.traffic.stop()
            device, pd = made.source, made.moving.pd
            space = device.create_space()
            low, high = mmap.mmap(-1, BIG), mmap.mmap(-1, BIG)
            space.add_slot(0x1000_0000, low)
            space.add_slot(0x4000_0000, high)
            half = BIG // 2
            ranges = [(0x1000_0000, half), (0x4000_0000, half)]
            mr = pd.reg_physical_mr(space, 0x7000, ranges, ACCESS)
            made.traffic = Traffic(made.peer, mr)
            async with destination(made, tmp_path / "there"):
                await made.traffic.some()
                owner = Scribbler(np.frombuffer(low, np.uint8), np.zeros(TAIL, np.uint8))
                report = await departure(made, tmp_path / "there", limits=limits, owner=owner).run()
                await made.traffic.some()
            made.traffic.stop()
            (arrival,) = made.room.started
            lower, upper = arrival.memory["space 0 at 0x10000000"], arrival.memory["space 0 at 0x40000000"]
            assert np.array_equal(np.concatenate((lower[:half], upper[:half])), made.traffic.image)
            assert is_empty(made.source)
            assert report.sketched
            assert (report.postcopy_pages > 0) == (limits is not None)

    run(story())


# --- objects that change meanwhile ----------------------------------------------------------------------------


def test_a_queue_pair_made_after_the_sketch(tmp_path: Path) -> None:
    """Another sketch is drawn, before the pause or, if it was noticed in the pause only, after that was ended."""

    async def story(step: str) -> None:
        with scene() as made:
            leaving = departure(made, tmp_path / step, owner=(owner := Recorder()))
            honest = getattr(leaving, step)
            done: list[bool] = []

            async def meddle(*args: Any, **kwargs: Any) -> Any:
                result = await honest(*args, **kwargs)
                if not done:
                    done.append(True)
                    made.moving.pd.create_qp(QpType.RC, made.moving.cq, made.moving.cq)
                return result

            setattr(leaving, step, meddle)
            async with destination(made, tmp_path / step):
                await made.traffic.some()
                report = await leaving.run()
                await made.traffic.some()
                assert report.sketched
                assert len(made.room.started[0].restored.qps) == 2
            made.check_moved()
            assert owner.said == (["pause", "gone"] if step == "_copy" else ["pause", "resume", "pause", "gone"])

    for step in ("_copy", "_suspend"):
        run(story(step))


def test_objects_that_change_all_the_time(tmp_path: Path) -> None:
    async def story() -> None:
        with scene() as made:
            leaving = departure(made, tmp_path / "there")
            honest = leaving._copy

            async def meddle(*args: Any) -> bool:
                made.moving.pd.create_qp(QpType.RC, made.moving.cq, made.moving.cq)
                return await honest(*args)

            leaving._copy = meddle  # type: ignore[method-assign]
            async with destination(made, tmp_path / "there"):
                report = await leaving.run()
                await made.traffic.some()
                assert not report.sketched
                assert len(made.room.started[0].restored.qps) == 1 + 6
            made.check_moved()

    run(story())
