"""The engine's five verbs as a driver sees them: bursts, rings of every size, turns, events (softrnic.engine)."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.engine import QUANTUM, Engine
from softrnic.layout import EVENT_ENTRIES, make_ring
from softrnic.qp import admin
from softrnic.verbs import EventType, Mtu, Qp, QpCap, QpState, QpType, RecvWr, SendWr, WrOpcode
from tests.pairs import Pair, deliver
from tests.script.harness import dissect

SIZE = 1 << 16


def write(p: Pair, length: int = 8, **wr: object) -> SendWr:
    return SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, length)], remote_addr=p.b.mr.addr, rkey=p.b.mr.rkey, **wr)  # type: ignore[arg-type]


def taken(p: Pair, slots: int) -> list[int]:
    """Destination QPNs of one burst of side a into a ring of so many slots."""
    ring = make_ring(slots)
    n = p.a.device.engine.transmit(ring, p.now)
    return [dissect(ring.slab[int(f["off"]) :][: int(f["len"])].tobytes()).dqpn for f in ring.frames[:n]]


def test_new_engine_has_nothing_to_do() -> None:
    engine = Engine()
    ring = make_ring(1)
    assert not engine.has_work()
    assert engine.next_deadline() is None
    assert engine.transmit(ring, 0) == 0
    engine.on_timer(10**18)
    engine.receive(ring, 0, 10**18)
    assert list(engine.events()) == []


def test_doorbell_is_work() -> None:
    """has_work is true from the post to the transmit that does it."""
    p = Pair(size=SIZE)
    qa, _ = p.connect()
    engine = p.a.device.engine
    engine.transmit(p.a.tx, p.now)
    assert not engine.has_work()
    qa.post_send(write(p))
    assert engine.has_work()
    assert engine.transmit(p.a.tx, p.now) == 1
    assert not engine.has_work()
    assert engine.next_deadline() is not None


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_rings_of_every_size(slots: int) -> None:
    """A full ring means: call again. Nothing is lost or doubled, whatever its size."""
    p = Pair(size=SIZE)
    p.a.tx, p.b.tx = make_ring(slots), make_ring(slots)
    qa, qb = p.connect(mtu=Mtu.MTU_256)
    p.a.buf[:] = np.arange(SIZE) % 249
    qa.post_send(write(p, 10_000, wr_id=1))
    qa.post_send(SendWr(WrOpcode.RDMA_READ, [p.a.mr.sge(20_000, 9_000)], 2, remote_addr=p.b.mr.addr, rkey=p.b.mr.rkey))
    qb.post_send(
        SendWr(WrOpcode.RDMA_WRITE, [p.b.mr.sge(30_000, 500)], 3, remote_addr=p.a.mr.addr + 40_000, rkey=p.a.mr.rkey)
    )
    p.run()
    assert [wc.wr_id for wc in p.a.cq.poll()] == [1, 2]
    assert [wc.wr_id for wc in p.b.cq.poll()] == [3]
    assert (p.a.buf[20_000:29_000] == p.a.buf[:9_000]).all()
    assert p.a.device.counter(C.RETRANSMITTED_PKTS) == p.b.device.counter(C.RETRANSMITTED_PKTS) == 0


def test_turns() -> None:
    """A QP with much to send lets the others go first after its quantum."""
    p = Pair(size=SIZE)
    pairs = [p.connect(mtu=Mtu.MTU_256, cap=QpCap(256, 1)) for _ in range(3)]
    for qa, _ in pairs:
        qa.post_send([write(p, 8, flags=0) for _ in range(100)])
    order = taken(p, 300)
    one, two, three = (qb.qpn for _, qb in pairs)
    first_round = [one] * QUANTUM + [two] * QUANTUM + [three] * QUANTUM
    assert order == first_round + [one] * 36 + [two] * 36 + [three] * 36


def test_a_turn_cut_short_by_the_ring() -> None:
    """When the ring is full the QP stays in the queue, and goes on when it is its turn again."""
    p = Pair(size=SIZE)
    (qa, qb), (qc, qd) = p.connect(mtu=Mtu.MTU_256), p.connect(mtu=Mtu.MTU_256)
    for qp in (qa, qc):
        qp.post_send([write(p, 8, flags=0) for _ in range(10)])
    order = taken(p, 4) + taken(p, 4) + taken(p, 40)
    assert sorted(order) == sorted([qb.qpn] * 10 + [qd.qpn] * 10)
    assert set(order[:8]) == {qb.qpn, qd.qpn}


def test_answers_come_before_requests() -> None:
    """What the peer waits for goes first."""
    p = Pair(size=SIZE)
    qa, qb = p.connect(mtu=Mtu.MTU_256)
    qb.post_send(SendWr(WrOpcode.RDMA_READ, [p.b.mr.sge(0, 8)], remote_addr=p.a.mr.addr, rkey=p.a.mr.rkey))
    n = p.b.device.engine.transmit(p.b.tx, p.now)
    qa.post_send(write(p))
    p.a.device.engine.receive(p.b.tx, n, p.now)
    n = p.a.device.engine.transmit(p.a.tx, p.now)
    frames = [p.a.tx.slab[int(f["off"]) :][: int(f["len"])].tobytes() for f in p.a.tx.frames[:n]]
    assert [dissect(data).opcode for data in frames] == [0x10, 0x0A]


def test_doorbell_of_the_dead() -> None:
    """A QP destroyed between its doorbell and the transmit is not served, nor is the one that has its place."""
    p = Pair(size=SIZE)
    qa, _ = p.connect()
    qa.post_send(write(p))
    qa.destroy()
    assert p.a.device.engine.transmit(p.a.tx, p.now) == 0
    p.a.device.pools.qps._fresh = p.a.device.pools.qps._size
    heir = p.a.pd.create_qp(QpType.RC, p.a.cq, p.a.cq)
    assert heir.index == qa.index
    admin.doorbell(p.a.device.engine.tables, heir.index)
    assert p.a.device.engine.transmit(p.a.tx, p.now) == 0


def queue(p: Pair) -> list[int]:
    """Indices in the run queue of side a."""
    record, found = p.a.device.record, []
    index = int(record["sched_head"])
    while index >= 0:
        found.append(index)
        index = int(record["qps"][index]["sched_next"])
    assert int(record["sched_tail"]) == (found[-1] if found else -1)
    return found


@pytest.mark.parametrize("gone", [[0], [1], [2], [0, 1], [1, 2], [0, 2], [2, 1, 0], [0, 1, 2]])
@pytest.mark.parametrize("how", ["reset", "destroy"])
def test_leaving_the_run_queue(gone: list[int], how: str) -> None:
    """A QP that is reset or destroyed while it waits for its turn leaves a whole queue behind."""
    p = Pair(size=SIZE)
    qps: list[Qp] = [p.connect(mtu=Mtu.MTU_256)[0] for _ in range(3)]
    taken(p, 8)
    for qp in qps:
        qp.post_send([write(p, 8, flags=0) for _ in range(4)])
    p.a.device.engine.transmit(make_ring(1), p.now)  # the first has begun; all three wait
    order = queue(p)
    assert sorted(order) == [qp.index for qp in qps]
    for i in gone:
        if how == "reset":
            qps[i].modify(QpState.RESET)
        else:
            qps[i].destroy()
        order = [index for index in order if index != qps[i].index]
        assert queue(p) == order
    left = 12 - sum(4 for _ in gone)
    begun = 0 if 0 in gone else 1
    assert len(taken(p, 40)) == left - begun


def test_events_are_taken_once() -> None:
    p = Pair(size=SIZE)
    qa, _ = p.connect()
    qa.modify(QpState.SQD, en_sqd_async_notify=1)
    p.a.device.engine.transmit(p.a.tx, p.now)
    engine = p.a.device.engine
    assert [(e.type, e.index) for e in engine.events()] == [(EventType.SQ_DRAINED, qa.index)]
    assert list(engine.events()) == []


def test_events_that_nobody_takes() -> None:
    """The ring of events fills up; what comes then is counted as lost, and the data path goes on."""
    p = Pair(size=SIZE)
    qa, qb = p.connect()
    record = p.b.device.record
    record["event_prod"] = EVENT_ENTRIES - 1
    qb.post_recv([RecvWr([p.b.mr.sge(0, 8)], i) for i in range(3)])
    for _ in range(3):
        p.b.cq.req_notify()
        qa.post_send(SendWr(WrOpcode.SEND, [p.a.mr.sge(0, 8)]))
        p.run()
    assert len(p.b.cq.poll()) == 3
    assert p.b.device.counter(C.EVENTS_LOST) == 2
    assert int(record["event_prod"]) == EVENT_ENTRIES


def test_time_is_what_the_driver_says() -> None:
    """Nothing happens between two calls, however long the driver is away; one late call counts one timeout."""
    p = Pair(size=SIZE)
    qa, _ = p.connect(timeout=8, retry_cnt=3)
    qa.post_send(write(p, wr_id=1))
    p.a.device.engine.transmit(p.a.tx, p.now)
    p.now += 3600 * 10**9
    p.a.device.engine.on_timer(p.now)
    assert p.a.device.counter(C.LOCAL_ACK_TIMEOUT_ERR) == 1
    assert p.a.cq.poll() == []
    assert p.a.device.engine.transmit(p.a.tx, p.now) == 1
    p.b.device.engine.receive(p.a.tx, 1, p.now)
    n = p.b.device.engine.transmit(p.b.tx, p.now)
    p.a.device.engine.receive(p.b.tx, n, p.now)
    assert p.a.cq.poll()[0].ok


@pytest.mark.parametrize("size", [0, 1, 13, 14, 33, 34, 41, 42, 57, 58])
def test_scraps(size: int) -> None:
    """Frames of any length, down to none at all."""
    p = Pair(size=SIZE)
    p.connect()
    for fill in (0, 0xFF, 0x45):
        deliver(p.a.device, bytes([fill]) * size, p.now)
    assert p.a.device.counter(C.RCVD_FRAMES) == 3
    assert p.a.device.counter(C.RCVD_PKTS) == 0
