"""Who may move functions here: listening and dialling, over TCP with a token that both know, over a unix socket by uid.

The token itself never goes over the wire: each side proves by an HMAC of the other's nonce that it knows it, the source
first. That keeps out whoever does not know it. It does not hide or protect what follows: somebody who can read the
network reads the function's memory, and somebody who can change packets on it can change that. Over networks that
others use, put the connection in a tunnel.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from softrnic.control.migration.link import Link, LinkLostError
from softrnic.control.private import check_peer, private_listener
from softrnic.errors import IoError, SoftRnicError, StateError
from softrnic.migrate import stream

log = logging.getLogger(__name__)

Token = bytes
Dial = Callable[[], Awaitable[Link]]
Handler = Callable[[Link], Awaitable[None]]

MIN_TOKEN = 16
GREETING_SECONDS = 10.0
MAX_STRANGERS = 16  # connections that have not proved anything yet


def read_token(path: str | Path) -> Token:
    """The token in a file, which nobody but its owner may read."""
    path = Path(path)
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IoError(0, f"{path} may be read by others: chmod 600 {path}")
    token = path.read_bytes().strip()
    if len(token) < MIN_TOKEN:
        raise IoError(0, f"{path}: a token has at least {MIN_TOKEN} bytes")
    return token


# --- dialling -------------------------------------------------------------------------------------------------


def dial(host: str, port: int, *, token: Token) -> Dial:
    """Connections to a destination that listens on TCP."""

    async def connect() -> Link:
        return await _greet(asyncio.open_connection(host, port), token, f"{host}:{port}")

    return connect


def dial_unix(path: str | Path) -> Dial:
    """Connections to a destination that listens on a unix socket."""

    async def connect() -> Link:
        return await _greet(asyncio.open_unix_connection(str(path)), None, str(path))

    return connect


async def _greet(
    opening: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]], token: Token | None, where: str
) -> Link:
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            link = Link(*await opening)
            try:
                await _prove(link, token, where)
            except BaseException:
                link.close()
                raise
            return link
    except TimeoutError:
        raise LinkLostError(f"{where} does not answer") from None
    except SoftRnicError:
        raise
    except OSError as error:
        raise LinkLostError(f"{where}: {error.strerror or error}") from None


async def _prove(link: Link, token: Token | None, where: str) -> None:
    challenge, _ = await link.receive()
    if not isinstance(challenge, stream.Challenge):
        raise StateError("$", f"{where} is no destination for functions")
    if challenge.version < stream.VERSION:
        raise StateError("$.version", f"{where} speaks version {challenge.version}, this one {stream.VERSION}")
    if not challenge.token:
        return
    if token is None:
        raise IoError(errno.EACCES, f"{where} wants a token")
    nonce = secrets.token_bytes(32)
    await link.send(stream.Proof(_mac(token, b"source", challenge.nonce), nonce))
    answer, _ = await link.receive()
    if isinstance(answer, stream.Refused):
        raise IoError(errno.EACCES, f"{where}: {answer.reason}")
    known = isinstance(answer, stream.Proof) and hmac.compare_digest(answer.mac, _mac(token, b"destination", nonce))
    if not known:
        raise IoError(errno.EACCES, f"{where} does not know the token")


def _mac(token: Token, role: bytes, nonce: bytes) -> bytes:
    return hmac.digest(token, b"softrnic migration 1 " + role + nonce, "sha256")


# --- listening ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listen(handler: Handler, host: str, port: int, *, token: Token) -> AsyncIterator[int]:
    """Let those who know the token talk to `handler`, on one address of this host; yields the port."""
    if len(token) < MIN_TOKEN:
        raise IoError(0, f"a token has at least {MIN_TOKEN} bytes")
    if host in ("", "0.0.0.0", "::"):  # noqa: S104
        raise IoError(errno.EINVAL, "give the address to listen on: it is not to be every one of this host")
    door = _Door(handler, token)
    server = await asyncio.start_server(door.enter, host, port)
    async with _served(server, door):
        yield int(server.sockets[0].getsockname()[1])


@asynccontextmanager
async def listen_unix(handler: Handler, path: str | Path) -> AsyncIterator[None]:
    """Let processes of this user, and root, talk to `handler`."""
    door = _Door(handler, None)
    server = await asyncio.start_unix_server(door.enter, sock=private_listener(path))
    try:
        async with _served(server, door):
            yield
    finally:
        Path(path).unlink(missing_ok=True)


@asynccontextmanager
async def _served(server: asyncio.Server, door: _Door) -> AsyncIterator[None]:
    try:
        yield
    finally:
        server.close()
        await door.close()


class _Door:
    """Lets in those who prove who they are."""

    def __init__(self, handler: Handler, token: Token | None) -> None:
        self._handler = handler
        self._token = token
        self._inside: set[asyncio.Task[None]] = set()
        self._strangers = 0

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its last."""
        link = Link(reader, writer)
        task = asyncio.current_task()
        if task is None or self._strangers >= MAX_STRANGERS:
            link.close()
            return
        self._inside.add(task)
        try:
            if await self._is_known(link):
                await self._handler(link)
        except asyncio.CancelledError:
            pass  # we close
        except SoftRnicError as error:
            log.info("migration connection ended: %s", error)
        finally:
            link.close()
            self._inside.discard(task)

    async def _is_known(self, link: Link) -> bool:
        self._strangers += 1
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                return await self._examine(link)
        except TimeoutError:
            return False
        finally:
            self._strangers -= 1

    async def _examine(self, link: Link) -> bool:
        nonce = secrets.token_bytes(32)
        if self._token is None:
            check_peer(link.socket)
            await link.send(stream.Challenge(stream.VERSION, nonce, token=False))
            return True
        await link.send(stream.Challenge(stream.VERSION, nonce, token=True))
        proof, _ = await link.receive()
        mac = proof.mac if isinstance(proof, stream.Proof) else b""
        if not hmac.compare_digest(mac, _mac(self._token, b"source", nonce)):
            log.warning("a migration was refused: the token is wrong")
            await link.send(stream.Refused("$.token", "the token is wrong"))
            return False
        await link.send(stream.Proof(_mac(self._token, b"destination", proof.nonce), nonce))
        return True

    async def close(self) -> None:
        """End every connection."""
        tasks = list(self._inside)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
