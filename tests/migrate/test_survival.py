"""Whether a peer lives through a pause, against the arithmetic of the specification and against a peer."""

from __future__ import annotations

import errno

import pytest

from softrnic.migrate import Peer, peer_of, survival
from softrnic.verbs import QpState, QpType, SendWr, VerbsError, WrOpcode
from tests.migrate.moving import move
from tests.pairs import Pair

MS = 1_000_000


@pytest.mark.parametrize(
    ("peer", "until_ns"),
    [
        (Peer(14, 7, 7), 7 * 4096 << 14),
        (Peer(14, 1, 7), 4096 << 14),
        (Peer(14, 0, 7), 0),
        (Peer(0, 7, 7), None),
        (Peer(14, 7, 7, "rnr"), None),
        (Peer(14, 7, 6, "rnr", rnr_timer=20), 6 * 10_240_000),
        (Peer(14, 7, 0, "rnr"), 0),
        (Peer(14, 7, 1, "rnr", rnr_timer=0), 655_360_000),
        (Peer(14, 7, 7, reliable=False), None),
        (Peer(8, 0, 0, "stop"), None),
    ],
)
def test_bounds(peer: Peer, until_ns: int | None) -> None:
    found = survival(peer, 1)
    assert found.until_ns == until_ns
    assert found.survives == (until_ns is None or until_ns > 1)
    if until_ns is not None:
        assert not survival(peer, until_ns).survives
        assert until_ns == 0 or survival(peer, until_ns - 1).survives


def test_advice() -> None:
    """Each hint alone is enough."""
    found = survival(Peer(10, 4, 7), 100 * MS)
    assert not found.survives
    assert found.advice == ("a timeout of 13 or more at the peer", 'the policy "rnr"')
    assert survival(Peer(13, 4, 7), 100 * MS).survives
    assert survival(Peer(14, 2, 0), 200 * MS).advice[1] == "a retry_cnt of 3 or more at the peer"
    held = survival(Peer(10, 3, 2, "rnr", rnr_timer=5), 100 * MS)
    assert held.advice == ("an rnr_timer of 25 or longer", "rnr_retry 7 at the peer")
    assert survival(Peer(10, 3, 2, "rnr", rnr_timer=25), 100 * MS).survives
    assert survival(Peer(10, 3, 1, "rnr"), 10_000 * MS).advice == ("rnr_retry 7 at the peer",)


def test_what_if_an_answer_was_lost() -> None:
    """An RNR NAK does not help a peer that asks for the answer again; NAK 5 does."""
    assert survival(Peer(10, 4, 7, "rnr"), 1).if_lost_ns == 4 * 4096 << 10
    assert survival(Peer(10, 4, 7, "stop"), 1).if_lost_ns is None
    assert survival(Peer(0, 4, 7, "rnr"), 1).if_lost_ns is None


def test_what_the_peer_is_known_to_wait_for() -> None:
    p = Pair()
    qa, qb = p.connect()
    assert qb.survival(MS).waiting == ()
    to = {"remote_addr": p.b.mr.addr, "rkey": p.b.mr.rkey}
    qa.post_send([
        SendWr(WrOpcode.RDMA_READ, [p.a.mr.sge(0, 8)], 1, **to),
        SendWr(WrOpcode.ATOMIC_FETCH_AND_ADD, [p.a.mr.sge(8, 8)], 2, compare_add=1, **to),
        SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 8)], 3, **to),
        SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 2048)], 4, **to),
    ])  # fmt: skip
    n = p.a.device.engine.transmit(p.a.tx, p.now)
    p.b.device.engine.receive(p.a.tx, n - 1, p.now)
    qb.suspend()
    found = qb.survival(MS, "rnr")
    assert found.survives
    assert found.waiting == (
        "2 READs or atomics without their answer", "an acknowledgement not yet sent",
        "the rest of a message that it is sending",
    )  # fmt: skip
    assert qa.survival(MS).waiting == ()


def test_the_policy_of_a_peer_that_has_not_agreed() -> None:
    p = Pair()
    qa, _ = p.connect(rnr_retry=2)
    assert qa.survival(MS, "stop").until_ns == 2 * 10_240_000
    qa.peer_may_stop = True
    assert qa.survival(MS, "stop").until_ns is None
    with pytest.raises(VerbsError, match="not one of silence, rnr, stop"):
        qa.survival(MS, "shout")


