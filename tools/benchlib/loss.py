"""Goodput over a lossy link, in virtual time: two engines, a link of a given rate and delay, packets lost at random.

Deterministic: a run is a function of its arguments. Beside each figure stands the bound of ideal go-back-N: every loss
costs what was sent from the lost packet until word of it came back, one round trip of packets, and nothing else.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from softrnic.layout import make_ring
from softrnic.spec import Access, Mtu, QpState, QpType, SendFlags, WrOpcode
from softrnic.verbs import AhAttr, Device, QpCap, SendWr
from softrnic.verbs.wr import RecvWr

LOSSES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.05)
TESTS = {"WRITE": WrOpcode.RDMA_WRITE, "READ": WrOpcode.RDMA_READ, "SEND": WrOpcode.SEND}
MESSAGE = 1 << 20
PMTU = 4096
PACKET = PMTU + 14 + 20 + 8 + 12 + 4  # bytes on the wire, without preamble and gap
RATE_GBPS = 25.0
RTT_NS = 100_000
RING = 8
ADDRESSES = (("10.0.0.1", b"\x02\x00\x00\x00\x00\x0a"), ("10.0.0.2", b"\x02\x00\x00\x00\x00\x0b"))
ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ


@dataclass(frozen=True)
class Goodput:
    """One point of the curve, Gb/s."""

    test: str
    loss: float
    gbps: float
    bound_gbps: float
    retransmitted: float  # packets sent again, per packet of payload

    @property
    def ratio(self) -> float:
        """How much of the bound was reached."""
        return self.gbps / self.bound_gbps


def bound(loss: float, rate_gbps: float = RATE_GBPS, rtt_ns: int = RTT_NS) -> float:
    """Payload rate of ideal go-back-N over a full pipe, Gb/s (Bertsekas and Gallager, Data Networks, 2.4.2)."""
    packet_ns = PACKET * 8 / rate_gbps
    in_flight = 1 + rtt_ns / packet_ns
    efficiency = (1 - loss) / (1 - loss + loss * in_flight)
    return rate_gbps * PMTU / PACKET * efficiency


class _Side:
    """An engine, what it sends with, and the link away from it."""

    def __init__(self, which: int, size: int) -> None:
        address, mac = ADDRESSES[which]
        self.device = Device(f"sr{which}")
        self.gid = self.device.add_gid(address, mac)
        self.pd = self.device.alloc_pd()
        self.cq = self.device.create_cq(1024)
        self.buf = np.random.default_rng(which).integers(0, 256, size, dtype=np.uint8)
        self.mr = self.pd.reg_mr(self.buf, ALL_ACCESS)
        self.qp = self.pd.create_qp(QpType.RC, self.cq, self.cq, QpCap(64, 64))
        self.tx, self.rx = make_ring(RING), make_ring(1)
        self.free_at = 0  # when the link has sent all it was given

    def connect(self, which: int, peer: _Side) -> None:
        """RTS towards the peer."""
        address, mac = ADDRESSES[1 - which]
        self.qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ALL_ACCESS)
        self.qp.modify(
            QpState.RTR, ah=AhAttr(address, self.gid, mac), path_mtu=Mtu.MTU_4096, dqpn=peer.qp.qpn, rq_psn=0,
            max_dest_rd_atomic=16, min_rnr_timer=1,
        )  # fmt: skip
        self.qp.modify(QpState.RTS, sq_psn=0, timeout=14, retry_cnt=7, rnr_retry=7, max_rd_atomic=16)


class _Link:
    """Both directions: serialised at a rate, delayed by half a round trip, each packet lost by chance.

    The responder's end takes `service_ns` per packet, and queues what it has not come to.
    """

    def __init__(self, loss: float, rate_gbps: float, rtt_ns: int, seed: int, service_ns: int) -> None:
        self.service = (0, service_ns)
        self.taken_at = [0, 0]
        self.rate, self.delay, self.loss = rate_gbps / 8, rtt_ns // 2, loss  # bytes per ns
        self.chance = np.random.default_rng(seed)
        self.order = itertools.count()
        self.flying: list[tuple[int, int, int, bytes]] = []

    def room(self, side: _Side, now: int) -> int:
        """Packets that may be handed over: the device's queue holds a ring of them."""
        backlog = max(0, side.free_at - now) * self.rate / PACKET
        return max(0, int(RING - backlog))

    def carry(self, side: _Side, to: int, n: int, now: int) -> None:
        """Send frames 0 to n-1."""
        for i in range(n):
            frame = side.tx.frames[i]
            off, length = int(frame["off"]), int(frame["len"])
            side.free_at = max(side.free_at, now) + int(length / self.rate)
            if self.chance.random() >= self.loss:
                data = side.tx.slab[off : off + length].tobytes()
                self.taken_at[to] = max(self.taken_at[to], side.free_at + self.delay) + self.service[to]
                heapq.heappush(self.flying, (self.taken_at[to], next(self.order), to, data))


