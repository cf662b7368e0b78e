"""Moving one side of a Pair to a fresh device, and a script in which every opcode occurs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from softrnic.layout import make_ring
from softrnic.migrate import restore, save
from softrnic.spec import Access
from softrnic.verbs import (
    AhAttr,
    Device,
    Mr,
    Mtu,
    Mw,
    Qp,
    QpCap,
    QpType,
    RecvWr,
    SendFlags,
    SendWr,
    WcStatus,
    WrOpcode,
)  # fmt: skip
from tests.pairs import ALL_ACCESS, Pair, Side

SIZE = 1 << 15
FENCED = SendFlags.SIGNALED | SendFlags.FENCE
Results = dict[str, tuple[list[tuple[int, ...]], bytes]]


def settle(pair: Pair, side: Side) -> None:
    """Carry what a suspended device has to finish."""
    other = pair.b if side is pair.a else pair.a
    while not side.device.settled:
        n = side.device.engine.transmit(side.tx, pair.now)
        other.device.engine.receive(side.tx, n, pair.now)


def move(pair: Pair, side: Side, policy: str = "silence", pause: Callable[[], None] = lambda: None) -> bytes:
    """Suspend, save, restore on a new device with new memory, resume: what was saved."""
    old = side.device
    old.suspend(policy)
    settle(pair, side)
    data = save(old, {side.mr.key: "buf"})
    pause()
    side.device = Device(old.name)
    side.buf = side.buf.copy()
    made = restore(side.device, data, {"buf": side.buf})
    assert save(side.device, {side.mr.key: "buf"}) == data
    side.pd, side.cq, side.mr = made.pds[0], made.cqs[side.cq.cqn], made.mrs[side.mr.key]
    side.qps = [made.qps[qp.qpn] for qp in side.qps]
    old.close()
    side.device.resume()
    return data


class Everything:
    """All opcodes both ways over RC, those there are over UC and UD, and local operations; one packet at a time.

    `stop`: the RC QPs have agreed on NAK 5 and RESUME.
    """

    def __init__(
        self, seed: int = 1, *, kinds: tuple[QpType, ...] = (QpType.RC, QpType.UC, QpType.UD), stop: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.pair = p = Pair(size=SIZE)
        self.results: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}
        for kind in kinds:
            qps = p.connect(kind, mtu=Mtu.MTU_256, cap=QpCap(32, 32, 4, 4, 64), psn=(0xFFFFF8, 0xFFFFFC), rd_atomic=2)
            for qp in qps if stop and kind == QpType.RC else ():
                qp.peer_may_stop = True
        for side, peer in ((p.a, p.b), (p.b, p.a)):
            side.tx = make_ring(1)
            side.buf[:] = rng.integers(0, 256, SIZE)
            for qp in side.qps:
                for i in range(16):
                    qp.post_recv(RecvWr([side.mr.sge(1024 * i, 100), side.mr.sge(1024 * i + 200, 600)], 100 + i))
            windows = [side.pd.alloc_mw(2), peer.pd.alloc_mw(2)] if QpType.RC in kinds else []
            self._bind_windows(side, peer, windows)
        for side, peer in ((p.a, p.b), (p.b, p.a)):
            for qp in side.qps:
                self._post(side, peer, qp)

    def _bind_windows(self, side: Side, peer: Side, windows: list[Mw]) -> None:
        """A window at the peer for SEND_WITH_INV, and one here for LOCAL_INV."""
        for mw, at in zip(windows, (side, peer), strict=False):
            at.qps[0].post_send(
                SendWr(
                    WrOpcode.BIND_MW, wr_id=40, rkey=mw.rkey, remote_addr=at.mr.iova, bind_mr=at.mr, bind_length=4096,
                    access=Access.REMOTE_READ,
                )
            )  # fmt: skip
        self.run()
        if windows:
            side.local, side.invalidated = windows  # type: ignore[attr-defined]

    def _post(self, side: Side, peer: Side, qp: Qp) -> None:
        mr, to = side.mr, {"remote_addr": peer.mr.iova + 20_000, "rkey": peer.mr.rkey}
        sges = [mr.sge(18_000, 300), mr.sge(18_500, 250)]
        if qp.type == QpType.UD:
            ah = side.pd.create_ah(AhAttr(side.peer_ip, side.gid, side.peer_mac))
            dst = {"ah": ah, "dqpn": peer.qps[side.qps.index(qp)].qpn, "qkey": 0x1234}
            qp.post_send(SendWr(WrOpcode.SEND, [mr.sge(17_000, 99)], 1, **dst))
            qp.post_send(SendWr(WrOpcode.SEND_WITH_IMM, [mr.sge(17_000, 256)], 2, imm=7, **dst))
            return
        posts = [
            SendWr(WrOpcode.SEND, sges, 1),
            SendWr(WrOpcode.RDMA_WRITE, sges, 2, remote_addr=to["remote_addr"] + 1000, rkey=to["rkey"]),
            SendWr(WrOpcode.SEND_WITH_IMM, (), 3, SendFlags.SIGNALED | SendFlags.SOLICITED, imm=33, inline=b"inline"),
            SendWr(WrOpcode.RDMA_WRITE_WITH_IMM, [mr.sge(19_000, 513)], 4, imm=44, **to),
        ]
        if qp.type == QpType.RC:
            atomic = {"remote_addr": peer.mr.iova + 28_000, "rkey": peer.mr.rkey}
            source = {"remote_addr": peer.mr.iova + 22_000, "rkey": peer.mr.rkey}
            posts += [
                SendWr(WrOpcode.RDMA_READ, [mr.sge(24_000, 100), mr.sge(24_200, 700)], 5, **source),
                SendWr(WrOpcode.ATOMIC_FETCH_AND_ADD, [mr.sge(25_000, 8)], 6, compare_add=5, **atomic),
                SendWr(WrOpcode.ATOMIC_CMP_AND_SWP, [mr.sge(25_008, 8)], 7, compare_add=1, swap=2, **atomic),
                SendWr(WrOpcode.SEND_WITH_INV, sges, 8, imm=side.invalidated.rkey),  # type: ignore[attr-defined]
                SendWr(WrOpcode.LOCAL_INV, wr_id=9, rkey=side.local.rkey, flags=FENCED),  # type: ignore[attr-defined]
                SendWr(WrOpcode.RDMA_WRITE, [mr.sge(26_000, 0)], 10, **to),
                SendWr(WrOpcode.RDMA_READ, [mr.sge(27_000, 256)], 11, FENCED, **to),
            ]  # fmt: skip
        qp.post_send(posts)

    def run(self, at: int = -1, then: Callable[[], None] | None = None) -> int:
        """Carry one packet after the other to the end; `then` is called after packet `at`. How many there were."""
        p, count = self.pair, 0
        if at == 0 and then:
            then()
        while True:
            busy = False
            for src, dst in ((p.a, p.b), (p.b, p.a)):
                n = src.device.engine.transmit(src.tx, p.now)
                if n:
                    busy = True
                    dst.device.engine.receive(src.tx, n, p.now)
                    count += 1
                    if count == at and then:
                        then()
            p.now += 1000
            if busy:
                continue
            deadlines = [d for s in (p.a, p.b) if (d := s.device.engine.next_deadline()) is not None]
            if not deadlines:
                return count
            p.now = max(p.now, min(deadlines))
            for side in (p.a, p.b):
                side.device.engine.on_timer(p.now)

    def poll(self) -> None:
        """Take the completions there are."""
        for name, side in (("a", self.pair.a), ("b", self.pair.b)):
            while taken := side.cq.poll(64):
                self.results[name] += [
                    (w.qpn, w.wr_id, w.status, w.opcode, w.byte_len, w.imm * (w.wc_flags == 2), w.wc_flags)
                    for w in taken
                ]

    def outcome(self) -> Results:
        """Completions of both sides in the order of each QP and queue, and both memories."""
        self.poll()
        found: Results = {}
        for name, side in (("a", self.pair.a), ("b", self.pair.b)):
            rows = sorted(self.results[name], key=lambda row: (row[0], row[3] >= 128))  # stable: order is kept
            found[name] = rows, side.buf.tobytes()
        return found


def all_good(outcome: Results) -> bool:
    return all(row[2] == WcStatus.SUCCESS for rows, _ in outcome.values() for row in rows)


__all__ = ["ALL_ACCESS", "Everything", "Mr", "all_good", "move", "settle"]
