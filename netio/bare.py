"""BarePort: what all ports share that have a kernel side: tables, and the descriptors in them."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from netio import kernels
from netio.port import COUNTERS, Kind, PortCaps, PortTables, Ready
from softrnic.layout import FrameRing


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
        os.eventfd_write(int(self.tables.port[0]["wake_fd"]), 1)

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


def new_eventfd() -> int:
    """A non-blocking eventfd that children do not inherit."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
