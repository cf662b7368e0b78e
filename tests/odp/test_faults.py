"""What a missing page does to whom: at every place where the device touches memory."""

from __future__ import annotations

from itertools import pairwise

import pytest

from softrnic.counters import C
from softrnic.layout import PageWait
from softrnic.spec import RNR_TIMER_US
from softrnic.verbs import Access, PageFault, QpCap, QpType, RecvWr, SendWr, VerbsError, WrOpcode
from tests.odp.world import BASE, PAGE, World, paused, statuses

N = 10_000  # bytes of most messages: three pages and more, ten packets


def write(mr, world: World, n: int = N, at: int = 100, wr_id: int = 1) -> SendWr:
    return SendWr(WrOpcode.RDMA_WRITE, [world.a.mr.sge(0, n)], wr_id, remote_addr=mr.iova + at, rkey=mr.rkey)


# --- the responder: requests that need a missing page ---------------------------------------------------------


def test_write() -> None:
    """Each missing page costs one RNR NAK; the bytes arrive, and only pages that were touched are present."""
    w = World()
    data, mr = w.random(1), w.region([(0, 8 * PAGE)])
    qp, _ = w.connect()
    qp.post_send(write(mr, w))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert (w.ram[100 : 100 + N] == data[:N]).all()
    assert [(f.addr - BASE, f.length, f.write) for f in w.faults] == [(i * PAGE, PAGE, True) for i in range(3)]
    assert [w.space.is_present(BASE + i * PAGE, write=True) for i in range(5)] == [True] * 3 + [False] * 2
    assert w.b.device.counter(C.SEND_RNR_ERR) == w.b.device.counter(C.PAGE_FAULTS) == 3
    assert mr.statistic()["page_faults"] == mr.statistic()["page_faults_handled"] == 3


def test_send() -> None:
    w = World()
    data, mr = w.random(2), w.region([(0, 8 * PAGE)])
    qp, peer = w.connect()
    peer.post_recv(RecvWr([mr.sge(50, 7000), mr.sge(20_000, 7000)], 9))
    qp.post_send(SendWr(WrOpcode.SEND, [w.a.mr.sge(0, N)], 1))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert [(wc.wr_id, wc.byte_len) for wc in w.poll("b")] == [(9, N)]
    assert (w.ram[50:7050] == data[:7000]).all()
    assert (w.ram[20_000 : 20_000 + N - 7000] == data[7000:N]).all()


@pytest.mark.parametrize("opcode", [WrOpcode.ATOMIC_FETCH_AND_ADD, WrOpcode.ATOMIC_CMP_AND_SWP])
def test_atomic(opcode: WrOpcode) -> None:
    """Done once, however often it was refused for want of a page."""
    w = World(delay=50)
    w.random(3)
    mr = w.region([(0, 8 * PAGE)])
    before = int.from_bytes(w.ram[64:72].tobytes(), "little")
    signed = before - (before >> 63 << 64)
    qp, _ = w.connect()
    operand, swap = (signed, 77) if opcode == WrOpcode.ATOMIC_CMP_AND_SWP else (5, 0)
    qp.post_send(SendWr(opcode, [w.a.mr.sge(0, 8)], 1, remote_addr=mr.iova + 64, rkey=mr.rkey, compare_add=operand,
                        swap=swap))  # fmt: skip
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    after = 77 if opcode == WrOpcode.ATOMIC_CMP_AND_SWP else (before + 5) % (1 << 64)
    assert int.from_bytes(w.ram[64:72].tobytes(), "little") == after
    assert int.from_bytes(w.a.buf[:8].tobytes(), "little") == before


def test_read_response() -> None:
    """A response pauses in mid-message without a word, and goes on where it was."""
    w = World()
    w.random(4)
    mr = w.region([(0, 8 * PAGE)])
    qp, peer = w.connect()
    w.space.resolver = w.faults.append
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(0, N)], 1, remote_addr=mr.iova, rkey=mr.rkey))
    for i in range(3):
        for _ in range(5):
            w.round()
        assert paused(peer) == PageWait.RESPONDER
        assert [f.addr for f in w.faults] == [BASE + k * PAGE for k in range(i + 1)]
        assert not w.faults[-1].write
        w.space.resolve(w.faults[-1].addr, PAGE, write=False)
    w.play()
    assert paused(peer) == 0
    assert statuses(w.poll()) == ["SUCCESS"]
    assert (w.a.buf[:N] == w.ram[:N]).all()
    assert w.b.device.counter(C.SEND_RNR_ERR) == 0


