"""The engine as the models' opposite number: one QP of a device, packets in, packets out."""

from __future__ import annotations

import numpy as np

from softrnic.layout import FRAME_HEADROOM, make_ring
from softrnic.verbs import Access, AhAttr, Cq, Device, Mr, Mtu, QpCap, QpState, QpType, RecvWr, SendWr, Sge, Wc
from tests.model.packets import Packet, Path, decode, encode

OWN_MAC, PEER_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
OWN_IP, PEER_IP = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
PEER_QPN = 0x456
MEMORY = 1 << 15
OWN_KEY = 0x00FFFF00  # of a region over everything, for our own work requests
CQ_ENTRIES = 256
RECEIVES, SENDS = 32, 32


class Nic:
    """A device with one RC queue pair in RTS, its memory a picture of `content`."""

    def __init__(
        self, content: bytes, *, epsn: int, sq_psn: int, mtu: Mtu, access: Access, depth: int, max_rd_atomic: int,
        rnr_timer: int = 1, timeout: int = 8, retry_cnt: int = 7, rnr_retry: int = 7,
    ) -> None:  # fmt: skip
        self.device = Device("model")
        self.device.add_gid("10.0.0.1", OWN_MAC)
        self.now = 1_000_000
        self.memory = np.frombuffer(bytearray(content), np.uint8)
        self.pd = self.device.alloc_pd()
        self.cq: Cq = self.device.create_cq(CQ_ENTRIES)
        self.own: Mr = self.pd.reg_mr(self.memory, Access.LOCAL_WRITE, iova=0, key=OWN_KEY)
        cap = QpCap(SENDS, RECEIVES, 4, 4, 0)
        self.qp = self.pd.create_qp(QpType.RC, self.cq, self.cq, cap)
        self.qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=access)
        self.qp.modify(
            QpState.RTR, ah=AhAttr("10.0.0.2", 0, PEER_MAC), path_mtu=mtu, dqpn=PEER_QPN, rq_psn=epsn,
            max_dest_rd_atomic=depth, min_rnr_timer=rnr_timer,
        )  # fmt: skip
        self.qp.modify(
            QpState.RTS, sq_psn=sq_psn, timeout=timeout, retry_cnt=retry_cnt, rnr_retry=rnr_retry,
            max_rd_atomic=max_rd_atomic,
        )  # fmt: skip
        self._path = Path(PEER_MAC, OWN_MAC, PEER_IP, OWN_IP, self.qp.qpn)
        self._ring = make_ring(8)

    def close(self) -> None:
        """Destroy everything."""
        self.device.close()

    def register(self, key: int, offset: int, length: int, iova: int, access: Access) -> Mr:
        """A region over part of the memory."""
        return self.pd.reg_mr(self.memory[offset : offset + length], access, iova=iova, key=key)

    def post_recv(self, wr_id: int, pieces: list[tuple[int | None, int]]) -> None:
        """A receive; a piece without an offset names memory by a key that does not exist."""
        sges = [Sge(0, n, 0xBAD) if at is None else Sge(at, n, OWN_KEY) for at, n in pieces]
        self.qp.post_recv(RecvWr(sges, wr_id))

    def post_send(self, wr: SendWr) -> None:
        """A send work request."""
        self.qp.post_send(wr)

    def receive(self, packet: Packet) -> None:
        """A packet from the peer."""
        frame = np.frombuffer(encode(packet, self._path), np.uint8)
        self._ring.slab[FRAME_HEADROOM : FRAME_HEADROOM + len(frame)] = frame
        self._ring.frames[0] = (FRAME_HEADROOM, len(frame), 0, 0, 0)
        self.now += 100
        self.device.engine.receive(self._ring, 1, self.now)

    def transmit(self) -> list[Packet]:
        """Everything the engine has to send."""
        out = []
        while True:
            n = self.device.engine.transmit(self._ring, self.now)
            for frame in self._ring.frames[:n]:
                at = int(frame["off"])
                out.append(decode(self._ring.slab[at : at + int(frame["len"])].tobytes()))
            if n < len(self._ring.frames):
                return out

    def expire(self, now: int) -> None:
        """Time has passed."""
        self.now = max(self.now, now)
        self.device.engine.on_timer(self.now)

    def poll(self) -> list[Wc]:
        """All completions there are."""
        return self.cq.poll(CQ_ENTRIES)
