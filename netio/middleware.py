"""What middleware shares: a port that wraps a port, and frames as bytes.

Middleware thinks in packets and in Python. It is for tests, captures and demonstrations; the fast pump runs
on bare ports.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from netio.port import Port
from netio.segment import split
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameRing, make_ring


class Middleware:
    """Passes everything on. Subclasses say what they change."""

    def __init__(self, inner: Port) -> None:
        self.inner = inner
        self.name = inner.name
        self.mtu = inner.mtu
        self.caps = inner.caps
        self.mac = inner.mac
        self.fixed_sport = inner.fixed_sport

    def fileno(self) -> int:
        return self.inner.fileno()

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        return self.inner.recv_burst(rx, now)

    def send_burst(self, tx: FrameRing, n: int, now: int) -> int:
        return self.inner.send_burst(tx, n, now)

    def next_deadline(self) -> int | None:
        return self.inner.next_deadline()

    def counters(self) -> dict[str, int]:
        return self.inner.counters()

    def close(self) -> None:
        self.inner.close()


class Splitter:
    """Takes frames of a ring apart into packets, through a small ring of its own."""

    def __init__(self, slots: int = 16) -> None:
        self._ring = make_ring(slots)

    def packets(self, ring: FrameRing, i: int) -> Iterator[tuple[bytes, int]]:
        """(bytes, flags) of each packet of frame i."""
        first = 0
        while count := int(split(ring, i, first, self._ring, 0)):
            for j in range(count):
                yield frame_bytes(self._ring, j), int(self._ring.frames[j]["flags"])
            first += count


def frame_bytes(ring: FrameRing, i: int) -> bytes:
    """A copy of frame i, super-frames whole."""
    frame = ring.frames[i]
    off = int(frame["off"])
    return ring.slab[off : off + int(frame["len"])].tobytes()


def put_frame(ring: FrameRing, i: int, data: bytes, *, seg: int = 0, flags: int = 0) -> None:
    """Place a frame in slot i."""
    off = i * FRAME_STRIDE + FRAME_HEADROOM
    ring.slab[off : off + len(data)] = np.frombuffer(data, np.uint8)
    ring.frames[i] = (off, len(data), seg, flags, 0)
