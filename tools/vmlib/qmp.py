"""A client of QEMU's machine protocol, QMP: JSON objects, one a line, over a connected socket.

Protocol: QEMU's docs/interop/qmp-spec.rst. What the commands mean is not known here.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from .errors import GuestDeadError, QmpError

TIMEOUT_S = 30.0


class Qmp:
    """Commands, one at a time, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self.events: list[dict[str, Any]] = []
        """In order of arrival; read while answers are awaited."""
        self._socket = connection
        self._socket.settimeout(TIMEOUT_S)
        self._lines = connection.makefile("rb")
        self._lock = threading.Lock()
        self._greeted = False

    def execute(self, command: str, **arguments: Any) -> Any:
        """What the command returns."""
        with self._lock:
            if not self._greeted:
                self._read()  # the greeting; it comes when QEMU is up
                self._ask("qmp_capabilities", {})
                self._greeted = True
            return self._ask(command, arguments)

    def hmp(self, line: str) -> str:
        """The answer to a line of QEMU's human monitor."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _ask(self, command: str, arguments: dict[str, Any]) -> Any:
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise GuestDeadError("QEMU is gone") from error
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise QmpError(f"no answer from QEMU within {TIMEOUT_S:g} s") from error
        except ConnectionResetError:
            line = b""
        if not line:
            raise GuestDeadError("QEMU is gone")
        answer: dict[str, Any] = json.loads(line)
        return answer
