"""Two devices joined by a wire in memory and a clock in hand: what most tests of the transport stand on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameRing, make_ring
from softrnic.verbs import Access, AhAttr, Cq, Device, Mr, Mtu, Pd, Qp, QpCap, QpState, QpType

MAC = (b"\x02\x00\x00\x00\x00\x0a", b"\x02\x00\x00\x00\x00\x0b")
IPV4 = ("10.0.0.1", "10.0.0.2")
IPV6 = ("fd00::1", "fd00::2")
ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC | Access.MW_BIND


class Side:
    """One device with a PD, a CQ, a buffer registered with every right, and its rings."""

    def __init__(self, which: int, *, size: int, ips: tuple[str, str], offload: bool, cqe: int) -> None:
        self.device = Device(f"sr{which}")
        if offload:
            self.device.engine.set_offload(65535, 64)
        self.gid = self.device.add_gid(ips[which], MAC[which])
        self.peer_ip, self.peer_mac = ips[1 - which], MAC[1 - which]
        self.pd: Pd = self.device.alloc_pd()
        self.cq: Cq = self.device.create_cq(cqe)
        self.buf = np.zeros(size, np.uint8)
        self.mr: Mr = self.pd.reg_mr(self.buf, ALL_ACCESS)
        self.tx = make_ring(8)
        self.qps: list[Qp] = []

    def ah(self) -> AhAttr:
        """The way to the other side."""
        return AhAttr(self.peer_ip, self.gid, self.peer_mac)


class Pair:
    """Two sides, `a` and `b`. `filter(frame bytes, from_side)` may drop a frame by returning None, or change it."""

    def __init__(
        self, *, size: int = 1 << 16, ips: tuple[str, str] = IPV4, offload: bool = False, cqe: int = 1024
    ) -> None:
        self.a = Side(0, size=size, ips=ips, offload=offload, cqe=cqe)
        self.b = Side(1, size=size, ips=ips, offload=offload, cqe=cqe)
        self.now = 1_000_000
        self.filter: Callable[[bytes, Side], bytes | None] | None = None
        self.frames: list[tuple[str, bytes]] = []

    def connect(
        self,
        kind: QpType = QpType.RC,
        *,
        mtu: Mtu = Mtu.MTU_1024,
        cap: QpCap | None = None,
        psn: tuple[int, int] = (100, 200),
        rd_atomic: int = 16,
        timeout: int = 14,
        retry_cnt: int = 7,
        rnr_retry: int = 7,
        min_rnr_timer: int = 1,
        access: Access = ALL_ACCESS,
        sq_sig_all: bool = False,
    ) -> tuple[Qp, Qp]:
        """A connected pair of QPs, both in RTS."""
        cap = cap or QpCap(128, 128, 4, 4, 64)
        qps = [s.pd.create_qp(kind, s.cq, s.cq, cap, sq_sig_all=sq_sig_all) for s in (self.a, self.b)]
        for i, (side, qp) in enumerate(zip((self.a, self.b), qps, strict=True)):
            side.qps.append(qp)
            peer = qps[1 - i]
            if kind in (QpType.UD, QpType.GSI):
                qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=0x1234)
                qp.modify(QpState.RTR)
                qp.modify(QpState.RTS, sq_psn=psn[i])
                continue
            qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=access)
            path = {"ah": side.ah(), "path_mtu": mtu, "dqpn": peer.qpn, "rq_psn": psn[1 - i]}
            if kind == QpType.RC:
                qp.modify(QpState.RTR, **path, max_dest_rd_atomic=rd_atomic, min_rnr_timer=min_rnr_timer)
                qp.modify(
                    QpState.RTS, sq_psn=psn[i], timeout=timeout, retry_cnt=retry_cnt, rnr_retry=rnr_retry,
                    max_rd_atomic=rd_atomic,
                )  # fmt: skip
            else:
                qp.modify(QpState.RTR, **path)
                qp.modify(QpState.RTS, sq_psn=psn[i])
        return qps[0], qps[1]

    def step(self) -> int:
        """Carry what both sides have to send right now; the number of frames carried."""
        carried = 0
        for src, dst in ((self.a, self.b), (self.b, self.a)):
            n = src.device.engine.transmit(src.tx, self.now)
            carried += n
            if n == 0:
                continue
            if self.filter is None:
                dst.device.engine.receive(src.tx, n, self.now)
            else:
                self._carry_filtered(src, dst, n)
        return carried

    def _carry_filtered(self, src: Side, dst: Side, n: int) -> None:
        assert self.filter is not None
        for i in range(n):
            frame = src.tx.frames[i]
            off, length = int(frame["off"]), int(frame["len"])
            data = self.filter(src.tx.slab[off : off + length].tobytes(), src)
            if data is not None:
                deliver(dst.device, data, self.now, int(frame["seg"]))

    def run(self, *, until: Callable[[], bool] | None = None, budget_ns: int = 60_000_000_000) -> None:
        """Carry frames and jump the clock to the next timer until nothing is left to do, or `until` says stop."""
        end = self.now + budget_ns
        while until is None or not until():
            if self.step():
                self.now += 1000
                continue
            deadlines = [d for s in (self.a, self.b) if (d := s.device.engine.next_deadline()) is not None]
            if not deadlines or min(deadlines) > end:
                return
            self.now = max(self.now + 1, min(deadlines))
            for side in (self.a, self.b):
                side.device.engine.on_timer(self.now)


def deliver(device: Device, data: bytes, now: int, seg: int = 0) -> None:
    """Give one frame to a device."""
    ring = _one(data, seg)
    device.engine.receive(ring, 1, now)


def _one(data: bytes, seg: int) -> FrameRing:
    ring = make_ring(1)
    ring.slab[FRAME_HEADROOM : FRAME_HEADROOM + len(data)] = np.frombuffer(data, np.uint8)
    ring.frames[0] = (FRAME_HEADROOM, len(data), seg, 0, 0)
    assert len(data) + FRAME_HEADROOM <= FRAME_STRIDE
    return ring
