"""A host that can be asked: its functions shown, added, destroyed and moved over a control socket.

    async with serve(host, "/run/softrnic/sr0.sock") as daemon: ...

`softrnic daemon` is this around a host of its own; a program that has a host can serve it too, and then moves its own
functions (`owner_of`) or takes in others (`on_arrival`). Only this user and root may use the socket. A request that is
wrong gets an errno and a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import mmap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softrnic.control import rpc, show
from softrnic.control.function import Function
from softrnic.control.host import Host
from softrnic.control.migration import (
    Arrival,
    Departure,
    Dial,
    InDoubtError,
    Owner,
    Progress,
    dial,
    dial_unix,
    read_token,
)
from softrnic.control.private import check_peer, private_listener
from softrnic.errors import IoError, SoftRnicError, VerbsError
from softrnic.migrate.precopy import Limits
from softrnic.migrate.stream import Piece
from softrnic.verbs import Device

log = logging.getLogger(__name__)

FORWARD_SECONDS = 30.0
REQUEST_SECONDS = 10.0
Tell = Callable[[Any], Awaitable[None]]


class HostPlace:
    """A host that functions can come to. Programs that take part in their lives override the `on_...` methods."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._coming: dict[Device, Function] = {}

    @property
    def mac(self) -> bytes:
        return self.host.mac

    def make(self, name: str) -> Device:
        for function in [f for f in self.host.functions if f.device.name == name]:
            if not _has_left(function):
                raise VerbsError(errno.EEXIST, f"there is a function {name} already")
            function.close()  # it comes back: nothing of it is sent on any more
        function = self.host.add_function(name)
        self._coming[function.device] = function
        return function.device

    def unmake(self, device: Device) -> None:
        self._coming.pop(device).close()

    def announce(self, device: Device) -> None:
        self._coming[device].appear()

    def allocate(self, piece: Piece) -> Any:
        return mmap.mmap(-1, piece.length)

    def on_arrival(self, arrival: Arrival) -> None:
        """Everything is restored, and suspended. VerbsError or StateError refuses it."""

    def on_start(self, arrival: Arrival) -> None:
        """It runs from now on."""

    def on_complete(self, arrival: Arrival) -> None:
        """All of its memory is here. Until then only the device knows which pages are missing (post-copy)."""

    def on_drop(self, arrival: Arrival) -> None:
        """It will not run here; after `on_arrival` only."""


def _has_left(function: Function) -> bool:
    """Whether only the forwarding of late packets is left of it."""
    device = function.device
    return device.adapter.functions.get(device.func) is not device


def nobody(function: Function) -> Owner:
    """The owner of a function that no program here has a hand in."""
    return Owner()