def test_read_only_page() -> None:
    """A page that may be read is a fault to a write, and after it to neither."""
    w = World()
    w.random(5)
    mr = w.region([(0, 8 * PAGE)])
    qp, _ = w.connect()
    w.space.resolve(BASE, 8 * PAGE, write=False)
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(0, N)], 1, remote_addr=mr.iova, rkey=mr.rkey))
    w.play()
    assert w.faults == []
    qp.post_send(write(mr, w))
    w.play()
    assert [f.write for f in w.faults] == [True] * 3
    assert statuses(w.poll()) == ["SUCCESS"] * 2


def test_rnr_timers_grow() -> None:
    """The same request is told to wait about twice as long each time; another begins anew, where it was told to."""
    w = World(delay=17_000)
    mr = w.region([(0, 8 * PAGE)])
    qp, peer = w.connect(rnr_retry=7)
    peer.rnr_fault_timer = 3
    waits: list[int] = []

    def see(frame: bytes, side) -> bytes:
        if side is w.b and frame[42] & 0x1F == 0x11 and frame[54] >> 5 == 1:
            waits.append(frame[54] & 0x1F)
        return frame

    w.filter = see
    qp.post_send(write(mr, w, 100))
    w.play(budget=100_000)
    assert waits[:8] == [3, 5, 7, 9, 11, 13, 15, 17]
    assert max(waits) == 20
    assert all(RNR_TIMER_US[b] >= RNR_TIMER_US[a] for a, b in pairwise(waits))
    waits.clear()
    w.delay = 0
    qp.post_send(write(mr, w, 100, at=PAGE))
    w.play()
    assert waits == [3]


@pytest.mark.parametrize("code", [-1, 32])
def test_rnr_fault_timer_range(code: int) -> None:
    qp, _ = World().connect()
    with pytest.raises(VerbsError):
        qp.rnr_fault_timer = code


def test_rnr_retries_last() -> None:
    """Six retries bear a page that takes a few milliseconds, and a slow one costs an RNR_RETRY_EXC_ERR, as hardware."""
    for delay, status in ((900, "SUCCESS"), (8000, "RNR_RETRY_EXC_ERR")):
        w = World(delay=delay)
        mr = w.region([(0, 8 * PAGE)])
        qp, _ = w.connect(rnr_retry=6)
        qp.post_send(write(mr, w, 100))
        w.play(budget=200_000)
        assert statuses(w.poll()) == [status]


def test_uc_loses_the_message() -> None:
    """Nobody can be asked to wait: the message is lost, the page comes, the next one arrives."""
    w = World()
    data, mr = w.random(6), w.region([(0, 8 * PAGE)])
    qp, _ = w.connect(QpType.UC)
    for i in range(3):
        qp.post_send(write(mr, w, 500, wr_id=i))
        w.play()
        if i == 0:
            assert not (w.ram[100:600] == data[:500]).all()
    assert statuses(w.poll()) == ["SUCCESS"] * 3
    assert (w.ram[100:600] == data[:500]).all()
    assert w.b.device.counter(C.DROP_PAGE_FAULT) == 1


def test_ud_loses_the_datagram() -> None:
    """The receive stays for the next."""
    from softrnic.verbs import AhAttr

    w = World()
    data, mr = w.random(7), w.region([(0, 8 * PAGE)])
    qp, peer = w.connect(QpType.UD)
    ah = w.a.pd.create_ah(AhAttr(w.a.peer_ip, w.a.gid, w.a.peer_mac))
    peer.post_recv(RecvWr([mr.sge(0, 700)], 5))
    for _ in range(2):
        qp.post_send(SendWr(WrOpcode.SEND, [w.a.mr.sge(0, 500)], 1, ah=ah, dqpn=peer.qpn, qkey=0x1234))
        w.play()
    assert [wc.wr_id for wc in w.poll("b")] == [5]
    assert (w.ram[40:540] == data[:500]).all()
    assert w.b.device.counter(C.DROP_PAGE_FAULT) == 1


# --- the requester: its own memory is missing -----------------------------------------------------------------


def test_gather() -> None:
    """What is to be sent is not there: the send queue pauses, the peer hears nothing."""
    w = World()
    w.random(8)
    mr = w.region([(0, 8 * PAGE)])
    _, qp = w.connect()
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, N)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    w.space.resolver = w.faults.append
    for i in range(3):
        for _ in range(5):
            w.round()
        assert paused(qp) == PageWait.REQUESTER
        w.space.resolve(w.faults[i].addr, PAGE, write=False)
    w.play()
    assert statuses(w.poll("b")) == ["SUCCESS"]
    assert (w.a.buf[:N] == w.ram[:N]).all()
    assert w.b.device.counter(C.LOCAL_ACK_TIMEOUT_ERR) == w.b.device.counter(C.RCVD_RNR_ERR) == 0


