"""Pages that arrive later, from a source with priorities; and tracking of the process's own space."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.verbs import SendWr, VerbsError, WrOpcode
from tests.odp.world import BASE, PAGE, World, paused, statuses
from tests.pairs import ALL_ACCESS


class Source:
    """The old place of the memory: what is asked for urgently goes first, the rest in order, one page a round."""

    def __init__(self, world: World, data: np.ndarray, base: int = BASE) -> None:
        self.world, self.data, self.base = world, data, base
        self.urgent: list[int] = []
        self.later: list[int] = []
        self.sent: list[int] = []

    def request(self, addr: int, length: int, urgent: bool) -> None:
        queue = self.urgent if urgent else self.later
        queue += range(addr, addr + length, PAGE)

    def send(self) -> bool:
        """One page on its way: whether there was any."""
        queue = self.urgent or self.later
        if not queue:
            return False
        addr = queue.pop(0)
        self.sent.append(addr)
        self.world.space.land(addr, self.data[addr - self.base : addr - self.base + PAGE])
        return True


def moved(*, paged: bool = False) -> tuple[World, Source, np.ndarray]:
    """A world whose ram is still somewhere else."""
    w = World(paged=paged)
    w.random(1)
    old = w.ram.copy()
    w.ram[:] = 0xEE
    source = Source(w, old)
    w.space.page_source = source
    return w, source, old


@pytest.mark.parametrize("odp", [False, True])
def test_requests_wait_for_their_pages(odp: bool) -> None:
    """Of pinned regions too: a READ, a WRITE in the middle of a page, and an atomic on it get what was there before."""
    w, source, old = moved(paged=odp)
    mr = w.region([(0, 32 * PAGE)], odp=odp)
    data = w.a.buf[:300].copy()
    (reader, _), (writer, _) = w.connect(), w.connect()
    reader.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(PAGE, 3 * PAGE)], 1, remote_addr=mr.iova, rkey=mr.rkey))
    writer.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 300)], 2, remote_addr=mr.iova + 9 * PAGE + 8,
                            rkey=mr.rkey))  # fmt: skip
    for _ in range(2000):
        w.round()
        source.send()
    w.play()
    assert sorted(wc.wr_id for wc in w.poll()) == [1, 2]
    assert (w.a.buf[PAGE : 4 * PAGE] == old[: 3 * PAGE]).all()
    expected = old[9 * PAGE : 10 * PAGE].copy()
    expected[8:308] = data
    assert (w.ram[9 * PAGE : 10 * PAGE] == expected).all()
    assert set(source.sent) == {BASE + i * PAGE for i in (0, 1, 2, 9)}


def test_urgent_first() -> None:
    """What a QP waits for overtakes what is sent anyway."""
    w, source, _ = moved()
    for addr, length in w.space.missing(BASE, 64 * PAGE):
        source.request(addr, length, False)
    mr = w.region([(0, 64 * PAGE)], odp=False)
    qp, _ = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(0, 64)], 1, remote_addr=mr.iova + 50 * PAGE, rkey=mr.rkey))
    for _ in range(3):
        source.send()
        w.round()
    while not w.poll():
        assert source.send()
        w.round()
    assert source.sent.index(BASE + 50 * PAGE) < 6
    while source.send():
        pass
    assert list(w.space.missing(BASE, 64 * PAGE)) == []
    w.space.page_source = None
    assert w.space.is_present(BASE + 60 * PAGE)


def test_late_pages_do_not_undo_writes() -> None:
    """A page that is here already, and written since, is not replaced by its old self."""
    w, _, old = moved()
    mr = w.region([(0, 64 * PAGE)], odp=False)
    assert w.space.land(BASE, old[:PAGE]) == 1
    qp, _ = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 100)], 1, remote_addr=mr.iova, rkey=mr.rkey))
    w.play()
    assert w.space.land(BASE, old[: 2 * PAGE]) == 1
    assert (w.ram[:100] == w.a.buf[:100]).all()
    assert (w.ram[100 : 2 * PAGE] == old[100 : 2 * PAGE]).all()


def test_landing_is_no_write_of_the_device() -> None:
    w, _, old = moved()
    w.space.start_tracking()
    w.space.land(BASE, old[: 4 * PAGE])
    assert list(w.space.written()) == []


def test_the_end_lets_everyone_go() -> None:
    """When the source is taken away nobody waits any more; on-demand regions keep what they have."""
    w, _, _ = moved(paged=True)
    mr = w.region([(0, 64 * PAGE)], odp=False)
    _, qp = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, 100)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    for _ in range(3):
        w.round()
    assert paused(qp)
    w.space.page_source = None
    w.play()
    assert statuses(w.poll("b")) == ["SUCCESS"]
    assert w.space.paged
    assert not w.space.is_present(BASE)


def test_plain_regions_can_arrive_later() -> None:
    """The space of this process has pages too: an ordinary region after a move."""
    w = World()
    w.random(2)
    space, mr = w.b.device.space, w.b.mr
    start = -mr.addr % PAGE
    old = w.b.buf.copy()
    asked: list[tuple[int, int, bool]] = []

    class Pages:
        def request(self, addr: int, length: int, urgent: bool) -> None:
            asked.append((addr, length, urgent))

    space.page_source = Pages()
    qp, _ = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(0, 64)], 1, remote_addr=mr.iova + start, rkey=mr.rkey))
    for _ in range(5):
        w.round()
    assert asked == [(mr.addr + start, PAGE, True)]
    assert space.land(mr.addr + start, np.full(PAGE, 9, np.uint8)) == 1
    w.play()
    assert w.a.buf[:64].tolist() == [9] * 64
    space.page_source = None
    assert int(w.b.device.record["spaces"][space.index]["plain"]) == 1
    w.b.buf[:] = old


def test_tracking_plain_regions() -> None:
    """All regions of buffers of a function, by pages of this process."""
    w = World()
    data, mr = w.random(3), w.b.mr
    w.b.device.space.start_tracking()
    qp, _ = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 5000)], 1, remote_addr=mr.iova + 777, rkey=mr.rkey))
    w.play()
    low = mr.addr // PAGE * PAGE
    runs = list(w.b.device.space.written(low, mr.length + PAGE))
    pages = [page for addr, n in runs for page in range(addr, addr + n, PAGE)]
    first = (mr.addr + 777) // PAGE * PAGE
    assert pages == list(range(first, mr.addr + 777 + 5000, PAGE))
    assert (w.b.buf[777:5777] == data[:5000]).all()
    w.b.device.space.stop_tracking()
    assert int(w.b.device.record["spaces"][w.b.device.space.index]["plain"]) == 1


def test_windows_in_a_space() -> None:
    """A window of a region over ranges: tracked and paged like the region."""
    w = World()
    data, mr = w.random(4), w.region([(8192 * i, 4096) for i in range(10)])
    w.space.start_tracking()
    mw = w.b.pd.alloc_mw(1)
    qp, peer = w.connect()
    peer.post_send(SendWr(WrOpcode.BIND_MW, wr_id=1, rkey=mw.rkey, remote_addr=mr.iova + 4000, bind_mr=mr,
                          bind_length=5000, access=ALL_ACCESS))  # fmt: skip
    w.play()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 4500)], 2, remote_addr=mr.iova + 4000, rkey=mw.rkey))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    flat = np.concatenate([w.ram[8192 * i : 8192 * i + 4096] for i in range(3)])
    assert (flat[4000:8500] == data[:4500]).all()
    assert [addr - BASE for addr, _ in w.space.written()] == [0, 8192, 16384]
    with pytest.raises(VerbsError, match="windows are bound"):
        mr.rereg_physical([(BASE, 100)])


@pytest.mark.parametrize(("addr", "size"), [(BASE + 1, PAGE), (BASE, 100), (BASE, PAGE + 1)])
def test_only_whole_pages_land(addr: int, size: int) -> None:
    w, _, _ = moved()
    with pytest.raises(VerbsError, match="not whole pages"):
        w.space.land(addr, bytes(size))
