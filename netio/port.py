"""What a port is: the protocol that pump, middleware and tests rely on, and the record its kernels work on.

Decides the vocabulary of every port (kinds, capabilities, counters) and the layout of the kernel-side
state. Must never know RDMA: a port moves Ethernet frames and looks no further than the UDP header. No
sockets in this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameRing

FRAME_ROOM = FRAME_STRIDE - FRAME_HEADROOM  # bytes a slot holds from its Ethernet header on
MAX_SUPER_FRAME = 65535  # Linux cuts in software what reaches gso_max_size, 65536 by default


class Kind(IntEnum):
    """PORT["kind"]: which kernels move the frames."""

    # fmt: off
    CLOSED = -1 # every kernel does nothing
    FD     = 0  # AF_PACKET socket or tap: a descriptor whose frames carry a virtio-net header
    MEMORY = 1
    UDP    = 2
    XSK    = 3
    # fmt: on


class PortFlag(IntFlag):
    """PORT["flags"]."""

    # fmt: off
    OFFLOAD = 1  # takes super-frames; without it the port's kernel splits them
    DIVERT  = 2  # ARP and neighbour discovery go to the slow ring, not to the engine
    VLAN    = 4  # a packet socket that is told of VLAN tags, and has them put back
    SOCKET  = 8  # the descriptor is one: send and recv are quicker than write and read, and sendmmsg than both
    # fmt: on


class Ready(IntFlag):
    """Why port_wait() came back; 0 is the timeout."""

    RX = 1
    WAKE = 2


@dataclass(frozen=True, slots=True)
class PortCaps:
    """What a port can do for the engine."""

    max_frame: int = 0
    """Bytes of the longest super-frame, with its Ethernet header; 0: no super-frames."""
    max_segments: int = 0
    """Packets in one super-frame at most; 0 with no super-frames."""
    ethernet: bool = True
    """False where Ethernet and IP headers are made up on receive and stripped on send (UDP sockets)."""


SUPER_FRAMES = PortCaps(max_frame=MAX_SUPER_FRAME, max_segments=1 << 16)
SINGLE_FRAMES = PortCaps()


@runtime_checkable
class Port(Protocol):
    """A device or middleware around one. `now` is monotonic nanoseconds; bare ports ignore it."""

    name: str
    mtu: int
    """Greatest IP packet of the link."""
    caps: PortCaps
    mac: bytes
    """The address frames are sent from."""
    fixed_sport: int | None
    """UDP source port of everything sent, for ports that cannot choose one per QP; None otherwise."""

    def fileno(self) -> int:
        """A descriptor that polls readable while frames wait."""

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        """Place frames that wait in slots 0..n-1 and return n."""

    def send_burst(self, tx: FrameRing, n: int, now: int) -> int:
        """Take frames 0..n-1, whose bytes the port may overwrite; return how many went out and were not
        dropped.
        """

    def next_deadline(self) -> int | None:
        """When this port has something to do unasked; None: never."""

    def counters(self) -> dict[str, int]:
        """Counters of this port and of all it wraps."""

    def close(self) -> None:
        """Give everything back; further calls are harmless only if they are close()."""


COUNTERS = (
    "tx_frames",    # frames handed to the wire, a super-frame counting once
    "tx_segments",  # packets in them
    "tx_bytes",     # from Ethernet header to end, a super-frame's headers counting once
    "tx_drops",     # the wire had no room, and still none after the retries
    "tx_errors",    # the wire refused for good: too long, link down, malformed super-frame
    "rx_frames",
    "rx_segments",
    "rx_bytes",
    "rx_drops",     # no room on our side
    "rx_errors",    # the wire refused to be read, or shared memory that makes no sense
    "rx_bad_vnet",  # a virtio-net header that announces what is not UDP segmentation
    "rx_diverted",  # handed to the slow ring
)  # fmt: skip

PORT = np.dtype(
    [
        ("kind", "i4"),
        ("flags", "i4"),      # PortFlag
        ("fd", "i4"),         # descriptor of the wire; memory: the eventfd that tells of frames
        ("wake_fd", "i4"),    # eventfd that ends port_wait()
        ("peer_fd", "i4"),    # memory: the peer's eventfd
        ("vnet", "i4"),       # bytes of the virtio-net header
        ("family", "i4"),     # UDP: AF_INET or AF_INET6
        ("sport", "i4"),      # UDP: the bound port, and the peers'
        ("dport", "i4"),      # UDP: the port the engine is to see
        ("mtu", "i4"),
        ("sndbuf", "i4"),     # sockets: bytes that may wait to be sent, kernel overhead included; 0: no limit
        ("quiet", "i4"),      # descriptors: the last look found nothing, so the next frame likely comes alone
        ("tx_credit", "i4"),  # sockets: frames for which there was room when last asked, less those sent since
        ("ring_bytes", "i4"), # memory: data bytes of each direction's ring
        ("tx_base", "i8"),    # memory: address of the ring we fill
        ("rx_base", "i8"),    # memory: address of the ring we empty
        ("tx_pos", "i8"),     # memory: bytes ever put; private, so that a peer cannot move it
        ("tx_limit", "i8"),   # memory: tx_pos may reach this before the peer's tail must be read again
        ("rx_pos", "i8"),     # memory: bytes ever taken; private
        ("slow_head", "i8"),  # frames ever diverted
        ("slow_tail", "i8"),  # frames ever taken from the slow ring
        *((name, "i8") for name in COUNTERS),
    ],
    align=True,
)  # fmt: skip

# The slow ring: ARP and neighbour discovery that port_recv set aside for Python.
SLOW_SLOTS = 32
SLOW_BYTES = 2048  # per slot: 8 bytes of length, then the frame

AUX_BYTES = 4096  # scratch memory for system calls, see netio/libc.py


class PortTables(NamedTuple):
    """The kernel side of a port, one type for all kinds."""

    port: np.ndarray  # PORT[1]
    aux: np.ndarray  # uint8[AUX_BYTES]: structures passed to system calls
    slow: np.ndarray  # uint8[SLOW_SLOTS * SLOW_BYTES]
    xsk: np.ndarray  # int64[]: addresses and indices of AF_XDP rings, empty for other kinds


def make_tables(kind: Kind, *, fd: int, wake_fd: int, mtu: int, xsk_words: int = 0) -> PortTables:
    """Tables of a port that does not yet do anything special."""
    port = np.zeros(1, PORT)
    port["kind"], port["fd"], port["wake_fd"], port["mtu"] = kind, fd, wake_fd, mtu
    port["peer_fd"] = -1
    aux = np.zeros(AUX_BYTES, np.uint8)
    slow = np.zeros(SLOW_SLOTS * SLOW_BYTES, np.uint8)
    return PortTables(port, aux, slow, np.zeros(xsk_words, np.int64))