# --- patience -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjusted", [False, True])
def test_patience_for_a_peer_that_moves(adjusted: bool) -> None:
    """A second of silence with a budget of 4 ms; what was asked for stays what it was."""
    p = Pair()
    qa, qb = p.connect(timeout=8, retry_cnt=3, rnr_retry=1)
    requested = {"timeout": 8, "retry_cnt": 3, "rnr_retry": 1}
    assert qa.query()["effective"] == requested
    if adjusted:
        qa.adjust(timeout=17, retry_cnt=7)
        assert qa.query()["effective"] == {"timeout": 17, "retry_cnt": 7, "rnr_retry": 1}
    assert qa.requested == requested
    assert qa.query()["timeout"] == 8
    qb.suspend()
    qa.post_send(SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 8)], 1, remote_addr=p.b.mr.addr, rkey=p.b.mr.rkey))
    p.run(budget_ns=1000 * MS)
    assert qa.state == (QpState.RTS if adjusted else QpState.ERR)
    qb.resume()
    p.run()
    assert [wc.ok for wc in p.a.cq.poll()] == [adjusted]
    if adjusted:
        qa.adjust()
        assert qa.effective == requested


def test_retries_already_spent_stay_spent() -> None:
    p = Pair()
    qa, _ = p.connect(retry_cnt=5, rnr_retry=4)
    qa.record["retry_left"], qa.record["rnr_left"] = 3, 0
    qa.adjust(retry_cnt=7, rnr_retry=6)
    assert (int(qa.record["retry_left"]), int(qa.record["rnr_left"])) == (5, 2)
    qa.adjust(retry_cnt=1)
    assert (int(qa.record["retry_left"]), int(qa.record["rnr_left"])) == (0, 0)
    qa.adjust()
    assert (int(qa.record["retry_left"]), int(qa.record["rnr_left"])) == (4, 0)


def test_what_is_requested_meanwhile_holds_afterwards() -> None:
    p = Pair()
    qa, _ = p.connect(timeout=8, retry_cnt=3)
    qa.adjust(timeout=20)
    qa.modify(QpState.SQD)
    qa.modify(timeout=10, retry_cnt=2)
    assert qa.effective == {"timeout": 20, "retry_cnt": 2, "rnr_retry": 7}
    qa.modify(QpState.RTS)
    qa.adjust()
    assert qa.effective == {"timeout": 10, "retry_cnt": 2, "rnr_retry": 7}
    qa.adjust(timeout=20)
    qa.modify(QpState.RESET)
    assert qa.adjusted == {}


def test_both_move_along() -> None:
    p = Pair()
    p.a.qps, p.b.qps = [], []
    qa, _ = p.connect(timeout=8, retry_cnt=3)
    qa.adjust(timeout=17, rnr_retry=7)
    move(p, p.a)
    (qa,) = p.a.qps
    assert qa.effective == {"timeout": 17, "retry_cnt": 3, "rnr_retry": 7}
    assert qa.requested == {"timeout": 8, "retry_cnt": 3, "rnr_retry": 7}
    qa.adjust()
    assert qa.effective == qa.requested


def test_refusals() -> None:
    p = Pair()
    qa, _ = p.connect()
    for wrong in ({"timeout": 32}, {"retry_cnt": -1}, {"rnr_retry": 8}):
        with pytest.raises(VerbsError) as error:
            qa.adjust(**wrong)
        assert error.value.errno == errno.EINVAL
    assert qa.effective == qa.requested
    uc, _ = p.connect(QpType.UC)
    for qp in (uc, p.a.pd.create_qp(QpType.RC, p.a.cq, p.a.cq)):
        with pytest.raises(VerbsError, match="waits for nobody"):
            qp.adjust(timeout=3)


@pytest.mark.parametrize("policy", ["silence", "rnr"])
@pytest.mark.parametrize("late", [False, True])
def test_against_a_peer(policy: str, late: bool) -> None:
    """A peer that begins to send when the pause begins lives just as long as said."""
    p = Pair()
    qa, qb = p.connect(timeout=9, retry_cnt=2, rnr_retry=3)
    found = survival(peer_of(qb, policy, 18), 1)
    assert found.until_ns is not None
    qb.suspend(policy, rnr_timer=18)
    qa.post_send(SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 8)], 1, remote_addr=p.b.mr.addr, rkey=p.b.mr.rkey))
    end = p.now + found.until_ns + (4 * MS if late else -MS)
    while p.now < end:
        p.step()
        p.now += 50_000
        p.a.device.engine.on_timer(p.now)
    qb.resume()
    p.run()
    assert [wc.ok for wc in p.a.cq.poll()] == [not late]
