"""Unix sockets that only their owner may open, and who is at the other end of one."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from softrnic.errors import IoError

_UCRED = struct.Struct("3i")


def private_listener(path: str | Path) -> socket.socket:
    """A listening socket at `path`, mode 0600. One that nobody listens on any more makes way; EADDRINUSE else."""
    path = Path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and _is_dead(path):
            path.unlink()
        before = os.umask(0o177)  # from the very first moment
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(16)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise IoError(error.errno or 0, str(path)) from error
    return sock


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket (SO_PEERCRED)."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid


def check_peer(sock: socket.socket) -> None:
    """EPERM unless the other end is this user, or root."""
    uid = peer_uid(sock)
    if uid not in (0, os.geteuid()):
        raise IoError(errno.EPERM, f"user {uid} may not use this socket")