def test_read_data_has_nowhere_to_go() -> None:
    """The answer is dropped and asked for again, at the cost of no retry."""
    w = World(delay=20)
    data, mr = w.random(9), w.region([(0, 8 * PAGE)])
    _, qp = w.connect(retry_cnt=0)
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [mr.sge(100, N)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    w.play()
    assert statuses(w.poll("b")) == ["SUCCESS"]
    assert (w.ram[100 : 100 + N] == data[:N]).all()
    assert w.b.device.counter(C.RETRY_EXCEEDED_ERR) == 0


def test_atomic_result_has_nowhere_to_go() -> None:
    """The operation is done once; its result is fetched again."""
    w = World(delay=20)
    mr = w.region([(0, 8 * PAGE)])
    _, qp = w.connect()
    w.a.buf[:8] = list((41).to_bytes(8, "little"))
    qp.post_send(SendWr(WrOpcode.ATOMIC_FETCH_AND_ADD, [mr.sge(8, 8)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey,
                        compare_add=1))  # fmt: skip
    w.play()
    assert statuses(w.poll("b")) == ["SUCCESS"]
    assert int.from_bytes(w.ram[8:16].tobytes(), "little") == 41
    assert int.from_bytes(w.a.buf[:8].tobytes(), "little") == 42


def test_late_pages_do_not_time_out() -> None:
    """Pausing is our own fault: the local ACK timeout does not run against the peer."""
    w = World(delay=400)
    w.random(10)
    mr = w.region([(0, 8 * PAGE)])
    _, qp = w.connect(timeout=1, retry_cnt=1)
    to = {"remote_addr": w.a.mr.iova, "rkey": w.a.mr.rkey}
    qp.post_send([SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, N)], 1, **to),
                  SendWr(WrOpcode.RDMA_READ, [mr.sge(5 * PAGE, N // 2)], 2, **to)])  # fmt: skip
    w.play(budget=100_000)
    assert statuses(w.poll("b")) == ["SUCCESS"] * 2


# --- only who needs the page waits ----------------------------------------------------------------------------


def test_others_go_on() -> None:
    """Of three QPs one meets a page that does not come: the others finish all they have."""
    w = World()
    w.random(11)
    mr = w.region([(0, 64 * PAGE)])
    w.space.resolve(BASE + PAGE, 63 * PAGE)
    w.space.resolver = w.faults.append
    pairs = [w.connect(cap=QpCap(64, 64)) for _ in range(3)]
    pairs[0][0].post_send(write(mr, w, 100, at=0))
    for qp, _ in pairs[1:]:
        qp.post_send([write(mr, w, 4000, at=PAGE * (i + 1), wr_id=i) for i in range(32)])
    for _ in range(400):
        w.round()
    assert [wc.qpn for wc in w.poll()].count(pairs[1][0].qpn) == 32
    assert int(pairs[2][0].record["sq_head"]) == 32
    assert int(pairs[0][0].record["sq_head"]) == 0
    w.space.resolve(BASE, PAGE)
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]


def test_both_halves_wait() -> None:
    """Requester and responder of one QP wait for different pages, and each goes on with its own."""
    w = World()
    w.random(12)
    mr = w.region([(0, 64 * PAGE)])
    qp, peer = w.connect()
    w.space.resolver = w.faults.append
    peer.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, 100)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(4096, 100)], 2, remote_addr=mr.iova + PAGE, rkey=mr.rkey))
    for _ in range(5):
        w.round()
    assert paused(peer) == PageWait.REQUESTER | PageWait.RESPONDER
    w.space.resolve(BASE + PAGE, PAGE)
    for _ in range(5):
        w.round()
    assert paused(peer) == PageWait.REQUESTER
    assert [wc.wr_id for wc in w.poll()] == [2]
    w.space.resolve(BASE, PAGE)
    w.play()
    assert [wc.wr_id for wc in w.poll("b")] == [1]


def test_requests_pass_a_paused_answer() -> None:
    """More requests than a ring holds leave a QP whose answer waits for a page, with no room kept for that answer."""
    w = World(size=1 << 20)
    w.random(21)
    mr = w.region([(0, 8 * PAGE)])
    qp, peer = w.connect()
    w.space.resolver = w.faults.append
    qp.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(0, 64)], 1, remote_addr=mr.iova, rkey=mr.rkey))
    for _ in range(3):
        w.round()
    to = {"remote_addr": w.a.mr.iova + 4096, "rkey": w.a.mr.rkey}
    peer.post_send([SendWr(WrOpcode.RDMA_WRITE, [w.b.mr.sge(0, 9000)], i, **to) for i in range(10)])
    for _ in range(200):
        w.round()
    assert statuses(w.poll("b")) == ["SUCCESS"] * 10
    assert w.poll() == []
    w.space.resolve(BASE, PAGE)
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]


