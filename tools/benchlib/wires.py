"""Two ends of every kind of wire that the port comparison knows, products and experiments. All but udp need root.

An end is a bare port and a way to move its frames (moving.Way). Experiments are made of the raw port's own socket, so
that nothing but the way differs.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from benchlib import moving
from benchlib.frames import Flow
from benchlib.moving import Way
from ebpf.rules import Rule
from ebpf.shield import shield
from ebpf.steering import Mode, Steering
from netio import memory, netns, raw, tap, udp
from netio.bare import BarePort
from netio.port import PortTables
from netio.xsk import TX_SLOTS, open_xsk

MTU = 4200

# linux/if_packet.h
_SOL_PACKET, _PACKET_RX_RING, _PACKET_VERSION, _TPACKET_V3 = 263, 5, 10, 2
BLOCK_BYTES, BLOCKS = 1 << 18, 32  # as much as the raw port's receive buffer
RETIRE_MS = 1  # the kernel closes a block that is not full after so long; there is no shorter time

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass
class Wire:
    """Frames go from source to sink."""

    source: BarePort
    sink: BarePort
    out: Way = Way.PORT
    way_in: Way = Way.PORT
    addresses: tuple[str, str] = ("10.0.0.1", "10.0.0.2")
    room: int = 1 << 16
    """Packets that may be under way."""
    tables: list[PortTables] = field(default_factory=list)
    """The kernel side of source and sink."""

    def __post_init__(self) -> None:
        self.tables = self.tables or [self.source.tables, self.sink.tables]

    @property
    def flow(self) -> Flow:
        """What the frames' headers say."""
        return Flow(self.source.mac, self.sink.mac, *self.addresses, sport=self.source.fixed_sport or 50000)

    @property
    def most(self) -> int:
        """Packets that one frame may have; 1 if it takes single ones only."""
        return max(1, self.source.caps.max_segments)


@contextlib.contextmanager
def in_memory() -> Iterator[Wire]:
    """Rings in shared memory."""
    a, b = memory.pair()
    with a, b:
        yield Wire(a, b)


@contextlib.contextmanager
def two_namespaces(*, addresses: bool = False) -> Iterator[tuple[netns.Namespace, netns.Namespace]]:
    """A veth pair, each end called eth0 in a namespace of its own."""
    with netns.namespace() as here, netns.namespace() as there:
        netns.veth(here, "eth0", there, "eth0", mtu=MTU)
        if addresses:
            netns.add_address(here, "eth0", "10.0.0.1/24")
            netns.add_address(there, "eth0", "10.0.0.2/24")
        yield here, there


@contextlib.contextmanager
def packet_sockets(ns: tuple[netns.Namespace, netns.Namespace], *, shielded: bool = True) -> Iterator[Wire]:
    """AF_PACKET sockets on the two ends of a veth pair, whose hosts are kept from answering, or not."""
    with contextlib.ExitStack() as stack:
        ports = []
        for space in ns:
            with space.entered():
                ports.append(stack.enter_context(raw.open_raw("eth0")))
                if shielded:
                    stack.enter_context(shield("eth0"))
        yield Wire(*ports)


@contextlib.contextmanager
def on_veth() -> Iterator[Wire]:
    """The raw port."""
    with two_namespaces() as ns, packet_sockets(ns) as wire:
        yield wire


@contextlib.contextmanager
def with_mmsg() -> Iterator[Wire]:
    """AF_PACKET, a burst of frames per system call."""
    with on_veth() as wire:
        tables = [t._replace(xsk=np.zeros(moving.MMSG_WORDS, np.int64)) for t in wire.tables]
        yield Wire(wire.source, wire.sink, Way.MMSG, Way.MMSG, tables=tables)


@contextlib.contextmanager
def with_ring() -> Iterator[Wire]:
    """AF_PACKET sent by the raw port, received in a TPACKET_V3 ring, whose frames are looked at where they lie."""
    with on_veth() as wire, _mapped_ring(wire.sink.fileno()) as base:
        words = np.zeros(moving.RING_WORDS, np.int64)
        words[: moving.RING_NEXT] = base, BLOCK_BYTES, BLOCKS
        tables = [wire.tables[0], wire.tables[1]._replace(xsk=words)]
        yield Wire(wire.source, wire.sink, Way.PORT, Way.RING, tables=tables)


@contextlib.contextmanager
def _mapped_ring(fd: int) -> Iterator[int]:
    """Give a packet socket a receive ring; its address."""
    size = BLOCK_BYTES * BLOCKS
    # struct tpacket_req3: block_size, block_nr, frame_size, frame_nr, retire_blk_tov, sizeof_priv, feature_req_word
    request = struct.pack("=7I", BLOCK_BYTES, BLOCKS, BLOCK_BYTES, BLOCKS, RETIRE_MS, 0, 0)
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        base = _LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if base == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        try:
            yield base
        finally:
            _LIBC.munmap(base, size)


@contextlib.contextmanager
def with_xdp(mode: Mode, *, zero_copy: bool | None = None) -> Iterator[Wire]:
    """AF_XDP sockets on a veth pair, with the steering program before both."""
    with two_namespaces() as ns, contextlib.ExitStack() as stack:
        ports = []
        for space in ns:
            with space.entered():
                port = stack.enter_context(open_xsk("eth0", zero_copy=zero_copy))
                steering = stack.enter_context(Steering("eth0", mode, default=Rule.to_socket(0)))
            steering.add_xsk(port.fileno())
            ports.append(port)
        yield Wire(*ports, room=TX_SLOTS)


@contextlib.contextmanager
def on_bridge() -> Iterator[Wire]:
    """Two taps on one bridge."""
    with netns.namespace() as ns:
        with ns.entered():
            a, b = tap.open_tap("tap0"), tap.open_tap("tap1")
        with a, b:
            netns.bridge(ns, "br0", ["tap0", "tap1"])
            yield Wire(a, b)


@contextlib.contextmanager
def on_loopback() -> Iterator[Wire]:
    """Two UDP sockets of one host."""
    with udp.open_udp("127.0.0.1") as a, udp.open_udp("127.0.0.2") as b:
        yield Wire(a, b, addresses=("127.0.0.1", "127.0.0.2"))


@contextlib.contextmanager
def sockets_on_veth() -> Iterator[Wire]:
    """Two UDP sockets with veth between them."""
    with two_namespaces(addresses=True) as ns, contextlib.ExitStack() as stack:
        ports = []
        for space, address in zip(ns, ("10.0.0.1", "10.0.0.2"), strict=True):
            with space.entered():
                ports.append(stack.enter_context(udp.open_udp(address, mtu=MTU)))
        yield Wire(*ports)


WIRES: dict[str, Callable[[], contextlib.AbstractContextManager[Wire]]] = {
    "memory": in_memory,
    "raw": on_veth,
    "raw-mmsg": with_mmsg,
    "raw-ring": with_ring,
    "xsk": lambda: with_xdp(Mode.XDP_NATIVE),
    "xsk-generic": lambda: with_xdp(Mode.XDP_GENERIC),
    "xsk-zerocopy": lambda: with_xdp(Mode.XDP_NATIVE, zero_copy=True),
    "tap": on_bridge,
    "udp": on_loopback,
    "udp-veth": sockets_on_veth,
}
