"""Whatever arrives: every opcode in every situation, and packets in any order, leave a QP that makes sense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.spec import Service
from softrnic.verbs import QpState, QpType, WcStatus, WrOpcode
from tests.script.harness import SIZE, Op, Script

RC, UC, UD = QpType.RC, QpType.UC, QpType.UD
SITUATIONS = ["idle", "in a SEND", "in a WRITE", "after a NAK", "asked for something", "draining"]


def bring(s: Script, situation: str) -> None:
    """Put the QP into a situation; the next PSN expected of the peer is 501."""
    first = {"in a SEND": Op.SEND_FIRST, "in a WRITE": Op.WRITE_FIRST}.get(situation, Op.WRITE_ONLY)
    for wr_id in range(4):
        s.post_recv(SIZE, wr_id=wr_id)
    if s.kind == UD:
        return
    s.inject(first, 500, bytes(256), dmalen=256 if first == Op.WRITE_ONLY else 5000)
    if situation == "after a NAK":
        s.inject(Op.WRITE_ONLY, 505, bytes(8))
    elif situation == "asked for something":
        s.post(WrOpcode.SEND, 600, wr_id=100)
        if s.kind == RC:
            s.post(WrOpcode.RDMA_READ, 600, wr_id=101)
            s.post(WrOpcode.ATOMIC_FETCH_AND_ADD, wr_id=102)
    elif situation == "draining":
        s.qp.modify(QpState.SQD)
    s.flush_wire()


def check(s: Script) -> None:
    """What must hold of any QP at any time."""
    s.flush_wire()
    q = {
        name: int(s.qp.record[name])
        for name in ("sq_head", "sq_cur", "sq_hi", "sq_prod", "rd_head", "rd_done", "rd_tail")
    }
    assert s.qp.state in (QpState.RTS, QpState.SQD, QpState.SQE, QpState.ERR)
    assert q["sq_head"] <= q["sq_cur"] <= q["sq_hi"] <= q["sq_prod"]
    assert q["rd_head"] <= q["rd_tail"]
    assert q["rd_done"] <= q["rd_tail"]
    una, nxt, high = (int(s.qp.record[name]) for name in ("una_psn", "req_psn", "req_hi_psn"))
    assert 0 <= (nxt - una) % (1 << 24) <= (high - una) % (1 << 24) < 1 << 23
    for cq, limit in ((s.scq, 103), (s.rcq, 4)):
        done = cq.poll(100)
        assert [wc.wr_id for wc in done] == sorted({wc.wr_id for wc in done})
        assert all(wc.wr_id < limit for wc in done)
    for event in s.events():
        assert event.element is s.qp
    if s.qp.state == QpState.ERR:
        assert q["sq_head"] == q["sq_prod"]
        s.inject(Op.WRITE_ONLY, 501, ackreq=1)
        s.expect_nothing()


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", [RC, UC])
def test_every_opcode_of_ones_own(kind: QpType, situation: str) -> None:
    """With and without payload, at the expected PSN and at the oldest one outstanding."""
    for op in range(32):
        for psn, size in ((501, 0), (501, 8), (100, 0)):
            s = Script(kind)
            bring(s, situation)
            s.inject(op, psn, bytes(size), ackreq=1)
            assert kind == RC or s.flush_wire() == []
            check(s)


@pytest.mark.parametrize("kind", [RC, UC, UD])
def test_every_opcode_of_others(kind: QpType) -> None:
    """Opcodes of another transport, and reserved ones, change nothing."""
    own = {RC: Service.RC, UC: Service.UC, UD: Service.UD}[kind]
    with Script(kind) as s:
        bring(s, "idle")
        before = s.memory()
        for opcode in range(256):
            for size in (0, 8) if opcode & 0xE0 != own else ():
                s.inject(opcode & 0x1F, 501, bytes(size), service=opcode & 0xE0, ackreq=1)
        s.expect_nothing()
        assert s.memory() == before


OPS = [op for op in Op if op != Op.RESYNC]
packets = st.fixed_dictionaries(
    {
        "op": st.sampled_from(OPS),
        "psn": st.integers(498, 506) | st.integers(98, 108) | st.integers(0, (1 << 24) - 1),
        "size": st.sampled_from([0, 1, 8, 255, 256, 257]),
        "dmalen": st.sampled_from([0, 1, 8, 256, 300, 600, 1 << 31, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF),
        "va": st.sampled_from([0, 1, 8, SIZE - 8, SIZE, -1]),
        "rkey": st.sampled_from([0, 1]),
        "syndrome": st.sampled_from([0, 5, 0x1F, 0x21, 0x60, 0x61, 0x62, 0x63]) | st.integers(0, 255),
        "ackreq": st.integers(0, 1),
        "ns": st.sampled_from([0, 0, 0, 10**6, 10**9]),
    }
)


def deliver(s: Script, packet: dict[str, Any]) -> None:
    p = dict(packet)
    op, psn, size, ns = p.pop("op"), p.pop("psn"), p.pop("size"), p.pop("ns")
    p["va"] = (s.va + p["va"]) % (1 << 64)
    p["rkey"] ^= s.mr.rkey
    carries = op not in (Op.READ_REQUEST, Op.ACKNOWLEDGE, Op.ATOMIC_ACKNOWLEDGE, Op.COMPARE_SWAP, Op.FETCH_ADD)
    s.inject(op, psn, bytes(size if carries else 0), **p)
    s.advance(ns)
    s.flush_wire()


@given(st.sampled_from([RC, UC]), st.sampled_from(SITUATIONS), st.lists(packets, max_size=12))
def test_any_packets_in_any_order(kind: QpType, situation: str, script: list[dict[str, Any]]) -> None:
    """With a valid ICRC and from the right peer, and yet nonsense."""
    s = Script(kind, timeout=8)
    bring(s, situation)
    for packet in script:
        deliver(s, packet)
    alive = s.qp.state != QpState.ERR
    if alive:
        s.qp.modify(QpState.ERR)
    done = s.scq.poll(100)
    assert [wc.wr_id for wc in done] == list(range(100, 103))[: len(done)]
    failed = [wc.status for wc in done if wc.status != WcStatus.SUCCESS]
    assert [wc.status for wc in done[len(done) - len(failed) :]] == failed  # successes come first
    assert all(status == WcStatus.WR_FLUSH_ERR for status in (failed if alive else failed[1:]))
