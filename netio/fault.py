"""A bad wire, on purpose: loss, delay, jitter, reordering, duplicates, flipped bits, a slow link.

Decides the fate of each packet by a seeded generator, so a run is a function of (seed, calls, `now`). Each
direction has its own faults and its own generator. Super-frames are taken apart first: what is lost is a
packet.

The order is that of a real path: the link's queue and rate, the loss, the damage, the duplicate, the way
(delay).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields

from netio.middleware import Middleware, Splitter, put_frame
from netio.port import Port
from softrnic.layout import FrameRing, make_ring

_MASK64 = (1 << 64) - 1
_ETHERNET = 14
_SLOTS = 16


def _check_probabilities(faults: Faults | BurstLoss) -> None:
    for field in fields(faults):
        value = getattr(faults, field.name)
        if field.type == "float" and not 0 <= value <= 1:
            raise ValueError(f"{field.name} {value} is no probability")


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstLoss:
    """Gilbert-Elliott: a good and a bad state; each packet may change it, each state has its own loss."""

    enter: float
    """Probability to go from good to bad."""
    leave: float
    """Probability to go from bad to good: 1 / mean length of a burst."""
    loss_bad: float = 1.0
    loss_good: float = 0.0

    def __post_init__(self) -> None:
        _check_probabilities(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What one direction does to packets. Probabilities are per packet."""

    loss: float = 0.0
    burst: BurstLoss | None = None
    duplicate: float = 0.0
    corrupt: float = 0.0
    """One bit, anywhere behind the Ethernet header, is flipped."""
    reorder: float = 0.0
    """The packet is held back by reorder_ns, and those behind overtake it."""
    reorder_ns: int = 100_000
    delay_ns: int = 0
    jitter_ns: int = 0
    """Added to the delay, uniformly up to this much; never changes the order."""
    rate_bps: int = 0
    """Bits per second of Ethernet frame; 0: no limit."""
    queue_bytes: int = 1 << 20
    """What waits for the link at most; beyond, packets are dropped. Only with rate_bps."""

    def __post_init__(self) -> None:
        _check_probabilities(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{field.name} {value} is negative")


NO_FAULTS = Faults()


class Xorshift:
    """xorshift64* (Vigna 2014): small, fast enough, and the same everywhere for ever."""

    def __init__(self, seed: int) -> None:
        # One step of splitmix64, so that seeds 1, 2, 3 give unrelated streams; the state must not be 0.
        z = (seed + 0x9E3779B97F4A7C15) & _MASK64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK64
        self._state = (z ^ z >> 31) or 1

    def next(self) -> int:
        """The next 64 bits."""
        x = self._state
        x ^= x >> 12
        x ^= x << 25 & _MASK64
        x ^= x >> 27
        self._state = x
        return x * 0x2545F4914F6CDD1D & _MASK64

    def chance(self, probability: float) -> bool:
        """True with this probability; impossible things draw nothing."""
        return probability > 0 and self.next() < probability * 2.0**64

    def below(self, bound: int) -> int:
        """Uniform in 0..bound-1."""
        return self.next() * bound >> 64


_COUNTERS = ("packets", "lost", "queue_dropped", "corrupted", "duplicated", "reordered", "delivered")


class FaultyLink:
    """One direction: packets go in at a time and come out at another, or not at all. No I/O."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self.faults = faults
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self._random = Xorshift(seed)
        self._bad = False
        self._link_free_at = 0
        self._last_due = 0
        self._order = itertools.count()
        self._under_way: list[tuple[int, int, bytes, int]] = []  # heap of (due, order, packet, flags)

    @property
    def transparent(self) -> bool:
        """Whether frames may pass by it whole: it has no faults, and no packet under way that they would overtake."""
        return self.faults == NO_FAULTS and not self._under_way

    def put(self, packet: bytes, flags: int, now: int) -> None:
        """A packet is sent at `now`."""
        faults = self.faults
        self.counters["packets"] += 1
        sent = self._serialise(len(packet), now)
        if sent is None:
            self.counters["queue_dropped"] += 1
            return
        if self._loses():
            self.counters["lost"] += 1
            return
        if self._random.chance(faults.corrupt):
            packet = self._flip_a_bit(packet)
            self.counters["corrupted"] += 1
        copies = 1
        if self._random.chance(faults.duplicate):
            copies = 2
            self.counters["duplicated"] += 1
        for _ in range(copies):
            heapq.heappush(self._under_way, (self._arrival(sent), next(self._order), packet, flags))

    def _serialise(self, nbytes: int, now: int) -> int | None:
        """When the last bit has left, or None if the queue is full."""
        if not self.faults.rate_bps:
            return now
        backlog_ns = max(0, self._link_free_at - now)
        if backlog_ns * self.faults.rate_bps > self.faults.queue_bytes * 8_000_000_000:
            return None
        self._link_free_at = max(now, self._link_free_at) + nbytes * 8_000_000_000 // self.faults.rate_bps
        return self._link_free_at

    def _loses(self) -> bool:
        if burst := self.faults.burst:
            if self._random.chance(burst.leave if self._bad else burst.enter):
                self._bad = not self._bad
            if self._random.chance(burst.loss_bad if self._bad else burst.loss_good):
                return True
        return self._random.chance(self.faults.loss)

    def _flip_a_bit(self, packet: bytes) -> bytes:
        if len(packet) <= _ETHERNET:
            return packet
        damaged = bytearray(packet)
        at = _ETHERNET + self._random.below(len(packet) - _ETHERNET)
        damaged[at] ^= 1 << self._random.below(8)
        return bytes(damaged)

    def _arrival(self, sent: int) -> int:
        faults = self.faults
        due = sent + faults.delay_ns
        if faults.jitter_ns:
            due += self._random.below(faults.jitter_ns + 1)
        due = max(due, self._last_due)
        if self._random.chance(faults.reorder):
            self.counters["reordered"] += 1
            return due + faults.reorder_ns
        self._last_due = due
        return due

    def next_due(self) -> int | None:
        """When the next packet arrives."""
        return self._under_way[0][0] if self._under_way else None

    def take(self, now: int, limit: int) -> Iterable[tuple[bytes, int]]:
        """Packets that have arrived, oldest first, at most `limit`."""
        while limit and self._under_way and self._under_way[0][0] <= now:
            _, _, packet, flags = heapq.heappop(self._under_way)
            self.counters["delivered"] += 1
            limit -= 1
            yield packet, flags


class FaultPort(Middleware):
    """Faults on what a port sends (`tx`) and on what it receives (`rx`)."""

    def __init__(self, inner: Port, *, tx: Faults = NO_FAULTS, rx: Faults = NO_FAULTS, seed: int = 1) -> None:
        super().__init__(inner)
        self.tx = FaultyLink(tx, 2 * seed)
        self.rx = FaultyLink(rx, 2 * seed + 1)
        self._splitter = Splitter()
        self._rx_ring = make_ring(_SLOTS)
        self._tx_ring = make_ring(_SLOTS)

    def send_burst(self, tx: FrameRing, n: int, now: int) -> int:
        if self.tx.transparent:
            return self.inner.send_burst(tx, n, now)
        for i in range(n):
            for packet, flags in self._splitter.packets(tx, i):
                self.tx.put(packet, flags, now)
        self._forward(now)
        return n

    def _forward(self, now: int) -> None:
        """Send what is due."""
        while True:
            n = 0
            for packet, flags in self.tx.take(now, _SLOTS):
                put_frame(self._tx_ring, n, packet, flags=flags)
                n += 1
            if n == 0:
                return
            self.inner.send_burst(self._tx_ring, n, now)

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        self._forward(now)
        if self.rx.transparent:
            return self.inner.recv_burst(rx, now)
        for i in range(self.inner.recv_burst(self._rx_ring, now)):
            for packet, flags in self._splitter.packets(self._rx_ring, i):
                self.rx.put(packet, flags, now)
        n = 0
        for packet, flags in self.rx.take(now, len(rx.frames)):
            put_frame(rx, n, packet, flags=flags)
            n += 1
        return n

    def next_deadline(self) -> int | None:
        due = (self.tx.next_due(), self.rx.next_due(), self.inner.next_deadline())
        return min((time for time in due if time is not None), default=None)

    def counters(self) -> dict[str, int]:
        own = {f"fault_tx_{name}": value for name, value in self.tx.counters.items()}
        own |= {f"fault_rx_{name}": value for name, value in self.rx.counters.items()}
        return self.inner.counters() | own