def test_destroyed_while_it_waits() -> None:
    """A QP that is gone, or was reset and waits again elsewhere, leaves the list of those who wait in order."""
    w = World()
    w.random(13)
    mr = w.region([(0, 64 * PAGE)])
    w.space.resolver = w.faults.append
    pairs = [w.connect() for _ in range(4)]
    to = {"remote_addr": w.a.mr.iova, "rkey": w.a.mr.rkey}
    for i, (_, peer) in enumerate(pairs):
        peer.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(i * PAGE, 100)], i, **to))
    for _ in range(3):
        w.round()
    pairs[1][1].destroy()
    pairs[2][1].modify(w_error())
    again = w.connect()[1]
    again.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(9 * PAGE, 100)], 9, **to))
    for _ in range(3):
        w.round()
    w.space.resolve(BASE, 64 * PAGE)
    w.play()
    done = {wc.wr_id: wc.status.name for wc in w.poll("b")}
    assert done == {0: "SUCCESS", 2: "WR_FLUSH_ERR", 3: "SUCCESS", 9: "SUCCESS"}
    assert int(w.b.device.record["spaces"][w.space.index]["wait_head"]) == 0


def w_error():
    from softrnic.verbs import QpState

    return QpState.ERR


def test_one_page_is_asked_for_once() -> None:
    """However many QPs want it, and however often the peer tries again."""
    w = World(delay=300)
    mr = w.region([(0, 8 * PAGE)])
    for i in range(5):
        w.connect()[0].post_send(write(mr, w, 100, wr_id=i))
    w.play()
    assert len(w.faults) == 1
    assert statuses(w.poll()) == ["SUCCESS"] * 5
    assert mr.statistic()["page_faults"] == mr.statistic()["page_faults_handled"] > 5


# --- pages that never come ------------------------------------------------------------------------------------


def test_refused() -> None:
    """A remote access error to the peer, a local protection error to ourselves."""
    w = World()
    w.refuses = True
    mr = w.region([(0, 8 * PAGE)])
    (qp, _), (_, own), (reader, _) = w.connect(), w.connect(), w.connect()
    qp.post_send(write(mr, w, 100))
    w.play()
    own.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(PAGE, 9)], 2, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    reader.post_send(SendWr(WrOpcode.RDMA_READ, [w.a.mr.sge(0, 9)], 3, remote_addr=mr.iova + 9000, rkey=mr.rkey))
    w.play()
    assert statuses(w.poll()) == ["REM_ACCESS_ERR"] * 2
    assert statuses(w.poll("b")) == ["LOC_PROT_ERR"]


def test_refused_and_then_there() -> None:
    """A page may come after all: refusal lasts until it is resolved or invalidated."""
    w = World()
    data, mr = w.random(14), w.region([(0, 8 * PAGE)])
    w.space.refuse(BASE, 2 * PAGE)
    w.space.resolve(BASE, PAGE)
    w.space.invalidate(BASE + PAGE, PAGE)
    qp, _ = w.connect()
    qp.post_send(write(mr, w, 8000, at=0))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert (w.ram[:8000] == data[:8000]).all()
    assert [f.addr for f in w.faults] == [BASE + PAGE]


def test_resolver_that_throws() -> None:
    """Its page is refused, its exception kept, and the device goes on."""
    w = World()
    mr = w.region([(0, 8 * PAGE)])

    def broken(fault: PageFault) -> None:
        raise LookupError("no such page")

    w.space.resolver = broken
    qp, _ = w.connect()
    qp.post_send(write(mr, w, 100))
    w.play()
    assert statuses(w.poll()) == ["REM_ACCESS_ERR"]
    assert isinstance(w.space.resolver_error, LookupError)


def test_without_a_resolver() -> None:
    """Memory of ours comes by itself."""
    w = World()
    data, mr = w.random(15), w.region([(0, 8 * PAGE)])
    w.space.resolver = None
    qp, _ = w.connect()
    qp.post_send(write(mr, w))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert (w.ram[100 : 100 + N] == data[:N]).all()


# --- invalidation and advice ----------------------------------------------------------------------------------


