"""How two perf processes agree: one TCP connection, one JSON object per line, each side's Peer and the options.

The client decides the options, the server checks them. A barrier is a line with the word both are at.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from typing import Any

from softrnic.control.perf.run import Options, Peer, PerfError

DEFAULT_PORT = 18515  # perftest's
_LIMIT = 1 << 16
TIMEOUT_SECONDS = 180  # the other side may have a kernel to compile


class Exchange:
    """One side of the connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT_SECONDS)
        self._sock = sock
        self._file = sock.makefile("rwb")

    @classmethod
    def listen(cls, port: int) -> Exchange:
        """Wait for a client."""
        with socket.create_server(("", port), reuse_port=True) as server:
            sock, _ = server.accept()
        return cls(sock)

    @classmethod
    def connect(cls, host: str, port: int) -> Exchange:
        """Reach the server."""
        return cls(socket.create_connection((host, port), timeout=10))

    def _send(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline(_LIMIT)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise PerfError(f"the other side does not speak softrnic perf: {line[:60]!r}") from error
        if not isinstance(message, dict):
            raise PerfError("the other side does not speak softrnic perf")
        return message

    def send_options(self, options: Options) -> None:
        """Client: what is to be run."""
        self._send(asdict(options))

    def receive_options(self) -> Options:
        """Server: what the client wants."""
        try:
            return Options(**self._receive())
        except (TypeError, ValueError) as error:
            raise PerfError(f"the client's options make no sense: {error}") from error

    def swap(self, local: Peer) -> Peer:
        """Tell our end, learn the other's."""
        self._send(local.as_dict())
        try:
            return Peer(**self._receive())
        except TypeError as error:
            raise PerfError(f"the other side's end makes no sense: {error}") from error

    def barrier(self, word: str) -> None:
        """Go on when both are here."""
        self._send({"at": word})
        if self._receive().get("at") != word:
            raise PerfError(f"the other side is not at {word!r}")

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._sock.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
