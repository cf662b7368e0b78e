"""What a daemon can be asked over its control socket, and how: requests and replies as JSON, each with its length.

    frame   length u32 little-endian | JSON

One request per connection. A reply is any number of `progress`, then `done` or `error`; closing the connection ends
whatever was asked for. Knows nothing of what the requests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from softrnic.errors import IoError, VerbsError, WireError

MAX_REQUEST = 1 << 16
MAX_REPLY = 1 << 28
_LENGTH = struct.Struct("<I")

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=1024)]
Nanoseconds = Annotated[int, Meta(ge=0, le=1 << 50)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="ask"):
    """Anything that may be asked."""


class LinkShow(Request, frozen=True, tag="link show"):
    """The functions, as links."""


class ResShow(Request, frozen=True, tag="res show"):
    """Objects of one kind (qp, mr, cq, pd, srq), or how many there are of each."""

    kind: Text = ""
    function: Text = ""


class StatisticShow(Request, frozen=True, tag="statistic show"):
    """Counters."""

    function: Text = ""


class QpSurvive(Request, frozen=True, tag="qp survive"):
    """Whether the peers of QPs live through a pause."""

    pause_ns: Nanoseconds
    policy: Text = "silence"
    function: Text = ""
    lqpn: Annotated[int, Meta(ge=0, le=0xFFFFFF)] | None = None


class FunctionShow(Request, frozen=True, tag="function show"):
    """The functions and their addresses, and what is on its way."""


class FunctionAdd(Request, frozen=True, tag="function add"):
    """Another function, with an address and its prefix length."""

    name: Name
    address: Text
    mac: Annotated[str, Meta(pattern="^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] | None = None
    vlan: Annotated[int, Meta(ge=1, le=4094)] | None = None


class FunctionDel(Request, frozen=True, tag="function del"):
    """Destroy a function and all that is on it."""

    name: Name


class Migrate(Request, frozen=True, tag="migrate"):
    """Move a function: HOST:PORT with the token of a file, or the path of a unix socket."""

    name: Name
    to: Text
    token_file: Text = ""
    downtime_ns: Nanoseconds = 300_000_000
    policy: Text = "silence"
    postcopy: bool = False
    force: bool = False
    """Also if peers may not live through the pause."""


class MigrateCancel(Request, frozen=True, tag="migrate cancel"):
    """Give a move up."""

    name: Name


class MigrateDecide(Request, frozen=True, tag="migrate decide"):
    """Settle a doubt: the function runs here, or there."""

    name: Name
    here: bool


AnyRequest = (
    LinkShow | ResShow | StatisticShow | QpSurvive | FunctionShow | FunctionAdd | FunctionDel | Migrate | MigrateCancel
    | MigrateDecide
)  # fmt: skip


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    """Anything that may be answered."""


class Progress(Reply, frozen=True, tag="progress"):
    """How far it is."""

    value: Any


class Done(Reply, frozen=True, tag="done"):
    """It is done; what was asked for."""

    value: Any = None


class Failed(Reply, frozen=True, tag="error"):
    """It was not; an errno, and a sentence."""

    errno: int
    message: str


AnyReply = Progress | Done | Failed
_requests = msgspec.json.Decoder(AnyRequest)
_replies = msgspec.json.Decoder(AnyReply)


def frame(message: Request | Reply) -> bytes:
    """A message as it goes over the socket."""
    data = msgspec.json.encode(message)
    return _LENGTH.pack(len(data)) + data


def parse_request(data: bytes) -> AnyRequest:
    """A request; WireError for anything else."""
    try:
        return _requests.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"no request: {error}") from None


async def read_request(reader: asyncio.StreamReader) -> AnyRequest:
    """The request that comes next; WireError for what is none, EOFError if nothing comes."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if not 0 < length <= MAX_REQUEST:
            raise WireError(f"no request: {length} bytes, at most {MAX_REQUEST} are taken")
        return parse_request(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        raise EOFError from None


# --- asking ---------------------------------------------------------------------------------------------------


def call(path: str | Path, request: Request, on_progress: Callable[[Any], None] = lambda _: None) -> Any:
    """Ask a daemon, and wait for its answer. What it could not do is a VerbsError with its errno and words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # refused already, and the reply says why
                sock.sendall(frame(request))
            while isinstance(reply := _read_reply(sock), Progress):
                on_progress(reply.value)
        except ConnectionRefusedError:
            raise IoError(0, f"no daemon listens on {path}") from None
        except FileNotFoundError:
            raise IoError(0, f"no daemon: {path} does not exist") from None
    if isinstance(reply, Failed):
        raise VerbsError(reply.errno, reply.message)
    return reply.value


def _read_reply(sock: socket.socket) -> AnyReply:
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    if length > MAX_REPLY:
        raise WireError(f"a reply of {length} bytes")
    return _replies.decode(_read(sock, length))


def _read(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise IoError(0, "the daemon has closed the connection")
        data += part
    return bytes(data)
