"""A port on an AF_XDP socket: frames between one receive queue of a device and our memory, past the host's
stack. Needs root, and an XDP program that sends frames here.

Decides sizes and options of socket and memory. The frames are moved by netio/xskio.py. Which frames come is
for the XDP program to say: fileno() goes into its socket map. All others stay with the host's stack, address
resolution too. Opens in the calling thread's network namespace.

    first = open_xsk("eth0", queue=0)
    second = open_xsk("eth0", queue=0, beside=first)  # another function on the same queue

Works with every driver (the kernel copies), and without a copy where the driver can. Packets longer than a
chunk (path MTU 4096) need Linux 6.6; before, the port's MTU is less than the device's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import time
from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np

from netio import netdev
from netio.bare import BarePort, new_eventfd
from netio.port import MAX_SUPER_FRAME, Kind, PortCaps, make_tables
from netio.xskio import ETHERNET_BYTES, Ring, Xsk
from softrnic.errors import IoError

CHUNK = 4096  # the kernel takes no larger ones
RX_CHUNKS = 4096
TX_SLOTS = 1024
BUFFER_BYTES = 8 << 20
_DRIVER_HEADROOM = 256  # of each chunk received in: XDP_PACKET_HEADROOM
_BUSY_TRIES, _BUSY_PAUSE_S = 25, 0.01

# linux/socket.h, asm-generic/socket.h, linux/if_xdp.h
_AF_XDP, _SOL_XDP, _SO_SNDBUFFORCE = 44, 283, 32
_SOCK_TYPE = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_OPTIONS_ZEROCOPY = 1
_RING_OFFSETS = struct.Struct("=4Q")  # struct xdp_ring_offset: producer, consumer, desc, flags
_UMEM_REG = struct.Struct("=2Q4I")    # addr, len, chunk_size, headroom, flags, tx_metadata_len
_STATISTICS = struct.Struct("=6Q")    # rx_dropped, rx_invalid, tx_invalid, rx_full, rx_fill_empty, tx_empty
_SOCKADDR = struct.Struct("=2H3I")    # family, flags, ifindex, queue_id, shared_umem_fd


class _Option(IntEnum):
    """Socket options at level SOL_XDP."""

    MMAP_OFFSETS         = 1
    RX_RING              = 2
    TX_RING              = 3
    UMEM_REG             = 4
    UMEM_FILL_RING       = 5
    UMEM_COMPLETION_RING = 6
    STATISTICS           = 7
    OPTIONS              = 8
    MAX_TX_SKB_BUDGET    = 9  # since Linux 6.17


class _Bind(IntFlag):
    """sxdp_flags."""

    SHARED_UMEM     = 1
    COPY            = 2
    ZEROCOPY        = 4
    USE_NEED_WAKEUP = 8
    USE_SG          = 16  # packets may take several chunks; since Linux 6.6


class _Place(NamedTuple):
    """Where a ring is in the socket's mmap space, and which one of struct xdp_mmap_offsets it is."""

    mmap_offset: int
    nth: int
    entry_bytes: int


_PLACES = {
    _Option.RX_RING: _Place(0, 0, 16),
    _Option.TX_RING: _Place(0x80000000, 1, 16),
    _Option.UMEM_FILL_RING: _Place(0x100000000, 2, 8),
    _Option.UMEM_COMPLETION_RING: _Place(0x180000000, 3, 8),
}

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


