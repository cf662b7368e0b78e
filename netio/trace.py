"""The last packets that passed a port, for looking back after a failure."""

from __future__ import annotations

from collections import deque

from netio.middleware import Middleware, Splitter
from netio.pcap import Direction, Packet
from netio.port import Port
from softrnic.layout import FrameRing


class TracePort(Middleware):
    """Keeps the first `snaplen` bytes of the last `depth` packets, in both directions."""

    def __init__(self, inner: Port, *, depth: int = 1024, snaplen: int = 128) -> None:
        super().__init__(inner)
        self.packets: deque[Packet] = deque(maxlen=depth)
        """Oldest first."""
        self._snaplen = snaplen
        self._splitter = Splitter()

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        n = self.inner.recv_burst(rx, now)
        self._keep(rx, n, now, Direction.RX)
        return n

    def send_burst(self, tx: FrameRing, n: int, now: int) -> int:
        self._keep(tx, n, now, Direction.TX)
        return self.inner.send_burst(tx, n, now)

    def _keep(self, ring: FrameRing, n: int, now: int, direction: Direction) -> None:
        for i in range(n):
            for packet, _ in self._splitter.packets(ring, i):
                self.packets.append(Packet(now, direction, packet[: self._snaplen], len(packet)))
