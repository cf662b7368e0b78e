"""A connection that carries the messages of softrnic/migrate/stream.py. Knows nothing of what they mean."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from softrnic.errors import IoError
from softrnic.migrate import stream

Body = bytes | bytearray | memoryview


class LinkLostError(IoError):
    """The connection broke, or the other side closed it."""

    def __init__(self, why: str = "the connection was closed") -> None:
        super().__init__(0, why)


class Link:
    """One connection, from either end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent_bytes = 0

    async def send(self, message: stream.AnyMessage, *bodies: Body) -> None:
        """Send a message, with its body in any number of parts; waits while the other side is slow."""
        length = sum(len(body) for body in bodies)
        head = stream.emit(message, length)
        self.sent_bytes += len(head) + length
        try:
            self._writer.write(head)
            for body in bodies:
                self._writer.write(body)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise LinkLostError(str(error)) from None

    def post(self, message: stream.AnyMessage) -> None:
        """Send a message without waiting, and without hearing whether the connection still is."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(stream.emit(message))

    async def receive(self) -> tuple[Any, bytes]:
        """The next message and its body. LinkLostError at the end; StateError for what is no message."""
        header_length, body_length, crc = stream.lengths(await self._read(stream.HEAD.size))
        message = stream.parse(await self._read(header_length), crc, body_length)
        return message, await self._read(body_length) if body_length else b""

    async def _read(self, count: int) -> bytes:
        try:
            return await self._reader.readexactly(count)
        except asyncio.IncompleteReadError:
            raise LinkLostError from None
        except OSError as error:
            raise LinkLostError(str(error)) from None

    def close(self) -> None:
        """Close it at once; the other side's `receive` ends."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

    @property
    def socket(self) -> socket.socket:
        """What is underneath."""
        return self._writer.get_extra_info("socket")