class XskPort(BarePort):
    """A port on one receive queue of a device. Super-frames are split on the way out, and never come in."""

    def __init__(self, ifname: str, opened: _Socket, *, mac: bytes) -> None:
        fd, mtu = opened.sock.fileno(), opened.mtu
        tables = make_tables(Kind.XSK, fd=fd, wake_fd=new_eventfd(), mtu=mtu, xsk_words=Xsk.WORDS)
        tables.xsk[:] = opened.words
        super().__init__(ifname, tables=tables, caps=PortCaps(MAX_SUPER_FRAME, TX_SLOTS), mac=mac)
        self.socket = opened

    @property
    def zero_copy(self) -> bool:
        """Whether the driver works on our memory itself."""
        (flags,) = struct.unpack("=I", self.socket.sock.getsockopt(_SOL_XDP, _Option.OPTIONS, 4))
        return bool(flags & _OPTIONS_ZEROCOPY)

    def counters(self) -> dict[str, int]:
        raw = self.socket.sock.getsockopt(_SOL_XDP, _Option.STATISTICS, _STATISTICS.size)
        rx_dropped, _, tx_invalid, rx_full, _, _ = _STATISTICS.unpack(raw)
        counted = super().counters()
        counted["rx_drops"] += rx_dropped + rx_full
        counted["tx_errors"] += tx_invalid
        return counted

    def _release(self) -> None:
        self.socket.close()
        os.close(int(self.tables.port[0]["wake_fd"]))


def open_xsk(
    ifname: str, queue: int = 0, *, zero_copy: bool | None = None, beside: XskPort | None = None
) -> XskPort:
    """A port on receive queue `queue` of `ifname`.

    `zero_copy`: None takes what the driver offers, True insists on it, False has the kernel copy. `beside`: a
    port on the same queue, whose memory the new one shares, since a queue has only one. Ports that share are
    one thread's.
    """
    mode = {None: _Bind(0), True: _Bind.ZEROCOPY, False: _Bind.COPY}[zero_copy]
    try:
        opened = _Socket(ifname, queue, mode, beside=beside.socket if beside else None)
    except OSError as error:
        raise IoError(error.errno or 0, f"AF_XDP socket on {ifname} queue {queue}") from error
    return XskPort(ifname, opened, mac=netdev.mac(ifname))


class _Socket:
    """A bound socket with its mapped rings, and the memory it works in."""

    sock: socket.socket
    umem: _Umem
    mtu: int
    long_packets: bool
    words: list[int]
    """The words of xskio.Xsk."""

    def __init__(self, ifname: str, queue: int, mode: _Bind, *, beside: _Socket | None) -> None:
        index, mtu = netdev.index(ifname), netdev.mtu(ifname)
        with contextlib.ExitStack() as undo:
            self.sock = undo.enter_context(socket.socket(_AF_XDP, _SOCK_TYPE, 0))
            self.umem = beside.umem if beside else _Umem(mtu)
            undo.callback(self.umem.leave)
            self.umem.users += 1
            if beside is None:
                self.umem.register(self.sock)
            for option in (_Option.RX_RING, _Option.TX_RING):
                self.sock.setsockopt(_SOL_XDP, option, self.umem.entries[option])
            _raise_limits(self.sock, self.umem.tx_chunks)
            if beside:
                _bind(self.sock, _Bind.SHARED_UMEM, index, queue, beside.sock.fileno())
                self.long_packets = beside.long_packets
            else:
                self.long_packets = _bind_first(self.sock, mode, index, queue)
            rings = [_map_ring(self.sock, *ring, undo) for ring in self.umem.entries.items()]
            self._undo = undo.pop_all()
        self.mtu = mtu if self.long_packets else min(mtu, CHUNK - _DRIVER_HEADROOM - ETHERNET_BYTES)
        self.words = [self.umem.words.ctypes.data, *(word for ring in rings for word in ring)]

    def close(self) -> None:
        self._undo.close()


