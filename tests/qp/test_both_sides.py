"""What goes wrong between two devices, as both their users see it (IBTA 9.9, 11.6.2)."""

from __future__ import annotations

from typing import Any

import pytest

from softrnic.spec import Op
from softrnic.verbs import Access, EventType, QpState, QpType, RecvWr, SendWr, WcStatus, WrOpcode
from tests.pairs import ALL_ACCESS, Pair, Side

SEND, WRITE, READ = WrOpcode.SEND, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ
FAA = WrOpcode.ATOMIC_FETCH_AND_ADD
SIZE = 1 << 14


def statuses(side: Side) -> list[tuple[int, WcStatus]]:
    return [(wc.wr_id, wc.status) for wc in side.cq.poll(100)]


def events(side: Side) -> list[EventType]:
    side.device.dispatch_events()
    taken = [event.type for event in side.device.async_events]
    side.device.async_events.clear()
    return taken


def wr(p: Pair, opcode: WrOpcode, wr_id: int, length: int = 8, **fields: Any) -> SendWr:
    return SendWr(
        opcode,
        **{"sges": [p.a.mr.sge(0, length)], "remote_addr": p.b.mr.addr, "rkey": p.b.mr.rkey, **fields},
        wr_id=wr_id,
    )


def check(
    p: Pair, bad: SendWr, ours: WcStatus, theirs: list[tuple[int, WcStatus]], event: EventType, **how: Any
) -> None:
    """One good request, one bad, one behind it: what each side gets to know."""
    qa, qb = p.connect(**how)
    qb.post_recv([RecvWr([p.b.mr.sge(100 * i, 100)], 10 + i) for i in range(2)])
    qa.post_recv(RecvWr([], 20))
    good = READ if how.get("access", ALL_ACCESS) & Access.REMOTE_READ else WRITE
    qa.post_send([wr(p, good, 1), bad, wr(p, WRITE, 3)])
    p.run()
    flushed = WcStatus.WR_FLUSH_ERR
    assert statuses(p.a) == [(1, WcStatus.SUCCESS), (2, ours), (3, flushed), (20, flushed)]
    assert statuses(p.b) == theirs
    assert events(p.a) == []
    assert events(p.b) == [event]
    assert (qa.state, qb.state) == (QpState.ERR, QpState.ERR)


FLUSHED_BOTH = [(10, WcStatus.WR_FLUSH_ERR), (11, WcStatus.WR_FLUSH_ERR)]


@pytest.mark.parametrize("opcode", [WRITE, READ, FAA])
def test_bad_rkey(opcode: WrOpcode) -> None:
    p = Pair(size=SIZE)
    check(p, wr(p, opcode, 2, rkey=1), WcStatus.REM_ACCESS_ERR, FLUSHED_BOTH, EventType.QP_ACCESS_ERR)


@pytest.mark.parametrize("opcode", [WRITE, READ, FAA])
def test_beyond_the_region(opcode: WrOpcode) -> None:
    p = Pair(size=SIZE)
    bad = wr(p, opcode, 2, remote_addr=p.b.mr.addr + SIZE)
    check(p, bad, WcStatus.REM_ACCESS_ERR, FLUSHED_BOTH, EventType.QP_ACCESS_ERR)


@pytest.mark.parametrize(("opcode", "right"), [(READ, Access.REMOTE_READ), (FAA, Access.REMOTE_ATOMIC)])
def test_qp_does_not_allow_it(opcode: WrOpcode, right: Access) -> None:
    p = Pair(size=SIZE)
    bad, access = wr(p, opcode, 2), ALL_ACCESS & ~right
    check(p, bad, WcStatus.REM_INV_REQ_ERR, FLUSHED_BOTH, EventType.QP_REQ_ERR, access=access)


def test_misaligned_atomic() -> None:
    p = Pair(size=SIZE)
    bad = wr(p, FAA, 2, remote_addr=p.b.mr.addr + 4)
    check(p, bad, WcStatus.REM_INV_REQ_ERR, FLUSHED_BOTH, EventType.QP_REQ_ERR)


@pytest.mark.parametrize("length", [101, 3000])
def test_too_long_for_the_receive(length: int) -> None:
    """An invalid request to the sender, a length error to the receiver."""
    p = Pair(size=SIZE)
    theirs = [(10, WcStatus.LOC_LEN_ERR), (11, WcStatus.WR_FLUSH_ERR)]
    check(p, wr(p, SEND, 2, length), WcStatus.REM_INV_REQ_ERR, theirs, EventType.QP_REQ_ERR)


def test_receive_names_wrong_memory() -> None:
    """An operational error to the sender, a protection error to the receiver."""
    p = Pair(size=SIZE)
    p.b.mr.sge = lambda at, length, sge=p.b.mr.sge: sge(at, length)._replace(lkey=1)  # type: ignore[method-assign]
    theirs = [(10, WcStatus.LOC_PROT_ERR), (11, WcStatus.WR_FLUSH_ERR)]
    check(p, wr(p, SEND, 2), WcStatus.REM_OP_ERR, theirs, EventType.QP_FATAL)


def test_sender_names_wrong_memory() -> None:
    """The peer never hears of it."""
    p = Pair(size=SIZE)
    qa, qb = p.connect()
    qa.post_send([wr(p, WRITE, 1), wr(p, SEND, 2, sges=[p.a.mr.sge(0, 1)._replace(lkey=1)]), wr(p, WRITE, 3)])
    p.run()
    assert statuses(p.a) == [(1, WcStatus.SUCCESS), (2, WcStatus.LOC_PROT_ERR), (3, WcStatus.WR_FLUSH_ERR)]
    assert (qa.state, qb.state) == (QpState.ERR, QpState.RTS)
    assert events(p.b) == []