class Daemon:
    """Answers requests about one host."""

    def __init__(self, host: Host, owner_of: Callable[[Function], Owner] = nobody) -> None:
        self.host = host
        self.departures: dict[str, Departure] = {}
        self._owner_of = owner_of
        self._answers: dict[type[rpc.Request], Callable[[Any, Tell], Awaitable[Any]]] = {
            rpc.LinkShow: self._link_show,
            rpc.ResShow: self._res_show,
            rpc.StatisticShow: self._statistic_show,
            rpc.QpSurvive: self._qp_survive,
            rpc.FunctionShow: self._function_show,
            rpc.FunctionAdd: self._function_add,
            rpc.FunctionDel: self._function_del,
            rpc.Migrate: self._migrate,
            rpc.MigrateCancel: self._migrate_cancel,
            rpc.MigrateDecide: self._migrate_decide,
        }

    # --- the socket ---

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, its replies."""

        async def tell(value: Any) -> None:
            writer.write(rpc.frame(rpc.Progress(value)))
            await writer.drain()

        try:
            reply = await self._reply(reader, writer, tell)
            if reply is not None:
                writer.write(rpc.frame(reply))
                await writer.drain()
        except OSError as error:
            log.info("control connection ended: %s", error)
        finally:
            writer.close()

    async def _reply(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tell: Tell
    ) -> rpc.Reply | None:
        try:
            check_peer(writer.get_extra_info("socket"))
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await rpc.read_request(reader)
            answer = asyncio.ensure_future(self._answers[type(request)](request, tell))
            gone = asyncio.ensure_future(reader.read(1))  # nothing more is to come but the end
            try:
                await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                return rpc.Done(await answer)
            finally:
                gone.cancel()
        except (EOFError, TimeoutError):
            return None
        except SoftRnicError as error:
            return failure(error)
        except asyncio.CancelledError:
            return rpc.Failed(errno.ECANCELED, "cancelled")
        except Exception as error:  # a bug of ours must not end the daemon
            log.exception("a request failed")
            return rpc.Failed(errno.EIO, f"{type(error).__name__}: {error}")

    # --- showing ---

    @property
    def _devices(self) -> list[Device]:
        return list(self.host.device.adapter.functions.values())

    def _named(self, name: str) -> list[Device]:
        """The functions of this name, or without one all."""
        found = [d for d in self._devices if name in ("", d.name)]
        if not found:
            raise VerbsError(errno.ENODEV, f"there is no function {name}")
        return found

    async def _link_show(self, request: rpc.LinkShow, tell: Tell) -> Any:
        return show.links(self._devices)

    async def _res_show(self, request: rpc.ResShow, tell: Tell) -> Any:
        return show.resources(self._named(request.function), request.kind)

    async def _statistic_show(self, request: rpc.StatisticShow, tell: Tell) -> Any:
        return show.statistics(self._named(request.function))

    async def _qp_survive(self, request: rpc.QpSurvive, tell: Tell) -> Any:
        return show.survivals(self._named(request.function), request.pause_ns, request.policy, request.lqpn)

    # --- functions ---

    def _function(self, name: str) -> Function:
        found = next((f for f in self.host.functions if f.device.name == name and not _has_left(f)), None)
        if found is None:
            raise VerbsError(errno.ENODEV, f"there is no function {name}")
        return found

    async def _function_show(self, request: rpc.FunctionShow, tell: Tell) -> Any:
        rows = show.links(self._devices)
        for row in rows:
            if departure := self.departures.get(row["ifname"]):
                row["migration"] = departure.state.value
        return rows

    async def _function_add(self, request: rpc.FunctionAdd, tell: Tell) -> Any:
        if any(d.name == request.name for d in self._devices):
            raise VerbsError(errno.EEXIST, f"there is a function {request.name} already")
        mac = bytes.fromhex(request.mac.replace(":", "")) if request.mac else None
        self.host.add_function(request.name, request.address, mac=mac, vlan=request.vlan)
        return [row for row in show.links(self._devices) if row["ifname"] == request.name]

    async def _function_del(self, request: rpc.FunctionDel, tell: Tell) -> Any:
        function = self._function(request.name)
        if request.name in self.departures:
            raise VerbsError(errno.EBUSY, f"{request.name} is on the move")
        function.close()

    # --- moving ---

    async def _migrate(self, request: rpc.Migrate, tell: Tell) -> Any:
        function = self._function(request.name)
        if request.name in self.departures:
            raise VerbsError(errno.EBUSY, f"{request.name} is on the move already")
        self._check_peers(function, request)
        departure = Departure(
            function.device, destination(request.to, request.token_file), owner=self._owner_of(function),
            limits=Limits(downtime_ns=request.downtime_ns, postcopy=request.postcopy), policy=request.policy,
            leave=lambda mac: leave(function, mac),
        )  # fmt: skip
        self.departures[request.name] = departure
        try:
            async with _telling(departure, tell):
                report = await departure.run()
        except InDoubtError:
            raise  # it stays in the list, for somebody to decide
        except BaseException:
            del self.departures[request.name]
            raise
        del self.departures[request.name]
        return asdict(report)

    def _check_peers(self, function: Function, request: rpc.Migrate) -> None:
        """EPERM if a peer may not live through the longest pause allowed, unless forced."""
        rows = show.survivals([function.device], request.downtime_ns, request.policy, None)
        lost = [row for row in rows if not row["survives"]]
        if lost and not request.force:
            qpn, until, advice = lost[0]["lqpn"], lost[0]["until_ns"] / 1e6, " or ".join(lost[0]["advice"])
            raise VerbsError(
                errno.EPERM,
                f"the peer of QP {qpn:#x} ({len(lost)} in all) bears {until:.1f} ms of {request.policy}, and the pause "
                f"may take {request.downtime_ns / 1e6:.1f} ms; what would help: {advice or 'less of it'}; or --force",
            )

    def _departure(self, name: str) -> Departure:
        if name not in self.departures:
            raise VerbsError(errno.ENOENT, f"{name} is not on the move")
        return self.departures[name]

    async def _migrate_cancel(self, request: rpc.MigrateCancel, tell: Tell) -> Any:
        self._departure(request.name).cancel()

    async def _migrate_decide(self, request: rpc.MigrateDecide, tell: Tell) -> Any:
        self._departure(request.name).decide(here=request.here)
        del self.departures[request.name]


def leave(function: Function, mac: bytes) -> None:
    """Nothing of a function stays, but that late packets are sent on for a while to the host it went to."""
    if mac:
        function.forward(mac, seconds=FORWARD_SECONDS)
        asyncio.get_running_loop().call_later(FORWARD_SECONDS, function.close)
    else:
        function.close()


def destination(to: str, token_file: str = "") -> Dial:
    """HOST:PORT, with a token, or the path of a unix socket."""
    if "/" in to:
        return dial_unix(to)
    host, _, port = to.rpartition(":")
    if not host or not port.isdecimal():
        raise VerbsError(errno.EINVAL, f"{to!r} is neither HOST:PORT nor the path of a socket")
    if not token_file:
        raise VerbsError(errno.EINVAL, "over TCP a token is needed, which the destination knows too")
    try:
        token = read_token(token_file)
    except SoftRnicError:
        raise
    except OSError as error:
        raise IoError(error.errno or 0, token_file) from error
    return dial(host.strip("[]"), int(port), token=token)


@asynccontextmanager
async def _telling(departure: Departure, tell: Tell) -> AsyncIterator[None]:
    """Pass on how far it is, as often as it is taken."""
    news: asyncio.Queue[Progress] = asyncio.Queue(1)

    def note(progress: Progress) -> None:
        if news.full():
            news.get_nowait()
        news.put_nowait(progress)

    async def pass_on() -> None:
        with contextlib.suppress(OSError):  # whoever asked is gone: that is noticed elsewhere
            while True:
                await tell(asdict(await news.get()))

    departure.on_progress = note
    task = asyncio.create_task(pass_on())
    try:
        yield
    finally:
        task.cancel()


def failure(error: SoftRnicError) -> rpc.Failed:
    """The errno and the words of an exception."""
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return rpc.Failed(number, text)


@asynccontextmanager
async def serve(
    host: Host, path: str | Path, *, owner_of: Callable[[Function], Owner] = nobody
) -> AsyncIterator[Daemon]:
    """Answer requests about a host at a socket, as long as the context lasts."""
    daemon = Daemon(host, owner_of)
    server = await asyncio.start_unix_server(daemon.serve, sock=private_listener(path))
    try:
        yield daemon
    finally:
        server.close()
        Path(path).unlink(missing_ok=True)
