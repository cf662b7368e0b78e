"""Functions that move between adapters on which other functions are busy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.errors import StateError, VerbsError
from softrnic.migrate import restore, save
from softrnic.verbs import Device, EventType, QpState, RecvWr, SendWr, WcStatus, WrOpcode
from tests.pairs import IPV4, MAC, Pair
from tests.verbs.test_functions import VF_IP, Place, connect, write


class Busy:
    """A pair whose `b` has a function `vf` beside it, with traffic to both."""

    def __init__(self) -> None:
        self.pair = p = Pair()
        self.qa, self.qb = p.connect()
        self.vf = Place(p.b, cqn=p.b.cq.cqn)
        self.va, self.vb = connect(p, self.vf, qpn=self.qb.qpn)
        p.a.buf[:] = np.arange(len(p.a.buf)) & 0xFF

    def move(self, target: Device) -> Any:
        """The function to a new place beside `target`."""
        vf = self.vf
        vf.device.suspend()
        while not vf.device.settled:
            self.pair.step()
        data = save(vf.device, {vf.mr.key: "buf"})
        vf.device.destroy()
        there = target.create_function("vf")
        made = restore(there, data, {"buf": vf.buf})
        assert save(there, {vf.mr.key: "buf"}) == data
        vf.device, vf.cq, vf.pd, vf.mr = there, made.cqs[vf.cq.cqn], made.pds[0], made.mrs[vf.mr.key]
        self.vb = made.qps[self.vb.qpn]
        return made


def test_there_and_back_beside_others() -> None:
    """The same QPN, key and CQN are in use by a sibling at both ends; nobody notices anything."""
    busy = Busy()
    p = busy.pair
    for i in range(6):
        busy.va.post_send(write(p.a, busy.vf, 4000, wr_id=100 + i))
        busy.qa.post_send(write(p.a, p.b, 4000, wr_id=200 + i))
        busy.vb.post_send(SendWr(
            WrOpcode.RDMA_READ, [busy.vf.mr.sge(5000, 3000)], 300 + i, remote_addr=p.a.mr.iova, rkey=p.a.mr.rkey
        ))  # fmt: skip
        n = p.a.device.engine.transmit(p.a.tx, p.now)
        p.b.device.engine.receive(p.a.tx, n, p.now)
        busy.move(p.b.device)
        busy.vf.device.resume()
        p.run()
        assert (busy.vf.buf[:4000] == p.a.buf[:4000]).all()
        assert (busy.vf.buf[5000:8000] == p.a.buf[:3000]).all()
        assert {wc.wr_id: wc.ok for wc in p.a.cq.poll()} == {100 + i: True, 200 + i: True}
        assert [(wc.wr_id, wc.ok) for wc in busy.vf.cq.poll()] == [(300 + i, True)]
        busy.vf.buf[:] = 0
        p.b.buf[:] = 0


def test_a_refused_state_leaves_the_siblings_alone() -> None:
    busy = Busy()
    p = busy.pair
    busy.vf.device.suspend()
    data = save(busy.vf.device, {busy.vf.mr.key: "buf"})
    busy.vf.device.destroy()
    there = p.b.device.create_function("vf")
    for i, wrong in enumerate((bytearray(5), None, bytearray(5))):
        before = [sorted(level) for level in p.b.device.slabs.sges._free]
        busy.qa.post_send(write(p.a, p.b, 5000, wr_id=i))
        p.step()
        with pytest.raises(StateError, match=r"\$\.regions"):
            restore(there, data, {"buf": wrong})
        assert not any((there.gids, there.pds, there.qps, there.cqs, there.mrs))
        assert [sorted(level) for level in p.b.device.slabs.sges._free] == before
        p.run()
        assert [(wc.wr_id, wc.ok) for wc in p.a.cq.poll()] == [(i, True)]
    restore(there, data, {"buf": busy.vf.buf})
    assert save(there, {busy.vf.mr.key: "buf"}) == data


def test_a_conflict_is_told_before_anything_changes() -> None:
    """The address of the function is a sibling's here."""
    busy = Busy()
    p = busy.pair
    busy.vf.device.suspend()
    data = save(busy.vf.device, {busy.vf.mr.key: "buf"})
    other = Device("elsewhere")
    other.add_gid(VF_IP, MAC[0])
    there = other.create_function("vf")
    with pytest.raises(StateError, match=r"\$\.gids\[0\]: 10.0.0.9 is an address of elsewhere"):
        restore(there, data, {"buf": busy.vf.buf})
    assert not there.gids
    assert [str(gid.ip) for gid in other.gids.values()] == [VF_IP]
    busy.vf.device.abort()
    busy.va.post_send(write(p.a, busy.vf))
    p.run()
    assert [wc.ok for wc in p.a.cq.poll()] == [True]


