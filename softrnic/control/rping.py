"""A peer of rping (librdmacm), in either role: text goes over by RDMA READ and comes back by RDMA WRITE.

Decides what rping decides. Each side tells the other of a buffer, or to go on, by a SEND of 16 bytes:

    client                                      server
    "my text is there"            SEND ->
                                                RDMA READ of it
                                  <- SEND       "go on"
    "put it there"                SEND ->
                                                RDMA WRITE of it
                                  <- SEND       "go on"
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from softrnic.control import cm
from softrnic.errors import SoftRnicError, VerbsError
from softrnic.spec import WC_STATUS_TEXT, Access, WcStatus, WrOpcode
from softrnic.verbs import Cq, Device, Mr, Qp, QpCap, RecvWr, SendWr, Wc

PORT = 7174
MIN_SIZE, MAX_SIZE = 26, 65535  # what rping allows
_INFO = struct.Struct("!QII")  # address, rkey, length
_CAP = QpCap(max_send_wr=16, max_recv_wr=2)
_PARAM = cm.ConnParam(responder_resources=1, initiator_depth=1)
_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE

Say = Callable[[str], None]

log = logging.getLogger(__name__)


class RpingError(SoftRnicError):
    """What should have happened did not."""


class _HungUpError(Exception):
    """The other side has disconnected."""


class Buffer(NamedTuple):
    """Memory of the peer, as it has told us."""

    addr: int
    rkey: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """rping's flags."""

    size: int = 64
    count: int = 0
    """Pings of the client; 0: no end."""
    validate: bool = False

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise RpingError(f"Invalid size {self.size} (valid range is {MIN_SIZE} to {MAX_SIZE})")