def test_receiver_never_ready() -> None:
    p = Pair(size=SIZE)
    qa, qb = p.connect(rnr_retry=3)
    qa.post_send([wr(p, SEND, 1), wr(p, SEND, 2)])
    p.run()
    assert statuses(p.a) == [(1, WcStatus.RNR_RETRY_EXC_ERR), (2, WcStatus.WR_FLUSH_ERR)]
    assert qb.state == QpState.RTS


def test_receiver_ready_late() -> None:
    """With rnr_retry 7 the sender waits as long as it takes."""
    p = Pair(size=SIZE)
    qa, qb = p.connect(rnr_retry=7, min_rnr_timer=20)
    qa.post_send([wr(p, SEND, i) for i in range(3)])
    late = p.now + 10 * 10**9
    p.run(until=lambda: p.now >= late)
    assert statuses(p.a) == []
    qb.post_recv([RecvWr([p.b.mr.sge(0, 8)], i) for i in range(3)])
    p.run()
    assert statuses(p.a) == statuses(p.b) == [(i, WcStatus.SUCCESS) for i in range(3)]


def test_peer_is_gone() -> None:
    p = Pair(size=SIZE)
    qa, qb = p.connect(timeout=8, retry_cnt=2)
    qb.destroy()
    qa.post_send([wr(p, WRITE, 1), wr(p, WRITE, 2)])
    p.run()
    assert statuses(p.a) == [(1, WcStatus.RETRY_EXC_ERR), (2, WcStatus.WR_FLUSH_ERR)]


def test_peer_fails_while_we_wait_for_a_read() -> None:
    """What was lost with the peer's error shows as a timeout."""
    p = Pair(size=SIZE)
    qa, qb = p.connect(timeout=8, retry_cnt=2)
    p.filter = lambda data, side: None if side is p.b else data
    qa.post_send([wr(p, READ, 1), wr(p, WRITE, 2, rkey=1)])
    p.run()
    assert statuses(p.a) == [(1, WcStatus.RETRY_EXC_ERR), (2, WcStatus.WR_FLUSH_ERR)]
    assert qb.state == QpState.ERR


@pytest.mark.parametrize("nth", range(6))
@pytest.mark.parametrize("direction", "ab")
def test_any_one_frame_lost(nth: int, direction: str) -> None:
    """Whichever frame of an exchange of every kind is lost, everything succeeds, and atomics are done once."""
    p = Pair(size=SIZE)
    qa, qb = p.connect(timeout=8)
    seen = 0

    def lose(data: bytes, side: Side) -> bytes | None:
        nonlocal seen
        if side is not (p.a if direction == "a" else p.b):
            return data
        seen += 1
        return None if seen == nth + 1 else data

    p.filter = lose
    p.a.buf[:2000] = 7
    p.b.buf[:] = 0
    qb.post_recv([RecvWr([p.b.mr.sge(8000, 100)], 10)])
    add = {"remote_addr": p.b.mr.addr + 4000, "compare_add": 5}
    read = wr(p, READ, 3, sges=[p.a.mr.sge(4000, 2000)])
    qa.post_send([wr(p, WRITE, 1, 2000), wr(p, FAA, 2, **add), read, wr(p, FAA, 4, **add), wr(p, SEND, 5, 99)])
    p.run()
    assert statuses(p.a) == [(i, WcStatus.SUCCESS) for i in range(1, 6)]
    assert statuses(p.b) == [(10, WcStatus.SUCCESS)]
    assert (p.b.buf[:2000] == 7).all()
    assert (p.a.buf[4000:6000] == 7).all()
    assert p.b.buf[4000:4008].tobytes() == (10).to_bytes(8, "little")
    assert seen > nth or direction == "b"


def test_retransmission_of_a_lost_nak() -> None:
    """A lost RNR NAK: the timeout repeats the request, which is answered with another."""
    p = Pair(size=SIZE)
    qa, qb = p.connect(timeout=8)
    naks = 0

    def lose(data: bytes, side: Side) -> bytes | None:
        nonlocal naks
        if side is p.b and data[42] == Op.ACKNOWLEDGE and data[54] >> 5 == 1:
            naks += 1
            return None if naks == 1 else data
        return data

    p.filter = lose
    qa.post_send(wr(p, SEND, 1))
    p.run(until=lambda: naks == 2)
    qb.post_recv(RecvWr([p.b.mr.sge(0, 8)], 2))
    p.run()
    assert statuses(p.a) == [(1, WcStatus.SUCCESS)]
    assert statuses(p.b) == [(2, WcStatus.SUCCESS)]


def test_datagrams_that_do_not_arrive() -> None:
    """UD: the sender never knows."""
    p = Pair(size=SIZE)
    qa, qb = p.connect(QpType.UD)
    ah = p.a.pd.create_ah(p.a.ah())
    for dqpn, qkey in ((qb.qpn, 0x1234), (qb.qpn, 9), (99, 0x1234)):
        qa.post_send(SendWr(SEND, [p.a.mr.sge(0, 8)], 1, ah=ah, dqpn=dqpn, qkey=qkey))
    p.run()
    assert statuses(p.a) == [(1, WcStatus.SUCCESS)] * 3
    assert statuses(p.b) == []