def _deliver(side: _Side, data: bytes, now: int) -> None:
    frame = side.rx.frames[0]
    off = int(frame["off"])
    side.rx.slab[off : off + len(data)] = np.frombuffer(data, np.uint8)
    frame["len"], frame["seg"] = len(data), 0
    side.device.engine.receive(side.rx, 1, now)


def _transmit(sides: list[_Side], link: _Link, now: int) -> int | None:
    """Let both sides send what the link takes; when one that has more may go on."""
    wake: int | None = None
    for which, side in enumerate(sides):
        engine = side.device.engine
        while engine.has_work() and (room := link.room(side, now)) > 0:
            ring = side.tx._replace(frames=side.tx.frames[:room])
            link.carry(side, 1 - which, engine.transmit(ring, now), now)
        if engine.has_work():
            again = side.free_at - int((RING - 1) * PACKET / link.rate)
            wake = min(wake or again, max(now + 1, again))
    return wake


def _post(sides: list[_Side], opcode: WrOpcode, size: int) -> None:
    a, b = sides
    if opcode == WrOpcode.SEND:
        b.qp.post_recv([RecvWr([b.mr.sge(0, size)])])
    a.qp.post_send(
        [SendWr(opcode, sges=[a.mr.sge(0, size)], flags=SendFlags.SIGNALED, remote_addr=b.mr.addr, rkey=b.mr.rkey)]
    )


def goodput(
    test: str, loss: float, *, messages: int, rate_gbps: float = RATE_GBPS, rtt_ns: int = RTT_NS, seed: int = 1,
    depth: int = 16, service_ns: int = 0,
) -> Goodput:  # fmt: skip
    """Run `messages` of 1 MiB through; checks that all completed and that the last arrived whole."""
    opcode = TESTS[test]
    sides = [_Side(which, MESSAGE) for which in range(2)]
    for which, side in enumerate(sides):
        side.connect(which, sides[1 - which])
    link = _Link(loss, rate_gbps, rtt_ns, seed, service_ns)
    now = start = 1_000_000
    posted = done = 0
    while done < messages:
        while posted < messages and posted - done < depth:
            _post(sides, opcode, MESSAGE)
            posted += 1
        wake = _transmit(sides, link, now)
        times = [t for s in sides if (t := s.device.engine.next_deadline()) is not None]
        times += [wake] if wake is not None else []
        times += [link.flying[0][0]] if link.flying else []
        now = max(now, min(times))
        while link.flying and link.flying[0][0] <= now:
            _, _, to, data = heapq.heappop(link.flying)
            _deliver(sides[to], data, now)
        for side in sides:
            side.device.engine.on_timer(now)
        for completion in sides[0].cq.poll(64):
            if completion.status:
                raise RuntimeError(f"{test} at loss {loss}: {completion.status!r}")
            done += 1
        sides[1].cq.poll(64)
    if not (sides[0].buf == sides[1].buf).all():
        raise RuntimeError(f"{test} at loss {loss}: the data that arrived is not the data that was sent")
    packets = messages * MESSAGE // PMTU
    again = sum(_counter(side, "retransmitted_pkts") for side in sides)
    return Goodput(test, loss, messages * MESSAGE * 8 / (now - start), bound(loss, rate_gbps, rtt_ns), again / packets)


def _counter(side: _Side, name: str) -> int:
    return int(side.device.counters()[name])


@dataclass(frozen=True)
class Point:
    """One test at one loss over several seeds: the mean, and how far single seeds are from it, Gb/s."""

    test: str
    loss: float
    gbps: float
    lowest: float
    highest: float
    bound_gbps: float


def curve(messages: int, seeds: int) -> list[Point]:
    """Every test at every loss, on all processors."""
    points = [(test, loss) for test in TESTS for loss in LOSSES]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_point, points, itertools.repeat(messages), itertools.repeat(seeds)))


def _point(where: tuple[str, float], messages: int, seeds: int) -> Point:
    test, loss = where
    rates = [goodput(test, loss, messages=messages, seed=seed).gbps for seed in range(1, seeds + 1)]
    return Point(test, loss, statistics.mean(rates), min(rates), max(rates), bound(loss))
