"""BarePort: what all ports share that have a kernel side: tables, and the descriptors in them."""

from __future__ import annotations

import os
import socket
import struct
from types import TracebackType
from typing import Self

from netio import kernels
from netio.port import COUNTERS, Kind, PortCaps, PortTables, Ready
from softrnic.layout import FrameRing

_SO_MEMINFO, _MEMINFO_DROPS = 55, 8  # asm-generic/socket.h, linux/sock_diag.h


class BarePort:
    """A Port whose frames are moved by netio/kernels.py. Owns its descriptors."""

    fixed_sport: int | None = None

    def __init__(self, name: str, *, tables: PortTables, caps: PortCaps, mac: bytes) -> None:
        self.name = name
        self.mtu = int(tables.port[0]["mtu"])
        self.caps = caps
        self.mac = mac
        self.tables = tables
        self._closed = False

    def fileno(self) -> int:
        return int(self.tables.port[0]["fd"])

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        return int(kernels.recv_burst(self.tables, rx))

    def send_burst(self, tx: FrameRing, n: int, now: int) -> int:
        return int(kernels.send_burst(self.tables, tx, n))

    def wait(self, timeout_ns: int) -> Ready:
        """Sleep until frames wait, wake() is called, or the time is up."""
        return Ready(int(kernels.wait(self.tables, timeout_ns)))

    def wake(self) -> None:
        """End a wait() in another thread, or the next one in this."""
        if not self._closed:
            os.eventfd_write(int(self.tables.port[0]["wake_fd"]), 1)

    def join(self, mac: bytes) -> None:
        """Receive frames to one more Ethernet address. A port that gets all there are has nothing to do."""

    def leave(self, mac: bytes) -> None:
        """The inverse of join()."""

    def hear_neighbours(self) -> None:
        """Receive ARP and neighbour discovery too. A port that does has nothing to do."""

    def next_deadline(self) -> int | None:
        return None

    def counters(self) -> dict[str, int]:
        port = self.tables.port[0]
        return {name: int(port[name]) for name in COUNTERS}

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.tables.port["kind"] = Kind.CLOSED
            self._release()

    def _release(self) -> None:
        """Close what this kind of port owns."""
        port = self.tables.port[0]
        for field in ("fd", "wake_fd"):
            os.close(int(port[field]))
            port[field] = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SocketPort(BarePort):
    """A BarePort whose descriptor is a socket: the kernel bounds its queues, and counts what it loses."""

    def __init__(self, name: str, sock: socket.socket, *, tables: PortTables, caps: PortCaps, mac: bytes) -> None:
        tables.port["sndbuf"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        super().__init__(name, tables=tables, caps=caps, mac=mac)
        self.rx_buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        """Bytes that may wait to be received, kernel overhead included."""
        self._sock = sock

    def counters(self) -> dict[str, int]:
        counted = super().counters()
        counted["rx_drops"] += self._lost()
        return counted

    def _lost(self) -> int:
        """Frames for which the receive buffer had no room."""
        if self._closed:
            return 0
        return int(struct.unpack("=9I", self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[_MEMINFO_DROPS])

    def _release(self) -> None:
        os.close(int(self.tables.port[0]["wake_fd"]))
        self._sock.close()
        self.tables.port["fd"] = self.tables.port["wake_fd"] = -1


def new_eventfd() -> int:
    """A non-blocking eventfd that children do not inherit."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
