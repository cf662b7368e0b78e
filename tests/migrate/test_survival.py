"""Whether a peer lives through a pause, against the arithmetic of the specification and against a peer."""

from __future__ import annotations

import pytest

from softrnic.migrate import Peer, peer_of, survival
from softrnic.verbs import SendWr, WrOpcode
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