class _Umem:
    """Memory for frames: one per receive queue, for all sockets on it."""

    def __init__(self, mtu: int) -> None:
        slot = -(-(mtu + ETHERNET_BYTES) // CHUNK) * CHUNK
        self.users = 0
        self.size = RX_CHUNKS * CHUNK + TX_SLOTS * slot
        self.tx_chunks = TX_SLOTS * slot // CHUNK
        self.entries = {
            _Option.RX_RING: _power_of_two(RX_CHUNKS),
            _Option.TX_RING: _power_of_two(self.tx_chunks),
            _Option.UMEM_FILL_RING: _power_of_two(RX_CHUNKS),
            _Option.UMEM_COMPLETION_RING: _power_of_two(self.tx_chunks),
        }
        """Of each ring, in the order of xskio.Xsk. Every one has room for all chunks that can be in it."""
        with contextlib.ExitStack() as undo:
            self.address = _map(self.size, undo)
            self._undo = undo.pop_all()
        words = [self.address, self.size, CHUNK, slot, TX_SLOTS, RX_CHUNKS * CHUNK, TX_SLOTS]
        free, pending = range(TX_SLOTS), [0] * TX_SLOTS
        self.words = np.array([*words, *free, *pending], np.int64)  # in the order of xskio.Umem

    def register(self, sock: socket.socket) -> None:
        """Make this the first socket's memory, and offer the kernel all chunks to receive in."""
        sock.setsockopt(_SOL_XDP, _Option.UMEM_REG, _UMEM_REG.pack(self.address, self.size, CHUNK, 0, 0, 0))
        for option in (_Option.UMEM_FILL_RING, _Option.UMEM_COMPLETION_RING):
            sock.setsockopt(_SOL_XDP, option, self.entries[option])
        with contextlib.ExitStack() as undo:
            fill = _map_ring(sock, _Option.UMEM_FILL_RING, self.entries[_Option.UMEM_FILL_RING], undo)
            chunks = np.arange(RX_CHUNKS, dtype=np.int64) * CHUNK
            ctypes.memmove(fill[Ring.ENTRIES], chunks.ctypes.data, chunks.nbytes)
            ctypes.c_uint32.from_address(fill[Ring.PRODUCER]).value = RX_CHUNKS

    def leave(self) -> None:
        """A socket has done with the memory; the last one frees it."""
        self.users -= 1
        if self.users == 0:
            self._undo.close()


def _map(size: int, undo: contextlib.ExitStack, *, fd: int = -1, offset: int = 0) -> int:
    """Map memory and return its address.

    The mmap module would keep a second descriptor of the socket, and so the socket open.
    """
    flags = mmap.MAP_POPULATE | (mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = _LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    undo.callback(_LIBC.munmap, address, size)
    return int(address)


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


def _map_ring(sock: socket.socket, option: _Option, entries: int, undo: contextlib.ExitStack) -> list[int]:
    """Map a ring and return its words, in the order of xskio.Ring.

    The rings of a UMEM are mapped by each of its sockets, for a mapping keeps its socket alive.
    """
    place = _PLACES[option]
    offsets = sock.getsockopt(_SOL_XDP, _Option.MMAP_OFFSETS, 4 * _RING_OFFSETS.size)
    producer, consumer, desc, flags = _RING_OFFSETS.unpack_from(offsets, place.nth * _RING_OFFSETS.size)
    size = desc + entries * place.entry_bytes
    base = _map(size, undo, fd=sock.fileno(), offset=place.mmap_offset)
    return [base + producer, base + consumer, base + flags, base + desc, entries - 1]


def _raise_limits(sock: socket.socket, tx_chunks: int) -> None:
    """Let one call send more than the kernel's default of 32 packets."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
    with contextlib.suppress(OSError):
        sock.setsockopt(_SOL_XDP, _Option.MAX_TX_SKB_BUDGET, tx_chunks)


def _bind_first(sock: socket.socket, mode: _Bind, ifindex: int, queue: int) -> bool:
    """Bind to the queue; whether packets may be longer than a chunk."""
    mode |= _Bind.USE_NEED_WAKEUP
    try:
        _bind(sock, mode | _Bind.USE_SG, ifindex, queue)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        _bind(sock, mode, ifindex, queue)
        return False
    return True


def _bind(sock: socket.socket, flags: _Bind, ifindex: int, queue: int, shared_fd: int = 0) -> None:
    """bind(2), which the socket module does not know for this family.

    The kernel takes its time to let go of a queue whose socket was closed.
    """
    address = _SOCKADDR.pack(_AF_XDP, flags, ifindex, queue, shared_fd)
    for _ in range(_BUSY_TRIES):
        if _LIBC.bind(sock.fileno(), address, len(address)) == 0:
            return
        if ctypes.get_errno() != errno.EBUSY:
            break
        time.sleep(_BUSY_PAUSE_S)
    raise OSError(ctypes.get_errno(), "bind")
