"""Suspended QPs and devices: what is said to the peer, what stays possible, and that resuming loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.errors import VerbsError
from softrnic.verbs import Mtu, QpState, QpType, RecvWr, SendWr, WcStatus, WrOpcode
from tests.pairs import Pair

S = 1_000_000_000


def opcodes(pair: Pair, side: object) -> list[int]:
    """BTH opcodes of the frames this side has sent from now on."""
    seen: list[int] = []

    def watch(data: bytes, sender: object) -> bytes:
        if sender is side:
            seen.append(data[42])
        return data

    pair.filter = watch  # type: ignore[assignment]
    return seen


def read_all(pair: Pair, length: int) -> SendWr:
    return SendWr(WrOpcode.RDMA_READ, [pair.a.mr.sge(0, length)], 1, remote_addr=pair.b.mr.addr, rkey=pair.b.mr.rkey)


def write(pair: Pair, length: int, wr_id: int = 1) -> SendWr:
    return SendWr(
        WrOpcode.RDMA_WRITE, [pair.a.mr.sge(0, length)], wr_id, remote_addr=pair.b.mr.addr, rkey=pair.b.mr.rkey
    )


def test_silence_then_resume() -> None:
    p = Pair()
    qa, qb = p.connect()
    qb.suspend()
    assert qb.state == QpState.SUSPENDED
    assert qb.settled
    said = opcodes(p, p.b)
    qa.post_send(write(p, 3000))
    p.run(budget_ns=200_000_000)
    assert not said
    assert not p.a.cq.poll()
    assert p.b.device.counter(C.DROP_SUSPENDED) > 3
    qb.resume()
    p.run()
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]


def test_rnr_holds_a_peer_that_has_no_retry_to_spend() -> None:
    """Ten seconds away with retry_cnt 0: the RNR NAK spends none, and rnr_retry 7 is without end."""
    p = Pair()
    qa, qb = p.connect(retry_cnt=0, timeout=10, rnr_retry=7)
    p.b.buf[:] = 0
    p.a.buf[:5000] = np.arange(5000) & 0xFF
    qb.suspend("rnr", rnr_timer=24)
    qa.post_send(write(p, 5000))
    p.run(budget_ns=10 * S)
    assert not p.a.cq.poll()
    assert 200 < p.b.device.counter(C.SEND_RNR_ERR) < 300  # one per 40.96 ms
    qb.resume()
    p.run()
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]
    assert (p.b.buf[:5000] == p.a.buf[:5000]).all()


@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_a_read_response_begun_is_finished_and_no_nak_comes_into_it(policy: str) -> None:
    p = Pair(size=1 << 18)
    qa, qb = p.connect(mtu=Mtu.MTU_256)
    said = opcodes(p, p.b)
    qa.post_send(read_all(p, 40_000))
    while not said:
        p.step()
    assert 0 < len(said) < 157
    qb.suspend(policy)
    assert not qb.settled
    qa.post_send(write(p, 100, 2))
    p.run(until=lambda: qb.settled)
    assert said[0] == 0x0D
    assert said[1:156] == [0x0E] * 155
    assert said[156] == 0x0F
    p.run(budget_ns=S // 10)
    assert set(said[157:]) == (set() if policy == "silence" else {0x11})
    qb.resume()
    p.run()
    assert [wc.wr_id for wc in p.a.cq.poll()] == [1, 2]


@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_a_read_not_begun(policy: str) -> None:
    """Silence keeps its answer for later; an RNR NAK could not overtake it, so it is answered first."""
    p = Pair()
    qa, qb = p.connect()
    said = opcodes(p, p.b)
    qa.post_send(read_all(p, 100))
    n = p.a.device.engine.transmit(p.a.tx, p.now)
    p.b.device.engine.receive(p.a.tx, n, p.now)
    qb.suspend(policy)
    p.run(budget_ns=S // 20)
    assert said == ([] if policy == "silence" else [0x10])
    qb.abort()
    p.run()
    assert p.a.cq.poll()[0].ok


def test_duplicates_and_foreign_packets_get_no_answer() -> None:
    p = Pair()
    qa, qb = p.connect(timeout=10, retry_cnt=1)
    lost: list[bytes] = []

    def lose_answers(data: bytes, sender: object) -> bytes | None:
        if sender is p.b:
            lost.append(data)
            return None
        return data

    p.filter = lose_answers  # type: ignore[assignment]
    qa.post_send(write(p, 8))
    p.step()
    assert len(lost) == 1
    qb.suspend("rnr")
    p.run(budget_ns=S)
    assert len(lost) == 1
    assert p.a.cq.poll()[0].status == WcStatus.RETRY_EXC_ERR


def test_egress_stops_first() -> None:
    """In the first phase nothing new is asked, nothing times out, and what arrives is still answered."""
    p = Pair()
    qa, qb = p.connect(timeout=8, retry_cnt=0)
    qa.post_send(write(p, 100))
    n = p.a.device.engine.transmit(p.a.tx, p.now)
    qa.suspend_egress()
    qa.suspend_egress()
    assert qa.state == QpState.RTS
    p.b.device.engine.receive(p.a.tx, n, p.now)
    said = opcodes(p, p.a)
    qa.post_send(write(p, 100, 2))
    qb.post_send(SendWr(WrOpcode.RDMA_READ, [p.b.mr.sge(0, 64)], 3, remote_addr=p.a.mr.addr, rkey=p.a.mr.rkey))
    p.run(budget_ns=S)
    assert said == [0x10]
    assert [wc.wr_id for wc in p.a.cq.poll()] == [1]
    assert [wc.wr_id for wc in p.b.cq.poll()] == [3]
    qa.resume()
    p.run()
    assert [wc.wr_id for wc in p.a.cq.poll()] == [2]


def test_first_phase_is_no_timeout() -> None:
    """The local ACK timeout does not count the pause, however long it is."""
    p = Pair()
    qa, _ = p.connect(timeout=8, retry_cnt=1)
    p.filter = lambda data, sender: None
    qa.post_send(write(p, 100))
    p.step()
    qa.suspend_egress()
    p.run(budget_ns=S)
    p.now += S
    p.a.device.engine.on_timer(p.now)
    assert qa.state == QpState.RTS
    assert qa.record["retry_left"] == 1
    qa.suspend()
    qa.resume()
    p.filter = None
    qa.post_send(write(p, 100, 2))
    p.run()
    assert [wc.ok for wc in p.a.cq.poll()] == [True, True]


@pytest.mark.parametrize("end", [QpState.ERR, QpState.RESET, None])
def test_what_stays_possible(end: QpState | None) -> None:
    """Posting is queued, asking is answered, and the QP can be given up."""
    p = Pair()
    qa, _ = p.connect()
    qa.suspend()
    qa.post_recv(RecvWr([p.a.mr.sge(0, 8)], 5))
    qa.post_send(write(p, 8, 6))
    assert qa.query()["state"] == QpState.SUSPENDED
    assert qa.resumes_to == QpState.RTS
    p.run(budget_ns=S)
    assert not p.a.cq.poll()
    if end is None:
        qa.destroy()
        return
    qa.modify(end)
    p.run(budget_ns=S)
    flushed = [wc.wr_id for wc in p.a.cq.poll()]
    assert flushed == ([6, 5] if end == QpState.ERR else [])


def test_refusals() -> None:
    p = Pair()
    qp = p.a.pd.create_qp(QpType.RC, p.a.cq, p.a.cq)
    with pytest.raises(VerbsError, match="not on the wire"):
        qp.suspend()
    qa, _ = p.connect()
    with pytest.raises(VerbsError, match="policy"):
        qa.suspend("shout")
    with pytest.raises(VerbsError, match="rnr_timer"):
        qa.suspend("rnr", rnr_timer=32)
    assert qa.state == QpState.RTS
    qa.suspend()
    with pytest.raises(VerbsError, match="was suspended in RTS"):
        qa.modify(QpState.SQD)


def test_sends_need_rts_also_while_suspended() -> None:
    p = Pair()
    qp = p.a.pd.create_qp(QpType.UD, p.a.cq, p.a.cq)
    qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=1)
    qp.modify(QpState.RTR)
    qp.suspend()
    with pytest.raises(VerbsError, match="sends need RTS"):
        qp.post_send(SendWr(WrOpcode.SEND))


@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_device(policy: str) -> None:
    """All QPs of a device at once, as often as one likes; those that are on no wire are left alone."""
    p = Pair()
    pairs = [p.connect() for _ in range(3)]
    idle = p.b.pd.create_qp(QpType.RC, p.b.cq, p.b.cq)
    for qa, _ in pairs:
        qa.post_send([write(p, 9000), read_all(p, 9000)])
    p.step()
    assert not p.b.device.settled
    for _ in range(2):
        p.b.device.suspend(policy)
    assert {qb.state for _, qb in pairs} == {QpState.SUSPENDED}
    assert idle.state == QpState.RESET
    p.run(until=lambda: p.b.device.settled)
    p.run(budget_ns=S // 20)
    for _ in range(2):
        p.b.device.abort()
    p.run()
    assert sorted((wc.qpn, wc.status) for wc in p.a.cq.poll()) == [(qa.qpn, 0) for qa, _ in pairs for _ in (1, 2)]
