"""The source: copies memory while the function runs, pauses it, hands it over, and forgets it.

Whatever goes wrong before COMMIT leaves the function running here as if nothing had happened; a broken connection is
made again, and goes on where it was. After COMMIT the destination decides (softrnic/migrate/commit.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from softrnic.control import warm
from softrnic.control.migration.connect import Dial
from softrnic.control.migration.link import Link, LinkLostError
from softrnic.control.migration.memory import SentMemory, stretches_of
from softrnic.control.migration.owner import Owner
from softrnic.control.migration.report import CancelledMoveError, InDoubtError, NotMovedError, Progress, Report
from softrnic.errors import SoftRnicError, StateError
from softrnic.migrate import pages, save, stream
from softrnic.migrate.commit import Event, Source, Target, source_after
from softrnic.migrate.postcopy import PageOrder
from softrnic.migrate.precopy import Limits, Round, Step, bandwidth, decide, downtime
from softrnic.migrate.sketch import Sketch, draw
from softrnic.verbs import Device

log = logging.getLogger(__name__)

FIXED_NS = 5_000_000  # of a pause, apart from memory, before anything was measured
SETTLE_SECONDS = 2.0
AGAIN_SECONDS = 0.05  # before the connection is made again, at first
SKETCHES = 5  # drawn, until one is still true when the pause comes
_SYNC_EVERY = 64  # messages with memory between two acknowledgements


class Departure:
    """One move of one function. `run` may be awaited once; `cancel` and `progress` are for others meanwhile."""

    def __init__(
        self, device: Device, dial: Dial, *, owner: Owner | None = None, limits: Limits | None = None,
        policy: str = "silence", name: str = "", reconnect_seconds: float = 30.0,
        on_progress: Callable[[Progress], None] | None = None, leave: Callable[[bytes], None] | None = None,
    ) -> None:  # fmt: skip
        """`leave` is told the MAC of the destination's host when nothing of the function shall stay here any more."""
        self.device = device
        self.name = name or device.name
        self.owner = owner or Owner()
        self.limits = limits or Limits()
        self.policy = policy
        self.state = Source.RUNNING
        self.progress = Progress()
        self.report = Report()
        self._dial = dial
        self._patience = reconnect_seconds
        self.on_progress = on_progress or (lambda _: None)
        self._leave_to = leave or self._clear
        self._ident = secrets.token_bytes(16)
        self._instance = b""  # of the destination that COMMIT was sent to
        self._mac = b""
        self._cancelled = False
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        stretches, self._names = stretches_of(device)
        self._memory = [SentMemory(stretch) for stretch in stretches]
        self._orders: list[PageOrder] = []  # after the switch
        self._in_flight: deque[tuple[int, int, int, int]] = deque()  # (seq, piece, first, count)
        self._seq = 0
        self._sketch: Sketch | None = None
        self.paused_at_ns = 0
        self._wanted = asyncio.Event()

    # --- from outside ---

    def cancel(self) -> None:
        """Give it up; too late once COMMIT was sent (StateError). `run` then raises CancelledMoveError."""
        if self.state in (Source.COMMITTED, Source.GONE):
            raise StateError("$.source", "the destination has been told to run the function")
        self._cancelled = True
        self._replies.put_nowait(CancelledMoveError("cancelled"))

    def decide(self, *, here: bool) -> None:
        """Settle a doubt (InDoubtError) by what a person knows: whether the function is to go on here, or is gone."""
        if self.state is not Source.COMMITTED:
            raise StateError("$.source", f"the function is not in doubt, but {self.state.value}")
        if here:
            self._stay(Event.DROPPED)
        else:
            self._runs_there()

    async def run(self) -> Report:
        """Move it. Returns when nothing of it is left here.

        NotMovedError: it runs here. InDoubtError: the destination has been told to run it and is out of reach.
        """
        await asyncio.to_thread(warm.moving)
        since, wait = time.monotonic(), AGAIN_SECONDS
        try:
            while True:
                try:
                    link = await self._connect()
                    since, wait = time.monotonic(), AGAIN_SECONDS
                    return await self._converse(link)
                except LinkLostError as error:
                    self._broken()
                    if time.monotonic() - since > self._patience:
                        self._lost(error)
                    self.progress.reconnects += 1
                    self._tell("connecting again")
                await asyncio.sleep(wait)
                wait = min(1.0, 2 * wait)
        except (NotMovedError, InDoubtError):
            raise
        except SoftRnicError as error:
            if self.state in (Source.COMMITTED, Source.GONE):
                raise InDoubtError(f"{self.name} may run at the destination: {error}") from error
            raise NotMovedError(f"{self.name} stays: {error}") from error
        finally:
            self._give_up()

    # --- connections ---

    async def _connect(self) -> Link:
        self._check_cancelled()
        return await self._dial()

    def _broken(self) -> None:
        """The connection is gone: nothing that was not acknowledged is sure to have arrived."""
        if self.state is Source.SUSPENDED:
            self._stay(Event.RESUME)

    def _lost(self, error: LinkLostError) -> None:
        if self.state is Source.COMMITTED:
            raise InDoubtError(f"told the destination to run {self.name}, and lost it: {error}") from error
        if self.state is Source.GONE:
            raise InDoubtError(f"{self.name} runs at the destination and lacks pages that are here: {error}") from error
        raise NotMovedError(f"the destination cannot be reached: {error}") from error

    def _give_up(self) -> None:
        """Whatever ends `run`: if the function is still ours, it goes on."""
        if self.state in (Source.RUNNING, Source.SUSPENDED):
            self._stay(Event.RESUME)

    async def _converse(self, link: Link) -> Report:
        listener: asyncio.Task[None] | None = None
        try:
            while not self._replies.empty():
                self._replies.get_nowait()
            self._check_cancelled()
            hello = stream.Hello(
                stream.VERSION, self._ident, self.name, [m.piece for m in self._memory],
                committed=self.state in (Source.COMMITTED, Source.GONE),
            )  # fmt: skip
            await link.send(hello)
            welcome, _ = await link.receive()
            self._take_refusal(welcome)
            if not isinstance(welcome, stream.Welcome):
                raise StateError("$", f"{type(welcome).__name__} instead of a welcome")
            self._resynchronise(welcome)
            self._mac = welcome.mac
            if self.state is Source.RUNNING:
                self._instance = welcome.instance
            listener = asyncio.create_task(self._listen(link))
            try:
                if self.state in (Source.COMMITTED, Source.GONE):
                    await self._ask_again(link, welcome)
                else:
                    await self._copy_and_switch(link, welcome.status)
                if self._orders:
                    await self._serve(link)
                return self.report
            except LinkLostError:
                raise
            except SoftRnicError:
                await self._say_drop(link)
                raise
        finally:
            self.report.sent_bytes += link.sent_bytes
            self.report.reconnects = self.progress.reconnects
            link.close()
            if listener is not None:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    def _resynchronise(self, welcome: stream.Welcome) -> None:
        """What was under way when the connection broke is sent again, unless it has arrived."""
        if welcome.status is Target.UNKNOWN and self.state is not Source.GONE:
            for memory in self._memory:
                memory.todo[:] = True
            self._in_flight.clear()
        self._acknowledge(welcome.acked)
        self._seq = welcome.acked
        while self._in_flight:
            _, piece, first, count = self._in_flight.popleft()
            if self._orders:
                self._orders[piece].again(first, count)
            else:
                self._memory[piece].todo[first : first + count] = True

    async def _listen(self, link: Link) -> None:
        """Take in what the destination says: acknowledgements and wishes here, answers into a queue."""
        try:
            while True:
                message, _ = await link.receive()
                if isinstance(message, stream.Ack):
                    self._acknowledge(message.seq)
                if isinstance(message, stream.Want):
                    if message.piece < len(self._orders) and self._orders[message.piece].want(message.page):
                        self.report.demanded_pages += 1
                        self._wanted.set()
                else:
                    self._replies.put_nowait(message)
        except SoftRnicError as error:
            self._replies.put_nowait(error)
            self._wanted.set()

    def _acknowledge(self, seq: int) -> None:
        while self._in_flight and self._in_flight[0][0] <= seq:
            self._in_flight.popleft()

    async def _answer(self, *kinds: type[Any]) -> Any:
        """The next answer of one of these kinds."""
        while True:
            answer = await self._replies.get()
            if isinstance(answer, CancelledMoveError) and self.state in (Source.COMMITTED, Source.GONE):
                continue
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, kinds):
                return answer
            self._take_refusal(answer)
            if not isinstance(answer, stream.Ack):
                raise StateError("$", f"{type(answer).__name__} was not expected")

    def _take_refusal(self, answer: Any) -> None:
        if isinstance(answer, stream.Refused):
            if self.state is Source.COMMITTED:
                raise StateError(answer.path, answer.reason)
            where = f"{answer.path}: " if answer.path else ""
            raise NotMovedError(f"the destination refuses {self.name}: {where}{answer.reason}")

    def _check_cancelled(self) -> None:
        if self._cancelled and self.state in (Source.RUNNING, Source.SUSPENDED):
            raise CancelledMoveError("cancelled")

    # --- memory while it runs ---

    async def _copy_and_switch(self, link: Link, status: Target) -> None:
        if status is not Target.UNKNOWN:  # whatever an earlier attempt to switch has left there
            await link.send(stream.Retract())
        self.progress.memory_bytes = sum(m.piece.length for m in self._memory)
        rounds: list[Round] = []
        for _ in range(SKETCHES):
            await self._send_sketch(link)
            later = await self._copy(link, rounds)
            if self._sketch and self._sketch.is_current(self.device) and await self._switch(link, later=later):
                return
        self._sketch = None  # objects change all the time: with the state as a whole, and a longer pause
        await self._switch(link, later=await self._copy(link, rounds))

    async def _copy(self, link: Link, rounds: list[Round]) -> bool:
        """Rounds until it is time to switch; True: memory that is not sent yet follows afterwards."""
        while True:
            rounds.append(await self._round(link, len(rounds)))
            self.report.rounds.append(rounds[-1])
            decision = decide(rounds, self.limits, FIXED_NS)
            self._tell_round(rounds)
            if decision.step is Step.GIVE_UP:
                raise NotMovedError(f"{self.name} stays: {decision.reason}")
            if decision.step is not Step.AGAIN:
                return decision.step is Step.POSTCOPY

    async def _send_sketch(self, link: Link) -> None:
        """The objects there are, so that the destination makes them before the pause. A help, not a need."""
        self._tell("sketching")
        self._sketch = await asyncio.to_thread(draw, self.device, self._names)
        await link.send(stream.Sketch(), self._sketch.data)
        await self._answer(stream.Sketched)

    async def _round(self, link: Link, number: int) -> Round:
        self.progress.round = number + 1
        self._tell("copying memory")
        start = time.monotonic_ns()
        sent_pages, sent_bytes = await self._send_todo(link)
        await link.send(stream.Sync())
        await self._all_arrived()
        elapsed = time.monotonic_ns() - start
        self.report.pages.append(sent_pages)
        return Round(sent_bytes, elapsed, await self._look())

    async def _look(self) -> int:
        """Bytes to be sent now."""
        counts = await asyncio.gather(*(asyncio.to_thread(m.look) for m in self._memory))
        return sum(counts) * stream.PAGE

    async def _send_todo(self, link: Link) -> tuple[int, int]:
        """Send every page that is to be sent: how many pages and bytes."""
        total_pages = total_bytes = 0
        for index, memory in enumerate(self._memory):
            todo, memory.todo = memory.todo, memory.todo & False
            for first, count in pages.runs(todo, stream.RUN_PAGES):
                self._check_cancelled()
                total_bytes += await self._send_run(link, index, first, count)
                total_pages += count
                if self._seq % _SYNC_EVERY == 0:
                    await link.send(stream.Sync())
                    self._tell(self.progress.phase)
        return total_pages, total_bytes

    async def _send_run(self, link: Link, index: int, first: int, count: int) -> int:
        """Send pages of a piece, those that are all zero as a remark: bytes of pages sent."""
        data = self._memory[index].read(first, count)
        self._seq += 1
        self._in_flight.append((self._seq, index, first, count))
        sent_before = link.sent_bytes
        if pages.zero_pages(data).all():
            await link.send(stream.Zeros(self._seq, index, first, count))
        else:
            await link.send(stream.Pages(self._seq, index, first, pages.crcs(data)), data.data)
        self.progress.sent_bytes += link.sent_bytes - sent_before
        return len(data)

    async def _all_arrived(self) -> None:
        while self._in_flight:
            await self._answer(stream.Ack)

    # --- the switch ---

    async def _switch(self, link: Link, *, later: bool) -> bool:
        """The pause. `later`: memory not sent yet follows afterwards. False: the sketch was too old; it goes on."""
        self._tell("switching")
        await self._suspend()
        self._check_pieces()
        parts = self._sketch.fill_in_parts(self.device) if self._sketch else [save(self.device, self._names)]
        if parts is None:
            self._stay(Event.RESUME)
            return False
        self.report.sketched = self._sketch is not None
        await self._look()
        if later:
            for index, memory in enumerate(self._memory):
                await link.send(stream.Missing(index), pages.to_bitmap(memory.todo))
        else:
            self.report.pages.append((await self._send_todo(link))[0])
        opaque = self.owner.opaque()
        self.report.state_bytes = sum(len(part) for part in parts)
        await link.send(stream.State(len(opaque), live=self.report.sketched), opaque, *parts)
        await self._answer(stream.Ready)
        self._check_cancelled()
        self._commit(later=later)
        await link.send(stream.Commit())
        await self._answer(stream.Runs)
        self._runs_there()
        return True

    async def _suspend(self) -> None:
        self.state = source_after(self.state, Event.SUSPEND)
        self.owner.pause()
        self.device.suspend(self.policy)
        self.paused_at_ns = time.monotonic_ns()
        deadline = time.monotonic() + SETTLE_SECONDS
        while not self.device.settled:
            if time.monotonic() > deadline:
                raise NotMovedError(f"{self.name} has answers under way that its peers do not let it finish")
            await asyncio.sleep(0)

    def _check_pieces(self) -> None:
        """Memory registered meanwhile would not be at the destination."""
        now, names = stretches_of(self.device)
        if [stretch.piece for stretch in now] != [m.piece for m in self._memory]:
            raise NotMovedError(f"regions of {self.name} were registered or deregistered meanwhile: try again")
        self._names = names

    def _commit(self, *, later: bool) -> None:
        """From here on the function is not ours, and says nothing."""
        self.device.suspend("silence")
        self.state = source_after(self.state, Event.COMMIT)
        if later:
            self._orders = [PageOrder(m.todo) for m in self._memory]

    async def _ask_again(self, link: Link, welcome: stream.Welcome) -> None:
        """COMMIT was sent on a connection that broke: what has become of it?"""
        status = welcome.status
        if status in (Target.RUNNING, Target.COMPLETE):
            self._runs_there()
            if status is Target.COMPLETE:
                self._orders = []
            return
        if welcome.instance != self._instance:
            raise InDoubtError(f"told the destination to run {self.name}, and it was restarted since")
        if self.state is Source.GONE:
            raise InDoubtError(f"{self.name} ran at the destination, which has lost it")
        if status is not Target.HOLDING:
            self._stay(Event.DROPPED)
            raise NotMovedError(f"the destination dropped {self.name} before it ran there")
        await link.send(stream.Commit())
        await self._answer(stream.Runs)
        self._runs_there()

    def _runs_there(self) -> None:
        if self.state is Source.COMMITTED:
            self.state = source_after(self.state, Event.RUNS)
            self.report.downtime_ns = time.monotonic_ns() - self.paused_at_ns
            self.owner.gone()
            self._leave_to(self._mac)
        self._tell("fetching the rest" if self._orders else "done")

    # --- what is fetched afterwards ---

    async def _serve(self, link: Link) -> None:
        """Send the missing pages, those first that somebody waits for, until the destination has all."""
        while left := [i for i, order in enumerate(self._orders) if order.left]:
            index = next((i for i in left if self._orders[i].urgent), left[0])
            run = self._orders[index].take(stream.RUN_PAGES)
            if run is None:
                continue
            await self._send_run(link, index, *run)
            self.report.postcopy_pages += run[1]
            if self._seq % _SYNC_EVERY == 0:
                await link.send(stream.Sync())
            self._raise_lost()
        await link.send(stream.Sync())
        await self._answer(stream.Complete)
        self._orders = []
        self._tell("done")

    def _raise_lost(self) -> None:
        """The listener's error, so that nothing more is sent into a connection that is gone."""
        while not self._replies.empty():
            answer = self._replies.get_nowait()
            if isinstance(answer, BaseException) and not isinstance(answer, CancelledMoveError):
                raise answer

    # --- ends ---

    def _stay(self, event: Event) -> None:
        """It runs here, from whatever state."""
        was = self.state
        self.state = source_after(self.state, event)
        if was is not Source.RUNNING:
            self.device.abort()
            self.owner.resume()

    async def _say_drop(self, link: Link) -> None:
        """Tell the destination, if it still listens; if not, it finds out by itself."""
        if self.state in (Source.COMMITTED, Source.GONE):
            return
        self._stay(Event.RESUME)
        try:
            async with asyncio.timeout(2.0):
                await link.send(stream.Drop())
                await self._dropped()
        except (TimeoutError, SoftRnicError) as error:
            log.info("the destination was not told that %s stays: %s", self.name, error)

    async def _dropped(self) -> None:
        while not isinstance(answer := await self._replies.get(), stream.Dropped):
            if isinstance(answer, LinkLostError):
                raise answer

    def _clear(self, mac: bytes) -> None:
        """Nothing of it stays here."""
        self.device.close()
        for index in list(self.device.gids):
            self.device.del_gid(index)

    def _tell(self, phase: str) -> None:
        self.progress.phase = phase
        self.on_progress(self.progress)

    def _tell_round(self, rounds: list[Round]) -> None:
        self.progress.left_bytes = rounds[-1].dirty_bytes
        self.progress.dirty_rate = rounds[-1].dirty_rate
        self.progress.bandwidth = bandwidth(rounds)
        self.progress.downtime_ns = downtime(rounds, FIXED_NS)
        self._tell(self.progress.phase)
