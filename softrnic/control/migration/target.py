"""The destination: takes in memory and state, holds the function ready, and runs it when told to.

What has come of a function survives the connection for a while, so that a source can go on where it was; then it is
dropped. A function that runs here is never dropped, and its migration is remembered, for a source that asks again.
Everything that arrives is hostile until it was checked.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

import numpy as np

from softrnic.control import warm
from softrnic.control.migration.fetch import Fetch, Position
from softrnic.control.migration.link import Link, LinkLostError
from softrnic.control.migration.memory import finder, slot_name, slots_of
from softrnic.control.migration.owner import Arrival, Place
from softrnic.errors import SoftRnicError, StateError
from softrnic.migrate import pages, restore, stream
from softrnic.migrate.commit import Event, Target, target_after
from softrnic.migrate.sketch import fill, touch
from softrnic.verbs import Device

log = logging.getLogger(__name__)

ORPHAN_SECONDS = 60.0
REMEMBERED = 1024
MAX_MEMORY = 1 << 40


class Incoming:
    """One migration as it stands here. The connections come and go."""

    def __init__(self, hello: stream.Hello, place: Place) -> None:
        self.place = place
        self.name = hello.name
        self.pieces = hello.pieces
        self.status = Target.UNKNOWN
        self.acked = 0
        self.arrival: Arrival | None = None
        self.missing: list[np.ndarray] = []
        """Per piece one bool per page: not here yet, after the function was started."""
        self.handler: asyncio.Task[Any] | None = None
        self.orphaned: asyncio.TimerHandle | None = None
        self.link: Link | None = None
        self.wanted: set[tuple[int, int]] = set()
        self._fetch: Fetch | None = None
        self._sketched = False
        self._told = False  # the place knows of the arrival

    def begin(self) -> None:
        """Make room for the function and its memory."""
        total = sum(piece.length for piece in self.pieces)
        if total > MAX_MEMORY:
            raise StateError("$.pieces", f"{total} bytes of memory")
        if len({piece.name for piece in self.pieces}) != len(self.pieces):
            raise StateError("$.pieces", "two have the same name")
        memory = {}
        for piece in self.pieces:
            memory[piece.name] = self._buffer(piece)
        self.arrival = Arrival(self.name, self.place.make(self.name), memory)
        self.missing = [np.zeros(piece.pages, bool) for piece in self.pieces]
        self.status = target_after(self.status, Event.BEGIN)

    def _buffer(self, piece: stream.Piece) -> np.ndarray:
        view = np.frombuffer(self.place.allocate(piece), np.uint8)
        if len(view) != piece.length or not view.flags.writeable:
            raise StateError("$.pieces", f"the place for {piece.name} is not {piece.length} writable bytes")
        return view

    @property
    def here(self) -> Arrival:
        """What has come so far; StateError if nothing has."""
        if self.arrival is None:
            raise StateError("$", "nothing has come yet")
        return self.arrival

    @property
    def device(self) -> Device:
        """The function; StateError before there is one."""
        return self.here.device

    # --- memory ---

    def put(self, message: stream.Pages | stream.Zeros, body: bytes) -> None:
        """Memory has come: into its place, or a StateError."""
        if self.status not in (Target.RECEIVING, Target.RUNNING) or self.arrival is None:
            raise StateError("$", f"no memory is taken when {self.status.value}")
        if message.seq != self.acked + 1:
            raise StateError("$.seq", f"{message.seq} after {self.acked}")
        if message.piece >= len(self.pieces):
            raise StateError("$.piece", f"there is no piece {message.piece}")
        piece = self.pieces[message.piece]
        count = len(message.crcs) // 4 if isinstance(message, stream.Pages) else message.count
        if message.first + count > piece.pages:
            raise StateError("$.first", f"pages {message.first} to {message.first + count} of {piece.pages}")
        where = pages.span(message.first, count, piece.length)
        data = None
        if isinstance(message, stream.Pages):
            data = np.frombuffer(body, np.uint8)
            if len(data) != where.stop - where.start:
                raise StateError("$.pages", f"{len(data)} bytes for {count} pages")
            if pages.crcs(data) != message.crcs:
                raise LinkLostError(f"pages of {piece.name} from {message.first} on came damaged")
        if self.status is Target.RUNNING:
            self._land(message.piece, message.first, count, data)
        else:
            self.here.memory[piece.name][where] = 0 if data is None else data
        self.acked = message.seq

    def _land(self, piece: int, first: int, count: int, data: np.ndarray | None) -> None:
        """Never over a page that the running function has already."""
        missing = self.missing[piece][first : first + count]
        if self._fetch is None or not missing.all():
            raise StateError("$.pages", "a page of a function that runs came twice")
        self._fetch.land(piece, first, count, data)
        missing[:] = False  # not before: Fetch takes what is not missing for present, in the thread of the NIC

    def lacks(self, message: stream.Missing, body: bytes) -> None:
        """Which pages will come later."""
        if self.status is not Target.RECEIVING or message.piece >= len(self.pieces):
            raise StateError("$.missing", f"no such piece, or already {self.status.value}")
        count = self.pieces[message.piece].pages
        if len(body) != (count + 7) // 8:
            raise StateError("$.missing", f"{len(body)} bytes for {count} pages")
        if any(at.addr % stream.PAGE for at in self._positions()):
            raise StateError("$.missing", "the memory given here is not page-aligned, as it must be to come later")
        self.missing[message.piece] = pages.from_bitmap(body, count)

    def _positions(self) -> list[Position]:
        """Where each piece lies for the device, which was sketched or restored."""
        device, memory = self.device, self.here.memory
        slots = {slot_name(number, slot): slot for number, found in slots_of(device) for slot in found}
        return [
            Position(slots[p.name].space, slots[p.name].addr, p.length)
            if p.name in slots
            else Position(device.space, int(memory[p.name].ctypes.data), p.length)
            for p in self.pieces
        ]

    # --- the function ---

    def hold(self, message: stream.State, body: bytes) -> None:
        """Restore everything, suspended."""
        after = target_after(self.status, Event.HOLD)
        arrival = self.here
        arrival.opaque = body[: message.owner]
        if message.live:
            self._fill(memoryview(body)[message.owner :])
        else:
            _empty(arrival.device)  # of a sketch
            arrival.restored = restore(arrival.device, body[message.owner :], finder(arrival.memory))
        self.status = after
        try:
            self.place.on_arrival(arrival)
        except BaseException:
            self.retract()
            raise
        self._told = True

    def sketch(self, body: bytes) -> None:
        """Make the objects already, suspended."""
        if self.status is not Target.RECEIVING:
            raise StateError("$.sketch", f"not when {self.status.value}")
        _empty(self.device)
        self.here.restored = restore(self.device, body, finder(self.here.memory))
        touch(self.device, self.here.restored)
        self._sketched = True

    def _fill(self, data: memoryview) -> None:
        """Put into the objects of the sketch what is under way in them."""
        if not self._sketched:
            raise StateError("$.state", "there was no sketch")
        self._sketched = False
        try:
            fill(self.device, self.here.restored, data)
        except BaseException:
            _empty(self.device)
            raise

    def retract(self) -> None:
        """The source has resumed: the state is worth nothing any more, the memory is."""
        after = target_after(self.status, Event.RETRACT)
        self._untell()
        _empty(self.device)
        self.missing = [np.zeros(piece.pages, bool) for piece in self.pieces]
        self.status = after

    def start(self) -> bool:
        """Run it; False if it runs already."""
        after = target_after(self.status, Event.COMMIT)
        if self.status is not Target.HOLDING:
            return False
        self.status = after
        if any(bits.any() for bits in self.missing):
            loop = asyncio.get_running_loop()

            def want(piece: int, page: int) -> None:
                loop.call_soon_threadsafe(self.want, piece, page)

            self._fetch = Fetch(self._positions(), self.missing, want)
        self.device.resume()
        self.place.announce(self.device)
        self.place.on_start(self.here)
        return True

    def finish_if_whole(self) -> bool:
        """Whether nothing more is needed of the source, as of now."""
        if self.status is not Target.RUNNING or any(bits.any() for bits in self.missing):
            return False
        self.status = target_after(self.status, Event.FINISH)
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        self.place.on_complete(self.here)
        return True

    def want(self, piece: int, page: int) -> None:
        """A QP waits for this page: have it sent before others, on this connection or on the next."""
        self.wanted.add((piece, page))
        if self.link is not None:
            self.link.post(stream.Want(piece, page))

    def drop(self) -> None:
        """Forget it; not once it runs."""
        after = target_after(self.status, Event.DROP)
        self._untell()
        if self.arrival is not None:
            _empty(self.device)
            self.place.unmake(self.device)
            self.arrival = None
        self.status = after

    def _untell(self) -> None:
        if self._told and self.arrival is not None:
            self._told = False
            self.place.on_drop(self.arrival)


def _empty(device: Device) -> None:
    device.close()
    for index in list(device.gids):
        device.del_gid(index)


class Arrivals:
    """All migrations to one place. Called with every connection that has proved who it is."""

    def __init__(self, place: Place, *, orphan_seconds: float = ORPHAN_SECONDS) -> None:
        self.place = place
        self.instance = secrets.token_bytes(16)
        self._orphan_seconds = orphan_seconds
        self._known: OrderedDict[bytes, Incoming] = OrderedDict()

    @property
    def incoming(self) -> list[Incoming]:
        """Every migration that is under way, or is remembered."""
        return list(self._known.values())

    async def __call__(self, link: Link) -> None:
        """One connection, to its end."""
        await asyncio.to_thread(warm.moving)
        hello, _ = await link.receive()
        if not isinstance(hello, stream.Hello):
            raise StateError("$", f"{type(hello).__name__} instead of a hello")
        incoming = await self._admit(link, hello)
        if incoming is None:
            return
        try:
            known = stream.Welcome(
                stream.VERSION, self.instance, incoming.status, incoming.acked, self.place.mac
            )  # fmt: skip
            await link.send(known)
            incoming.link = link
            for piece, page in sorted(incoming.wanted):
                if incoming.missing[piece][page]:
                    link.post(stream.Want(piece, page))
            while True:
                message, body = await link.receive()
                if not await self._handle(link, incoming, message, body):
                    return
        except StateError as error:
            await _refuse(link, error)
            raise
        finally:
            self._part(hello.ident, incoming)

    async def _admit(self, link: Link, hello: stream.Hello) -> Incoming | None:
        """The migration this connection is about; None after a refusal."""
        incoming = self._known.get(hello.ident)
        if incoming is None:
            incoming = Incoming(hello, self.place)
            if not hello.committed:  # else it was here once, and was dropped: it is not begun anew
                try:
                    incoming.begin()
                except SoftRnicError as error:
                    await _refuse(link, error)
                    return None
                self._remember(hello.ident, incoming)
        elif incoming.pieces != hello.pieces or incoming.name != hello.name:
            await _refuse(link, StateError("$.pieces", "not those that this migration began with"))
            return None
        await self._take_over(incoming)
        return incoming

    def _remember(self, ident: bytes, incoming: Incoming) -> None:
        self._known[ident] = incoming
        over = [i for i, m in self._known.items() if m.status is Target.COMPLETE and m.handler is None]
        for old in over[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[old]

    async def _take_over(self, incoming: Incoming) -> None:
        """The source has made a new connection, so the old one is dead, whether that was noticed here or not."""
        if incoming.handler is not None:
            incoming.handler.cancel()
            await asyncio.gather(incoming.handler, return_exceptions=True)
        incoming.handler = asyncio.current_task()
        if incoming.orphaned is not None:
            incoming.orphaned.cancel()
            incoming.orphaned = None

    def _part(self, ident: bytes, incoming: Incoming) -> None:
        """The connection is gone: wait for another, for a while, unless the function runs."""
        if incoming.handler is asyncio.current_task():
            incoming.handler = incoming.link = None
        if incoming.status is Target.UNKNOWN:
            self._known.pop(ident, None)
        elif incoming.status in (Target.RECEIVING, Target.HOLDING) and incoming.handler is None:
            loop = asyncio.get_running_loop()
            incoming.orphaned = loop.call_later(self._orphan_seconds, self._forget, ident, incoming)

    def _forget(self, ident: bytes, incoming: Incoming) -> None:
        if incoming.handler is None and incoming.status in (Target.RECEIVING, Target.HOLDING):
            log.warning("%s did not come: its source is out of reach", incoming.name)
            incoming.drop()
            self._known.pop(ident, None)

    def close(self) -> None:
        """Drop whatever does not run yet."""
        for ident, incoming in list(self._known.items()):
            if incoming.orphaned is not None:
                incoming.orphaned.cancel()
            self._forget(ident, incoming)

    async def _handle(self, link: Link, incoming: Incoming, message: Any, body: bytes) -> bool:
        """One message; False: the source is told that this was the last."""
        if isinstance(message, stream.Pages | stream.Zeros):
            incoming.put(message, body)
        elif isinstance(message, stream.Sync):
            await link.send(stream.Ack(incoming.acked))
        elif isinstance(message, stream.Missing):
            incoming.lacks(message, body)
        elif isinstance(message, stream.State | stream.Sketch):
            await self._restore(link, incoming, message, body)
        elif isinstance(message, stream.Commit):
            incoming.start()
            whole = incoming.finish_if_whole()  # before anything is said: the connection may break
            await link.send(stream.Runs())
            if whole:
                await link.send(stream.Complete())
            return True
        elif isinstance(message, stream.Retract):
            incoming.retract()
        elif isinstance(message, stream.Drop):
            incoming.drop()
            await link.send(stream.Dropped())
            return False
        else:
            raise StateError("$", f"{type(message).__name__} was not expected")
        if incoming.finish_if_whole():
            await link.send(stream.Complete())
        return True

    async def _restore(
        self, link: Link, incoming: Incoming, message: stream.State | stream.Sketch, body: bytes
    ) -> None:
        """Objects, or all of the function; what is wrong with them is said, and ends nothing."""
        try:
            if isinstance(message, stream.Sketch):
                await _to_its_end(asyncio.to_thread(incoming.sketch, body))
                answer: stream.AnyMessage = stream.Sketched()
            else:
                incoming.hold(message, body)
                answer = stream.Ready()
        except SoftRnicError as error:
            await _refuse(link, error)
        else:
            await link.send(answer)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await what runs in a thread, which nothing can stop: whoever is cancelled meanwhile waits for it first."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _refuse(link: Link, error: SoftRnicError) -> None:
    path = error.path if isinstance(error, StateError) else ""
    reason = error.reason if isinstance(error, StateError) else str(error)
    await link.send(stream.Refused(path[:4096], reason[:4096]))
