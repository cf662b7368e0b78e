"""The project's exceptions. Peer faults never raise: they are NAKs, counters and events.

VerbsError is our caller's mistake, WireError a byte string that is not what it claims to be, StateError a saved
state that must not be loaded, IoError a port or kernel interface that refused.
"""

from __future__ import annotations

import errno as _errno
import os


class SoftRnicError(Exception):
    """Base of all exceptions raised by softrnic."""


class VerbsError(SoftRnicError, OSError):
    """A verb was used wrongly; `errno` is what libibverbs would return."""

    def __init__(self, errno: int, message: str) -> None:
        OSError.__init__(self, errno, message)

    def __str__(self) -> str:
        return f"{self.strerror} ({_errno.errorcode.get(self.errno or 0, self.errno)})"


class WireError(SoftRnicError, ValueError):
    """Bytes that do not parse; the message says why."""


class StateError(SoftRnicError, ValueError):
    """A saved state was refused; `path` names the field, as in `$.qps[3].epsn`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class IoError(SoftRnicError, OSError):
    """A port, a namespace or a kernel interface refused; `errno` is the kernel's."""

    def __init__(self, errno: int, what: str) -> None:
        OSError.__init__(self, errno, f"{what}: {os.strerror(errno)}" if errno else what)
