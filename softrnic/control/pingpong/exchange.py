"""What the pingpong programs tell each other over TCP: one line of text for each queue pair.

Decides the format and who speaks when: the client tells its destinations, the server connects and tells its own, the
client says that it has them. Knows no queue pair.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from softrnic.errors import WireError

PORT = 18515
MESSAGE_BYTES = 52  # the NUL is sent, too
SRQ_DESTINATIONS = 256  # ibv_srq_pingpong tells as many as it could have, those beyond its queue pairs all zero
TIMEOUT_SECONDS = 10.0
"""What a peer that has connected may take for a message."""

_DONE = b"done\0"
_MESSAGE = re.compile(rb"([0-9a-fA-F]{4}):([0-9a-fA-F]{6}):([0-9a-fA-F]{6}):([0-9a-fA-F]{32})\0")


class Destination(NamedTuple):
    """One queue pair, as its peer must know it. RoCE has no LID."""

    qpn: int
    psn: int
    gid: IPv6Address
    lid: int = 0

    def emit(self) -> bytes:
        """As it is sent."""
        return b"%04x:%06x:%06x:%032x\0" % (self.lid, self.qpn, self.psn, int(self.gid))

    @classmethod
    def parse(cls, message: bytes) -> Destination:
        """What `emit` has made; WireError for anything else."""
        match = _MESSAGE.fullmatch(message)
        if match is None:
            raise WireError(f"not a destination of a pingpong: {message!r}")
        lid, qpn, psn, gid = (int(digits, 16) for digits in match.groups())
        return cls(qpn, psn, IPv6Address(gid), lid)

    def __str__(self) -> str:
        mapped = self.gid.ipv4_mapped
        gid = f"::ffff:{mapped}" if mapped else self.gid
        return f"LID 0x{self.lid:04x}, QPN 0x{self.qpn:06x}, PSN 0x{self.psn:06x}, GID {gid}"


NOWHERE = Destination(0, 0, IPv6Address(0))


def ask(sock: socket.socket, own: Sequence[Destination]) -> list[Destination]:
    """The client's part: the server's destinations, as many as ours."""
    sock.settimeout(TIMEOUT_SECONDS)
    for destination in own:
        sock.sendall(destination.emit())
    peers = _receive(sock, len(own))
    sock.sendall(_DONE)
    return peers


def answer(
    sock: socket.socket, own: Sequence[Destination], connect: Callable[[list[Destination]], None]
) -> list[Destination]:
    """The server's part: the client's destinations. `connect` makes the queue pairs ready before ours are told."""
    sock.settimeout(TIMEOUT_SECONDS)
    peers = _receive(sock, len(own))
    connect(peers)
    sock.sendall(b"".join(destination.emit() for destination in own))
    if _read(sock, len(_DONE)) != _DONE:
        raise WireError("the client did not say that it has our destinations")
    return peers


def _receive(sock: socket.socket, count: int) -> list[Destination]:
    return [Destination.parse(_read(sock, MESSAGE_BYTES)) for _ in range(count)]


def _read(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise WireError(f"the peer hung up after {len(data)} of {n} bytes")
        data += part
    return data