def test_events_and_counters_of_the_others_stay() -> None:
    """Events not yet fetched, of a sibling and of the one that comes, are all still there; counters are shared."""
    busy = Busy()
    p = busy.pair
    for qp in (busy.qb, busy.vb):
        qp.modify(QpState.SQD, en_sqd_async_notify=1)
    p.run()
    sent = p.b.device.counter(C.RCVD_PKTS)
    made = busy.move(p.b.device)
    assert p.b.device.counter(C.RCVD_PKTS) == sent
    p.b.device.dispatch_events()
    for device, qp in ((p.b.device, busy.qb), (busy.vf.device, made.qps[busy.vb.qpn])):
        assert [(e.type, e.element) for e in device.async_events] == [(EventType.SQ_DRAINED, qp)]


def test_what_was_saved_alone_can_come_beside_others_and_the_other_way() -> None:
    """A device alone on its adapter is a function like any other."""
    p = Pair()
    qa, _ = p.connect()
    host = Device("host")
    host.add_gid("10.0.0.77", MAC[0])
    alone = p.b.device
    alone.suspend("rnr")
    data = save(alone, {p.b.mr.key: "buf"})
    alone.close()
    p.b.device = host.create_function("moved")
    made = restore(p.b.device, data, {"buf": p.b.buf})
    p.b.mr, p.b.cq = made.mrs[p.b.mr.key], made.cqs[p.b.cq.cqn]
    p.b.device.resume()
    qa.post_send(write(p.a, p.b))
    p.run()
    assert [wc.ok for wc in p.a.cq.poll()] == [True]
    assert str(p.b.device.gids[0].ip) == IPV4[1]
    assert host.gids[0].ip != p.b.device.gids[0].ip


def test_the_first_function_need_not_be_empty_but_the_target_must() -> None:
    busy = Busy()
    busy.vf.device.suspend()
    data = save(busy.vf.device, {busy.vf.mr.key: "buf"})
    with pytest.raises(VerbsError, match="not empty"):
        restore(busy.pair.b.device, data, {"buf": busy.vf.buf})


@contextlib.contextmanager
def driven(device: Device, engine_turn: Any) -> Iterator[None]:
    """Somebody drives the engine in another thread, as a NIC does."""
    lock, stop = threading.Lock(), threading.Event()

    @contextlib.contextmanager
    def quiesced() -> Iterator[None]:
        with lock:
            yield

    def drive() -> None:
        while not stop.is_set():
            with lock:
                engine_turn()

    device.quiesced = quiesced
    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        device.quiesced = contextlib.nullcontext


def test_restored_while_the_engine_runs() -> None:
    """A QP half made is nothing to the engine, whatever its queues already hold."""
    busy = Busy()
    p, vf = busy.pair, busy.vf
    vf.device.suspend_egress()
    busy.vb.post_send([
        SendWr(WrOpcode.RDMA_WRITE, [vf.mr.sge(0, 2000)], i, remote_addr=p.a.mr.iova + 20_000, rkey=p.a.mr.rkey)
        for i in range(20)
    ])  # fmt: skip
    busy.vb.post_recv([RecvWr([vf.mr.sge(0, 100)], 50 + i) for i in range(5)])
    vf.device.suspend()
    data = save(vf.device, {vf.mr.key: "buf"})
    vf.device.destroy()
    sent = 0

    def turn() -> None:
        nonlocal sent
        p.now += 1000
        sent += p.b.device.engine.transmit(p.b.tx, p.now)
        p.b.device.engine.on_timer(p.now)

    vf.buf[:2000] = 5
    with driven(p.b.device, turn):
        for _ in range(5):
            there = p.b.device.create_function("vf")
            made = restore(there, data, {"buf": vf.buf})
            there.destroy()
        there = p.b.device.create_function("vf")
        made = restore(there, data, {"buf": vf.buf})
    assert sent == 0
    there.resume()
    p.run()
    done = made.cqs[vf.cq.cqn].poll(100)
    assert [(wc.wr_id, wc.status) for wc in done] == [(i, WcStatus.SUCCESS) for i in range(20)]
    assert (p.a.buf[20_000:22_000] == 5).all()
