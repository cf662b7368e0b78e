"""What seeds have found, each reduced to the few packets that show it."""

from __future__ import annotations

from softrnic.verbs import QpState, RecvWr, SendWr, WcStatus, WrOpcode
from tests.pairs import Pair, Side


def test_a_peer_not_ready_for_long_outlives_stray_losses() -> None:
    """Losses between two RNR NAKs do not add up: seven retries are meant for a peer that says nothing at all."""
    pair = Pair()
    qa, qb = pair.connect(timeout=8, retry_cnt=7, rnr_retry=7, min_rnr_timer=1)
    sent = 0

    def lose_every_other_request(frame: bytes, src: Side) -> bytes | None:
        nonlocal sent
        if src is pair.a:
            sent += 1
        return None if src is pair.a and sent % 2 else frame

    pair.filter = lose_every_other_request
    qa.post_send(SendWr(WrOpcode.SEND, [pair.a.mr.sge(0, 10)], wr_id=1))
    pair.run(until=lambda: sent > 60)
    qb.post_recv(RecvWr([pair.b.mr.sge(0, 100)]))
    pair.run()
    assert [wc.status for wc in pair.a.cq.poll()] == [WcStatus.SUCCESS]


def test_an_rnr_nak_that_comes_twice_spends_one_retry() -> None:
    pair = Pair()
    qa, qb = pair.connect(rnr_retry=1, min_rnr_timer=14)
    pair.filter = lambda frame, src: frame

    def twice() -> None:
        n = pair.b.device.engine.transmit(pair.b.tx, pair.now)
        assert n == 1
        for _ in range(2):
            pair.a.device.engine.receive(pair.b.tx, n, pair.now)

    qa.post_send(SendWr(WrOpcode.SEND, [pair.a.mr.sge(0, 10)], wr_id=1))
    n = pair.a.device.engine.transmit(pair.a.tx, pair.now)
    pair.b.device.engine.receive(pair.a.tx, n, pair.now)
    twice()
    assert qa.state == QpState.RTS
    qb.post_recv(RecvWr([pair.b.mr.sge(0, 100)]))
    pair.run()
    assert [wc.status for wc in pair.a.cq.poll()] == [WcStatus.SUCCESS]