def ping_text(number: int, size: int) -> bytes:
    """What rping's client sends: the number, then printable characters, each ping beginning with another; and NUL."""
    head = b"rdma-ping-%d: " % number
    letters = bytes(range(ord("A"), ord("z") + 1))
    start = number % len(letters)
    ring = letters[start:] + letters[:start]
    return (head + ring * (size // len(ring) + 1))[: size - 1] + b"\0"


class Session:
    """Buffers of one side, and how they go over."""

    def __init__(self, device: Device, size: int) -> None:
        self._stack = contextlib.ExitStack()
        pd = self._stack.enter_context(device.alloc_pd())
        self.text, self.sink = (np.zeros(size, np.uint8) for _ in range(2))
        self._told, self._telling = (np.zeros(_INFO.size, np.uint8) for _ in range(2))
        self.text_mr, self.sink_mr = (pd.reg_mr(buffer, _ACCESS) for buffer in (self.text, self.sink))
        self._told_mr, self._telling_mr = (pd.reg_mr(buffer) for buffer in (self._told, self._telling))
        self.init = cm.QpInit(pd=pd, cap=_CAP, access=_ACCESS, prepare=self._post_receive)
        self._connection: cm.Connection | None = None

    def _post_receive(self, qp: Qp) -> None:
        qp.post_recv(RecvWr([self._told_mr.sge()]))

    def connected(self, connection: cm.Connection) -> None:
        """From now on it can be used."""
        self._connection = connection

    @property
    def connection(self) -> cm.Connection:
        if self._connection is None:
            raise RpingError("not connected")
        return self._connection

    async def tell(self, mr: Mr | None = None) -> None:
        """Tell the peer of a buffer; of none: to go on."""
        told = _INFO.pack(mr.iova, mr.rkey, mr.length) if mr else bytes(_INFO.size)
        self._telling[:] = np.frombuffer(told, np.uint8)
        await self._do(SendWr(WrOpcode.SEND, [self._telling_mr.sge()]))

    async def hear(self) -> Buffer:
        """What the peer tells next."""
        wc = await _completion(self.connection.recv_cq)
        if wc.byte_len != _INFO.size:
            raise RpingError(f"Received bogus data, size {wc.byte_len}")
        buffer = Buffer(*_INFO.unpack(self._told.tobytes()))
        self._post_receive(self.connection.qp)
        return buffer

    async def fetch(self, there: Buffer) -> bytes:
        """The peer's text, by RDMA READ."""
        if there.length > len(self.text):
            raise RpingError(f"the peer's buffer has {there.length} bytes, ours {len(self.text)}")
        sge = self.text_mr.sge(0, there.length)
        await self._do(SendWr(WrOpcode.RDMA_READ, [sge], remote_addr=there.addr, rkey=there.rkey))
        return self.text[: there.length].tobytes()

    async def store(self, there: Buffer, length: int) -> None:
        """The text back, by RDMA WRITE."""
        sge = self.text_mr.sge(0, length)
        await self._do(SendWr(WrOpcode.RDMA_WRITE, [sge], remote_addr=there.addr, rkey=there.rkey))

    async def _do(self, wr: SendWr) -> None:
        try:
            self.connection.qp.post_send(wr)
        except VerbsError as error:  # the QP is in ERR
            raise _HungUpError from error
        await _completion(self.connection.send_cq)

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def _completion(cq: Cq) -> Wc:
    [wc] = await cq.next(1)
    if wc.status == WcStatus.WR_FLUSH_ERR:
        raise _HungUpError
    if wc.status != WcStatus.SUCCESS:
        raise RpingError(f"cq completion failed: {WC_STATUS_TEXT.get(wc.status, wc.status.name)}")
    return wc


# --- server -------------------------------------------------------------------------------------------------


async def serve(device: Device, address: str, port: int, options: Options, say: Say) -> int:
    """Serve one client until it disconnects; the number of its pings."""
    async with cm.listen(device, address, port) as listener:
        return await _serve(device, await listener.request(), options, say)


async def serve_all(device: Device, address: str, port: int, options: Options, say: Say) -> None:
    """Serve all clients there are, until cancelled. One that fails does not disturb the others."""
    async with cm.listen(device, address, port) as listener, asyncio.TaskGroup() as group:
        while True:
            request = await listener.request()
            group.create_task(_serve_or_log(device, request, options, say))


async def _serve_or_log(device: Device, request: cm.ConnectRequest, options: Options, say: Say) -> None:
    try:
        await _serve(device, request, options, say)
    except SoftRnicError as error:
        log.warning("client %s: %s", request.remote_address, error)


async def _serve(device: Device, request: cm.ConnectRequest, options: Options, say: Say) -> int:
    with Session(device, options.size) as session:
        async with await request.accept(qp=session.init, param=_PARAM) as connection:
            session.connected(connection)
            pings = 0
            with contextlib.suppress(_HungUpError):
                while True:
                    await _answer(session, say)
                    pings += 1
            return pings


async def _answer(session: Session, say: Say) -> None:
    text = await session.fetch(await session.hear())
    end = text.find(b"\0")
    say(f"server ping data: {text[:end].decode(errors='replace')}")
    await session.tell()
    # rping counts what it sends back up to the NUL, which the client has put at the end
    await session.store(await session.hear(), len(text) if end < 0 else end + 1)
    await session.tell()


# --- client -------------------------------------------------------------------------------------------------


async def call(
    device: Device, address: str, port: int, options: Options, say: Say, *, source: str | None = None
) -> int:
    """Ping a server `count` times; the number of pings it has answered."""
    with Session(device, options.size) as session:
        connecting = cm.connect(device, (address, port), qp=session.init, param=_PARAM, source=source)
        async with await connecting as connection:
            session.connected(connection)
            for number in range(options.count) if options.count else itertools.count():
                try:
                    await _ping(session, number, options, say)
                except _HungUpError:
                    raise RpingError(f"the server has disconnected after {number} pings") from None
            return options.count


async def _ping(session: Session, number: int, options: Options, say: Say) -> None:
    text = ping_text(number, options.size)
    session.text[:] = np.frombuffer(text, np.uint8)
    session.sink[:] = 0
    await session.tell(session.text_mr)
    await session.hear()
    await session.tell(session.sink_mr)
    await session.hear()
    back = session.sink.tobytes()
    if options.validate and back != text:
        raise RpingError("data mismatch!")
    say(f"ping data: {back[:-1].decode(errors='replace')}")
