"""What two hosts say to each other while a function moves: framed messages, sans-IO.

    frame   header length u32 | body length u32 | crc32 u32 of the header | header | body           little-endian

The header is MessagePack of one of the structs below; the body is bytes that need no parsing: pages, or a saved state
(softrnic/migrate/envelope.py), with checks of their own. Versions: the first message of either side names the newest
one it speaks, and the lower of the two is spoken. Whatever arrives is hostile: a frame is a message or a StateError,
and no length is believed before it was compared with what its kind may have.
"""

from __future__ import annotations

import struct
import zlib
from typing import Annotated

import msgspec
from msgspec import Meta

from softrnic.errors import StateError
from softrnic.migrate.commit import Target

VERSION = 1
PAGE = 4096  # bytes; the unit of memory on the stream
RUN_PAGES = 64  # at most so many in one message
MAX_PIECES = 4096
MAX_HEADER = 1 << 20
MAX_STATE = 1 << 28

HEAD = struct.Struct("<III")

Ident = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=4096)]
Size = Annotated[int, Meta(ge=1, le=1 << 48)]
Number = Annotated[int, Meta(ge=0, le=1 << 48)]
Index = Annotated[int, Meta(ge=0, lt=MAX_PIECES)]
Mac = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", array_like=False):
    """Anything that may be said. Source to destination (>), or back (<)."""


# --- who is there ---------------------------------------------------------------------------------------------


class Challenge(Message, frozen=True, tag="challenge"):
    """< First: prove that you know the token. `token` False: where you come from is proof enough."""

    version: int
    nonce: Mac
    token: bool


class Proof(Message, frozen=True, tag="proof"):
    """<> HMAC of the other's nonce; from the source also a nonce of its own."""

    mac: Mac
    nonce: Mac


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of the function's memory."""

    name: Name
    length: Size

    @property
    def pages(self) -> int:
        """The last may be shorter."""
        return (self.length + PAGE - 1) // PAGE


class Hello(Message, frozen=True, tag="hello"):
    """> This migration, or this migration again after the connection broke. `committed`: COMMIT was sent before."""

    version: int
    ident: Ident
    name: Name
    pieces: Annotated[list[Piece], Meta(max_length=MAX_PIECES)]
    committed: bool


class Welcome(Message, frozen=True, tag="welcome"):
    """< What is known of it: how far it is, and the last message with memory that arrived.

    `mac`: of the destination's host on the wire, to which late packets may be sent on; empty if it has none.
    """

    version: int
    instance: Ident
    status: Target
    acked: Number
    mac: Annotated[bytes, Meta(max_length=6)]


# --- memory ---------------------------------------------------------------------------------------------------


class Pages(Message, frozen=True, tag="pages"):
    """> Pages of a piece from `first` on, in the body; `crcs`: CRC-32 of each, u32."""

    seq: Number
    piece: Index
    first: Number
    crcs: Annotated[bytes, Meta(min_length=4, max_length=4 * RUN_PAGES)]


class Zeros(Message, frozen=True, tag="zeros"):
    """> Pages that are all zero."""

    seq: Number
    piece: Index
    first: Number
    count: Annotated[int, Meta(ge=1, le=1 << 36)]


class Sync(Message, frozen=True, tag="sync"):
    """> Say what has arrived."""


class Ack(Message, frozen=True, tag="ack"):
    """< All memory up to this message is in its place."""

    seq: Number


class Want(Message, frozen=True, tag="want"):
    """< Somebody waits for this page (post-copy)."""

    piece: Index
    page: Number


class Missing(Message, frozen=True, tag="missing"):
    """> Pages of a piece that will come after the switch: in the body a bit for each, lowest first."""

    piece: Index


# --- the switch -----------------------------------------------------------------------------------------------


class Sketch(Message, frozen=True, tag="sketch"):
    """> The objects there are, so that they can be made before the pause; in the body a saved state."""


class State(Message, frozen=True, tag="state"):
    """> Everything; in the body `owner` bytes of the function's owner, then the state. `live`: on top of the sketch."""

    owner: Annotated[int, Meta(ge=0, le=MAX_STATE)]
    live: bool


class Sketched(Message, frozen=True, tag="sketched"):
    """< The objects are there."""


class Ready(Message, frozen=True, tag="ready"):
    """< The state is in place."""


class Refused(Message, frozen=True, tag="refused"):
    """< It is not, or the migration is not wanted; why. `path` as in StateError."""

    path: Text
    reason: Text


class Commit(Message, frozen=True, tag="commit"):
    """> Run it; I never will."""


class Runs(Message, frozen=True, tag="runs"):
    """< It runs."""


class Retract(Message, frozen=True, tag="retract"):
    """> I have resumed; more memory follows."""


class Drop(Message, frozen=True, tag="drop"):
    """> Forget all of it."""


class Dropped(Message, frozen=True, tag="dropped"):
    """< It is forgotten, or was never known."""


class Complete(Message, frozen=True, tag="complete"):
    """< No page is missing any more."""


AnyMessage = (
    Challenge | Proof | Hello | Welcome | Pages | Zeros | Sync | Ack | Want | Missing | Sketch | Sketched | State
    | Ready | Refused | Commit | Runs | Retract | Drop | Dropped | Complete
)  # fmt: skip
_BODIES = {"pages": RUN_PAGES * PAGE, "missing": 1 << 25, "sketch": MAX_STATE, "state": MAX_STATE}
_MAX_BODY = max(_BODIES.values())

_decoder = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


def emit(message: AnyMessage, body_length: int = 0) -> bytes:
    """The frame up to its body."""
    header = _encoder.encode(message)
    return HEAD.pack(len(header), body_length, zlib.crc32(header)) + header


def lengths(head: bytes) -> tuple[int, int, int]:
    """Header length, body length and checksum of a frame that begins so; StateError if there is no such frame."""
    header, body, crc = HEAD.unpack(head)
    if not 0 < header <= MAX_HEADER:
        raise StateError("$.frame.header", f"{header} bytes")
    if body > _MAX_BODY:
        raise StateError("$.frame.body", f"{body} bytes")
    return header, body, crc


def parse(header: bytes, crc: int, body_length: int) -> AnyMessage:
    """The message of a frame, before its body was read; StateError if it is none, or may not have such a body."""
    if zlib.crc32(header) != crc:
        raise StateError("$.frame.crc", "the header is damaged")
    try:
        message = _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason, _, path = str(error).partition(" - at `")
        raise StateError(path.rstrip("`") or "$", reason) from None
    except RecursionError:
        raise StateError("$", "nested too deeply") from None
    tag = str(message.__struct_config__.tag)
    if body_length > _BODIES.get(tag, 0):
        raise StateError(f"$.{tag}", f"{body_length} bytes of body")
    if isinstance(message, Pages) and len(message.crcs) % 4:
        raise StateError("$.pages.crcs", f"{len(message.crcs)} bytes")
    if isinstance(message, State) and message.owner > body_length:
        raise StateError("$.state.owner", f"{message.owner} of {body_length} bytes")
    return message
