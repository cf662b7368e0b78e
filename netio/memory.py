"""The in-memory wire: two ports joined by shared memory, in one process or in two.

Decides who owns the memory and how a second process gets it. The frames are moved by netio/memring.py.

    a, b = memory.pair()                      # both in this process, in any two threads

    wire = memory.Wire(mtu=4200)              # or: one side here,
    port = wire.port(0)
    send_fds(sock, wire.fds())                # the other side there:
    port = memory.Wire.from_fds(fds).port(1)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence

from netio.bare import BarePort, new_eventfd
from netio.memring import DATA
from netio.port import SUPER_FRAMES, Kind, make_tables
from softrnic.errors import IoError

_MAGIC = b"srnwire1"
_PREFACE = struct.Struct("<8sii")  # magic, ring bytes, mtu
_PREFACE_BYTES = 4096
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # without, a peer could make us fault
MIN_RING, MAX_RING = 1 << 18, 1 << 28


class Wire:
    """Shared memory with a ring each way, and an eventfd for each side. Side s fills ring s."""

    def __init__(self, *, mtu: int = 4200, ring_bytes: int = 1 << 20) -> None:
        if ring_bytes & (ring_bytes - 1) or not MIN_RING <= ring_bytes <= MAX_RING:
            raise IoError(errno.EINVAL, f"ring_bytes {ring_bytes} is no power of two from {MIN_RING} to {MAX_RING}")
        memfd = os.memfd_create("softrnic-wire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memfd, _PREFACE_BYTES + 2 * (DATA + ring_bytes))
        os.pwrite(memfd, _PREFACE.pack(_MAGIC, ring_bytes, mtu), 0)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
        self._adopt([memfd, new_eventfd(), new_eventfd()], ring_bytes, mtu)

    @classmethod
    def from_fds(cls, fds: Sequence[int]) -> Wire:
        """The wire another process made; takes over the three descriptors."""
        memfd, _, _ = fds
        if fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise IoError(errno.EPERM, "memory wire is not sealed against resizing")
        preface = os.pread(memfd, _PREFACE.size, 0)
        size = os.fstat(memfd).st_size
        magic, ring_bytes, mtu = _PREFACE.unpack(preface) if len(preface) == _PREFACE.size else (b"", 0, 0)
        sound = magic == _MAGIC and not ring_bytes & (ring_bytes - 1) and MIN_RING <= ring_bytes <= MAX_RING
        if not sound or not 68 <= mtu <= 65535 or size != _PREFACE_BYTES + 2 * (DATA + ring_bytes):
            raise IoError(errno.EINVAL, "descriptor is not a memory wire")
        wire = cls.__new__(cls)
        wire._adopt(list(fds), ring_bytes, mtu)
        return wire

    def _adopt(self, fds: list[int], ring_bytes: int, mtu: int) -> None:
        self.mtu = mtu
        self.ring_bytes = ring_bytes
        self._fds = fds
        self._memory = mmap.mmap(fds[0], _PREFACE_BYTES + 2 * (DATA + ring_bytes))
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def fds(self) -> list[int]:
        """The descriptors to hand to another process: memory, and the eventfds of side 0 and side 1."""
        return list(self._fds)

    def ring(self, side: int) -> int:
        """Address of the ring that a side fills."""
        return self._base + _PREFACE_BYTES + side * (DATA + self.ring_bytes)

    def port(self, side: int, *, name: str | None = None, mac: bytes | None = None) -> MemoryPort:
        """One end of the wire; at most one port per side may be in use in all processes."""
        return MemoryPort(self, side, name or f"memory{side}", mac or bytes([2, 0, 0, 0, 0, 1 + side]))

    def eventfd(self, side: int) -> int:
        """A descriptor of the caller's own for the eventfd of a side."""
        return os.dup(self._fds[1 + side])

    def close(self) -> None:
        """Close this process's descriptors; the memory stays for as long as a port uses it."""
        while self._fds:
            os.close(self._fds.pop())


class MemoryPort(BarePort):
    """One side of a Wire."""

    def __init__(self, wire: Wire, side: int, name: str, mac: bytes) -> None:
        tables = make_tables(Kind.MEMORY, fd=wire.eventfd(side), wake_fd=new_eventfd(), mtu=wire.mtu)
        port = tables.port
        port["peer_fd"] = wire.eventfd(1 - side)
        port["ring_bytes"] = wire.ring_bytes
        port["tx_base"], port["rx_base"] = wire.ring(side), wire.ring(1 - side)
        super().__init__(name, tables=tables, caps=SUPER_FRAMES, mac=mac)
        self._wire: Wire | None = wire  # keeps the memory mapped

    def _release(self) -> None:
        port = self.tables.port[0]
        os.close(int(port["peer_fd"]))
        super()._release()
        self._wire = None


def pair(*, mtu: int = 4200, ring_bytes: int = 1 << 20) -> tuple[MemoryPort, MemoryPort]:
    """Two ports of this process, joined."""
    wire = Wire(mtu=mtu, ring_bytes=ring_bytes)
    ports = wire.port(0), wire.port(1)
    wire.close()
    return ports