def test_invalidate_in_mid_message() -> None:
    """Pages that were there are taken away while a WRITE runs over them: it faults again and every byte arrives."""
    w = World()
    data, mr = w.random(16), w.region([(0, 16 * PAGE)])
    w.space.resolve(BASE, 16 * PAGE)
    qp, _ = w.connect()
    qp.post_send(write(mr, w, 60_000, at=0))
    for i in range(3):
        w.step()
        w.space.invalidate(BASE + i * PAGE, 8 * PAGE)
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert (w.ram[:60_000] == data[:60_000]).all()
    assert w.faults
    assert mr.statistic()["page_invalidations"] == 3
    assert w.b.device.counter(C.PAGE_INVALIDATIONS) == 24
    assert w.b.device.counter(C.PAGE_INVALIDATIONS_HANDLED) >= 8


def test_invalidate_counts_for_who_has_the_page() -> None:
    w = World()
    near, far = w.region([(0, PAGE), (8 * PAGE, PAGE)]), w.region([(4 * PAGE, PAGE)], iova=0x2000000)
    pinned = w.region([(8 * PAGE, PAGE)], odp=False, iova=0x3000000)
    w.space.invalidate(BASE + 8 * PAGE, PAGE)
    assert [mr.statistic()["page_invalidations"] for mr in (near, far, pinned)] == [1, 0, 0]


def test_stale_answers_are_not_believed() -> None:
    """A page invalidated while its resolver was at work is not made present by the old answer."""
    w = World()
    mr = w.region([(0, 8 * PAGE)])
    w.space.resolver = w.faults.append
    qp, _ = w.connect()
    qp.post_send(write(mr, w, 100))
    for _ in range(3):
        w.round()
    fault = w.faults[0]
    w.space.invalidate(BASE, PAGE)
    assert not w.space.resolve(fault.addr, fault.length, seq=fault.seq)
    assert not w.space.is_present(BASE)
    assert w.space.resolve(fault.addr, fault.length)
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]


def test_prefetch() -> None:
    """Advice brings what is missing, runs of pages at a time, and nobody faults afterwards."""
    w = World()
    data, mr = w.random(17), w.region([(0, 4 * PAGE), (8 * PAGE, 4 * PAGE)])
    w.space.resolve(BASE + PAGE, PAGE)
    mr.prefetch(0, write=True)
    w.answer()
    assert [(f.addr - BASE, f.length, f.prefetch) for f in w.faults] == [
        (0, PAGE, True), (2 * PAGE, 2 * PAGE, True), (8 * PAGE, 4 * PAGE, True),
    ]  # fmt: skip
    qp, _ = w.connect()
    qp.post_send(write(mr, w, 30_000, at=0))
    w.play()
    assert statuses(w.poll()) == ["SUCCESS"]
    assert w.b.device.counter(C.PAGE_FAULTS) == 0
    assert w.b.device.counter(C.PAGE_PREFETCH) == 7
    assert (w.ram[8 * PAGE : 8 * PAGE + 30_000 - 4 * PAGE] == data[4 * PAGE : 30_000]).all()


def test_lost_events() -> None:
    """When the ring of events overflows nobody waits for ever: everyone looks again."""
    from softrnic.layout import EVENT_ENTRIES

    w = World()
    w.random(18)
    mr = w.region([(0, 8 * PAGE)])
    _, qp = w.connect()
    record = w.b.device.record
    record["event_cons"] = int(record["event_prod"]) - EVENT_ENTRIES
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, 100)], 1, remote_addr=w.a.mr.iova, rkey=w.a.mr.rkey))
    w.step()
    assert w.b.device.counter(C.EVENTS_LOST) == 1
    record["event_cons"] = record["event_prod"]
    w.play()
    assert statuses(w.poll("b")) == ["SUCCESS"]


def test_needs_a_page_table() -> None:
    w = World(paged=False)
    with pytest.raises(VerbsError, match="page table"):
        w.b.pd.reg_all(w.space, Access.LOCAL_WRITE, odp=True)
    for verb in (w.space.resolve, w.space.refuse, w.space.invalidate, w.space.prefetch):
        with pytest.raises(VerbsError, match="not paged"):
            verb(BASE, PAGE)


@pytest.mark.parametrize(("addr", "length"), [(BASE, 0), (BASE, -1), (-PAGE, PAGE), ((1 << 63) - 1, 2)])
def test_impossible_pages(addr: int, length: int) -> None:
    w = World()
    for verb in (w.space.resolve, w.space.refuse, w.space.invalidate, w.space.prefetch):
        with pytest.raises(VerbsError, match="wrap around"):
            verb(addr, length)
