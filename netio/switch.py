"""An Ethernet switch in this process, between memory wires: for hosts that are more than two, without privileges.

    with MemorySwitch(3) as switch:
        a, b, c = switch.ports

Learns where each address was last heard from, and floods what it does not know. Decides nothing else; super-frames go
through whole. One thread, in Python: it is not for measuring.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Self

from netio.bare import new_eventfd
from netio.memory import MemoryPort, Wire
from softrnic.layout import FrameRing, make_ring

RING_BYTES = 1 << 22
_SLOTS = 16


class MemorySwitch:
    """`ports` are the hosts' ends, theirs to close; closing the switch closes the other ends."""

    def __init__(self, count: int, *, mtu: int = 4200) -> None:
        self.ports: list[MemoryPort] = []
        self._own: list[MemoryPort] = []
        for i in range(count):
            wire = Wire(mtu=mtu, ring_bytes=RING_BYTES)
            self.ports.append(wire.port(0, name=f"memory{i}", mac=bytes([2, 0, 0, 0, 1, i])))
            self._own.append(wire.port(1, name=f"switch{i}"))
            wire.close()
        self.where: dict[bytes, int] = {}
        """The port each address was last heard from."""
        self._ring = make_ring(_SLOTS)
        self._wake = new_eventfd()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        fds = [*(port.fileno() for port in self._own), self._wake]
        while not self._closed:
            if not sum(self._carry(i) for i in range(len(self._own))):
                select.select(fds, [], [])

    def _carry(self, source: int) -> int:
        ring = self._ring
        n = self._own[source].recv_burst(ring, time.monotonic_ns())
        for i in range(n):
            off = int(ring.frames[i]["off"])
            to, sender = ring.slab[off : off + 6].tobytes(), ring.slab[off + 6 : off + 12].tobytes()
            self.where[sender] = source
            known = None if to[0] & 1 else self.where.get(to)
            one = FrameRing(ring.frames[i : i + 1], ring.slab)
            for out in range(len(self._own)) if known is None else (known,):
                if out != source:
                    self._own[out].send_burst(one, 1, 0)
        return n

    def close(self) -> None:
        """Stop carrying."""
        if not self._closed:
            self._closed = True
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            for port in self._own:
                port.close()
            os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
