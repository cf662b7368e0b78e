"""Ranges replaced while packets fly: each sees the old map or the new, and no request is lost."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.verbs import Access, SendWr, VerbsError, WrOpcode
from tests.odp.world import BASE, PAGE, World, statuses
from tests.pairs import ALL_ACCESS

PACKET = 1024


@pytest.mark.parametrize("seed", range(6))
def test_every_packet_by_one_map(seed: int) -> None:
    """A long WRITE over two maps that are swapped at random moments: each packet lies whole in one of them."""
    rng = np.random.default_rng(seed)
    w = World(npages=64, paged=False, size=1 << 18)
    w.a.buf[:] = rng.integers(1, 256, len(w.a.buf))
    w.ram[:] = 0
    # the same length by two maps: even pages, odd pages; every second packet straddles a border in one of them
    maps = [[(BASE + (2 * i + odd) * PAGE, PAGE) for i in range(32)] for odd in (0, 1)]
    mr = w.b.pd.reg_physical_mr(w.space, 0, maps[0], ALL_ACCESS)
    qp, _ = w.connect()
    total = 32 * PAGE
    skew = int(rng.integers(0, PACKET))
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, total - skew)], 1, remote_addr=skew, rkey=mr.rkey))
    now = 0
    w.a.tx = type(w.a.tx)(w.a.tx.frames[:1], w.a.tx.slab)  # a frame at a time
    while not (done := w.poll()):
        w.round()
        if rng.integers(3) == 0:
            now ^= 1
            mr.rereg_physical(maps[now])
    assert statuses(done) == ["SUCCESS"]
    flat = [np.concatenate([w.ram[a - BASE : a - BASE + n] for a, n in ranges]) for ranges in maps]
    used = [0, 0]
    for at in range(skew, total, PACKET):
        packet = w.a.buf[at - skew : min(at + PACKET, total) - skew]
        where = [i for i in (0, 1) if (flat[i][at : at + len(packet)] == packet).all()]
        assert where, "a packet lies in neither map"
        other = flat[1 - where[0]][at : at + len(packet)]
        assert len(where) == 2 or not other.any(), "parts of a packet in both maps"
        used[where[0]] += 1
    assert min(used) > 0


def test_longer_and_shorter() -> None:
    """The length may change with the ranges; what then lies outside is an access error."""
    w = World(paged=False)
    w.random(9)
    mr = w.b.pd.reg_physical_mr(w.space, 0x1000, [(BASE, PAGE)], ALL_ACCESS)
    (qp, _), (other, _) = w.connect(), w.connect()
    mr.rereg_physical([(BASE + 3 * PAGE, 2 * PAGE), (BASE, 10)])
    assert mr.length == 2 * PAGE + 10
    post = {"remote_addr": 0x1000, "rkey": mr.rkey}
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 2 * PAGE + 10)], 1, **post))
    w.play()
    assert (w.ram[:10] == w.a.buf[2 * PAGE : 2 * PAGE + 10]).all()
    mr.rereg_physical([(BASE, 10)])
    other.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 11)], 2, **post))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS", "REM_ACCESS_ERR"]


def test_the_old_ranges_stay_when_the_new_are_refused() -> None:
    w = World(paged=False)
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(BASE, PAGE)], ALL_ACCESS)
    for bad in ([], [(0, 8)], [(BASE, 0)], [(BASE + 64 * PAGE - 1, 2)]):
        with pytest.raises(VerbsError):
            mr.rereg_physical(bad)
    assert mr.ranges == [(BASE, PAGE)]
    assert w.slot.pins == 1


def test_pins_follow() -> None:
    """What the new ranges do not touch may be unplugged."""
    w = World(paged=False)
    extra = w.space.add_slot(1 << 30, bytearray(PAGE))
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(1 << 30, 10)], ALL_ACCESS)
    mr.rereg_physical([(BASE, 10)])
    w.space.remove_slot(extra)
    assert w.slot.pins == 1


def test_what_cannot_be_replaced() -> None:
    w = World(paged=False)
    everything = w.b.pd.reg_all(w.space, Access.LOCAL_WRITE)
    with pytest.raises(VerbsError, match="follows it by itself"):
        everything.rereg_physical([(BASE, 1)])
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(BASE, 1)], Access.LOCAL_WRITE)
    mr.dereg()
    with pytest.raises(VerbsError, match="deregistered"):
        mr.rereg_physical([(BASE, 1)])
    for iova in (-1, (1 << 63) - 1):
        with pytest.raises(VerbsError, match="wraps around"):
            w.b.pd.reg_physical_mr(w.space, iova, [(BASE, 1)], Access.LOCAL_WRITE)
    with pytest.raises(VerbsError, match="reg_all"):
        w.b.pd.reg_physical_mr(w.space, 0, None, Access.LOCAL_WRITE)
    with pytest.raises(VerbsError, match="registered as a buffer"):
        w.b.pd.reg_physical_mr(w.b.device.space, 0, [(BASE, 1)], Access.LOCAL_WRITE)
    with pytest.raises(VerbsError, match="another device"):
        w.a.pd.reg_all(w.space, Access.LOCAL_WRITE)


def test_aliases() -> None:
    """The same bytes named twice, as a page table may: one memory under two addresses."""
    w = World(paged=False)
    w.random(11)
    mr = w.b.pd.reg_physical_mr(w.space, 0, [(BASE, PAGE), (BASE, PAGE)], ALL_ACCESS)
    qp, _ = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 100)], 1, remote_addr=5, rkey=mr.rkey))
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(1000, 100)], 2, remote_addr=PAGE + 5, rkey=mr.rkey))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"] * 2
    assert (w.a.buf[1000:1100] == w.a.buf[:100]).all()
